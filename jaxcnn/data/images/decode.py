"""Image files to arrays: opened safely and upright, then cut and fitted to the size that a network takes."""

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxcnn import UserError
from jaxcnn.data.images import jpeg
from jaxcnn.safe_files import read_bytes

MAX_PIXELS = 100_000_000  # a small file can claim to be enormous: refuse it before it fills the memory
MAX_BYTES = 2**30  # of a file: as many pixels of 16 bits in four channels take 800 MB
# Pillow's parsers of these alone: it has forty more, some of which start programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # channels: Pillow's name
_RESAMPLING = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_warnings_lock = threading.Lock()  # Python's filters of warnings are the whole process's

# One example is one thread's work, and its result is the same on every processor: IPP's kernels round differently.
cv2.setNumThreads(0)
cv2.ipp.setUseIPP(False)


class Box(NamedTuple):
    """A rectangle in an image, in pixels; fractions are allowed."""

    top: float
    left: float
    height: float
    width: float


def read_image(path: Path | np.ndarray, shape: tuple[int, int, int], resize: int | None = None) -> np.ndarray:
    """Return the image in `path`, or its pixels, upright, its centre brought to `shape` (H, W, C): uint8, C of 1 or 3.

    Args:
      resize: the shorter side becomes so many pixels and the centre is cropped, as torchvision evaluates (256 for the
        published weights); None: the largest centred part of the right aspect is scaled to the shape.

    Raises:
      UserError: the file is missing, no image, damaged, or of more than MAX_PIXELS, as it is or resized.
    """
    height, width, channels = shape
    image = _of_pixels(path, channels) if isinstance(path, np.ndarray) else open_image(path, channels)
    if resize is None:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    else:
        scaled = shorter_to(image.size, resize)
        if math.prod(scaled) > MAX_PIXELS:
            what = "an image" if isinstance(path, np.ndarray) else path
            raise UserError(
                f"{what} of {image.width}×{image.height} would be resized to {scaled[0]}×{scaled[1]} pixels: "
                f"more than {MAX_PIXELS:,} are refused; crop it first"
            )
        image = center_crop(image.resize(scaled, Image.Resampling.BILINEAR), (height, width))
    return np.asarray(image).reshape(height, width, channels)


def open_image(path: Path, channels: int) -> Image.Image:
    """The image in `path`, or its first frame, turned as EXIF says, in mode L (1 channel) or RGB (3).

    16 bits are scaled to 8, and transparency is dropped.

    Raises:
      UserError: the file is missing, no image, damaged, or of more than MAX_PIXELS.
    """
    try:
        return _open(read_bytes(path, MAX_BYTES), channels)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise UserError(f"cannot read the image {path}: {reason}") from error
    except ValueError as error:
        raise UserError(f"cannot read the image {path}: {error}") from error


def _of_pixels(pixels: np.ndarray, channels: int) -> Image.Image:
    """Return uint8 (H, W) or (H, W, 1, 3 or 4) in the mode of `channels`."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise UserError(
            f"an image of {pixels.dtype} {pixels.shape}: give uint8 (H, W) or (H, W, C) of 1, 3 or 4 channels"
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).convert(_MODES[channels])


def decode(image: bytes | np.ndarray, channels: int) -> np.ndarray:
    """All of an image, upright: uint8 (H, W, channels) of a file's bytes, or of pixels with or without channels.

    Raises:
      ValueError: it is no image, is damaged, or has more than MAX_PIXELS.
    """
    if isinstance(image, np.ndarray):
        pixels = image.astype(np.uint8) * 255 if image.dtype == bool else image
        return pixels.reshape(*pixels.shape[:2], channels)
    header = jpeg.read_header(image) if channels in (1, 3) else None
    if header:
        _check_pixels(header.width, header.height)
        return _turn(jpeg.decode(image, header, channels), header.orientation)
    pixels = np.asarray(_open(image, channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def size_of(image: bytes | np.ndarray) -> tuple[int, int]:
    """(height, width) of an upright image, from its headers alone.

    Raises:
      ValueError: as of `decode`.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    header = jpeg.read_header(image)
    if header:
        turned = header.orientation >= 5
        return (header.width, header.height) if turned else (header.height, header.width)
    try:
        with _opened(image) as opened:
            turned = opened.getexif().get(274, 1) >= 5
            return (opened.width, opened.height) if turned else (opened.height, opened.width)
    except Exception as error:
        raise ValueError(_reason(image, error)) from error


def crop_resize(
    image: bytes | np.ndarray, channels: int, box: Box, size: tuple[int, int], interpolation: str = "bilinear"
) -> np.ndarray:
    """The part `box` of an upright image, brought to `size` (height, width): uint8 (height, width, channels).

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
    top, left = round(box.top), round(box.left)
    bottom, right = max(top + 1, round(box.top + box.height)), max(left + 1, round(box.left + box.width))
    scale = jpeg.scale_for((bottom - top, right - left), size)
    pixels, scale = _scaled(image, channels, bottom, scale)
    top, left, bottom, right = top // scale, left // scale, -(-bottom // scale), -(-right // scale)
    part = pixels[top:bottom, left:right]
    if part.shape[:2] == size:
        return part
    resized = cv2.resize(part, (size[1], size[0]), interpolation=_RESAMPLING[interpolation])
    return resized.reshape(*size, channels)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, C) -> (*size, C), bilinear with antialiasing; unchanged where it fits."""
    height, width, channels = image.shape
    if (height, width) == size:
        return image
    return crop_resize(image, channels, Box(0, 0, height, width), size, "antialias")


def _scaled(image: bytes | np.ndarray, channels: int, bottom: int, scale: int) -> tuple[np.ndarray, int]:
    """At least the rows above `bottom`, reduced by `scale` if the decoder can, and the scale it is."""
    header = jpeg.read_header(image) if isinstance(image, bytes) else None
    if isinstance(image, bytes) and header and header.orientation == 1 and channels in (1, 3):
        _check_pixels(header.width, header.height)
        return jpeg.decode(image, header, channels, min(bottom, header.height), scale), scale
    return decode(image, channels), 1


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centre of `size` (height, width) as torchvision cuts it; what an image lacks is black."""
    left, top = (_start(side, crop) for side, crop in zip(image.size, reversed(size), strict=True))
    return image.crop((left, top, left + size[1], top + size[0]))


def _start(side: int, crop: int) -> int:
    """Where a centred crop begins: half a pixel is rounded to the even one, but padding to the smaller one."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def shorter_to(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Two sides with the shorter one set to `shorter`; as in torchvision, the longer one is rounded down."""
    short = min(size)
    return int(shorter * size[0] / short), int(shorter * size[1] / short)


def _open(data: bytes, channels: int) -> Image.Image:
    """Pillow's reading of a file, upright and in the mode of `channels`.

    Raises:
      ValueError: it cannot be read; the text says why.
    """
    try:
        with _opened(data) as image:
            _check_pixels(image.width, image.height)
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "F":
                raise ValueError("its pixels are fractions, whose range is not known")
            if upright.mode.startswith("I"):  # 16 bits, in PGM as 32: Pillow would clip them at 255
                deep = np.clip(np.asarray(upright), 0, 65535)
                upright = Image.fromarray((deep >> 8).astype(np.uint8))
            return upright if upright.mode == _MODES[channels] else upright.convert(_MODES[channels])
    except Exception as error:  # the decoders meet damage with struct.error, IndexError, zlib.error and others
        raise ValueError(_reason(data, error)) from error


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Pillow's image of the bytes. It warns of what it goes on without, such as a damaged EXIF block."""
    jpeg.check_scans(data)
    quiet = warnings.catch_warnings(action="ignore")
    with _warnings_lock, quiet, Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        yield image


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width}×{height} pixels: more than {MAX_PIXELS:,} are refused")


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as EXIF's orientation wants to be shown."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _reason(data: bytes, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own bound, of twice as much, comes first
        return f"it has more than {MAX_PIXELS:,} pixels: so many are refused"
    if isinstance(error, UnidentifiedImageError):
        return "it is empty" if not data else "it is no image of a known format"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
