"""Features of regions: RoI pooling, RoIAlign, and the level of a pyramid that a region is taken from.

Maps are (N, H, W, C), and each image has the same number of boxes (N, R, 4) in pixels, some of which may be padding:
their features are finite and of no meaning. Boxes have no gradient, as in the papers; the features have.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn import UserError
from jaxcnn.models import boxes as box


def assign_levels(boxes: jax.Array, lowest: int = 2, highest: int = 5) -> jax.Array:
    """Return the level of each box, counted from the lowest one: (…, 4) -> int32 (…).

    Lin et al. 2017 (FPN), equation 1: ⌊4 + log2(√area / 224)⌋, within `lowest` … `highest`. As torchvision, 1e-6 is
    added, so that a side of exactly 224 is not rounded down.
    """
    side = jnp.sqrt(lax.stop_gradient(box.area(boxes)))
    level = jnp.floor(4 + jnp.log2(side / 224) + 1e-6)  # -inf where there is no area
    return (jnp.clip(level, lowest, highest) - lowest).astype(jnp.int32)


def roi_align(
    maps: Sequence[jax.Array],
    scales: Sequence[float],
    boxes: jax.Array,
    size: tuple[int, int],
    *,
    levels: jax.Array | None = None,
    samples: int = 2,
    aligned: bool = False,
    most: tuple[int, int] | None = None,
) -> jax.Array:
    """Return means of bilinear samples over h × w equal bins of each box: (N, R, h, w, C) in the type of the maps.

    He et al. 2017 (Mask R-CNN), section 3, with torchvision's border: a sample more than one cell outside of the map is
    0, and one nearer to it takes the value at the edge. Sums are in float32 at least.

    Args:
      maps: one map, or the levels of a pyramid, (N, H, W, C) each.
      scales: cells of each map per pixel, 1 / stride.
      size: h and w.
      levels: int (N, R), the map that each box is taken from; None: the first.
      samples: samples a bin and side; 0: ⌈side of the box in cells / bins⌉, at most `most`.
      aligned: a coordinate counts from the corner of the first cell, not from its centre (half a cell is subtracted);
        without it, boxes have at least the side of a cell.
      most: (rows, columns), bound of the adaptive number of samples, as shapes are fixed; None: what a box as large as
        the largest map takes. The work is that of `most` samples for each box.

    Raises:
      UserError: there are not as many scales as maps.
    """
    if len(maps) != len(scales):
        raise UserError(f"there are {len(maps)} maps and {len(scales)} scales: give roi_align one scale for each map")
    levels = jnp.zeros(boxes.shape[:2], jnp.int32) if levels is None else levels
    shapes = np.array([x.shape[1:3] for x in maps], np.int32)  # (levels, 2) as rows, columns
    height, width = (int(side) for side in shapes.max(0))
    bound = (samples, samples) if samples else most or (-(-height // size[0]), -(-width // size[1]))
    # All levels are one list of cells, so that each box is sampled once, not once from every level.
    cells = jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in maps], 1)  # (N, cells, C)
    first = np.concatenate([[0], np.cumsum(shapes.prod(1))])[:-1].astype(np.int32)  # (levels,), in that list

    def one_image(cells: jax.Array, boxes: jax.Array, levels: jax.Array) -> jax.Array:
        shape = jnp.asarray(shapes)[levels]  # (R, 2)
        corners = boxes * jnp.asarray(scales, boxes.dtype)[levels, None] - (0.5 if aligned else 0)  # (R, 4)
        sides = corners[:, 2:] - corners[:, :2]
        sides = sides if aligned else jnp.maximum(sides, 1)
        axis = partial(_taps, samples=samples)
        rows = axis(corners[:, 1], sides[:, 1], shape[:, 0], bins=size[0], most=bound[0])
        columns = axis(corners[:, 0], sides[:, 0], shape[:, 1], bins=size[1], most=bound[1])
        return _weighted_sum(cells, jnp.asarray(first)[levels], shape[:, 1], rows, columns)

    return jax.vmap(one_image)(cells, lax.stop_gradient(box.wide(boxes)), levels)


def _taps(
    start: jax.Array, length: jax.Array, side: jax.Array, *, samples: int, bins: int, most: int
) -> tuple[jax.Array, jax.Array]:
    """Return the cells along one axis that each bin reads and their weights, (2 · most, R, bins) both.

    Bilinear interpolation and the mean over a bin are products of one factor an axis; a sample reads two cells.

    Args:
      start, length: where the boxes begin and how long they are, in cells (R,).
      side: cells of each box's map along the axis (R,).
    """
    start, length = start[:, None], length[:, None]  # (R, 1)
    used = jnp.clip(jnp.ceil(length / bins), 0, most) if samples == 0 else jnp.full_like(length, samples)
    index = jnp.arange(most, dtype=start.dtype)[:, None, None]  # (most, 1, 1)
    place = start + (jnp.arange(bins) + (index + 0.5) / jnp.maximum(used, 1)) * (length / bins)  # (most, R, bins)
    last = side[:, None].astype(place.dtype) - 1
    counts = (index < used) & (place >= -1) & (place <= last + 1)
    place = jnp.clip(place, 0, last)
    low = jnp.floor(place)
    share = place - low  # of the upper one of the two cells
    each = jnp.where(counts, 1 / jnp.maximum(used, 1), 0)
    cells = jnp.concatenate([low, jnp.minimum(low + 1, last)]).astype(jnp.int32)
    return cells, jnp.concatenate([(1 - share) * each, share * each])


def _weighted_sum(cells: jax.Array, first: jax.Array, width: jax.Array, rows: Any, columns: Any) -> jax.Array:
    """Return the sum over all pairs of a row's and a column's tap, (R, h, w, C).

    Args:
      cells: the cells of all maps of an image (cells, C).
      first, width: where each box's map begins among them, and cells in a row of it (R,).
      rows, columns: cells and weights of the taps, (taps, R, h) and (taps, R, w) each.
    """
    (row, down), (column, right) = rows, columns
    pairs = len(row) * len(column)

    def add(total: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        i, j = pair // len(column), pair % len(column)
        index = (first[:, None] + row[i] * width[:, None])[:, :, None] + column[j][:, None]  # (R, h, w)
        weight = down[i][:, :, None] * right[j][:, None]
        return total + weight[..., None] * cells.at[index].get(mode="promise_in_bounds"), None

    total = jnp.zeros((*row.shape[1:], column.shape[2], cells.shape[1]), jnp.promote_types(cells.dtype, down.dtype))
    # The 16 pairs of two samples a side are one fused expression; many are a loop, to bound program and memory.
    total, _ = lax.scan(add, total, jnp.arange(pairs), unroll=pairs if pairs <= 16 else 1)
    return total.astype(cells.dtype)


def roi_pool(x: jax.Array, scale: float, boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Return maxima over h × w bins of each box: a map (N, H, W, C) and boxes (N, R, 4) -> (N, R, h, w, C).

    Girshick 2015, section 2.1, and its published code: corners are rounded to whole cells, halves away from zero, both
    belong to the region, which has at least one cell; bin i of a side s is [⌊i·s / h⌋, ⌈(i + 1)·s / h⌉), so that
    neighbours may share cells; what lies outside of the map is cut off, and a bin without cells is 0. Bins are computed
    in whole numbers here: the published floats put one more cell into the last bin at some sides (the first with seven
    bins is 57).

    Where cells tie, the first one, row by row, gets the gradient. The cell of the maximum over every window whose sides
    are powers of two is kept: 4 · log2(H) · log2(W) · H · W · C bytes an image, 176 MB for VGG-16 on 600×1,000 pixels.
    """
    _, height, width, channels = x.shape
    corners = _round_half_away(lax.stop_gradient(box.wide(boxes)) * scale)  # int32 (N, R, 4)

    def bins(low: jax.Array, high: jax.Array, count: int, side: int) -> tuple[jax.Array, jax.Array]:
        """Return where the bins of (N, R) sides begin and end, (N, R, count) both."""
        index, length = jnp.arange(count), jnp.maximum(high - low + 1, 1)[..., None]
        begin, end = index * length // count, -((-(index + 1) * length) // count)
        return jnp.clip(low[..., None] + begin, 0, side), jnp.clip(low[..., None] + end, 0, side)

    rows = bins(corners[..., 1], corners[..., 3], size[0], height)
    columns = bins(corners[..., 0], corners[..., 2], size[1], width)

    def one_image(x: jax.Array, rows: Any, columns: Any) -> jax.Array:
        cells = x.reshape(-1, channels)  # (H · W, C)
        table = _first_maxima(lax.stop_gradient(x))  # (levels of rows, levels of columns, H, W, C)
        # A bin is covered by two windows a side, one at its beginning and one at its end, which may overlap.
        (row, tall), (column, broad) = (_covering(*edges) for edges in (rows, columns))  # (2, R, h), (R, h); …
        winner: Any = None
        for i in (0, 1):
            for j in (0, 1):
                at = (tall[:, :, None], broad[:, None], row[i][:, :, None], column[j][:, None])
                cell = table[at]  # (R, h, w, C)
                value = jnp.take_along_axis(cells, cell.reshape(-1, channels), 0).reshape(cell.shape)
                new = lax.stop_gradient(value), cell
                winner = new if winner is None else _better(winner, new)
        out = jnp.take_along_axis(cells, winner[1].reshape(-1, channels), 0).reshape(winner[1].shape)
        some = (rows[1] > rows[0])[:, :, None] & (columns[1] > columns[0])[:, None]
        return jnp.where(some[..., None], out, 0)

    return jax.vmap(one_image)(x, rows, columns)


def _round_half_away(x: jax.Array) -> jax.Array:
    """Round as C's `round` does, to int32; `jnp.round` takes halves to even."""
    whole = jnp.trunc(x)
    return (whole + jnp.where(jnp.abs(x - whole) >= 0.5, jnp.sign(x), 0)).astype(jnp.int32)


def _better(a: Any, b: Any) -> Any:
    """Return the larger of two (value, cell), and of equal values the one whose cell comes first."""
    take = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
    return jnp.where(take, b[0], a[0]), jnp.where(take, b[1], a[1])


def _first_maxima(x: jax.Array) -> jax.Array:
    """Return the cell of the maximum over windows of 2^i × 2^j from each cell: (H, W, C) -> int32 (I, J, H, W, C).

    A window that would leave the map is one cell's number that means nothing.
    """
    height, width, _ = x.shape
    index = jnp.arange(height * width, dtype=jnp.int32).reshape(height, width, 1)
    single = x, jnp.broadcast_to(index, x.shape)

    def doubled(windows: Any, axis: int, side: int) -> list[Any]:
        levels = [windows]
        for level in range(max(side, 1).bit_length() - 1):
            value, cell = levels[-1]
            # The window of twice the length is the one here and the one that begins where this ends.
            there = [jnp.roll(a, -(2**level), axis) for a in (value, cell)]
            levels.append(_better((value, cell), there))
        return levels

    table = [[cell for _, cell in doubled(w, 1, width)] for w in doubled(single, 0, height)]
    return jnp.stack([jnp.stack(levels) for levels in table])


def _covering(begin: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return where the two windows that cover [begin, end) start, (2, …), and log2 of their length (…).

    Of an empty range they are some window of one cell within the map or beyond its end, where a gather takes the last.
    """
    length = jnp.maximum(end - begin, 1)
    level = 31 - lax.clz(length)  # ⌊log2 length⌋
    return jnp.stack([begin, jnp.maximum(end - (1 << level), begin)]), level
