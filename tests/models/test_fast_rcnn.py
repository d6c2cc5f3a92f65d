"""Fast R-CNN: what is sampled of given regions and what it should give, ranks, canvases, weights of a classifier."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import filled, quick, sizes

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.training.onto_trunk import divide, renamed
from jaxcnn.weights.low_rank import low_rank

CLASSES = 4
SMALL: dict[str, Any] = {
    "backbone": "vgg11_bn", "width": 0.125, "head_features": 16, "dropout": 0.0, "box_samples": 8, "detections": 10,
    "score_threshold": 0.0,
}  # fmt: skip


def small(**more: Any) -> Any:
    return create_model("fast_rcnn_vgg16", CLASSES, jnp.float32, **(SMALL | more))


def made() -> Any:
    """Values for the variables, small in the last layers: boxes that are of use, and scores of all classes."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    values = filled(jax.eval_shape(small().init, jax.random.key(0), x))
    for layer in (values["params"]["head"], values["params"]["boxes"]["head"]):
        layer["kernel"] *= 0.05
    return values


def overlaps(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU of all pairs, (R, G), where corners are pixels that belong to the box."""
    low, high = np.maximum(boxes[:, None, :2], truth[:, :2]), np.minimum(boxes[:, None, 2:], truth[:, 2:])
    shared = np.prod(np.maximum(high - low + 1, 0), -1)
    areas = [np.prod(x[:, 2:] - x[:, :2] + 1, -1) for x in (boxes, truth)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def test_a_quarter_is_positive_and_background_overlaps_an_object_by_a_tenth_at_least():
    rng = np.random.default_rng(0)
    truth = np.array([[20, 20, 60, 70], [100, 40, 150, 80], [0, 0, 0, 0]], np.float32)
    jitter = rng.normal(0, 1, (400, 4)) * rng.uniform(0, 30, (400, 1))
    rois = np.clip(truth[rng.integers(0, 2, 400)] + jitter, 0, 199).astype(np.float32)
    rois[:, 2:] = np.maximum(rois[:, 2:], rois[:, :2] + 2)
    targets = {
        "boxes": truth[None], "labels": np.array([[3, 1, 2]], np.int32), "valid": np.array([[True, True, False]]),
        "keys": jax.random.split(jax.random.key(0), 1),
    }  # fmt: skip
    model: Any = create_model("fast_rcnn_vgg16", CLASSES)
    found = model.sample_regions(jnp.asarray(rois[None]), jnp.ones((1, 400), bool), targets)
    regions, drawn, labels, wanted = (
        np.asarray(found[k][0]) for k in ("rois", "roi_valid", "roi_labels", "box_targets")
    )
    assert drawn.sum() == 64
    assert (labels[drawn] > 0).sum() == 16
    iou = overlaps(regions, truth[:2])
    best, owner = iou.max(1), iou.argmax(1)
    positive = drawn & (labels > 0)
    assert (best[positive] >= 0.5).all()
    np.testing.assert_array_equal(labels[positive], np.array([3, 1])[owner[positive]])
    background = best[drawn & (labels == 0)]
    assert (background >= 0.1).all()
    assert (background < 0.5).all()
    for region, target, box in zip(regions[positive], wanted[positive], truth[owner[positive]], strict=True):
        (x, y), (w, h) = (region[:2] + region[2:] + 1) / 2, region[2:] - region[:2] + 1
        (tx, ty), (tw, th) = (box[:2] + box[2:] + 1) / 2, box[2:] - box[:2] + 1
        moves = np.array([(tx - x) / w, (ty - y) / h, np.log(tw / w), np.log(th / h)])
        np.testing.assert_allclose(target, moves / [0.1, 0.1, 0.2, 0.2], rtol=1e-3, atol=1e-4)  # mean 0, standardised
    assert not wanted[~positive].any()


def test_a_detection_has_the_regressed_box_or_with_regress_off_the_proposal():
    rois = np.array([[[10, 10, 29, 49], [0, 0, 0, 0]]], np.float32)
    logits = np.zeros((1, 2, CLASSES), np.float32)
    logits[0, :, 2] = 5
    moves = np.zeros((1, 2, CLASSES, 4), np.float32)
    moves[0, 0, 2] = [1, 0, 0, 0]  # a tenth of the width, 20 pixels
    outputs = {"rois": rois, "roi_valid": np.array([[True, False]]), "box_logits": logits, "box_deltas": moves}
    for regress, shift in ((True, 2), (False, 0)):
        model: Any = create_model("fast_rcnn_vgg16", CLASSES, regress=regress)
        found = model.detect({name: jnp.asarray(x) for name, x in outputs.items()}, jnp.array([[100, 100]]))
        assert found["labels"][0, 0] == 2
        assert found["valid"].sum() == 1, "padding detects nothing"
        np.testing.assert_allclose(found["boxes"][0, 0], [10 + shift, 10, 30 + shift, 50], atol=1e-4)


def test_nothing_depends_on_the_canvas_and_full_ranks_change_nothing():
    rng, values = np.random.default_rng(0), made()
    image, true = rng.standard_normal((2, 50, 60, 3)).astype(np.float32), np.array([[50, 60]] * 2, np.int32)
    wide = np.full((2, 64, 96, 3), 7.0, np.float32)  # What lies in the padding does not matter.
    wide[:, :50, :60] = image
    corner = rng.uniform(0, 30, (2, 6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 40, (2, 6, 2))], -1).astype(np.float32)
    padded = np.concatenate([boxes, np.zeros((2, 3, 4), np.float32)], 1)
    evaluate = [quick(partial(small(**more).apply, train=False)) for more in ({}, {"fc_ranks": (16, 16)})]
    plain = evaluate[0](values, image, true, proposals=boxes)
    thin, errors = low_rank(values["params"], {"fc6": 16, "fc7": 16})
    assert max(errors.values()) < 1e-6
    others = {
        "canvas": evaluate[0](values, wide, true, proposals=padded),
        "ranks": evaluate[1](values | {"params": thin}, image, true, proposals=boxes),
    }
    for name, found in others.items():
        np.testing.assert_array_equal(found["roi_valid"][:, :6], plain["roi_valid"])
        assert not found["roi_valid"][:, 6:].any()
        for key in ("box_logits", "box_deltas"):
            np.testing.assert_allclose(found[key][:, :6], plain[key], atol=2e-3, rtol=1e-3, err_msg=f"{name} {key}")
        np.testing.assert_array_equal(found["labels"], plain["labels"])
        np.testing.assert_allclose(found["boxes"], plain["boxes"], atol=2e-2, err_msg=name)


def test_proposals_are_asked_for():
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with pytest.raises(UserError, match="proposals"):
        jax.eval_shape(lambda x: small().apply(made(), x), x)


@pytest.mark.parametrize(("name", "backbone"), [("fast_rcnn_vgg16", "vgg16"), ("fast_rcnn_alexnet", "alexnet")])
def test_the_trunk_fc6_and_fc7_begin_with_a_classifiers_weights(name, backbone):
    def shapes(network: str, classes: int, side: int) -> dict[str, tuple[int, ...]]:
        x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        return sizes(jax.eval_shape(create_model(network, classes).init, jax.random.key(0), x))

    wanted, there = shapes(name, 21, 320), shapes(backbone, 1000, 224)
    saved = {here: there[path] for here, path in renamed(there).items()}
    parts = divide("weights", saved, wanted, heads=False)
    assert {path.split("/")[1] for path in parts.new} == {"head", "boxes"}
    assert {path.split("/")[1] for path in parts.taken} == {"trunk", "fc6", "fc7"}
    assert {path.split("/")[1] for path in parts.left} == {"head"}
