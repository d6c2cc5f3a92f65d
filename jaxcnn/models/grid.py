"""Where the cells of a feature map lie on the images: stride, centre of the first cell, and which cells are padding.

Images of several sizes share a canvas, (N, H, W, C), each in its upper left corner. A layer sees zeros beyond the edge
of an image, so it must see them there in the padding of the canvas, too: a map is set to zero outside of what it would
be of the image alone. Then an image's outputs do not depend on the canvas.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


def windows(side: Any, window: int, stride: int, pad: int = 0, ceil: bool = False) -> Any:
    """Return how many windows a side has, of a map padded by `pad` cells at both ends.

    Args:
      side: whole numbers, as an array or one alone.
      ceil: round up, as Caffe does: the last window may hang over the edge, but does not begin beyond the map.
    """
    size = (side + 2 * pad - window + (stride - 1 if ceil else 0)) // stride + 1
    return size - ((size - 1) * stride >= side + pad)


class Grid(NamedTuple):
    """The cells of a map, along height and width alike.

    Attributes:
      sizes: int32 (N, 2), height and width in cells of the part of each map that comes from its image; None: all of it.
      stride: pixels of the image between neighbouring cells.
      centre: pixel of the image in the middle of what the first cell sees; negative where that is padding.
    """

    sizes: jax.Array | None = None
    stride: int = 1
    centre: float = 0

    def padded(self, pad: int) -> "Grid":
        """Return the grid of the map with `pad` more cells, which count as the image's own, on each side."""
        return Grid(None if self.sizes is None else self.sizes + 2 * pad, self.stride, self.centre - pad * self.stride)

    def window(self, window: int, stride: int = 1, pad: int = 0, *, ceil: bool = False) -> "Grid":
        """Return the grid of what a convolution or a pooling makes of the map.

        Args:
          window: cells that one output sees along a side; of a dilated kernel, those it skips count.
        """
        sizes = None if self.sizes is None else jnp.maximum(windows(self.sizes, window, stride, pad, ceil), 0)
        return Grid(sizes, self.stride * stride, self.centre + ((window - 1) / 2 - pad) * self.stride)

    def enlarged(self, stride: int, window: int) -> "Grid":
        """Return the grid of what a transposed convolution without padding makes of the map."""
        sizes = None if self.sizes is None else jnp.where(self.sizes > 0, (self.sizes - 1) * stride + window, 0)
        finer = self.stride // stride
        return Grid(sizes, finer, self.centre - (window - 1) / 2 * finer)

    def inside(self, x: jax.Array) -> jax.Array | None:
        """Return bool (N, H, W, 1), which cells of the map (N, H, W, C) are the images'; None: all are."""
        if self.sizes is None:
            return None
        rows, columns = (jnp.arange(x.shape[i + 1]) < self.sizes[:, i, None] for i in (0, 1))  # (N, H), (N, W)
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    def crop(self, x: jax.Array) -> jax.Array:
        """Return the map (N, H, W, C) with zeros outside of the images."""
        inside = self.inside(x)
        return x if inside is None else jnp.where(inside, x, 0)


CANVAS = Grid()  # of images that fill their canvas


class Map(NamedTuple):
    """A feature map (N, H, W, C), and how its cells lie."""

    x: jax.Array
    grid: Grid

    def cut(self, grid: Grid, size: Sequence[int]) -> jax.Array:
        """Return the part (N, *size, C) of the map that lies on `grid`, of its stride; zeros where the map has none."""
        start = (grid.centre - self.grid.centre) / self.grid.stride
        assert start == int(start), (self.grid, grid)
        first = int(start)
        edges = [(-first, first + new - side, 0) for side, new in zip(self.x.shape[1:3], size, strict=True)]
        return lax.pad(self.x, jnp.zeros((), self.x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
