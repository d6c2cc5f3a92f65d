"""Anchors: the boxes of fixed sizes and shapes around each cell of a feature map, from which an RPN regresses.

Ren et al. 2015, section 3.1.1. The anchors of a cell are a constant, made with NumPy. Those of a map are computed in
the program, in the order of the RPN's outputs: rows, columns, and anchors of a cell.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return the anchors around (0, 0), float32 (ratios · sizes, 4), sizes innermost: torchvision's and FPN's.

    Args:
      sizes: square roots of the areas in pixels.
      ratios: height / width.
    """
    root = np.sqrt(np.asarray(ratios, np.float64))
    side = np.asarray(sizes, np.float64)
    width, height = np.outer(1 / root, side).ravel(), np.outer(root, side).ravel()
    # As torchvision, corners are rounded to whole pixels, halves to the even one.
    return np.round(np.stack([-width, -height, width, height], 1) / 2).astype(np.float32)


def paper_anchors(
    scales: Sequence[float] = (8, 16, 32), ratios: Sequence[float] = (0.5, 1, 2), base: int = 16
) -> np.ndarray:
    """Return the anchors of the first cell as the authors' code has them, float32 (ratios · scales, 4).

    The default are the paper's nine for a stride of 16. Scales are innermost. Corners are inclusive pixels: the sides
    are x2 - x1 + 1.

    Args:
      scales: sides of the squares, in multiples of `base`.
      ratios: height / width; the sides of the shape at scale 1 are rounded to whole pixels before they are enlarged.
      base: side in pixels of the cell; all anchors have the centre of the cell.
    """
    ratio = np.asarray(ratios, np.float64)
    width = np.round(np.sqrt(base * base / ratio))
    height = np.round(width * ratio)
    sides = np.stack([np.outer(side, scales).ravel() for side in (width, height)], 1)  # (ratios · scales, 2)
    centre = (base - 1) / 2
    return np.concatenate([centre - (sides - 1) / 2, centre + (sides - 1) / 2], 1).astype(np.float32)


def spread(cell: np.ndarray, grid: tuple[int, int], stride: tuple[int, int]) -> jax.Array:
    """Return the anchors of a map, (H · W · a, 4), given those of its first cell, (a, 4).

    Args:
      grid: H and W, the rows and columns of the map.
      stride: pixels between rows and between columns.
    """
    down, right = (jnp.arange(cells, dtype=cell.dtype) * step for cells, step in zip(grid, stride, strict=True))
    y, x = jnp.meshgrid(down, right, indexing="ij")  # (H, W)
    moved = jnp.stack([x, y, x, y], -1)[:, :, None] + cell  # (H, W, a, 4)
    return moved.reshape(-1, 4)
