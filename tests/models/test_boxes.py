"""Box arithmetic against torchvision's and py-faster-rcnn's, and on boxes that are nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import quick

from jaxcnn.models import boxes as box

DATA = golden("detection_ops.npz")


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("case", ["random", "nested_touching_apart", "one_zero_area", "outside", "empty_a", "empty_b"])
def test_overlaps_are_torchvisions(case):
    a, b, iou, giou = (DATA[f"box_iou/{case}/{key}"] for key in ("a", "b", "iou", "giou"))
    both = quick(lambda a, b: (box.iou(a, b), box.giou(a, b)))(a, b)
    for found, expected in zip(both, (iou, giou), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("case", ["10_10_5_5", "1_1_1_1"])
def test_the_coder_is_torchvisions(case):
    data = {
        key: DATA[f"box_coder/{case}/{key}"] for key in ("weights", "proposals", "gt", "encoded", "deltas", "decoded")
    }
    weights = data["weights"]
    close(box.encode(data["proposals"], data["gt"], weights), data["encoded"])
    close(box.decode(data["proposals"], data["deltas"], weights), data["decoded"])
    flat = DATA[f"box_coder/{case}/proposals_zero_width"]
    close(box.decode(flat, data["deltas"], weights), DATA[f"box_coder/{case}/decoded_zero_width"])
    classes = DATA[f"box_coder/{case}/deltas_3_classes"].reshape(-1, 3, 4)
    close(box.decode(data["proposals"][:, None], classes, weights), DATA[f"box_coder/{case}/decoded_3_classes"])


def test_clipping_areas_and_sides_are_torchvisions():
    clipped = box.clip(DATA["clip/boxes"], DATA["clip/size_hw"])
    close(clipped, DATA["clip/clipped"])
    for key, side in (("1", 1), ("1e_2", 0.01), ("16", 16)):
        np.testing.assert_array_equal(np.flatnonzero(box.large_enough(clipped, side)), DATA[f"clip/kept_{key}"])
    np.testing.assert_allclose(box.area(clipped), DATA["clip/area"], rtol=1e-5, atol=1e-3)
    close(np.concatenate(box.to_centre(clipped), -1), DATA["clip/cxcywh"])


def test_inclusive_pixels_are_py_faster_rcnns():
    data = {key: DATA[f"inclusive/{key}"] for key in ("proposals", "gt", "encoded", "deltas", "decoded", "clipped")}
    close(box.encode(data["proposals"], data["gt"], inclusive=True), data["encoded"])
    decoded = box.decode(data["proposals"][:, None], data["deltas"].reshape(-1, 2, 4), inclusive=True, limit=np.inf)
    close(decoded.reshape(-1, 8), data["decoded"])
    close(box.clip(decoded, DATA["inclusive/clipped_hw"], inclusive=True).reshape(-1, 8), data["clipped"])


def test_each_image_is_clipped_to_its_own_size():
    boxes = jnp.tile(jnp.array([-5.0, 2, 50, 60]), (2, 3, 1))
    clipped = box.clip(boxes, jnp.array([[10, 20], [100, 30]]))
    np.testing.assert_array_equal(clipped[:, 0], [[0, 2, 20, 10], [0, 2, 30, 60]])
    np.testing.assert_array_equal(box.inside(clipped, jnp.array([[10, 20], [100, 30]])), np.ones((2, 3), bool))
    assert not box.inside(boxes, (100, 49.5)).any()
    assert box.inside(jnp.array([[0.0, 0, 19, 9]]), (10, 20), inclusive=True).all()
    assert not box.inside(jnp.array([[0.0, 0, 20, 9]]), (10, 20), inclusive=True).any()


# Whole and half pixels, so that boxes often have no area, touch or are equal.
numbers = st.integers(-20, 40).map(lambda n: n / 2) | st.sampled_from([0.0, 1e-7, 1e-12, 1e-30, 1e6])
some_boxes = st.lists(st.tuples(*[numbers] * 4), min_size=5, max_size=5).map(lambda rows: np.array(rows, np.float32))


@quick
def everything(a, b, inclusive):
    """Return the results of each function for two sets of five boxes, and the gradient of their sum."""
    functions = {
        "iou": lambda a, b: box.iou(a, b, inclusive),
        "giou": lambda a, b: box.giou(a, b, inclusive),
        "area": lambda a, b: box.area(a, inclusive),
        "encode": lambda a, b: box.encode(a, b, (10, 10, 5, 5), inclusive),
        "decode": lambda a, b: box.decode(a, b, (10, 10, 5, 5), inclusive),
        "clip": lambda a, b: box.clip(a, (30, 20), inclusive),
    }
    sums = {name: jax.grad(lambda a, b, f=f: f(a, b).sum(), (0, 1))(a, b) for name, f in functions.items()}
    return {name: f(a, b) for name, f in functions.items()}, sums


@settings(max_examples=60, deadline=None)
@given(a=some_boxes, b=some_boxes, inclusive=st.booleans(), order=st.permutations(range(5)))
def test_nothing_is_ever_nan_and_the_order_of_boxes_does_not_matter(a, b, inclusive, order):
    values, gradients = everything(a, b, inclusive)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((values, gradients)))
    assert (values["iou"] >= 0).all()
    assert (values["iou"] <= 1).all()
    permuted, _ = everything(a[order], b, inclusive)
    np.testing.assert_array_equal(permuted["iou"], values["iou"][np.array(order)])
    np.testing.assert_array_equal(permuted["giou"], values["giou"][np.array(order)])


def test_decoding_undoes_encoding():
    boxes, truth = DATA["box_coder/1_1_1_1/proposals"], DATA["box_coder/1_1_1_1/gt"]
    weights = (10, 10, 5, 5)
    close(box.decode(boxes, box.encode(boxes, truth, weights), weights), truth)


def test_sixteen_bits_are_widened_and_float64_stays():
    small = jnp.array([[0.0, 0, 300.5, 257]], jnp.float32)
    assert box.decode(small, jnp.zeros((1, 4), jnp.bfloat16)).dtype == jnp.float32
    assert box.iou(small.astype(jnp.bfloat16), jnp.array([[1, 2, 3, 4]])).dtype == jnp.float32
    with jax.enable_x64(True):
        assert box.iou(jnp.zeros((1, 4), jnp.float64), jnp.zeros((1, 4), jnp.float64)).dtype == jnp.float64
