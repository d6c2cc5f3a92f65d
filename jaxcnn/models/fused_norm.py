"""BatchNorm that saves memory traffic: of a 1×1 convolution without its output, and of a stem after its pooling.

**A product.** The last layer of a bottleneck, y = r·W, has four times as many channels as r, and is written once and
read four times in a step. It is linear, so its statistics follow from those of r, and with the Gram matrix G = Σ rᵀr of
the n cells (C × C numbers, C the channels of r):

    mean(y) = mean(r)·W        var(y) = diag(Wᵀ·Cov(r)·W),  Cov(r) = G / n - mean(r)ᵀ·mean(r)

They are known before y is: product, scale, shift, residual and ReLU are one kernel, and y is never written. Nor is it
read in the backward pass. Let d be the gradient behind the ReLU, s = γ/σ and P = Σ rᵀd. As Σ d·y = Σ_k P∘W,

    dβ = Σ d                   dγ = (Σ_k P∘W - mean·dβ) / σ
    dy = s·d + b·y + c         b = -s·dγ / (σ·n),  c = -s·dβ / n - b·mean       (a number each a channel)
    dW = P·s + G·W·b + Σr·c    dr = d·(W·s)ᵀ + r·(W·b·Wᵀ) + W·c

**A stem.** Where γ > 0, scale, shift and ReLU keep the order of values: the maximum may be taken first, and all else is
done to the pooled map, a quarter of the size. The two sums of the backward pass are over it, too, since no other cell
has a gradient. A negative γ becomes positive by turning the sign of the kernel's column.

Both are exact but for rounding. They pay on a TPU, whose convolutions take such work into their kernels; on a GPU they
cost more. `experiments/results/fused-norm.md` derives them at length and has what compiled steps move.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.models.normalization import at_least_float32
from jaxcnn.models.pooling import max_pool

_CELLS = (0, 1, 2)  # axes of a map (N, H, W, C) but the channels
_fused: ContextVar[bool] = ContextVar("fused", default=False)


@contextmanager
def fused_norms(on: bool) -> Iterator[None]:
    """Let the networks that are traced within take the forms of this module, where they have them."""
    token = _fused.set(on)
    try:
        yield
    finally:
        _fused.reset(token)


def is_fused() -> bool:
    """Return what `fused_norms` has set."""
    return _fused.get()


class FusedNorm(nn.Module):
    """The parameters and statistics of `nn.BatchNorm` under its names, for a form that normalises by itself."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(
        self, normalize: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
    ) -> jax.Array:
        """Return what `normalize` makes of scale and bias (C,), and move the statistics towards those that it found."""
        shape, wide = (self.features,), at_least_float32(self.dtype)
        mean: Any = self.variable("batch_stats", "mean", jnp.zeros, shape, wide)
        var: Any = self.variable("batch_stats", "var", jnp.ones, shape, wide)
        scale = self.param("scale", nn.initializers.ones_init(), shape, wide)
        bias = self.param("bias", nn.initializers.zeros_init(), shape, wide)
        y, *found = normalize(scale, bias)
        for running, new in zip((mean, var), found, strict=True):
            running.value = 0.9 * running.value + 0.1 * new  # as `layers.batch_norm`
        return y


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def norm_of_product(
    r: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, residual: jax.Array | None,
    epsilon: float, axis: str | None, relu: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Return BatchNorm(r·kernel) + residual, after a ReLU if asked for, and the mean and variance of the product.

    These two are for the running statistics: no gradient passes through them.

    Args:
      r: (N, H, W, C).
      kernel: (C, features), in float32 at least.
      residual: (N, H, W, features), or None.
      axis: of the surrounding `shard_map`, over whose shards the statistics are, too; None: those of this shard.
    """
    return _product_forward(r, kernel, scale, bias, residual, epsilon, axis, relu)[0]


def _product_forward(
    r: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, residual: jax.Array | None,
    epsilon: float, axis: str | None, relu: bool,
) -> Any:  # fmt: skip
    wide, count = at_least_float32(r.dtype), r.size // r.shape[-1]
    w = kernel.astype(r.dtype).astype(wide)  # as the product has it: statistics are of the y that is meant
    total, gram = r.sum(_CELLS, dtype=wide), _outer(r, r)  # (C,), (C, C)
    centre = total / count
    covariance = gram / count - centre[:, None] * centre
    mean = _exactly(centre, w)
    var = jnp.maximum((w * _exactly(covariance, w)).sum(0), 0)
    if axis is not None:
        # The channels' vectors cross the wire, never the Gram matrix.
        mean, square = lax.pmean((mean, var + mean * mean), axis)
        var = jnp.maximum(square - mean * mean, 0)
    inverse = lax.rsqrt(var + epsilon)
    y = _conv(r, w.astype(r.dtype), wide) * (scale * inverse) + (bias - mean * scale * inverse)
    if residual is not None:
        y += residual.astype(wide)
    out = (nn.relu(y) if relu else y).astype(r.dtype)
    kept = r, kernel, scale, total, gram, mean, inverse, out if relu else None, residual is None
    return (out, mean, var), kept


def _product_gradients(epsilon: float, axis: str | None, relu: bool, kept: Any, grads: Any) -> tuple[Any, ...]:
    r, kernel, scale, total, gram, mean, inverse, out, alone = kept
    wide, count = at_least_float32(r.dtype), r.size // r.shape[-1]
    w = kernel.astype(r.dtype).astype(wide)
    d = grads[0] if out is None else jnp.where(out > 0, grads[0], 0)
    outer = _outer(r, d)  # P, (C, features)
    of_bias = d.sum(_CELLS, dtype=wide)
    of_scale = ((outer * w).sum(0) - mean * of_bias) * inverse
    s, b, c = _slopes(scale, inverse, mean, of_scale, of_bias, count, axis)
    of_kernel = outer * s + _exactly(gram, w * b) + total[:, None] * c
    # The correction r·(W·b·Wᵀ) is small, and in the type of r: a float32 array between two products would be written.
    correction = _conv(r, _exactly(w * b, w.T).astype(r.dtype), r.dtype).astype(wide)
    of_r = _conv(d, (w * s).T.astype(r.dtype), wide) + correction + _exactly(w, c)
    return of_r.astype(r.dtype), of_kernel.astype(kernel.dtype), of_scale, of_bias, None if alone else d


norm_of_product.defvjp(_product_forward, _product_gradients)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm_relu_pool(
    y: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the stem's pooling of ReLU(BatchNorm(y)), and the mean and variance of y, which have gradients, too.

    Args:
      y: (N, H, W, C), what the convolution gave; the result is (N, H / 2, W / 2, C).
      scale: (C,), none of them negative.
      axis: as of `norm_of_product`.
    """
    return _pool_forward(y, scale, bias, epsilon, axis)[0]


def _pool(y: jax.Array) -> jax.Array:
    return max_pool(y, window=3, stride=2, pad=1)


def _pool_forward(y: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis: str | None) -> Any:
    wide = y.astype(at_least_float32(y.dtype))
    mean, square = wide.mean(_CELLS), (wide * wide).mean(_CELLS)
    if axis is not None:
        mean, square = lax.pmean((mean, square), axis)
    var = jnp.maximum(square - mean * mean, 0)
    inverse = lax.rsqrt(var + epsilon)
    top = _pool(y)
    out = nn.relu(top.astype(wide.dtype) * (scale * inverse) + (bias - mean * scale * inverse)).astype(y.dtype)
    return (out, mean, var), (y, top, out, scale, mean, inverse)


def _pool_gradients(epsilon: float, axis: str | None, kept: Any, grads: Any) -> tuple[jax.Array, ...]:
    y, top, out, scale, mean, inverse = kept
    wide, count = at_least_float32(y.dtype), y.size // y.shape[-1]
    d = jnp.where(out > 0, grads[0], 0)
    of_bias = d.sum(_CELLS, dtype=wide)
    of_scale = ((d.astype(wide) * top.astype(wide)).sum(_CELLS) - mean * of_bias) * inverse
    s, b, c = _slopes(scale, inverse, mean, of_scale, of_bias, count, axis)
    # The stem as an endpoint is made of mean and variance: where it is asked for, they have gradients of their own.
    cells = count if axis is None else count * lax.psum(1, axis)
    b, c = b + 2 * grads[2] / cells, c + (grads[1] - 2 * grads[2] * mean) / cells
    spread = jax.vjp(_pool, y)[1](d)[0]  # the gradient at the cells that were the maxima
    return (spread.astype(wide) * s + y.astype(wide) * b + c).astype(y.dtype), of_scale, of_bias


norm_relu_pool.defvjp(_pool_forward, _pool_gradients)


def _slopes(
    scale: jax.Array,
    inverse: jax.Array,
    mean: jax.Array,
    of_scale: jax.Array,
    of_bias: jax.Array,
    count: int,
    axis: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Return s, b and c (C,) of dy = s·d + b·y + c, BatchNorm's gradient, for gradients of a shard at γ and β.

    The means over shards divided by the cells of one are the sums over all cells.
    """
    if axis is not None:
        of_scale, of_bias = lax.pmean((of_scale, of_bias), axis)
    s = scale * inverse
    b = -s * inverse * of_scale / count
    return s, b, -s * of_bias / count - b * mean


def _conv(x: jax.Array, w: jax.Array, dtype: Any) -> jax.Array:
    """Return the 1×1 convolution (N, H, W, C) × (C, features), summed and returned in `dtype`."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w[None, None], (1, 1), "VALID", dimension_numbers=layout, preferred_element_type=dtype
    )


def _outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return Σ aᵀb over all cells: (N, H, W, C), (N, H, W, F) -> (C, F), in float32 at least."""
    return lax.dot_general(a, b, ((_CELLS, _CELLS), ((), ())), preferred_element_type=at_least_float32(a.dtype))


def _exactly(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return a small product without the rounding of its operands to 16 bits that is a TPU's default."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
