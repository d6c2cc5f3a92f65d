"""Resizing of maps, NHWC: bilinear or nearest to any size, and transposed convolutions that enlarge by integers.

"Bilinear" names several functions, and a network learns for one of them. The arguments of `resize` say which: where
the corners lie, and whether an image that shrinks is smoothed first. A transposed convolution with a bilinear kernel
is another one: it treats cells beyond the edge as zeros, so that its result fades to zero there.

Interpolation is a sum of a few products in float32 at least, not a matrix product: class scores are resized before the
loss.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def _wide(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def resize(
    x: jax.Array,
    size: tuple[int, int],
    *,
    aligned_corners: bool,
    antialias: bool,
    sizes: jax.Array | None = None,
    to: jax.Array | None = None,
) -> jax.Array:
    """Interpolate maps (N, H, W, C) bilinearly to (N, *size, C), float32 at least.

    torch's `interpolate` and torchvision's models: neither aligned nor antialiased; `jax.image.resize`: antialiased.

    Args:
      aligned_corners: the centres of the corner cells of both maps coincide, and with one output cell it is the first;
        else their outer edges do (half-pixel centres), and beyond the outermost centres the value stays.
      antialias: average over all cells that an output cell covers where the map shrinks, else over two a side.
      sizes: int32 (N, 2), height and width of the part of each map to resize, without antialiasing; None: all of it.
      to: int32 (N, 2), height and width that this part gets; the rest is of no meaning. None: all of `size`.
    """
    dtype = _wide(x)
    x = x.astype(dtype)
    for axis, count in enumerate(size, start=1):
        side = x.shape[axis] if sizes is None else sizes[:, axis - 1, None]
        new = count if to is None else to[:, axis - 1, None]
        x = _interpolate(x, axis, *_weights(side, new, count, aligned_corners, antialias, dtype))
    return x


def nearest(
    x: jax.Array, size: tuple[int, int], sizes: jax.Array | None = None, to: jax.Array | None = None
) -> jax.Array:
    """Resize maps (N, H, W, C) to (N, *size, C): cell o is cell ⌊o · before / after⌋, as in torch's "nearest".

    Args:
      sizes, to: int32 (N, 2), heights and widths of the parts of each map before and after, as in `resize`.
    """
    for axis, count in enumerate(size, start=1):
        cell = jnp.arange(count)
        if sizes is None or to is None:
            x = jnp.take(x, cell * x.shape[axis] // count, axis)
            continue
        index = cell * sizes[:, axis - 1, None] // jnp.maximum(to[:, axis - 1, None], 1)  # (N, count)
        # Cells beyond the part have no meaning, but their index must be within the map.
        index = jnp.minimum(index, x.shape[axis] - 1)
        x = jax.vmap(lambda x, index, axis=axis - 1: jnp.take(x, index, axis))(x, index)
    return x


def _weights(
    side: Any, new: Any, count: int, aligned_corners: bool, antialias: bool, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Return which cells each of `count` output cells takes and with what weights, (taps, count) or (taps, N, count).

    Args:
      side, new: cells along the axis before and after, whole numbers or int32 (N, 1).
    """
    # Output cell o lies at (first + o · step) / over of the cells before. Whole numbers keep that exact, so that it is
    # the same whether the sizes are known to the program or come with the batch.
    if aligned_corners:
        first, step, over = 0, side - 1, new - 1 + (new == 1)
    else:
        first, step, over = side - new, 2 * side, 2 * new
    place = first + jnp.arange(count) * step
    # A triangle of this half width, in the same unit, says how much a cell counts.
    reach, taps = (max(over, step), 2 * -(-max(over, step) // over)) if antialias else (over, 2)
    index = (place - reach) // over + 1 + jnp.arange(taps).reshape(-1, *[1] * jnp.ndim(place))
    weight = jnp.maximum(1 - jnp.abs(index * over - place) / jnp.asarray(reach, dtype), 0)
    weight = jnp.where((index >= 0) & (index < side), weight, 0)
    total = weight.sum(0)
    return index, (weight / jnp.where(total > 0, total, 1)).astype(dtype)


def _interpolate(x: jax.Array, axis: int, index: jax.Array, weight: jax.Array) -> jax.Array:
    """Return sums over taps of cells (N, …) along `axis`, by what `_weights` gives."""
    index = jnp.clip(index, 0, x.shape[axis] - 1)  # a weight of 0 makes any cell do
    shape = [1, 1, 1, 1]
    shape[axis] = index.shape[-1]
    if index.ndim == 3:
        shape[0] = x.shape[0]
    taps = []
    for cells, factor in zip(index, weight.reshape(-1, *shape), strict=True):
        if index.ndim == 3:
            cells = cells.reshape(shape)
            taps.append(jnp.take_along_axis(x, cells, axis) * factor)
        else:
            taps.append(jnp.take(x, cells, axis) * factor)
    return sum(taps[1:], taps[0])


def bilinear_kernel(size: int) -> np.ndarray:
    """Return the kernel (size, size), float64, whose transposed convolution of stride ⌈size / 2⌉ interpolates.

    The filter that the authors of FCN fill their layers with: a triangle along each side, its peak in the middle.
    """
    factor = (size + 1) // 2
    line = 1 - np.abs(np.arange(size) - (size - 1) / 2) / factor
    return np.outer(line, line)


def transposed_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return the sum of `kernel` times each cell, `stride` apart: (N, H, W, C) -> (N, (H - 1) · stride + K, …, C).

    Each channel has its kernel, (K, K, C), or all have one, (K, K, 1); K is at most twice the stride. float32 at least.
    """
    side = len(kernel)
    assert side <= 2 * stride, (side, stride)
    dtype = _wide(x)
    x, kernel = (a.astype(dtype) for a in (x, kernel))
    kernel = jnp.pad(kernel, ((0, 2 * stride - side), (0, 2 * stride - side), (0, 0)))
    batch, height, width, channels = x.shape
    # Two cells a side reach an output. With h' = H + 1, output row i · stride + r is x[i] · kernel[r] + x[i - 1] ·
    # kernel[stride + r]: each pair of these products is one of two maps, moved by a cell or not.
    total: Any = 0
    for down in (0, 1):
        for right in (0, 1):
            moved = jnp.pad(x, ((0, 0), (down, 1 - down), (right, 1 - right), (0, 0)))  # (N, H + 1, W + 1, C)
            part = kernel[down * stride :, right * stride :][:stride, :stride]  # (stride, stride, C)
            total += moved[:, :, None, :, None] * part[None, None, :, None]  # (N, H + 1, stride, W + 1, stride, C)
    enlarged = total.reshape(batch, (height + 1) * stride, (width + 1) * stride, channels)
    return enlarged[:, : (height - 1) * stride + side, : (width - 1) * stride + side]


class Enlarge(nn.Module):
    """Transposed convolution (N, H, W, C) -> (N, (H - 1) · stride + size, …, C), one kernel a channel and no bias.

    Attributes:
      size: side of the kernel.
      learnt: it is a parameter that begins bilinear, else it is bilinear and none.
    """

    stride: int
    size: int
    learnt: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the enlarged map, float32 at least."""
        bilinear = jnp.asarray(bilinear_kernel(self.size), _wide(x))[:, :, None]
        if not self.learnt:
            return transposed_convolution(x, bilinear, self.stride)
        shape = (self.size, self.size, x.shape[-1])
        return transposed_convolution(x, self.param("kernel", lambda _: jnp.broadcast_to(bilinear, shape)), self.stride)
