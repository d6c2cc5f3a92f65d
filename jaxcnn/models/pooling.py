"""Pooling that the families share, NHWC, padded explicitly as in torch; means are summed in float32 at least."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn import UserError
from jaxcnn.models.grid import windows


def max_pool(x: jax.Array, window: int, stride: int, pad: int = 0, ceil: bool = False) -> jax.Array:
    """Pool maxima: (N, H, W, C) -> (N, (H + 2 pad - window) // stride + 1, …, C); the padding never wins.

    Where values tie, the first one, row by row, gets the gradient, as in torch.

    Args:
      ceil: round the output size up, as the GoogLeNet of Caffe and torch does: the last window hangs over the edge.
    """

    def extent(side: int) -> tuple[int, int]:  # windows, and padding after the edge
        if side + 2 * pad < window:
            raise too_small(x, f"max pooling of {window}×{window}")
        size = windows(side, window, stride, pad, ceil)
        return size, max(0, (size - 1) * stride + window - side - pad)

    (rows, below), (columns, beside) = extent(x.shape[1]), extent(x.shape[2])

    def by_windows(x: jax.Array) -> jax.Array:
        padding: Any = ((pad, below), (pad, beside))
        return nn.max_pool(x, (window, window), (stride, stride), padding)

    def by_slices(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (pad, below), (pad, beside), (0, 0)), constant_values=-jnp.inf)
        for axis, size in ((2, columns), (1, rows)):  # in this order ties fall as in `by_windows`
            last = (size - 1) * stride + 1
            # Slice i holds the i-th pixel of each window. A maximum that prefers its first operand keeps the first of
            # tied values, and `a != a` lets a NaN through.
            slices = [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(window)]
            x = functools.reduce(lambda a, b: jnp.where((a >= b) | (a != a), a, b), slices)
        return x

    # XLA's own pooling is best on a TPU. Its gradient takes several times longer on a CPU, twice the bytes on a GPU.
    with jax.named_scope("max_pool"):
        return lax.platform_dependent(x, tpu=by_windows, default=by_slices)


def avg_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Return means over windows (N, H, W, C) -> (N, …, C); a map smaller than the window is one window."""
    with jax.named_scope("avg_pool"):
        shape = (min(window, x.shape[1]), min(window, x.shape[2]))
        return nn.avg_pool(x.astype(jnp.promote_types(x.dtype, jnp.float32)), shape, (stride, stride)).astype(x.dtype)


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Average over size × size windows as torch does: window i of a side s is [⌊i·s/size⌋, ⌈(i+1)·s/size⌉)."""

    def pool(x: jax.Array, axis: int) -> jax.Array:
        side = x.shape[axis]
        windows = [(i * side // size, -(-(i + 1) * side // size)) for i in range(size)]
        return jnp.stack([lax.slice_in_dim(x, *w, axis=axis).mean(axis) for w in windows], axis)

    with jax.named_scope("avg_pool"):
        return pool(pool(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 1), 2).astype(x.dtype)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Return the mean over space, (N, H, W, C) -> (N, C) in the type of `x`."""
    with jax.named_scope("global_avg_pool"):
        return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


def too_small(x: jax.Array, what: str) -> UserError:
    """Return the error for images that leave nothing to a later layer."""
    return UserError(
        f"{what} has only {x.shape[1]}×{x.shape[2]} pixels left: take larger images (config.data.image_size) "
        "or, where it is not on, the form for 28 to 64 pixels: config.model.overrides.small_images=True"
    )
