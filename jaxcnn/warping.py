"""The windows of R-CNN: a box with some context, warped to a square whatever its aspect.

One function serves fine-tuning, where the host cuts windows out of images, and features and tests, where a device does:
it takes arrays of NumPy or of JAX. The geometry is that of the authors' code, github.com/rbgirshick/rcnn,
rcnn_im_crop.m with crop_mode "warp", and of Caffe's window data layer.
"""

from typing import Any

Array = Any  # of NumPy or of JAX


def warp(image: Array, box: Array, size: Any, side: int, context: int, fill: Any = 0.0) -> Array:
    """Return the window of a box, (side, side, C) float32.

    Girshick et al. 2014, appendix A. The box is enlarged about its centre so that it has `context` pixels around it at
    the window's size, its edges are rounded to whole pixels, and what lies in the image is resized bilinearly, without
    antialiasing. What lies outside of the image is `fill`, as if the image had its mean there.

    Args:
      image: (H, W, C).
      box: x1, y1, x2, y2 in pixels of the image, corners as points, float (4,); a part of it must lie in the image.
      size: height and width of the image in the upper left corner of its canvas, (2,).
      side: pixels of the window.
      context: pixels of the window on each side of the box; less than half of `side`.
      fill: a number, or one for each channel, (C,).
    """
    xp = box.__array_namespace__()
    x1, y1, x2, y2 = xp.astype(box, xp.float32)
    (top, bottom, down, in_rows), (left, right, across, in_columns) = (
        _taps(xp, low, high, length, side, context) for low, high, length in ((y1, y2, size[0]), (x1, x2, size[1]))
    )
    # One axis after the other: rows are whole slices of the image, which are quick to gather.
    upper, lower = (xp.astype(image[rows], xp.float32) for rows in (top, bottom))  # (side, W, C)
    rows = upper + (lower - upper) * down[:, None, None]
    first, second = rows[:, left], rows[:, right]  # (side, side, C)
    window = first + (second - first) * across[None, :, None]
    inside = in_rows[:, None, None] & in_columns[None, :, None]  # (side, side, 1)
    return xp.where(inside, window, xp.asarray(fill, dtype=xp.float32))


def _taps(xp: Any, low: Array, high: Array, length: Any, side: int, context: int) -> tuple[Array, Array, Array, Array]:
    """Return what each pixel of a window reads along one axis, (side,) each.

    The two pixels of the image, int32, the weight of the second one, and whether the window shows the image there.

    Args:
      xp: the namespace of the arrays.
      low, high: edges of the box.
      length: pixels of the image.
    """
    # Products come before quotients, so that NumPy and XLA round edges that lie halfway in the same direction.
    half = (high - low) * side / (2 * (side - 2 * context))
    centre = (low + high) / 2
    # The edges of the window. The authors' last pixel, which belongs to it, is the rounded upper edge, so that a window
    # with context is a pixel wider there than on the other side.
    start, stop = xp.floor(centre - half + 0.5), xp.floor(centre + half + 0.5) + (1 if context else 0)
    stop = xp.maximum(stop, start + 1)
    # The part of it that lies in the image, and where that part lies in the window.
    limit = xp.asarray(length, dtype=xp.float32)
    first = xp.clip(start, 0, limit - 1)
    last = xp.maximum(xp.minimum(stop, limit), first + 1)
    before = xp.floor((first - start) * side / (stop - start) + 0.5)
    shown = xp.minimum(xp.floor((last - first) * side / (stop - start) + 0.5), side - before)
    place = xp.arange(side, dtype=xp.float32) - before
    # Centres of pixels are matched, and the outermost pixels of the part are repeated at its edges.
    source = first + (place + 0.5) * (last - first) / xp.maximum(shown, 1) - 0.5
    source = xp.clip(source, first, last - 1)
    whole = xp.floor(source)
    inside = (place >= 0) & (place < shown)
    index = xp.astype(whole, xp.int32)
    return index, xp.astype(xp.minimum(whole + 1, last - 1), xp.int32), source - whole, inside
