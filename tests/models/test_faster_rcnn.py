"""Faster R-CNN against torchvision's (tests/golden), and what does not depend on canvases, devices and targets."""

import re
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import entry, golden, norms, shapes_of
from jax.sharding import NamedSharding, PartitionSpec
from nets import filled, quick

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.models.matching import BACKGROUND
from jaxcnn.models.resizing import resize
from jaxcnn.tasks.detection_loss import FORMS, detection_terms
from jaxcnn.training.sharding import make_mesh
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
    weights = {key: entry(key, shape) for key, shape in shapes_of("faster_rcnn_resnet50_fpn").items()}
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
        resized = resize(
            jnp.asarray(picture[None], jnp.float32), (height, width), aligned_corners=False, antialias=False
        )
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


def losses(outputs: dict[str, jax.Array], sizes: np.ndarray) -> dict[str, jax.Array]:
    """The task's, in torchvision's form."""
    terms = detection_terms(outputs, jnp.ones(len(sizes), bool), jnp.asarray(sizes), FORMS["torchvision"])
    return {name: total / weight for name, (total, weight) in terms.items() if weight is not None}


def test_losses_and_gradients_of_a_training_step_are_torchvisions():
    images, sizes, pictures = batch()
    model: Any = create_model(TV, 21, jnp.float32, **GOLDEN)
    before, objects = variables(), targets(pictures, sizes)

    def objective(params: Any) -> Any:
        outputs = model.apply(
            before | {"params": params}, images, sizes, objects, train=True, rngs={"sampling": jax.random.key(0)}
        )
        terms = losses(outputs, sizes)
        return sum(terms.values()), (terms, outputs["roi_valid"].sum())

    (_, (terms, used)), gradients = quick(jax.value_and_grad(objective, has_aux=True))(before["params"])
    assert used == DATA["train/rois_used"]
    for name, loss in terms.items():
        theirs = {"box": "box_reg", "rpn_box": "rpn_box_reg"}.get(name, name)
        assert loss == pytest.approx(float(DATA[f"train/loss_{theirs}"]), rel=1e-4), name
    found = norms(to_state_dict(TV, before | {"params": jax.device_get(gradients)}))
    frozen = re.compile(r"\.bn\d\.|\.downsample\.1\.")
    trained = [key for key in shapes_of("faster_rcnn_resnet50_fpn") if not frozen.search(key)]
    np.testing.assert_allclose([found[key] for key in trained], DATA["train/grads"], rtol=5e-3)


@pytest.mark.slow
def test_eight_devices_match_and_keep_what_one_does():
    images, sizes, pictures = batch()
    model: Any = create_model(TV, 21, jnp.float32, **GOLDEN | {"rpn_samples": 64, "box_samples": 32})
    eight = {name: np.concatenate([x] * 4) for name, x in targets(pictures, sizes).items()}
    rows = {"images": images, "sizes": sizes}
    rows = (
        {name: np.concatenate([x] * 4) for name, x in rows.items()} | eight | {"example": np.arange(8, dtype=np.int32)}
    )

    @quick
    def run(variables: Any, rows: Any) -> Any:
        objects = {name: rows[name] for name in eight}
        key = {"sampling": jax.random.key(0)}
        outputs = model.apply(variables, rows["images"], rows["sizes"], objects, train=True, rngs=key)
        return losses(outputs, rows["sizes"]), {
            name: outputs[name] for name in ("rpn_matches", "roi_labels", "roi_valid", "rois")
        }

    mesh = make_mesh(8)
    over_rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    one = jax.device_get(run(variables(), rows))
    many = jax.device_get(run(jax.device_put(variables(), everywhere), jax.device_put(rows, over_rows)))
    for name, loss in many[0].items():
        assert loss == pytest.approx(one[0][name], rel=1e-5), name
    for name in ("rpn_matches", "roi_labels", "roi_valid"):
        np.testing.assert_array_equal(many[1][name], one[1][name], err_msg=name)
    np.testing.assert_allclose(many[1]["rois"], one[1]["rois"], atol=1e-3)


# Both forms, small, with every norm and pooling that a mask must reach.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "vgg": ("faster_rcnn_vgg16", {"backbone": "vgg11_bn", "width": 0.125, "anchor_scales": (1, 2)}),
    "one_map": ("faster_rcnn_vgg16", {"backbone": "resnet18", "head_features": 16, "anchor_scales": (1, 2)}),
    "pyramid": (TV, {"backbone": "resnet18", "frozen_norm": False, "fpn_channels": 16, "mask_padding": True}),
}
FEW: dict[str, Any] = {
    "rpn_pre_nms": (40, 40), "rpn_post_nms": (12, 12), "rpn_samples": 16, "box_samples": 8, "detections": 10,
    "score_threshold": 0.0, "head_features": 16,
}  # fmt: skip
CLASSES = 4


def small(name: str, **more: Any) -> Any:
    network, overrides = SMALL[name]
    return create_model(network, CLASSES, jnp.float32, **(FEW | overrides | {"dropout": 0.0} | more))


@cache
def made(name: str) -> Any:
    """Values for the variables, small in the last layers: boxes that are of use, and scores of all classes."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    values = filled(jax.eval_shape(small(name).init, jax.random.key(0), x))
    last = [values["params"]["rpn"]["objectness"], values["params"]["rpn"]["deltas"], values["params"]["head"]]
    for layer in (*last, values["params"]["boxes"]["head"]):
        layer["kernel"] *= 0.01
    return values


def objects(count: int) -> dict[str, np.ndarray]:
    """Two images with `count` objects each, in room for three; within 70×90 pixels."""
    rng = np.random.default_rng(4)
    corner, side = rng.uniform(0, 40, (2, 3, 2)), rng.uniform(12, 30, (2, 3, 2))
    boxes = np.concatenate([corner, corner + side], -1).astype(np.float32)
    valid = np.broadcast_to(np.arange(3) < count, (2, 3))
    labels = rng.integers(1, CLASSES, (2, 3)).astype(np.int32)
    return {"boxes": boxes, "labels": labels, "valid": valid, "example": np.array([7, 9], np.int32)}


@pytest.mark.parametrize("name", ["vgg", "pyramid", pytest.param("one_map", marks=pytest.mark.slow)])
def test_nothing_depends_on_the_canvas_where_padding_is_masked(name):
    model, rng = small(name), np.random.default_rng(0)
    image, sizes = rng.standard_normal((2, 70, 90, 3)).astype(np.float32), np.array([[70, 90]] * 2, np.int32)
    wide = np.full((2, 101, 128, 3), 7.0, np.float32)  # what lies in the padding does not matter
    wide[:, :70, :90] = image

    @quick
    def both(variables: Any, images: Any, sizes: Any) -> Any:
        key = {"sampling": jax.random.key(1)}
        train = partial(model.apply, train=True, mutable=["batch_stats"], rngs=key)
        return model.apply(variables, images, sizes), train(variables, images, sizes, objects(3))

    (plain, (trained, stats)), (found, (retrained, restats)) = (
        jax.device_get(both(made(name), x, sizes)) for x in (image, wide)
    )
    for key in ("boxes", "scores", "rois", "box_logits", "box_deltas"):
        np.testing.assert_allclose(found[key], plain[key], atol=2e-3, rtol=1e-4, err_msg=key)
    np.testing.assert_array_equal(found["labels"], plain["labels"])
    assert found["valid"].any()
    for key in ("rois", "roi_labels", "roi_valid", "box_targets", "box_logits"):
        np.testing.assert_allclose(retrained[key], trained[key], atol=2e-3, rtol=1e-4, err_msg=key)
    for kind in (0, BACKGROUND):  # as many anchors of each object and of the background, those of the padding left out
        assert (retrained["rpn_matches"] == kind).sum() == (trained["rpn_matches"] == kind).sum() > 0
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), restats, stats)


@pytest.mark.parametrize("name", ["vgg", "pyramid"])
def test_samples_are_functions_of_the_step_and_the_example(name):
    model, images = small(name), np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)

    @quick
    def sampled(images: Any, targets: Any, key: Any) -> Any:
        outputs, _ = model.apply(
            made(name), images, None, targets, train=True, mutable=["batch_stats"], rngs={"sampling": key}
        )
        return {key: outputs[key] for key in ("rpn_matches", "roi_labels")}

    targets, key = objects(2), jax.random.key(0)
    one, other = (sampled(images, targets, key) for key in (key, jax.random.key(1)))
    assert (np.asarray(one["rpn_matches"]) != other["rpn_matches"]).any()
    swapped = {name: x[::-1] for name, x in targets.items()}
    back = sampled(images[::-1], swapped, key)
    np.testing.assert_array_equal(back["rpn_matches"][::-1], one["rpn_matches"])
    assert ((one["rpn_matches"] >= BACKGROUND).sum(1) == 16).all()


@pytest.mark.parametrize("name", ["vgg", "pyramid"])
def test_an_image_without_objects_trains_the_background_alone(name):
    model, images = small(name), np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    run = partial(model.apply, train=True, mutable=["batch_stats"], rngs={"sampling": jax.random.key(0)})
    outputs, _ = jax.device_get(quick(run)(made(name), images, None, objects(0)))
    assert (outputs["rpn_matches"] < 0).all()
    assert not outputs["roi_labels"].any()
    assert not outputs["rpn_targets"].any()
    assert not outputs["box_targets"].any()
    assert outputs["roi_valid"].any()


def test_proposals_that_are_given_take_the_place_of_the_rpns():
    boxes = np.array([[[0, 0, 30, 30], [10, 10, 50, 40], [5, 5, 5, 9]]] * 2, np.float32)
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    outputs = jax.device_get(quick(small("pyramid").apply)(made("pyramid"), images, proposals=boxes))
    np.testing.assert_array_equal(outputs["rois"], boxes)
    np.testing.assert_array_equal(outputs["roi_valid"], [[True, True, False]] * 2)
    assert outputs["box_logits"].shape == (2, 3, CLASSES)
    kept = outputs["boxes"][outputs["valid"]]
    assert ((kept >= 0) & (kept <= 64)).all()


@pytest.mark.parametrize("name", SMALL)
def test_boxes_and_scores_are_float32_in_a_network_of_16_bits(name):
    model = small(name).clone(dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    outputs: Any = jax.eval_shape(model.apply, made(name), x)
    kinds = {key: str(x.dtype) for key, x in outputs.items()}
    assert {kinds.pop(key) for key in ("valid", "roi_valid")} == {"bool"}
    assert kinds.pop("labels") == "int32"
    maps = {*model.endpoints} | ({"p_pool"} if name == "pyramid" else set())
    assert {key for key, kind in kinds.items() if kind == "bfloat16"} == maps
    assert set(kinds.values()) == {"bfloat16", "float32"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("rpn_pre_nms", value) for value in (100, (100,), (0, 1), "many")),
        *(("nms_threshold", value) for value in (-0.1, 1.1)),
        *(("anchor_scales", value) for value in ((), (0,), 8)),
        *(("background", value) for value in ((0.5, 0.1), (0.1,), 0.1)),
        *(("fc_ranks", value) for value in (8, (8,), (-1, 8))),
        ("backbone", "fcn8s"),
        ("detections", 0),
    ],
)
def test_an_illegal_override_is_named(key, value):
    with pytest.raises(UserError, match=key):
        create_model(TV, 3, **{key: value})
