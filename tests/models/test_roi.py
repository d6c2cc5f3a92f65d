"""RoI pooling and RoIAlign against torchvision's, their gradients, and boxes that are nothing."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import quick

from jaxcnn import UserError
from jaxcnn.models import roi
from jaxcnn.models.roi import assign_levels, roi_align, roi_pool

DATA = golden("detection_ops.npz")
FEATURES = DATA["roi/features/nchw"].transpose(0, 2, 3, 1)  # (2, 15, 20, 3)
FORMS = ["align_7x7_plain_ratio2", "align_7x7_plain_ratio0", "align_7x7_aligned_ratio2", "align_7x7_aligned_ratio0"]
SMALL = ["align_2x3_plain_ratio0", "align_2x3_aligned_ratio2"]
SCALES = sorted({key.split("/")[1] for key in DATA if key.startswith("roi/scale")})


def operation(form):
    """The function (features, scale, boxes) of a form's name."""
    kind, size, *rest = form.split("_")
    rows, columns = (int(n) for n in size.split("x"))
    size = rows, columns
    if kind == "pool":
        return lambda x, scale, boxes: roi_pool(x, scale, boxes, size)
    options = {"aligned": rest[0] == "aligned", "samples": int(rest[1][-1])}
    return lambda x, scale, boxes: roi_align([x], [scale], boxes, size, **options)


@cache
def compiled(form):
    """Pooled features of one image each, (R, h, w, C), and the gradient of their product with `cotangent`."""

    def run(x, scale, rois, cotangent):
        def chosen(x):
            both = operation(form)(x, scale, jnp.stack([rois[:, 1:]] * len(x)))  # all boxes from both images
            return jnp.where((rois[:, 0] == 0)[:, None, None, None], both[0], both[1])

        out, back = jax.vjp(chosen, x)
        return out, back(cotangent)[0]

    return quick(run)


@pytest.mark.parametrize("form", ["pool_7x7", "pool_2x3", *FORMS, *SMALL])
def test_pooled_features_and_gradients_are_torchvisions(form):
    for scale in SCALES:
        rois, expected = DATA[f"roi/{scale}/rois"], DATA[f"roi/{scale}/{form}/out"]
        shape = (len(rois), 3, *expected.shape[2:])
        cotangent = np.random.default_rng(int(DATA["roi/features/cotangent_seed"])).standard_normal(shape)
        arguments = FEATURES, np.float32(DATA[f"roi/{scale}/spatial_scale"]), rois, cotangent.transpose(0, 2, 3, 1)
        out, gradient = (np.moveaxis(x, -1, 1) for x in compiled(form)(*(np.float32(x) for x in arguments)))
        stored = expected.shape[1]  # channels that the file has
        np.testing.assert_allclose(out[:, :stored], expected, rtol=1e-6, atol=1e-4)
        if f"roi/{scale}/{form}/grad" in DATA:
            wanted = DATA[f"roi/{scale}/{form}/grad"]
            np.testing.assert_allclose(gradient[:, :stored], wanted, rtol=1e-6, atol=1e-4)


def pyramid() -> Any:
    maps = [DATA[f"multiscale_roi_align/level{i}_nchw"].transpose(0, 2, 3, 1) for i in range(4)]
    boxes = [DATA[f"multiscale_roi_align/boxes{i}"] for i in (0, 1)]
    padded = np.stack([np.pad(b, ((0, 11 - len(b)), (0, 0))) for b in boxes])
    return maps, padded, np.arange(11) < np.array([[len(b)] for b in boxes])


def test_a_box_is_taken_from_its_level_as_in_torchvision():
    maps, boxes, valid = pyramid()
    levels = assign_levels(boxes)
    np.testing.assert_array_equal(levels[valid], DATA["multiscale_roi_align/levels"])
    scales = DATA["multiscale_roi_align/scales"].tolist()
    out = quick(lambda boxes, levels: roi_align(maps, scales, boxes, (7, 7), levels=levels))(boxes, levels)
    expected = DATA["multiscale_roi_align/out"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(np.asarray(out)[valid], expected, rtol=1e-6, atol=1e-4)
    assert np.isfinite(out).all()


def test_the_levels_at_their_boundaries_are_torchvisions():
    boxes = np.concatenate([DATA["level_mapper/boxes"], [[3, 3, 3, 9], [0, 0, 1e6, 1e6]]])
    np.testing.assert_array_equal(quick(assign_levels)(boxes), [*DATA["level_mapper/levels"], 0, 3])
    assert jax.eval_shape(assign_levels, jnp.zeros((0, 4))).shape == (0,)


@pytest.mark.parametrize("form", ["pool_7x7", "align_7x7_plain_ratio2", "align_7x7_aligned_ratio0"])
def test_no_boxes_have_no_features(form):
    out = jax.eval_shape(lambda: operation(form)(jnp.asarray(FEATURES), 1.0, jnp.zeros((2, 0, 4))))
    assert out.shape == (2, 0, 7, 7, 3)


corner = st.integers(-60, 60).map(lambda n: n / 4) | st.sampled_from([-1e5, 1e5, 1e9])
some_boxes = st.lists(st.tuples(*[corner] * 4), min_size=17, max_size=17)


@pytest.mark.parametrize("form", ["pool_2x3", "align_2x3_plain_ratio0", "align_2x3_aligned_ratio2"])
@settings(max_examples=15, deadline=None)
@given(boxes=some_boxes, order=st.permutations(range(17)))
def test_any_box_has_finite_features_and_gradients_and_the_order_does_not_matter(form, boxes, order):
    rois = np.concatenate([np.arange(17)[:, None] % 2, np.array(boxes)], 1).astype(np.float32)
    cotangent = np.ones((17, 2, 3, 3), np.float32)
    out, gradient = compiled(form)(FEATURES, np.float32(1), rois, cotangent)
    assert np.isfinite(out).all()
    assert np.isfinite(gradient).all()
    again, _ = compiled(form)(FEATURES, np.float32(1), rois[np.array(order)], cotangent)
    np.testing.assert_array_equal(again, out[np.array(order)])


def by_the_book(x, box, size):
    """Maxima and the first cell of each, row by row, of one box of a map (H, W, C), by the published rule."""
    low, high = (np.floor(np.abs(c) + 0.5) * np.sign(c) for c in (box[:2], box[2:]))
    sides = np.maximum(high - low + 1, 1).astype(int)
    out, cells = np.zeros((*size, x.shape[2]), np.float32), np.full((*size, x.shape[2]), -1)
    for i, j, c in np.ndindex(out.shape):
        (left, right), (top, bottom) = (
            np.clip([first + n * side // count, first - (-(n + 1) * side // count)], 0, edge).astype(int)
            for first, n, side, count, edge in zip(low, (j, i), sides, size[::-1], x.shape[1::-1], strict=True)
        )
        if right > left and bottom > top:
            part = x[top:bottom, left:right, c]
            row, column = np.unravel_index(part.argmax(), part.shape)
            out[i, j, c], cells[i, j, c] = part.max(), (top + row) * x.shape[1] + left + column
    return out, cells


def test_of_tied_cells_the_first_has_the_gradient():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 3, (1, 15, 20, 3)).astype(np.float32)
    boxes: Any = np.sort(rng.integers(-8, 50, (12, 2, 2)) / 2, 1).reshape(12, 4).astype(np.float32)
    cotangent = rng.standard_normal((1, 12, 2, 3, 3)).astype(np.float32)
    out, back = jax.vjp(jax.jit(lambda x: roi_pool(x, 1.0, boxes[None], (2, 3))), x)
    gradient = np.zeros((300, 3), np.float32)
    for k, box in enumerate(boxes):
        value, cells = by_the_book(x[0], box, (2, 3))
        np.testing.assert_array_equal(out[0, k], value)
        for i, j, c in np.argwhere(cells >= 0):
            gradient[cells[i, j, c], c] += cotangent[0, k, i, j, c]
    np.testing.assert_allclose(back(cotangent)[0].reshape(300, 3), gradient, atol=1e-5)


def test_gradients_by_products_are_those_by_scattering(monkeypatch):
    rng = np.random.default_rng(5)
    maps = [jnp.asarray(rng.standard_normal((2, *side, 2)), jnp.bfloat16) for side in ((12, 10), (6, 5))]
    boxes = jnp.asarray(np.sort(rng.uniform(-4, 44, (2, 40, 2, 2)), 2).reshape(2, 40, 4), jnp.float32)
    levels, weight = jnp.asarray(rng.integers(0, 2, (2, 40))), rng.standard_normal((2, 40, 2, 2, 2))

    def gradients():
        def total(maps):
            return (roi_align(maps, [1 / 4, 1 / 8], boxes, (2, 2), levels=levels) * weight).sum()

        return quick(jax.grad(total))(maps)

    products = gradients()
    monkeypatch.setattr(roi.lax, "platform_dependent", lambda x, *, cuda, **_: cuda(x))  # the branch of a GPU
    for one, other in zip(products, gradients(), strict=True):
        assert one.dtype == jnp.bfloat16
        one, other = one.astype(np.float32), other.astype(np.float32)
        np.testing.assert_allclose(one, other, rtol=0, atol=0.01 * np.abs(other).max())  # weights have 16 bits, too


def test_no_gradient_reaches_the_boxes():
    boxes = jnp.array([[[1.0, 1, 9, 9]], [[0, 0, 4, 5]]])
    for form in ("pool_2x3", "align_2x3_plain_ratio2"):
        gradient = jax.jit(jax.grad(lambda b, form=form: operation(form)(jnp.asarray(FEATURES), 1.0, b).sum()))(boxes)
        assert not np.asarray(gradient).any()


def test_features_keep_their_type_and_are_added_up_in_float32():
    x = jnp.full((1, 6, 6, 1), 1.0, jnp.bfloat16)
    boxes = jnp.array([[[0.0, 0, 5, 5]]])
    out = quick(lambda x: roi_align([x], [1.0], boxes, (1, 1), samples=5))(x)
    assert out.dtype == jnp.bfloat16
    assert out.tolist() == [[[[[1.0]]]]]
    assert jax.eval_shape(lambda x: roi_pool(x, 1.0, boxes, (1, 1)), x).dtype == jnp.bfloat16


def test_adaptive_samples_stop_at_the_bound():
    boxes = jnp.array([[[0.0, 0, 12, 8]]] * 2)
    forms = [{"samples": 0, "most": (3, 3)}, {"samples": 3}]
    bounded, fixed = quick(lambda x: [roi_align([x], [1.0], boxes, (2, 2), **form) for form in forms])(FEATURES)
    np.testing.assert_allclose(bounded, fixed, rtol=1e-6)


def test_a_map_without_its_scale_is_an_error():
    with pytest.raises(UserError, match="2 maps and 1 scales"):
        roi_align([FEATURES, FEATURES], [1.0], jnp.zeros((2, 1, 4)), (7, 7))
