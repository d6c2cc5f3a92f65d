"""Masks of objects: from COCO's polygons and run lengths to the cells of a box that a detector is trained on.

The cells are torchvision's arithmetic: the mask of the resized image, each pixel that of the stored pixel at
⌊its place · stored / resized⌋, then RoIAlign with adaptive sampling, corners not aligned. `models.mask_targets` takes
it from there.
"""

from typing import Any

import numpy as np

from jaxcnn.config import MASK_MARGIN
from jaxcnn.data.images.decode import Crop

_LARGEST = 40  # bits of a run length in a text; without a limit, a long text would make a number of millions of digits
RunLengths = dict[str, Any]  # {"size": [H, W], "counts": bytes}, pycocotools' compressed form


def run_lengths(segmentation: Any, size: tuple[int, int]) -> RunLengths:
    """Return the mask of an object as run lengths.

    Args:
      segmentation: as COCO's files have it: polygons [[x1, y1, x2, y2, …], …] in pixels, which are united, or run
        lengths down the columns {"size": [H, W], "counts": a list, or pycocotools' text}.
      size: height and width of the image.

    Raises:
      ValueError: it is neither, or does not fit the image.
    """
    from pycocotools import mask

    coco: Any = mask  # Its stubs do not know dictionaries of run lengths.
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str):
        segmentation = segmentation | {"counts": _counts(segmentation["counts"])}
    check(segmentation, size)
    found = coco.frPyObjects(segmentation, *size)
    return found if isinstance(found, dict) else coco.merge(found)


def check(segmentation: Any, size: tuple[int, int]) -> None:
    """Raise ValueError where a segmentation is not what pycocotools expects: its C code does not look."""
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if segmentation.get("size") != list(size):
            raise ValueError(f"run lengths are of {segmentation.get('size')} pixels, the image of {list(size)}")
        if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError("there is no list of run lengths")
        if sum(counts) != size[0] * size[1]:
            raise ValueError(f"the run lengths add up to {sum(counts)}, not {size[0]} × {size[1]}")
        return
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("an object has neither polygons nor run lengths")
    limit = 2 * max(size)
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is no list of three or more x, y")
        if not all(isinstance(v, int | float) and -limit <= v <= limit for v in polygon):
            raise ValueError("a polygon has a corner far outside of the image")


def _counts(text: str) -> list[int]:
    """Return the run lengths of pycocotools' compressed text; those of a damaged one are no run lengths.

    Each is written in digits of five bits, the lowest first, with a sixth bit where more follow; from the fourth one on
    it is the difference from the one two before.
    """
    counts: list[int] = []
    number, shift = 0, 0
    for character in text:
        digit = ord(character) - 48
        number, shift = number | (digit & 31) << shift, shift + 5
        if digit & 32 and shift < _LARGEST:
            continue
        number -= (digit & 16) << (shift - 4)  # the sign: numbers are of two's complement
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number, shift = 0, 0
    return counts


def in_box(found: RunLengths, crop: Crop, box: np.ndarray, cells: int) -> np.ndarray:
    """Return how much of each cell of a box and its margin the object covers, uint8 (cells, cells), 255 for all.

    Args:
      found: the mask of the object in the stored image.
      crop: the part of the stored image that a network is given.
      box: x1, y1, x2, y2 in pixels of that part.
    """
    from pycocotools import mask

    coco: Any = mask
    stored = coco.decode(found)  # uint8 (H, W)
    if crop.mirrored:
        left = stored.shape[1] - crop.box.left - crop.box.width
        stored, crop = stored[:, ::-1], crop._replace(box=crop.box._replace(left=left))
    (top, left, height, width), (rows, columns) = crop.box, crop.size
    down, tall = _weights((box[1], box[3]), (top, height, rows), stored.shape[0], cells)
    right, broad = _weights((box[0], box[2]), (left, width, columns), stored.shape[1], cells)
    shares = down @ stored[tall, broad].astype(np.float32) @ right.T
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def _weights(
    box: tuple[float, float], part: tuple[float, float, int], side: int, cells: int
) -> tuple[np.ndarray, slice]:
    """Return how much each pixel of the stored image counts in each cell, along one axis, and which pixels count.

    Args:
      box: where the box begins and ends, in pixels of the resized part.
      part: where the part begins in the stored image, its length there, and its length once resized.
      side: pixels of the stored image.

    Returns:
      float32 (cells, n), and the slice of the n pixels.
    """
    start, length, resized = part
    low, high = box[0] - MASK_MARGIN, box[1] + MASK_MARGIN
    count = max(1, int(np.ceil((high - low) / cells)))  # samples of a cell
    place = low + (np.arange(cells * count) + 0.5) * ((high - low) / (cells * count))
    # A sample counts as 0 if it lies more than a pixel outside, and takes the value at the edge if it lies nearer.
    inside = (place >= -1) & (place <= resized)
    place = np.clip(place, 0, resized - 1)
    first = np.floor(place).astype(int)
    pairs = [(first, 1 - (place - first)), (np.minimum(first + 1, resized - 1), place - first)]
    pixels = [np.clip(np.floor(start + at * (length / resized)), 0, side - 1).astype(int) for at, _ in pairs]
    begin, end = min(p.min() for p in pixels), max(p.max() for p in pixels) + 1
    weights = np.zeros((cells, end - begin), np.float32)
    cell = np.repeat(np.arange(cells), count)
    for pixel, (_, weight) in zip(pixels, pairs, strict=True):
        np.add.at(weights, (cell, pixel - begin), inside * weight / count)
    return weights, slice(begin, end)
