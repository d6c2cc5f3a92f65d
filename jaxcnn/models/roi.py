"""Features of regions: RoI pooling, RoIAlign, and the level of a pyramid that a region is taken from.

Maps are (N, H, W, C), and each image has the same number of boxes (N, R, 4) in pixels. Some boxes may be padding: their
features are finite and without meaning. The gradient reaches the maps, not the boxes, as in the papers.

RoIAlign is written as a product of one factor an axis (`_taps`), so that its gradient is a pair of matrix products on a
CPU (`_gradients`). RoI pooling takes each maximum from a table over windows (`_maxima`), whatever the size of the box.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn import UserError
from jaxcnn.models import boxes as box
from jaxcnn.models.sharding import vary_as


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
    sizes: Sequence[jax.Array] | None = None,
) -> jax.Array:
    """Return means of bilinear samples over h × w equal bins of each box: (N, R, h, w, C) in the type of the maps.

    He et al. 2017 (Mask R-CNN), section 3, with torchvision's border: a sample is 0 if it lies more than one cell
    outside of the map, and takes the value at the edge if it lies nearer. Sums are in float32 at least.

    Args:
      maps: one map, or the levels of a pyramid, (N, H, W, C) each.
      scales: cells of each map per pixel, 1 / stride.
      size: h and w.
      levels: int (N, R), the map that each box is taken from; None: the first.
      samples: samples along each side of a bin; 0: ⌈side of the box in cells / bins⌉, at most `most`.
      aligned: a coordinate counts from the corner of the first cell, not from its centre: half a cell is subtracted. If
        False, the sides of boxes are at least one cell.
      most: (rows, columns), bound of the adaptive number of samples, as shapes are fixed; None: the number for a box as
        large as the largest map. The work is that of `most` samples for each box.
      sizes: rows and columns of the part of each map beyond which samples are outside, int (N, 2) for each map; None:
        all of it.

    Raises:
      UserError: there are not as many scales as maps.
    """
    if len(maps) != len(scales):
        raise UserError(f"there are {len(maps)} maps and {len(scales)} scales: give roi_align one scale for each map")
    levels = jnp.zeros(boxes.shape[:2], jnp.int32) if levels is None else levels
    shapes = np.array([x.shape[1:3] for x in maps], np.int32)  # (levels, 2) as rows, columns
    height, width = (int(side) for side in shapes.max(0))
    bound = (samples, samples) if samples else most or (-(-height // size[0]), -(-width // size[1]))
    # (N, levels, 2): rows and columns beyond which a sample is outside.
    borders = jnp.broadcast_to(shapes, (len(boxes), *shapes.shape)) if sizes is None else jnp.stack(sizes, 1)

    def one_image(maps: Any, boxes: jax.Array, levels: jax.Array, borders: jax.Array) -> jax.Array:
        shape = borders[levels]  # (R, 2)
        corners = boxes * jnp.asarray(scales, boxes.dtype)[levels, None] - (0.5 if aligned else 0)  # (R, 4)
        sides = corners[:, 2:] - corners[:, :2]
        sides = sides if aligned else jnp.maximum(sides, 1)
        axis = partial(_taps, samples=samples)
        rows = axis(corners[:, 1], sides[:, 1], shape[:, 0], bins=size[0], most=bound[0])
        columns = axis(corners[:, 0], sides[:, 0], shape[:, 1], bins=size[1], most=bound[1])
        return _weighted_sum(maps, levels, rows, columns)

    maps = tuple(jnp.asarray(x) for x in maps)
    return jax.vmap(one_image)(maps, lax.stop_gradient(box.wide(boxes)), levels, borders)


def _taps(
    start: jax.Array, length: jax.Array, side: jax.Array, *, samples: int, bins: int, most: int
) -> tuple[jax.Array, jax.Array]:
    """Return the cells that each bin reads along one axis, and their weights, (2 · most, R, bins) both.

    Bilinear interpolation and the mean over a bin are both products of one factor an axis, so the axes are separate. A
    sample reads two cells of each.

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
    share = place - low  # weight of the upper of the two cells
    each = jnp.where(counts, 1 / jnp.maximum(used, 1), 0)  # weight of a sample in the mean over its bin
    cells = jnp.concatenate([low, jnp.minimum(low + 1, last)]).astype(jnp.int32)
    return cells, jnp.concatenate([(1 - share) * each, share * each])


def _gather(maps: Any, levels: jax.Array, rows: Any, columns: Any) -> jax.Array:
    """Return the weighted sum of cells over all pairs of a row's tap and a column's tap, (R, h, w, C).

    Args:
      maps: (H, W, C) each, those of one image.
      levels: int (R,), the map of each box.
      rows, columns: cells and weights of the taps, (taps, R, h) and (taps, R, w) each.
    """
    (row, down), (column, right) = rows, columns
    # The cells of all maps form one list, so that each box is sampled once, not once from every map.
    cells = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in maps])  # (cells, C)
    sizes = [x.shape[0] * x.shape[1] for x in maps]
    first, width = (jnp.asarray(a)[levels] for a in (np.cumsum([0, *sizes[:-1]]), [x.shape[1] for x in maps]))  # (R,)
    pairs = len(row) * len(column)

    def add(total: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        i, j = pair // len(column), pair % len(column)
        index = (first[:, None] + row[i] * width[:, None])[:, :, None] + column[j][:, None]  # (R, h, w)
        weight = down[i][:, :, None] * right[j][:, None]
        return total + weight[..., None] * cells.at[index].get(mode="promise_in_bounds"), None

    total = jnp.zeros((*row.shape[1:], column.shape[2], cells.shape[1]), jnp.promote_types(cells.dtype, down.dtype))
    # The 16 pairs of two samples a side are unrolled and fuse into one expression; more pairs are a loop, to bound the
    # program and its memory.
    total, _ = lax.scan(add, vary_as(cells, total), jnp.arange(pairs), unroll=pairs if pairs <= 16 else 1)
    return total.astype(cells.dtype)


_weighted_sum = jax.custom_vjp(_gather)


def _gradients(kept: Any, grad: jax.Array) -> tuple[Any, None, None, None]:
    """Return the gradient with respect to the maps of `_gather`, given that of its result, `grad` (R, h, w, C)."""
    maps, levels, rows, columns = kept

    def by_scatter(grad: jax.Array) -> Any:
        wide = tuple(box.wide(x) for x in maps)  # Sums must not be of 16 bits.
        total = jax.vjp(lambda maps: _gather(maps, levels, rows, columns), wide)[1](grad)[0]
        return tuple(a.astype(x.dtype) for a, x in zip(total, maps, strict=True))

    def by_products(grad: jax.Array) -> Any:
        # For each box, let Y (h, H) be the weights of its row taps as a matrix, and X (w, W) those of its column taps.
        # The gradient of a map is the sum over boxes of Yᵀ · grad · X. Boxes are taken 32 at a time, so that the
        # intermediate product has 32 · h · W · C numbers.
        chunks = partial(_padded_to, [-(-len(grad) // 32), 32])

        def of_map(number: int, x: jax.Array) -> jax.Array:
            tall = _as_matrix(rows, x.shape[0], grad.dtype) * (levels == number)[:, None, None]  # (R, h, H)
            broad = _as_matrix(columns, x.shape[1], grad.dtype)  # (R, w, W)

            def add(total: jax.Array, boxes: Any) -> tuple[jax.Array, None]:
                tall, broad, grad = boxes
                # (32, h, W, C), as a sum of w products of its own layout: a matrix product would transpose it.
                across: Any = sum(broad[:, None, i, :, None] * grad[:, :, i, None] for i in range(grad.shape[2]))
                # As in every other product, operands of 16 bits stay so, and sums are wide.
                tall, across = tall.astype(x.dtype), across.astype(x.dtype)
                return total + jnp.einsum(
                    "rhy,rhxc->yxc", tall, across, precision="highest", preferred_element_type=total.dtype
                ), None

            total = vary_as(grad, jnp.zeros(x.shape, grad.dtype))
            total, _ = lax.scan(add, total, tuple(chunks(a) for a in (tall, broad, grad)))
            return total.astype(x.dtype)

        return tuple(of_map(number, x) for number, x in enumerate(maps))

    # On a CPU scattering takes 8 times longer: 190 ms, not 24, for two images of 64 boxes and 30×40×128 cells. A GPU
    # scatters by atomic additions, and products over the large maps of a pyramid would cost it more.
    grad = box.wide(grad)
    return lax.platform_dependent(grad, cuda=by_scatter, rocm=by_scatter, default=by_products), None, None, None


_weighted_sum.defvjp(lambda *operands: (_gather(*operands), operands), _gradients)


def _as_matrix(taps: Any, side: int, dtype: Any) -> jax.Array:
    """Return the weights of all cells of a side: taps (taps, R, bins) -> (R, bins, side)."""
    cell, weight = taps
    return (jax.nn.one_hot(cell, side, dtype=dtype) * weight[..., None]).sum(0)


def _padded_to(shape: Sequence[int], x: jax.Array) -> jax.Array:
    """Return x (R, …) with zeros behind as (*shape, …)."""
    fill = int(np.prod(shape)) - len(x)
    return jnp.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1)).reshape(*shape, *x.shape[1:])


def roi_pool(
    x: jax.Array, scale: float, boxes: jax.Array, size: tuple[int, int], sizes: jax.Array | None = None
) -> jax.Array:
    """Return maxima over h × w bins of each box: a map (N, H, W, C) and boxes (N, R, 4) -> (N, R, h, w, C).

    Girshick 2015, section 2.1, and its published code. Corners are rounded to cells, halves away from zero; both belong
    to the region, which has at least one cell. Bin i of a side of s cells is [⌊i·s / h⌋, ⌈(i + 1)·s / h⌉), so that
    neighbours may share cells. Bins are clipped to the map, and a bin without cells is 0. Here they are computed in
    integers: the published floats put one more cell into the last bin at some sides (with seven bins, first at 57).

    If cells tie, the first one, row by row, gets the gradient. The work does not depend on the size of the boxes, as a
    table holds the maximum over every window whose sides are powers of two, with its cell. It takes 8 · ⌈log2(H + 1)⌉ ·
    ⌈log2(W + 1)⌉ · H · W · C bytes an image, 353 MB for VGG-16 on 600×1,000 pixels.

    Args:
      sizes: rows and columns of the part of each map that is pooled, int (N, 2); None: all of it.
    """
    _, height, width, channels = x.shape
    corners = _round_half_away(lax.stop_gradient(box.wide(boxes)) * scale)  # int32 (N, R, 4)

    def bins(low: jax.Array, high: jax.Array, count: int, side: Any) -> tuple[jax.Array, jax.Array]:
        """Return where the bins of (N, R) sides begin and end, (N, R, count) both."""
        index, length = jnp.arange(count), jnp.maximum(high - low + 1, 1)[..., None]
        begin, end = index * length // count, -((-(index + 1) * length) // count)
        return jnp.clip(low[..., None] + begin, 0, side), jnp.clip(low[..., None] + end, 0, side)

    tall, broad = (height, width) if sizes is None else (sizes[:, i, None, None] for i in (0, 1))
    rows = bins(corners[..., 1], corners[..., 3], size[0], tall)
    columns = bins(corners[..., 0], corners[..., 2], size[1], broad)

    def one_image(x: jax.Array, rows: Any, columns: Any) -> jax.Array:
        cells = x.reshape(-1, channels)  # (H · W, C)
        tables = _maxima(lax.stop_gradient(x))
        # Along each side, two windows of the table cover a bin: one at its beginning, one at its end; they may overlap.
        (row, tall), (column, broad) = (_covering(*edges) for edges in (rows, columns))  # (2, R, h), (R, h); …
        windows = [
            tuple(
                a.at[broad[:, None], tall[:, :, None], top[:, :, None], left[:, None]].get(mode="clip") for a in tables
            )
            for top in row
            for left in column
        ]  # four pairs of (value, cell), each (R, h, w, C)
        _, winner = reduce(_better, windows)
        out = jnp.take_along_axis(cells, winner.reshape(-1, channels), 0, mode="clip").reshape(winner.shape)
        filled = (rows[1] > rows[0])[:, :, None] & (columns[1] > columns[0])[:, None]  # (R, h, w)
        return jnp.where(filled[..., None], out, 0)

    return jax.vmap(one_image)(x, rows, columns)


def _round_half_away(x: jax.Array) -> jax.Array:
    """Round as C's `round` does, to int32; `jnp.round` takes halves to even."""
    integer = jnp.trunc(x)
    return (integer + jnp.where(jnp.abs(x - integer) >= 0.5, jnp.sign(x), 0)).astype(jnp.int32)


def _better(a: Any, b: Any) -> Any:
    """Return the larger of two (value, cell), and of equal values the one whose cell comes first."""
    take = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
    return jnp.where(take, b[0], a[0]), jnp.where(take, b[1], a[1])


def _maxima(x: jax.Array) -> Any:
    """Return the maxima over the windows of 2^i × 2^j cells that begin at each cell, and where they are.

    A map (H, W, C) gives two arrays (J, I, H, W, C). A window that would leave the map wraps around; it has no meaning.
    """
    height, width, _ = x.shape
    index = jnp.arange(height * width, dtype=jnp.int32).reshape(height, width, 1)

    def double(axis: int, windows: Any, level: jax.Array) -> Any:
        # A window of twice the length is the window here and the one that begins where this one ends.
        next_windows = tuple(jnp.roll(a, -(1 << level), axis) for a in windows)
        return _better(windows, next_windows), windows

    # This is a loop, as XLA's CPU compiler would compute each level again from the first wherever it is used.
    single = x, vary_as(x, jnp.broadcast_to(index, x.shape))
    tall = lax.scan(partial(double, 0), single, jnp.arange(max(height, 1).bit_length()))[1]  # (I, H, W, C)
    return lax.scan(partial(double, 2), tall, jnp.arange(max(width, 1).bit_length()))[1]


def _covering(begin: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the starts of the two windows that cover [begin, end), (2, …), and log2 of their length, (…).

    For an empty range they are windows of one cell, within the map or just behind it.
    """
    length = jnp.maximum(end - begin, 1).astype(jnp.int32)
    level = 31 - lax.clz(length)  # ⌊log2 length⌋
    return jnp.stack([begin, jnp.maximum(end - (1 << level), begin)]), level
