"""Faster R-CNN against torchvision's (tests/golden), and what does not depend on canvases, devices and targets."""

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import entry, golden, norms, shapes_of
from nets import count, filled, quick

from jaxcnn.models import create_model
from jaxcnn.models.matching import BACKGROUND
from jaxcnn.models.resizing import resize
from jaxcnn.weights.torchvision import from_state_dict, to_state_dict

TV = "faster_rcnn_resnet50_fpn_tv"
DATA = golden("detection.npz")
FACTORS = [
    (r"layer\d\.\d\.bn3\.weight$", 0.2),
    (r"^rpn\.head\.cls_logits\.", 0.2),
    (r"^rpn\.head\.bbox_pred\.", 0.02),
    (r"box_predictor\.cls_score\.", 0.15),
    (r"box_predictor\.bbox_pred\.", 0.1),
]
GOLDEN: dict[str, Any] = {
    "rpn_pre_nms": (200, 150), "rpn_post_nms": (120, 60), "score_threshold": 0.07, "nms_threshold": 0.5,
    "detections": 50, "rpn_samples": 10**6, "box_samples": 10**6,
}  # fmt: skip


def state_dict() -> dict[str, np.ndarray]:
    """The weights that the outputs were computed with."""
    weights = {key: entry(key, shape) for key, shape in shapes_of("fasterrcnn_resnet50_fpn").items()}
    for key in weights:
        for pattern, factor in FACTORS:
            if re.search(pattern, key):
                weights[key] = weights[key] * np.float32(factor)
    return weights


@cache
def variables() -> Any:
    return from_state_dict(TV, state_dict())


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pictures as torchvision transforms them: images, their sizes on the canvas, and those of the pictures."""
    rng = np.random.default_rng(int(DATA["seed"]))
    canvas, sizes = np.zeros((2, 160, 192, 3), np.float32), DATA["resized_hw"].astype(np.int32)
    for i, (h, w) in enumerate(DATA["image_hw"]):
        picture = (rng.random((h, w, 3)).astype(np.float32) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        height, width = (int(side) for side in sizes[i])
        resized = resize(jnp.asarray(picture[None], jnp.float32), (height, width), aligned_corners=False, antialias=False)
        canvas[i, :height, :width] = resized[0]
    return canvas, sizes, DATA["image_hw"]


def assert_near(found: Any, name: str, tolerance: float = 1e-4) -> None:
    """Both arrays agree to this part of the largest magnitude."""
    expected = DATA[name]
    assert found.shape == expected.shape, name
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max(), name


def test_evaluation_is_torchvisions():
    images, sizes, pictures = batch()
    model: Any = create_model(TV, 21, jnp.float32, **GOLDEN)
    outputs = jax.device_get(quick(model.apply)(variables(), images, sizes))
    start = 0
    for level, (name, step) in enumerate(
        {"p_stage1": 8, "p_stage2": 4, "p_stage3": 2, "p_stage4": 1, "p_pool": 1}.items()
    ):
        x = outputs[name]
        assert_near(x[:, ::step, ::step, ::32], f"fpn/{'pool' if name == 'p_pool' else level}")
        rows, columns = x.shape[1:3]
        part, every = slice(start, start := start + 3 * rows * columns), max(1, step // 2)
        for found, key, width in (("rpn_logits", "objectness", 3), ("rpn_deltas", "deltas", 12)):
            cells = outputs[found][:, part].reshape(2, rows, columns, width)
            assert_near(cells[:, ::every, ::every], f"rpn/{key}{level}")
    assert outputs["roi_valid"].all()
    for i in (0, 1):
        np.testing.assert_allclose(outputs["rois"][i], DATA[f"proposals{i}"], atol=1e-2)
    logits, deltas = outputs["box_logits"].reshape(120, 21), outputs["box_deltas"].reshape(120, 84)
    assert_near(logits, "box/logits")
    assert_near(deltas[::2], "box/regression")
    for i in (0, 1):
        assert outputs["valid"][i].all()
        np.testing.assert_array_equal(outputs["labels"][i], DATA[f"detections{i}/labels"])
        np.testing.assert_allclose(outputs["scores"][i], DATA[f"detections{i}/scores"], atol=1e-4)
        ratio = np.tile((pictures[i] / sizes[i])[::-1], 2)
        np.testing.assert_allclose(outputs["boxes"][i] * ratio, DATA[f"detections{i}/boxes"], atol=1e-2)


def targets(pictures: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """The objects on the canvas, in room for five."""
    boxes, labels, valid = np.zeros((2, 5, 4), np.float32), np.zeros((2, 5), np.int32), np.zeros((2, 5), bool)
    for i in (0, 1):
        objects = DATA[f"train/gt_boxes{i}"]
        boxes[i, : len(objects)] = objects * np.tile((sizes[i] / pictures[i])[::-1], 2)
        labels[i, : len(objects)], valid[i, : len(objects)] = DATA[f"train/gt_labels{i}"], True
    return {"boxes": boxes, "labels": labels, "valid": valid, "example": np.arange(2, dtype=np.int32)}


def losses(outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """torchvision's four."""

    def smooth_l1(x: jax.Array) -> jax.Array:
        return jnp.where(jnp.abs(x) < 1 / 9, 4.5 * x * x, jnp.abs(x) - 1 / 18)

    matches, labels = outputs["rpn_matches"], outputs["roi_labels"]
    used, seen = matches >= BACKGROUND, outputs["roi_valid"]
    entropy = jnp.logaddexp(0, outputs["rpn_logits"]) - outputs["rpn_logits"] * (matches >= 0)
    regression = smooth_l1(outputs["rpn_deltas"] - outputs["rpn_targets"]).sum(-1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(outputs["box_logits"]), labels[..., None], -1)[..., 0]
    own = jnp.take_along_axis(outputs["box_deltas"], labels[..., None, None], 2)[:, :, 0]
    boxes = smooth_l1(own - outputs["box_targets"]).sum(-1)
    return {
        "objectness": (entropy * used).sum() / used.sum(),
        "rpn_box_reg": (regression * (matches >= 0)).sum() / used.sum(),
        "classifier": (nll * seen).sum() / seen.sum(),
        "box_reg": (boxes * (labels > 0)).sum() / seen.sum(),
    }


def test_losses_and_gradients_of_a_training_step_are_torchvisions():
    images, sizes, pictures = batch()
    model: Any = create_model(TV, 21, jnp.float32, **GOLDEN)
    before, objects = variables(), targets(pictures, sizes)

    def objective(params: Any) -> Any:
        outputs = model.apply(
            before | {"params": params}, images, sizes, objects, train=True, rngs={"sampling": jax.random.key(0)}
        )
        terms = losses(outputs)
        return sum(terms.values()), (terms, outputs["roi_valid"].sum())

    (_, (terms, used)), gradients = quick(jax.value_and_grad(objective, has_aux=True))(before["params"])
    assert used == DATA["train/rois_used"]
    for name, loss in terms.items():
        assert loss == pytest.approx(float(DATA[f"train/loss_{name}"]), rel=1e-4), name
    found = norms(to_state_dict(TV, before | {"params": jax.device_get(gradients)}))
    trained = [key for key in shapes_of("fasterrcnn_resnet50_fpn") if not re.search(r"\.bn\d\.|downsample\.1\.", key)]
    trained = [key for key in trained if not re.search("body.bn1", key)]
    np.testing.assert_allclose([found[key] for key in trained], DATA["train/grads"], rtol=5e-3)
