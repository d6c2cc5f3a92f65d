"""Views of padded images: each is what the network makes of the image alone, mirrored or resized, and brought back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASSES
from tiny_dense import TinyDense

from jaxcnn.config import VOID, base_config
from jaxcnn.models.resizing import resize
from jaxcnn.tasks import create_task
from jaxcnn.training.evaluation import make_views_step

SIZES = [(7, 9), (10, 6), (10, 12)]
CANVAS = (10, 12)


@pytest.fixture(scope="module")
def case() -> Any:
    """A network, its variables, images of several sizes, and a batch of them within a canvas."""
    model, rng = TinyDense(norm=False), np.random.default_rng(0)
    images = [rng.normal(0, 1, (*size, 3)).astype(np.float32) for size in SIZES]
    variables = model.init(jax.random.key(0), jnp.zeros((1, *CANVAS, 3)))
    canvas = rng.normal(0, 1, (3, *CANVAS, 3)).astype(np.float32)  # what is around an image is of no matter
    labels = np.full((3, *CANVAS), VOID, np.uint8)
    for i, ((height, width), image) in enumerate(zip(SIZES, images, strict=True)):
        canvas[i, :height, :width] = image
        labels[i, :height, :width] = rng.integers(0, CLASSES, (height, width))
    batch = {
        "image": canvas, "label_map": labels, "sizes": np.array(SIZES, np.int32),
        "mask": np.ones(3, np.float32), "example": np.arange(3, dtype=np.int32),
    }  # fmt: skip
    return model, variables, images, batch


def probabilities(model: Any, variables: Any, image: np.ndarray, scale: float, mirrored: bool) -> np.ndarray:
    """The softmax of one view, from the image alone."""
    x, size = jnp.asarray(image)[None], image.shape[:2]
    if scale != 1:
        seen = (round(scale * size[0]), round(scale * size[1]))
        x = resize(x, seen, aligned_corners=False, antialias=False)
    logits = model.apply(variables, x[:, :, ::-1] if mirrored else x)["logits"]
    logits = logits[:, :, ::-1] if mirrored else logits
    if scale != 1:
        logits = resize(logits, size, aligned_corners=False, antialias=False)
    return np.asarray(jax.nn.softmax(logits)[0], np.float64)


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((1.0,), True), ((0.5, 1.0, 1.5), True)])
def test_each_pixel_has_the_mean_softmax_of_the_views_of_its_image_alone(case, scales, flip):
    model, variables, images, batch = case
    seen: dict[str, Any] = {}
    task: Any = create_task(base_config("segmentation"))
    task.measure = lambda outputs, _: seen.update(outputs) or {}
    step = make_views_step(model, task, lambda batch, _: batch, scales, flip)
    step(variables, {key: jnp.asarray(value) for key, value in batch.items()})
    for i, image in enumerate(images):
        views = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
        mean = np.mean([probabilities(model, variables, image, *view) for view in views], axis=0)
        height, width = image.shape[:2]
        found = jax.nn.softmax(seen["logits"][i, :height, :width])
        np.testing.assert_allclose(found, mean, atol=2e-5)
        np.testing.assert_allclose(np.exp(seen["logits"][i, :height, :width]).sum(-1), 1, atol=1e-5)
