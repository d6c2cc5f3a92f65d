"""The shared layers against flax, NumPy loops and formulas in float64."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from nets import filled, images, quick, sizes

from jaxcnn import UserError
from jaxcnn.models import layers, normalization, pooling
from jaxcnn.models.layers import Classifier, FullyConnected


def pooled_size(side: int, window: int, stride: int, pad: int, ceil: bool) -> int:
    """Windows that begin before the end of the image: all that fit, and with `ceil` the one that hangs over, too."""
    starts = range(-pad, side, stride)
    return sum(start + window <= side + pad or (ceil and start - stride + window < side + pad) for start in starts)


def flax_max_pool(x: jax.Array, window: int, stride: int, pad: int = 0, ceil: bool = False) -> jax.Array:
    """XLA's reduce_window, with as much padding at the end as the windows need."""
    ends = [(pooled_size(n, window, stride, pad, ceil) - 1) * stride + window - pad - n for n in x.shape[1:3]]
    x = x[:, : x.shape[1] + min(ends[0], 0), : x.shape[2] + min(ends[1], 0)]
    padding: Any = [(pad, max(0, end)) for end in ends]
    return nn.max_pool(x, (window, window), (stride, stride), padding)


def assert_pools_alike(x: jax.Array, *args: Any) -> None:
    """Same maxima as flax's, and the same gradient of their weighted sum, bit for bit."""

    def both(x: jax.Array) -> list[Any]:
        def weighted(pool: Any) -> Any:
            y, back = jax.vjp(lambda x: pool(x, *args), x)
            return y, back(1 + jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))

        return [weighted(pool) for pool in (pooling.max_pool, flax_max_pool)]

    ours, flax = quick(both)(x)
    jax.tree.map(np.testing.assert_array_equal, ours, flax)


POOLINGS = [
    (3, 2, 0, False),  # AlexNet
    (2, 2, 0, False),  # VGG
    (3, 2, 1, False),  # ResNet
    (3, 2, 0, True),  # GoogLeNet
    (2, 2, 0, True),
    (3, 1, 1, False),  # an inception module
    (3, 3, 1, True),
    (2, 3, 0, True),  # a stride beyond the window
]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("options", POOLINGS)
def test_max_pooling_and_its_gradient_are_those_of_flax(options, side, platform, monkeypatch):
    if platform == "tpu":
        monkeypatch.setattr(lax, "platform_dependent", lambda x, tpu, default: tpu(x))
    distinct = np.random.default_rng(0).permutation(2 * side * (side + 2) * 3)
    assert_pools_alike(jnp.asarray(distinct.reshape(2, side, side + 2, 3) - 100.0, jnp.float32), *options)


def test_max_pooling_is_xlas_own_on_a_tpu_alone():
    traced = jax.jit(lambda x: pooling.max_pool(x, 3, 2)).trace(images(1, 5, 5, 1))
    own = {
        name: "reduce_window" in traced.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cuda", "cpu")
    }
    assert own == {"tpu": True, "cuda": False, "cpu": False}


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(3, 9), st.integers(3, 9)), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(),
    st.integers(0, 9),
)  # fmt: skip
def test_max_pooling_is_that_of_flax_whatever_the_sizes_and_the_ties(sides, window, stride, padded, ceil, seed):
    # Whole numbers from 0 to 3 tie in most windows: the first, row by row, gets the gradient.
    x = np.random.default_rng(seed).integers(0, 4, (1, *sides, 2))
    assert_pools_alike(jnp.asarray(x, jnp.float32), window, stride, window // 2 * padded, ceil)


def test_the_first_of_tied_values_row_by_row_gets_the_gradient():
    x = jnp.asarray([[0.0, 1.0], [1.0, 1.0]])[None, :, :, None]
    gradient = quick(jax.grad(lambda x: pooling.max_pool(x, 2, 2).sum()))(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])


@pytest.mark.parametrize("where", [(0, 0), (2, 2), (3, 1)])
def test_max_pooling_hides_no_nan(where):
    x = images(1, 5, 5, 1).at[0, *where, 0].set(jnp.nan)
    seen = [[np.isnan(x[0, i : i + 3, j : j + 3]).any() for j in (0, 2)] for i in (0, 2)]
    pooled = quick(lambda x: pooling.max_pool(x, 3, 2))(x)
    np.testing.assert_array_equal(np.isnan(pooled[0, :, :, 0]), seen)


@pytest.mark.parametrize(("side", "window", "pad"), [(2, 3, 0), (1, 2, 0), (0, 3, 1)])
def test_a_map_below_the_window_names_the_override(side, window, pad):
    message = rf"max pooling of {window}×{window} has only {side}×{side} pixels left.*overrides\.small_images=True"
    with pytest.raises(UserError, match=message):
        pooling.max_pool(jnp.zeros((1, side, side, 1)), window, 2, pad)


@pytest.mark.parametrize("sides", [(14, 14), (8, 9), (7, 5), (4, 3)])
def test_average_pooling_counts_full_windows_or_the_whole_map(sides):
    x = np.asarray(images(2, *sides, 3))
    window = [min(5, side) for side in sides]
    starts = [range(0, side - w + 1, 3) for side, w in zip(sides, window, strict=True)]
    parts = [[x[:, i : i + window[0], j : j + window[1]] for j in starts[1]] for i in starts[0]]
    expected = np.array([[np.mean(part, (1, 2), np.float64) for part in row] for row in parts]).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(quick(lambda x: pooling.avg_pool(x, 5, 3))(x), expected, atol=1e-6)


@pytest.mark.parametrize("sides", [(14, 14), (8, 7), (4, 5), (3, 2)])
def test_adaptive_pooling_covers_the_map_with_windows_as_torch_cuts_them(sides):
    x = np.asarray(images(2, *sides, 3))
    rows, columns = ([(math.floor(i * s / 4), math.ceil((i + 1) * s / 4)) for i in range(4)] for s in sides)
    parts = [[x[:, a:b, c:d] for c, d in columns] for a, b in rows]
    expected = np.array([[np.mean(part, (1, 2), np.float64) for part in row] for row in parts]).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(quick(lambda x: pooling.adaptive_avg_pool(x, 4))(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    "pool",
    [lambda x: pooling.avg_pool(x, 5, 3), lambda x: pooling.adaptive_avg_pool(x, 1), pooling.global_avg_pool],
    ids=["window", "adaptive", "global"],
)
def test_means_are_summed_in_float32(pool):
    # In bfloat16 a sum of ones would stop at 256.
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    assert pool(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(pool(x), np.float32), 1)


def normalised(x: np.ndarray) -> np.ndarray:
    """Section 3.3, with its k, n, α and β: b = a / (2 + 10⁻⁴ Σ a²)^0.75, the sum over channels i - 2 … i + 2."""
    y, channels = np.zeros_like(x), x.shape[-1]
    for i in range(channels):
        total = sum(x[..., j] ** 2 for j in range(max(0, i - 2), min(channels - 1, i + 2) + 1))
        y[..., i] = x[..., i] / (2 + 1e-4 * total) ** 0.75
    return y


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_response_normalisation_and_its_gradient_are_those_of_the_paper(channels):
    # Activations in the tens: below that the constant 2 hides the sum.
    x, grad = 100 * np.asarray(images(2, 3, 3, channels), np.float64), np.asarray(images(2, 3, 3, channels, seed=1))
    y, back = jax.vjp(normalization.local_response_norm, jnp.asarray(x, jnp.float32))
    expected, slope, steps = normalised(x), np.zeros_like(x), 1e-4 * np.eye(channels)
    for i, step in enumerate(steps):  # central differences, in float64
        slope[..., i] = np.sum(grad * (normalised(x + step) - normalised(x - step)) / 2e-4, axis=-1)
    assert np.ptp(expected / x) > 0.1
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    np.testing.assert_allclose(back(jnp.asarray(grad))[0], slope, rtol=1e-4, atol=1e-5)


def test_response_normalisation_of_bfloat16_is_computed_in_float32():
    x, grad = (100 * images(4, 5, 5, 8, seed=i) for i in (0, 1))
    x, grad = x.astype(jnp.bfloat16), grad.astype(jnp.bfloat16)

    def both(x: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, back = jax.vjp(normalization.local_response_norm, x)
        return y, back(grad)[0]

    half, full = quick(both)(x, grad), quick(both)(x.astype(jnp.float32), grad.astype(jnp.float32))
    for a, b in zip(half, full, strict=True):
        assert a.dtype == jnp.bfloat16
        # One rounding of the result, none before it. Compiled otherwise, float32 may differ in its last bits.
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2**-8, atol=1e-4)


def test_a_grouped_convolution_is_that_of_two_feature_groups():
    layer = layers.conv(6, 3, 2, groups=2, dtype=jnp.float32)
    x, kernel, grad = images(2, 7, 7, 8), images(3, 3, 4, 6, seed=1), images(2, 4, 4, 6, seed=2)
    numbers = ("NHWC", "HWIO", "NHWC")

    def ours(x: jax.Array, kernel: jax.Array) -> Any:
        return layer.apply({"params": {"kernel": kernel}}, x)

    def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=numbers, feature_group_count=2
        )

    def value_and_gradients(f: Any) -> Any:
        y, back = jax.vjp(f, x, kernel)
        return y, *back(grad)

    assert jax.eval_shape(layer.init, jax.random.key(0), x)["params"]["kernel"].shape == kernel.shape
    for a, b in zip(*quick(lambda: [value_and_gradients(f) for f in (ours, grouped)])(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_fully_connected_layer_over_a_map_is_the_convolution_with_its_kernel():
    layer = layers.FullyConnected(6, jnp.float32)
    x, kernel, bias = images(3, 4, 5, 7), images(4, 5, 7, 6, seed=1), images(6, seed=2)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": kernel.shape, "bias": bias.shape}
    y: Any = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    dense = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(y, dense[:, 0, 0] + bias, atol=1e-4)


def test_a_fully_connected_layer_starts_from_he_gaussians_over_all_that_it_sees():
    kernel = quick(lambda key: layers.FullyConnected(256, jnp.float32).init(key, jnp.zeros((1, 4, 4, 8))))(
        jax.random.key(0)
    )["params"]["kernel"]
    assert np.std(kernel) == pytest.approx(math.sqrt(2 / 128), rel=5 / math.sqrt(2 * kernel.size))


def test_an_endpoint_is_an_identity_without_parameters():
    x = images(2, 3, 3, 4)
    y, variables = layers.Endpoint().init_with_output(jax.random.key(0), x)
    assert y is x
    assert not variables


@pytest.mark.parametrize(("channels", "width", "expected"), [(96, 1, 96), (96, 0.25, 24), (16, 0.125, 8), (64, 2, 128)])
def test_widths_are_multiples_of_eight_and_never_zero(channels, width, expected):
    assert layers.widen(channels, width) == expected


def test_logits_of_a_network_in_bfloat16_are_not_rounded_to_it():
    x = jax.random.normal(jax.random.key(0), (8, 64), jnp.bfloat16)
    logits: Any = layers.Classifier(16, jnp.bfloat16).init_with_output(jax.random.key(1), x)[0]
    assert logits.dtype == jnp.float32
    assert (logits != logits.astype(jnp.bfloat16)).mean() > 0.5


def test_a_fully_connected_layer_and_its_convolution_have_the_same_weights_and_values():
    x = images(2, 3, 3, 4)
    layer, window = FullyConnected(6, jnp.float32), FullyConnected(6, jnp.float32, window=(3, 3))
    made = filled(jax.eval_shape(window.init, jax.random.key(0), images(1, 7, 9, 4)))
    assert sizes(made) == {"params/kernel": (3, 3, 4, 6), "params/bias": (6,)}
    assert sizes(jax.eval_shape(layer.init, jax.random.key(0), x)) == sizes(made)
    np.testing.assert_allclose(quick(window.apply)(made, x)[:, 0, 0], quick(layer.apply)(made, x), rtol=1e-5, atol=1e-5)
    later = jax.eval_shape(FullyConnected(6, jnp.float32, window=()).init, jax.random.key(0), x)
    assert sizes(later) == {"params/kernel": (4, 6), "params/bias": (6,)}


def test_the_gradient_of_a_map_of_scores_is_that_of_its_cells_one_by_one():
    x, g = images(2, 3, 4, 6), images(2, 3, 4, 5, seed=1)
    head = Classifier(5, jnp.float32)
    made = filled(jax.eval_shape(head.init, jax.random.key(0), x))
    gradients = quick(jax.grad(lambda made, x, g: jnp.sum(head.apply(made, x) * g), (0, 1)))
    (of_map, at_x), (of_rows, at_rows) = gradients(made, x, g), gradients(made, x.reshape(-1, 6), g.reshape(-1, 5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), of_map, of_rows)
    np.testing.assert_allclose(at_x.reshape(-1, 6), at_rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_batch_norm_of_16_bits_on_a_cpu_is_that_of_flax(shift, monkeypatch):
    """Output, running statistics and gradients, of a channel far from zero too; no farther from float32 than Flax's."""
    random = np.random.default_rng(0)
    x, grad = (jnp.asarray(random.normal(size=(16, 4, 4, 8)), jnp.bfloat16) for _ in range(2))
    x = (x + jnp.arange(8) * shift / 8).astype(jnp.bfloat16)
    params = {"scale": jnp.linspace(-1, 2, 8), "bias": jnp.linspace(0, 1, 8)}
    statistics = {"mean": jnp.ones(8), "var": jnp.full(8, 2.0)}

    def everything(dtype: Any, platform: str) -> Any:
        monkeypatch.setattr(layers, "platform", lambda: platform)
        norm: Any = layers.batch_norm(True, dtype=dtype)

        def output(params: Any, x: jax.Array) -> Any:
            return norm.apply({"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"])

        y, transpose, new = jax.vjp(output, params, x.astype(dtype), has_aux=True)
        return jax.tree.map(lambda a: np.asarray(a, np.float64), (y, new, transpose(grad.astype(dtype))))

    exact, plain, ours = (
        jax.tree.leaves(everything(*how)) for how in ((jnp.float32, ""), (jnp.bfloat16, ""), (jnp.bfloat16, "cpu"))
    )
    for wanted, usual, found in zip(exact, plain, ours, strict=True):
        spread = np.abs(wanted).max()
        assert np.abs(found - wanted).max() <= 1.1 * np.abs(usual - wanted).max() + 1e-5 * spread


def test_the_gradient_of_a_convolutions_bias_is_summed_in_float32():
    x, layer = jnp.ones((4, 32, 32, 1), jnp.bfloat16), layers.conv(1, 1, dtype=jnp.bfloat16, use_bias=True)
    params = {"params": {"kernel": jnp.ones((1, 1, 1, 1)), "bias": jnp.zeros(1)}}
    apply: Any = layer.apply
    assert apply(params, x).dtype == jnp.bfloat16
    gradient = jax.grad(lambda params: apply(params, x).astype(jnp.float32).sum())(params)["params"]
    assert (gradient["bias"][0], gradient["bias"].dtype) == (4 * 32 * 32, jnp.float32)
