"""The part of an image that a network is given: drawn once, and applied alike to its pixels and its targets."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from jaxcnn import UserError
from jaxcnn.data.images.decode import MAX_PIXELS, decode, decode_rows, of_pixels, open_image, scale_for

_RESAMPLING = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

# One example is one thread's work, and its result is the same on every processor: IPP's kernels round differently.
cv2.setNumThreads(0)
cv2.ipp.setUseIPP(False)


class Box(NamedTuple):
    """A rectangle in an image, in pixels; fractions are allowed."""

    top: float
    left: float
    height: float
    width: float

    def rounded(self) -> "Box":
        """Return the box in whole pixels, of one at least along each side."""
        top, left = round(self.top), round(self.left)
        bottom, right = round(self.top + self.height), round(self.left + self.width)
        return Box(top, left, max(1, bottom - top), max(1, right - left))


class Crop(NamedTuple):
    """The part of an image that is taken, and what becomes of it. Random draws end here: what follows is arithmetic.

    Attributes:
      box: in the original image, upright.
      size: (height, width) that the box is brought to.
      mirrored: whether left and right are exchanged then.
    """

    box: Box
    size: tuple[int, int]
    mirrored: bool = False

    def taken(self, interpolation: str) -> "Crop":
        """Return the crop that `crop_resize` takes: only antialiasing takes a box that is not of whole pixels."""
        return self if interpolation == "antialias" else self._replace(box=self.box.rounded())

    def image(self, image: bytes | np.ndarray, channels: int, interpolation: str = "bilinear") -> np.ndarray:
        """Return the pixels, uint8 (*size, channels), as `crop_resize` does."""
        pixels = crop_resize(image, channels, self.box, self.size, interpolation)
        return np.ascontiguousarray(pixels[:, ::-1]) if self.mirrored else pixels

    def label_map(self, labels: np.ndarray) -> np.ndarray:
        """Return a class for each pixel: (H, W, …) -> (*size, …), each that of the pixel in which its centre lies."""
        rows, columns = (
            np.clip(np.floor(start + (np.arange(count) + 0.5) * (length / count)).astype(int), 0, side - 1)
            for start, length, count, side in zip(self.box[:2], self.box[2:], self.size, labels.shape[:2], strict=True)
        )
        return labels[rows[:, None], columns[::-1] if self.mirrored else columns]

    def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move boxes, clipped to what is seen.

        Args:
          boxes: (n, 4), x1, y1, x2, y2 in pixels of the original image.

        Returns:
          float32 (n, 4) in pixels of the result, and bool (n,), False for a box of which nothing is seen.
        """
        top, left, height, width = self.box
        rows, columns = self.size
        scale = np.array([columns / width, rows / height] * 2)
        moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - [left, top, left, top]) * scale
        if self.mirrored:
            moved[:, [0, 2]] = columns - moved[:, [2, 0]]
        moved = np.clip(moved, 0, [columns, rows, columns, rows])
        return moved.astype(np.float32), np.all(moved[:, 2:] > moved[:, :2], axis=1)


def center(image: tuple[int, int], size: tuple[int, int], resize: int) -> Crop:
    """Return the crop that evaluation sees of a photograph of (height, width): its centre, as torchvision rounds it.

    Args:
      size: (height, width) that the network is given.
      resize: side of the frame, in the shape of `size`, that the image is made to cover before its centre is cut out;
        where that is not less than `size`, the crop is within the image.
    """
    covered = cover(image, frame(size, resize))
    starts = [round((whole - part) / 2) for whole, part in zip(covered, size, strict=True)]
    (top, height), (left, width) = (
        (start * side / whole, part * side / whole)
        for start, part, side, whole in zip(starts, size, image, covered, strict=True)
    )
    return Crop(Box(top, left, height, width), size)


def frame(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """Return (height, width) in the shape of `size`, the longer side of `longer` pixels."""
    height, width = (round(longer * side / max(size)) for side in size)
    return height, width


def cover(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (height, width) in the shape of `image` that covers `size`.

    Of a square `size` it is torchvision's: the shorter side is that of the square, the longer one is rounded down.
    """
    height, width = image
    if size[0] * width >= size[1] * height:
        return size[0], int(size[0] * width / height)
    return int(size[1] * height / width), size[1]


def read_image(path: Path | np.ndarray, shape: tuple[int, int, int], resize: int | None = None) -> np.ndarray:
    """Bring the centre of the image in `path`, or of its pixels, upright, to `shape` (H, W, C): uint8, C of 1 or 3.

    Args:
      resize: as of `center`, which this is to the pixel of torchvision's evaluation (256 for the published weights);
        None: the largest centred part of the right aspect is scaled to the shape.

    Raises:
      UserError: the file is missing, no image, damaged, or of more than MAX_PIXELS, as it is or resized.
    """
    height, width, channels = shape
    image = of_pixels(path, channels) if isinstance(path, np.ndarray) else open_image(path, channels)
    if resize is None:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    else:
        rows, columns = cover((image.height, image.width), frame((height, width), resize))
        if rows * columns > MAX_PIXELS:
            what = "an image" if isinstance(path, np.ndarray) else path
            raise UserError(
                f"{what} of {image.width}×{image.height} would be resized to {columns}×{rows} pixels: "
                f"more than {MAX_PIXELS:,} are refused; crop it first"
            )
        image = center_crop(image.resize((columns, rows), Image.Resampling.BILINEAR), (height, width))
    return np.asarray(image).reshape(height, width, channels)


def crop_resize(
    image: bytes | np.ndarray, channels: int, box: Box, size: tuple[int, int], interpolation: str = "bilinear"
) -> np.ndarray:
    """Bring the part `box` of an upright image to `size` (height, width): uint8 (height, width, channels).

    Of a JPEG no more is decoded than is needed: no rows below the box, and half, a quarter or an eighth of the
    resolution where the box has that many times the pixels of `size`.

    Args:
      interpolation: "bilinear" and "bicubic" between neighbours, as tf.image does, in which the box is rounded to whole
        pixels; "antialias" weighs all pixels, bilinear as Pillow and torchvision do, takes the box as it is, and
        decodes everything: how Pillow rounds depends on the rows there are.

    Raises:
      ValueError: as of `decode`.
    """
    if interpolation == "antialias":
        pixels = decode(image, channels)
        squeezed = pixels[..., 0] if channels == 1 else pixels
        exact = (box.left, box.top, box.left + box.width, box.top + box.height)
        resized = Image.fromarray(squeezed).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=exact)
        return np.asarray(resized).reshape(*size, channels)
    top, left, height, width = map(int, box.rounded())
    bottom, right = top + height, left + width
    pixels, scale = decode_rows(image, channels, bottom, scale_for((height, width), size))
    top, left, bottom, right = top // scale, left // scale, -(-bottom // scale), -(-right // scale)
    part = pixels[top:bottom, left:right]
    if part.shape[:2] == size:
        return part
    resized = cv2.resize(part, (size[1], size[0]), interpolation=_RESAMPLING[interpolation])
    return resized.reshape(*size, channels)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 (H, W, C) to (*size, C), bilinear with antialiasing; unchanged where it fits."""
    height, width, channels = image.shape
    if (height, width) == size:
        return image
    return crop_resize(image, channels, Box(0, 0, height, width), size, "antialias")


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the centre of `size` (height, width) as torchvision cuts it; what an image lacks is black."""
    left, top = (_start(side, crop) for side, crop in zip(image.size, reversed(size), strict=True))
    return image.crop((left, top, left + size[1], top + size[0]))


def _start(side: int, crop: int) -> int:
    """Where a centred crop begins: half a pixel is rounded to the even one, but padding to the smaller one."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
