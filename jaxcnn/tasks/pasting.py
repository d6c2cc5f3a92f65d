"""Masks of detections at the size of their image, as torchvision pastes them, and as COCO's run lengths."""

from typing import Any

import numpy as np

_PADDING = 1  # cells of 0 around a mask, so that it fades out at its border
_THRESHOLD = 0.5


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which pixels of an image belong to an object, bool (H, W).

    torchvision's `paste_masks_in_image`, and its threshold: the mask and a border of zeros are resized, bilinear with
    half-pixel centres, to the whole pixels of the box made larger by as much.

    Args:
      mask: (m, m), the probabilities of cells over the box.
      box: x1, y1, x2, y2 in pixels of the image.
      size: height and width of the image.
    """
    cells = len(mask) + 2 * _PADDING
    box = np.asarray(box, np.float32)  # as there: the corners are truncated, so the rounding counts
    middle, half = (box[2:] + box[:2]) * np.float32(0.5), (box[2:] - box[:2]) * np.float32(0.5)
    half = half * np.float32(cells / len(mask))
    (left, top), (right, bottom) = (np.trunc(corner).astype(int) for corner in (middle - half, middle + half))
    down, rows = _weights(top, bottom, size[0], cells)
    across, columns = _weights(left, right, size[1], cells)
    pasted = np.zeros(size, bool)
    values = down @ np.pad(np.asarray(mask, np.float32), _PADDING) @ across.T
    pasted[rows, columns] = values > _THRESHOLD
    return pasted


def _weights(low: int, high: int, side: int, cells: int) -> tuple[np.ndarray, slice]:
    """Return how much each cell counts in the pixels `low` … `high`, float32 (n, cells), and those n in the image."""
    length = max(high - low + 1, 1)
    inside = slice(min(max(low, 0), side), min(max(high + 1, 0), side))
    pixel = np.arange(inside.start, inside.stop)
    place = np.maximum((pixel - low + np.float32(0.5)) * np.float32(cells / length) - np.float32(0.5), 0)
    first = np.minimum(place.astype(int), cells - 1)
    share = (place - first)[:, None].astype(np.float32)
    at = np.arange(cells)
    weights = (at == first[:, None]) * (1 - share) + (at == np.minimum(first + 1, cells - 1)[:, None]) * share
    return weights.astype(np.float32), inside


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask, bool (H, W), in COCO's result format: {"size": [H, W], "counts": text}."""
    from pycocotools import mask as coco

    found: Any = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}
