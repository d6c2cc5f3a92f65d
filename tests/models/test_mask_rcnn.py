"""Mask R-CNN's branch against torchvision's, its targets against their definition, and which regions have masks."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import entry, golden, shapes_of
from nets import count, filled, quick

from jaxcnn import UserError
from jaxcnn.models import check_model, create_model
from jaxcnn.models.faster_rcnn import align_regions
from jaxcnn.models.grid import Grid, Map
from jaxcnn.models.mask_rcnn import BINS, MaskHead
from jaxcnn.models.mask_targets import project
from jaxcnn.weights.torchvision import from_state_dict

NAME = "mask_rcnn_resnet50_fpn_tv"
SMALL: dict[str, Any] = {
    "backbone": "resnet20", "fpn_channels": 16, "rpn_pre_nms": (40, 40), "rpn_post_nms": (12, 12), "box_samples": 8,
    "head_features": 16, "detections": 6, "anchor_scales": (4,),
}  # fmt: skip


def test_logits_of_given_boxes_are_torchvisions():
    data = golden("mask.npz")
    shapes = shapes_of("faster_rcnn_resnet50_fpn") | shapes_of("maskrcnn_resnet50_fpn")
    weights = {key: entry(key, shape) for key, shape in shapes.items()}
    for leaf in ("weight", "bias"):
        weights[f"roi_heads.mask_predictor.mask_fcn_logits.{leaf}"] *= np.float32(0.2)
    params: Any = from_state_dict(NAME, weights)["params"]["mask"]
    rng = np.random.default_rng(int(data["seed"]))
    maps = [rng.standard_normal((1, 256, 24 >> i, 32 >> i)).astype(np.float32).transpose(0, 2, 3, 1) for i in range(4)]
    levels = {f"p_stage{i + 1}": Map(jnp.asarray(x), Grid(stride=4 << i)) for i, x in enumerate(maps)}
    regions = align_regions(levels, jnp.asarray(data["boxes"])[None], BINS)[0]  # (5, 14, 14, 256)
    logits = np.asarray(quick(MaskHead(91, 256, jnp.float32).apply)({"params": params}, regions))
    assert logits.shape == (5, 28, 28, 91)
    assert np.abs(logits[:, ::4, ::4, ::7] - data["logits"]).max() < 1e-4 * np.abs(data["logits"]).max()


def test_it_keeps_the_conventions_and_has_torchvisions_parameters():
    check_model(NAME, image_shape=(64, 96, 3), **SMALL)
    model: Any = create_model(NAME, 91)
    made = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert count(made["params"]) == 44_401_393


@cache
def small() -> tuple[Any, Any]:
    model: Any = create_model(NAME, 4, jnp.float32, **SMALL)
    made = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    variables = filled(made)
    for path in (("rpn", "deltas"), ("boxes",), ("head",), ("mask", "head")):
        part = variables["params"]
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = jax.tree.map(lambda x: 1e-3 * x, part[path[-1]])  # or boxes would have no area
    return model, variables


def images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, height, width, 3)).astype(np.float32)


def test_detections_have_masks_and_padding_has_none():
    model, variables = small()
    model = model.clone(score_threshold=0.0, detections=40)  # more than the 12 regions of an image have, of 3 classes
    run = quick(lambda images, sizes: model.apply(variables, images, sizes))
    outputs = jax.device_get(run(images(64, 64), np.array([[64, 64], [48, 40]])))
    masks, valid = outputs["masks"], outputs["valid"]
    assert (masks.shape, masks.dtype) == ((2, 40, 28, 28), np.float32)
    assert valid.any()
    assert not valid.all()
    assert not masks[~valid].any()
    assert 0 < masks[valid].min() <= masks[valid].max() < 1


def learnt(masks: Any = None, samples: int = 8) -> Any:
    model, variables = small()
    targets: dict[str, Any] = {
        "boxes": np.array([[[4, 4, 40, 40], [30, 20, 60, 62]], [[0, 0, 0, 0], [0, 0, 0, 0]]], np.float32),
        "labels": np.array([[2, 3], [0, 0]], np.int32), "valid": np.array([[True, True], [False, False]]),
        "example": np.arange(2, dtype=np.int32),
    }  # fmt: skip
    if masks is not None:
        targets["masks"] = masks

    @quick
    def run(images: jax.Array) -> Any:
        return model.clone(box_samples=samples).apply(
            variables, images, targets=targets, train=True, mutable=["batch_stats"],
            rngs={"sampling": jax.random.key(1), "dropout": jax.random.key(2)},
        )[0]  # fmt: skip

    return jax.device_get(run(images(64, 64)))


def test_the_sampled_positives_have_the_masks_of_their_objects():
    masks = np.zeros((2, 2, 112, 112), np.uint8)
    masks[0, 0], masks[0, 1, :56] = 255, 255  # all of the first object, the upper half of the second
    outputs = learnt(masks)
    labels = outputs["roi_labels"]
    assert outputs["mask_logits"].shape == outputs["mask_targets"].shape == (2, 2, 28, 28)
    assert (labels[0, :2] > 0).any()
    assert not labels[0, 2:].any(), "all positives are among those with masks"
    assert not labels[1].any()
    for roi, label, found in zip(outputs["rois"][0], labels[0, :2], outputs["mask_targets"][0], strict=False):
        if label:
            number = label - 2
            truth = np.array([[4, 4, 40, 40], [30, 20, 60, 62]], np.float32)[number]
            expected = project(masks[0, number][None], jnp.asarray(truth[None]), roi[None], 28)[0]
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_targets_without_masks_are_refused():
    with pytest.raises(UserError, match='`targets` have none: add "masks"'):
        learnt()
