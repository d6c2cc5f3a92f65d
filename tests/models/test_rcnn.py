"""R-CNN's network: each region by itself, whatever the chunks, the canvas and the other images."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import filled

from jaxcnn import UserError
from jaxcnn.models import boxes as box
from jaxcnn.models import create_model
from jaxcnn.models.rcnn import FEATURES
from jaxcnn.warping import warp

SIZES = np.array([[40, 56], [48, 64]], np.int32)
SMALL: dict[str, Any] = {"width": 0.05, "small_images": True, "window": 32, "context": 4, "detections": 20}
CLASSES = 4


def network(**overrides: Any) -> Any:
    return create_model("rcnn_alexnet", CLASSES, jnp.float32, **(SMALL | overrides))


@cache
def variables() -> Any:
    shapes = jax.eval_shape(network().init, jax.random.key(0), jnp.zeros((1, 48, 64, 3)))
    return filled(shapes)


def images(height: int = 48, width: int = 64, fill: float = 0.0) -> np.ndarray:
    """Return two images of `SIZES` on a canvas that has `fill` in its padding."""
    rng = np.random.default_rng(0)
    canvas = np.full((2, height, width, 3), fill, np.float32)
    for row, (h, w) in zip(canvas, SIZES, strict=True):
        row[:h, :w] = rng.normal(0, 1, (h, w, 3))
    return canvas


def proposals(count: int = 7) -> np.ndarray:
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 30, (2, count, 2))
    return np.concatenate([corners, corners + rng.integers(6, 18, (2, count, 2))], -1).astype(np.float32)


def apply(given: np.ndarray, pixels: np.ndarray, **overrides: Any) -> dict[str, Any]:
    model = network(**overrides)
    run = jax.jit(lambda variables, x: model.apply(variables, x, sizes=SIZES, proposals=given))
    return jax.device_get(run(variables(), pixels))


@cache
def outputs() -> dict[str, Any]:
    return apply(proposals(), images(), chunk=100)


def test_a_region_has_the_features_of_the_classifier_on_its_window():
    classifier = create_model("alexnet", CLASSES, jnp.float32, width=0.05, small_images=True)
    params = variables()["params"]
    weights = {"params": {**params["trunk"], **{name: params[name] for name in ("fc6", "fc7", "head")}}}
    windows = np.stack([warp(images()[1], each, SIZES[1], 32, 4) for each in proposals()[1]])
    wanted: Any = classifier.apply(weights, windows)
    np.testing.assert_allclose(outputs()["box_logits"][1], wanted["logits"], rtol=1e-3, atol=1e-4)


def test_chunks_padding_and_the_canvas_change_nothing():
    padded = np.pad(proposals(), ((0, 0), (0, 4), (0, 0)))
    found = apply(padded, images(64, 80, fill=7.0), chunk=4)
    np.testing.assert_array_equal(found["roi_valid"].sum(1), [7, 7])
    for name in ("features", "pool5", "box_logits", "box_deltas"):
        np.testing.assert_allclose(found[name][:, :7], outputs()[name], rtol=1e-3, atol=1e-4, err_msg=name)
    for name in ("boxes", "scores", "labels", "valid"):
        np.testing.assert_allclose(found[name], outputs()[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_heads_are_linear_in_the_features_and_in_pool5():
    found, params = outputs(), variables()["params"]
    margins = found["features"] @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(found["box_logits"], margins, rtol=1e-4, atol=1e-5)
    layer = params["boxes"]["head"]
    deltas = (found["pool5"] @ layer["kernel"] + layer["bias"]).reshape(2, 7, 4, CLASSES).swapaxes(2, 3)
    np.testing.assert_allclose(found["box_deltas"], deltas, rtol=1e-4, atol=1e-5)


def test_detections_are_margins_of_moved_regions_also_negative_ones_and_never_of_the_background():
    found = outputs()
    valid = found["valid"]
    assert valid.any(1).all()
    assert (found["labels"][valid] > 0).all()
    margins = np.sort(found["box_logits"][..., 1:].ravel())
    assert np.isin(found["scores"][valid].round(5), margins.round(5)).all()
    moved = box.clip(box.decode(found["rois"][:, :, None], found["box_deltas"]).reshape(2, -1, 4), SIZES)
    for i in range(2):
        distance = np.abs(found["boxes"][i][valid[i]][:, None] - np.asarray(moved)[i]).max(-1)
        assert distance.min(1).max() < 1e-3
        overlap = box.iou(found["boxes"][i], found["boxes"][i])
        same = (
            (found["labels"][i][:, None] == found["labels"][i]) & valid[i][:, None] & valid[i] & ~np.eye(20, dtype=bool)
        )
        assert np.where(same, overlap, 0).max() <= 0.3 + 1e-5
    assert found["scores"][valid].min() < 0


@pytest.mark.parametrize(("features", "layers"), list(zip(FEATURES, (set(), {"fc6"}, {"fc6", "fc7"}), strict=True)))
def test_the_layers_above_the_features_are_not_made(features, layers):
    shapes = jax.eval_shape(network(features=features).init, jax.random.key(0), jnp.zeros((1, 48, 64, 3)))
    assert shapes["params"].keys() == {"trunk", "head", "boxes"} | layers
    width = shapes["params"]["head"]["kernel"].shape[0]
    assert width == (3 * 3 * 16 if features == "pool5" else shapes["params"]["fc6"]["bias"].shape[0])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"features": "fc8"}, "model.overrides.features='fc8'"),
        ({"context": 16}, "model.overrides.context=16"),
        ({"backbone": "resnet20", "width": 1.0}, "resnet20 has no fc7"),
    ],
)
def test_what_cannot_be_is_named(overrides, words):
    with pytest.raises(UserError) as caught:
        jax.eval_shape(network(**overrides).init, jax.random.key(0), jnp.zeros((1, 48, 64, 3)))
    assert words in str(caught.value)


def test_without_proposals_there_is_an_error():
    with pytest.raises(UserError, match="proposals"):
        jax.eval_shape(network().apply, variables(), images())
