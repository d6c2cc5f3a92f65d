"""Canvases: the few sizes to which images of many sizes are padded, below and to the right, so as to share programs."""

from collections.abc import Sequence

import numpy as np

from jaxcnn.data.images.decode import cover

Size = tuple[int, int]  # (height, width)

_DISTINCT = 200  # sizes from which canvases are chosen; more of them are rounded up first


def scaled(size: Size, shorter: int, longest: int = 0) -> Size:
    """Return the (height, width) of an image whose shorter side is resized to `shorter`, rounded as in torchvision.

    Args:
      shorter: pixels; 0: the image keeps its size.
      longest: pixels of the longer side at most, for which the shorter one may be less; 0: no limit. With a limit the
        rounding is that of torchvision's detection (both sides are rounded down), and without it that of its `Resize`.
    """
    if not longest:
        return cover(size, (shorter, shorter)) if shorter else size
    scale = min(shorter / min(size) if shorter else 1.0, longest / max(size))
    height, width = (max(1, int(side * scale)) for side in size)
    return height, width


def choose_canvases(sizes: np.ndarray, most: int = 6, multiple: int = 1) -> list[Size]:
    """Return at most `most` canvases, (height, width) each, that hold images of these sizes with little padding.

    Two canvases are joined, the pair for which that adds the fewest padded pixels, until there are few enough. The
    arithmetic is of integers, so that all processes choose the same.

    Args:
      sizes: (N, 2), heights and widths.
      multiple: the sides of canvases are multiples of this.
    """
    step, sizes = 1, -(-np.asarray(sizes, np.int64) // multiple) * multiple
    found, counts = np.unique(sizes, axis=0, return_counts=True)
    while len(found) > _DISTINCT:
        step *= 2
        found, counts = np.unique(-(-sizes // step) * step, axis=0, return_counts=True)
    while len(found) > most:
        joined = np.maximum(found[:, None], found)  # (n, n, 2): the canvas of each pair
        pixels = found.prod(1) * counts
        added = joined.prod(2) * (counts[:, None] + counts) - pixels[:, None] - pixels
        # Each pair counts once, and no canvas with itself.
        added[np.tril_indices(len(found))] = np.iinfo(np.int64).max
        first, second = np.unravel_index(added.argmin(), added.shape)
        found[first], counts[first] = joined[first, second], counts[first] + counts[second]
        found, counts = np.delete(found, second, 0), np.delete(counts, second)
    held = smallest_canvas(sizes, found.tolist())
    # Joining and rounding may have left a canvas larger than its images need.
    tight = [sizes[held == canvas].max(0) for canvas in np.unique(held)]
    return [(height, width) for height, width in np.unique(tight, axis=0).tolist()]


def smallest_canvas(sizes: np.ndarray, canvases: Sequence[Size]) -> np.ndarray:
    """Return the smallest canvas that holds each image: int (N,), -1 if none does.

    Args:
      sizes: (N, 2), heights and widths.
    """
    held = (np.asarray(sizes)[:, None] <= np.asarray(canvases)).all(axis=-1)  # (N, canvases)
    areas = np.where(held, np.prod(canvases, axis=1), np.iinfo(np.int64).max)
    return np.where(held.sum(1) > 0, areas.argmin(1), -1)


def padded(array: np.ndarray, size: Size, value: int = 0) -> np.ndarray:
    """Return an array (H, W, …) padded to `size` with `value`, below and to the right."""
    if array.shape[:2] == size:
        return array
    canvas = np.full((*size, *array.shape[2:]), value, array.dtype)
    canvas[: array.shape[0], : array.shape[1]] = array
    return canvas
