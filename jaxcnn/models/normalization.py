"""Normalisation: BatchNorm's other forms, and AlexNet's over channels. All are over the last axis, NHWC."""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

Dtype = Any


def at_least_float32(dtype: Dtype) -> Any:
    """Return float32, or float64 if that is the compute type: that of parameters, statistics and sums."""
    return jnp.promote_types(dtype, jnp.float32)


class BatchNormOfACPU(nn.BatchNorm):
    """Flax's BatchNorm in 16 bits, which trains by `_normalize`: for a step on a CPU."""

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalise `x` (…, C) over all axes but the last."""
        if use_running_average or mask is not None or x.dtype != self.dtype or self.is_initializing():
            return super().__call__(x, use_running_average, mask=mask)
        shape = x.shape[-1:]
        statistics: Any = [self.variable("batch_stats", name, jnp.zeros, shape) for name in ("mean", "var")]
        scale: Any = self.param("scale", nn.initializers.ones_init(), shape, jnp.float32)
        bias: Any = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
        normalize: Any = _normalize
        y, *found = normalize(x, scale, bias, self.epsilon)
        for running, new in zip(statistics, found, strict=True):
            running.value = self.momentum * running.value + (1 - self.momentum) * new
        return y


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return x normalised by its mean and variance over all axes but the last, in the type of `x`, and those two.

    Ioffe and Szegedy 2015, algorithm 1. Barriers stand between the passes over `x`, since XLA's CPU compiler would
    convert it to float32 once for all of them and write that copy to memory. Each pass reads 16 bits. No gradient
    reaches the statistics that are returned.
    """
    return _normalize_forward(x, scale, bias, epsilon)[0]


def _normalize_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    count, axes, barrier = x.size // x.shape[-1], tuple(range(x.ndim - 1)), lax.optimization_barrier
    mean = x.astype(jnp.float32).sum(axes) / count
    again = barrier(x).astype(jnp.float32)
    var = jnp.maximum(0, (again * again).sum(axes) / count - mean * mean)  # as Flax: E[x²] - E[x]², never negative
    inverse = lax.rsqrt(var + epsilon)
    x, a, b = barrier((x, inverse * scale, bias - mean * inverse * scale))
    return ((x.astype(jnp.float32) * a + b).astype(x.dtype), mean, var), (x, mean, inverse, scale)


def _normalize_gradient(epsilon: float, kept: Any, grads: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    # With x̂ = (x - mean) / σ and n values a channel: dβ = Σ g, dγ = Σ g·x̂, dx = γ/σ · (g - dβ/n - x̂·dγ/n), which is
    # a·g + b·x + c with a number each a channel.
    x, mean, inverse, scale = kept
    count, axes, barrier = x.size // x.shape[-1], tuple(range(x.ndim - 1)), lax.optimization_barrier
    grad = grads[0]
    of_bias = grad.astype(jnp.float32).sum(axes)
    grad, x = barrier((grad, x))
    of_scale = inverse * ((grad.astype(jnp.float32) * x.astype(jnp.float32)).sum(axes) - mean * of_bias)
    a = inverse * scale
    b = -a * inverse * of_scale / count
    c = -a * of_bias / count - b * mean
    grad, x, a, b, c = barrier((grad, x, a, b, c))
    return (grad.astype(jnp.float32) * a + x.astype(jnp.float32) * b + c).astype(x.dtype), of_scale, of_bias


_normalize.defvjp(_normalize_forward, _normalize_gradient)


class FrozenBatchNorm(nn.Module):
    """BatchNorm whose statistics and affine are constants: (…, C) -> (…, C) in `dtype`, computed in float32.

    All four arrays live in `batch_stats`: they are no parameters, no optimizer sees them, and nothing writes to them.
    The gradient reaches `x`. `match_norms` moves the values of an ordinary network here.
    """

    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalise `x` over its last axis; there are no statistics for `mask` to choose the cells of."""

        initial = {"mean": 0, "var": 1, "scale": 1, "bias": 0}
        mean, var, scale, bias = (
            cast(
                jax.Array,
                self.variable("batch_stats", key, jnp.full, x.shape[-1:], value, at_least_float32(self.dtype)).value,
            )
            for key, value in initial.items()
        )
        # The order of Flax's BatchNorm in evaluation, so that both round alike.
        return ((x - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias).astype(self.dtype)


def match_norms(variables: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables {"params", "batch_stats"} with each array in the collection where `wanted` has it.

    So an ordinary network's variables become those of the same one with frozen norms, whose "scale" and "bias" lie in
    `batch_stats`, and the reverse. Nothing is copied; what `wanted` has in neither collection stays where it is.

    Args:
      wanted: the variables of the other form, or anything by their paths, such as {"params/norm/scale": shape}.
    """
    flat, paths = (flatten_dict(dict(tree), sep="/") for tree in (variables, wanted))
    moved: dict[Any, Any] = {}
    for path, x in flat.items():
        collection, _, rest = cast(str, path).partition("/")
        other = f"{'params' if collection == 'batch_stats' else 'batch_stats'}/{rest}"
        moved[other if path not in paths and other in paths else path] = x
    # A network without parameters or statistics of its own keeps the empty collection.
    return {name: {} for name in variables} | unflatten_dict(moved, sep="/")


@jax.custom_vjp
def local_response_norm(x: jax.Array) -> jax.Array:
    """Normalise over neighbouring channels: x / (2 + 1e-4 · Σ x²)^0.75, computed in float32.

    Krizhevsky et al. 2012, section 3.3, with its constants.

    The sum is over five channels, the two on each side included; the constant is not divided by five, as it is in Caffe
    and torch. On a TPU the squares are rounded to the type of `x` before they are added. (N, H, W, C) -> the same shape
    and type. The backward pass keeps nothing but `x` and recomputes the rest.
    """
    wide = x.astype(at_least_float32(x.dtype))
    with jax.named_scope("lrn"):
        return (wide * _lrn_scale(wide, x.dtype)[1]).astype(x.dtype)


def _neighbours(x: jax.Array, dtype: Dtype) -> jax.Array:
    """Return the sum over five adjacent channels, float32 -> float32; `dtype` is that of the network's activations."""

    def by_slices(x: jax.Array) -> jax.Array:  # XLA fuses them with the operations around them
        channels, padded = x.shape[-1], jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2)))
        return sum((padded[..., i : i + channels] for i in range(1, 5)), padded[..., :channels])

    def by_band(x: jax.Array) -> jax.Array:  # on a TPU shifts along channels are slow, and the matrix unit is idle
        channel = jnp.arange(x.shape[-1])
        band = (jnp.abs(channel[:, None] - channel) <= 2).astype(dtype)  # (C, C)
        precision = lax.Precision.HIGHEST if dtype == x.dtype else None  # a TPU's default would round to 16 bits
        return jnp.matmul(x.astype(dtype), band, precision=precision, preferred_element_type=x.dtype)

    return lax.platform_dependent(x, tpu=by_band, default=by_slices)


def _lrn_scale(x: jax.Array, dtype: Dtype) -> tuple[jax.Array, jax.Array]:
    """Return 1 / d and d^-0.75, where d = 2 + 1e-4 · Σ x²; by roots, which cost less than a power."""
    root = lax.rsqrt(2 + 1e-4 * _neighbours(x * x, dtype))
    return root * root, root * lax.sqrt(root)


def _lrn_gradient(x: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    # With s = d^-0.75: dy_j/dx_i = s_j·[i = j] - 2·1e-4·0.75·x_i·(x_j·s_j / d_j) where j is within two channels of i.
    # The sum over j is again one over five adjacent channels.
    with jax.named_scope("lrn"):
        wide, grad = x.astype(at_least_float32(x.dtype)), grad.astype(at_least_float32(x.dtype))
        inverse, scale = _lrn_scale(wide, x.dtype)
        across = _neighbours(grad * wide * scale * inverse, x.dtype)
        return ((grad * scale - 2 * 1e-4 * 0.75 * wide * across).astype(x.dtype),)


local_response_norm.defvjp(lambda x: (local_response_norm(x), x), _lrn_gradient)
