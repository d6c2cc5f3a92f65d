"""Non-maximum suppression against torchvision's, and against the loop over boxes that it must equal."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import quick

from jaxcnn.models.nms import nms

DATA = golden("detection_ops.npz")
NUMBER = 1100  # boxes of the largest case: all are padded to it, so that one program does for them


@quick
def padded_nms(boxes, scores, groups, valid, threshold):
    return nms(boxes, scores, threshold, groups=groups, valid=valid)


def kept(boxes, scores, threshold, groups=None):
    """The kept indices of boxes that are padded by boxes like the first, of the highest scores."""
    number = len(boxes)
    fill = NUMBER - number
    groups = np.zeros(number, np.int32) if groups is None else groups
    boxes = np.concatenate([boxes, np.resize([0, 0, 14, 14], (fill, 4))]).astype(np.float32)
    scores = np.concatenate([scores, np.full(fill, 2)]).astype(np.float32)
    index, valid = padded_nms(boxes, scores, np.pad(groups, (0, fill)), np.arange(NUMBER) < number, threshold)
    assert not np.asarray(index)[~np.asarray(valid)].any()
    return np.asarray(index)[np.asarray(valid)]


CASES = ["random_3", "random_5", "random_7", "clusters", "empty", "one", "equal_scores", "iou_equals_threshold"]


@pytest.mark.parametrize("case", [*CASES, "zero_area", "outside"])
def test_kept_boxes_and_their_order_are_torchvisions(case):
    boxes, scores, threshold, keep = (DATA[f"nms/{case}/{key}"] for key in ("boxes", "scores", "iou_threshold", "keep"))
    np.testing.assert_array_equal(kept(boxes, scores, threshold), keep)


@pytest.mark.parametrize("case", ["random", "large", "same_box_other_class", "empty"])
def test_classes_do_not_suppress_each_other(case):
    keys = ("boxes", "scores", "iou_threshold", "labels", "keep")
    *inputs, keep = (DATA[f"batched_nms/{case}/{key}"] for key in keys)
    np.testing.assert_array_equal(kept(*inputs), keep)


def test_inclusive_pixels_are_py_faster_rcnns():
    boxes, scores = DATA["inclusive/nms_boxes"], DATA["inclusive/nms_scores"]
    run = quick(lambda threshold: nms(boxes, scores, threshold, inclusive=True))
    for threshold in ("03", "07"):
        index, valid = run(int(threshold) / 10)
        np.testing.assert_array_equal(index[valid], DATA[f"inclusive/nms_keep_{threshold}"])


def by_the_book(boxes, scores, threshold, groups, valid):
    x1, y1, x2, y2 = (boxes[:, i] for i in range(4))
    sides = (np.minimum(b, b[:, None]) - np.maximum(a, a[:, None]) for a, b in ((x1, x2), (y1, y2)))
    shared = np.prod([np.maximum(side, 0) for side in sides], 0)
    areas = (x2 - x1) * (y2 - y1)
    union = areas + areas[:, None] - shared
    overlap, keep = shared / np.where(union > 0, union, 1), []
    for i in np.argsort(-scores, kind="stable"):
        if valid[i] and not any(groups[i] == groups[j] and overlap[i, j] > threshold for j in keep):
            keep.append(i)
    return keep


@quick
def in_small_blocks(boxes, scores, groups, valid):
    all_of_them = nms(boxes, scores, 0.4, groups=groups, valid=valid, block=4)
    return all_of_them, nms(boxes, scores, 0.4, groups=groups, valid=valid, block=4, count=5)


corner, side = st.integers(0, 12), st.integers(0, 8)
a_box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
a_row = st.tuples(a_box, st.integers(0, 6), st.integers(0, 1), st.booleans())


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(a_row, min_size=18, max_size=18), order=st.permutations(range(18)))
def test_blocks_make_no_difference_nor_does_the_order_of_boxes(rows, order):
    boxes, scores, groups, valid = (np.array(column) for column in zip(*rows, strict=True))
    boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    expected = by_the_book(boxes, scores, 0.4, groups, valid)
    for (index, present), count in zip(in_small_blocks(boxes, scores, groups, valid), (18, 5), strict=True):
        assert index[present].tolist() == expected[:count]
    scores = scores + np.arange(18, dtype=np.float32) / 100  # no two are equal: then the order is of no matter
    order = np.array(order)
    sets = [
        {(*boxes[i], scores[i]) for i in permutation[index[present]]}
        for permutation in (np.arange(18), order)
        for index, present in [in_small_blocks(*(x[permutation] for x in (boxes, scores, groups, valid)))[0]]
    ]
    assert sets[0] == sets[1]


def test_a_chain_of_boxes_that_suppress_one_another_keeps_every_other_one():
    left: Any = np.arange(40, dtype=np.float32) * 4
    boxes = np.stack(
        [left, 0 * left, left + 10, 0 * left + 10], 1
    )  # neighbours overlap by 6 / 14, next but one by 2 / 18
    index, present = quick(lambda boxes: nms(boxes, -left, 0.4, block=16))(boxes)
    assert index[present].tolist() == list(range(0, 40, 2))


def test_a_batch_is_its_images_and_gradients_pass_by_the_choice():
    rng = np.random.default_rng(0)
    boxes = jnp.asarray(np.sort(rng.random((3, 30, 2, 2), np.float32) * 9, 2).reshape(3, 30, 4))
    scores = jnp.asarray(rng.random((3, 30), np.float32))

    one_image = quick(lambda b, s: nms(b, s, 0.3, count=12, block=8))

    @quick
    @partial(jax.grad, argnums=1, has_aux=True)
    def batch(boxes, scores):
        index, present = jax.vmap(lambda b, s: nms(b, s, 0.3, count=12, block=8))(boxes, scores)
        return jnp.where(present, jnp.take_along_axis(scores, index, 1), 0).sum(), (index, present)

    gradient, (index, present) = batch(boxes, scores)
    for i in range(3):
        for found, expected in zip(one_image(boxes[i], scores[i]), (index, present), strict=True):
            np.testing.assert_array_equal(found, expected[i])
        np.testing.assert_array_equal(np.flatnonzero(gradient[i]), np.sort(index[i][present[i]]))


def test_without_boxes_nothing_is_kept():
    index, present = nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5, count=3)
    assert index.shape == (3,)
    assert not present.any()


def test_no_array_holds_all_pairs_of_boxes():
    number, count = 12_000, 2_000
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((number, 4), (number,))]
    text = jax.jit(partial(nms, threshold=0.7, count=count)).lower(*shapes).as_text()
    sizes = [
        np.prod([int(n) for n in part.split("x")[:-1]])
        for part in (piece.split(">")[0] for piece in text.split("tensor<")[1:])
        if "x" in part
    ]
    assert max(sizes) <= count * 256
