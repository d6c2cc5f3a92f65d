"""Image files to arrays: opened safely and upright, then fitted to the size that a network takes."""

import math
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxcnn import UserError

MAX_PIXELS = 100_000_000  # a small file can claim to be enormous: refuse it before it fills the memory
_MODES = {1: "L", 3: "RGB"}  # channels: Pillow's name


def read_image(path: Path, shape: tuple[int, int, int], resize: int | None = None) -> np.ndarray:
    """The image in `path`, upright, its centre brought to `shape` (H, W, C): uint8, C of 1 (grey) or 3 (RGB).

    Args:
      resize: the shorter side becomes so many pixels and the centre is cropped, as torchvision evaluates (256 for the
        published weights); None: the largest centred part of the right aspect is scaled to the shape.

    Raises:
      UserError: the file is missing, no image, damaged, or of more than MAX_PIXELS, as it is or resized.
    """
    height, width, channels = shape
    image = open_image(path, channels)
    if resize is None:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    else:
        scaled = _resized(image.size, resize)
        if math.prod(scaled) > MAX_PIXELS:
            raise UserError(
                f"{path} of {image.width}×{image.height} would be resized to {scaled[0]}×{scaled[1]} pixels: "
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
        # Pillow warns of what it goes on without, such as a damaged EXIF block.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path} has {image.width}×{image.height} pixels: more than {MAX_PIXELS:,} are refused")
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "F":
                raise UserError(f"cannot read the image {path}: its pixels are fractions, whose range is not known")
            if upright.mode.startswith("I"):  # 16 bits, in PGM as 32: Pillow would clip them at 255
                deep = np.clip(np.asarray(upright), 0, 65535)
                upright = Image.fromarray((deep >> 8).astype(np.uint8))
            return upright.convert(_MODES[channels])
    except UserError:
        raise
    except Exception as error:  # the decoders meet damage with struct.error, IndexError, zlib.error and others
        raise UserError(f"cannot read the image {path}: {_reason(path, error)}") from error


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centre of `size` (height, width) as torchvision cuts it; what an image lacks is black."""
    left, top = (_start(side, crop) for side, crop in zip(image.size, reversed(size), strict=True))
    return image.crop((left, top, left + size[1], top + size[0]))


def _start(side: int, crop: int) -> int:
    """Where a centred crop begins: half a pixel is rounded to the even one, but padding to the smaller one."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def _resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side set to `shorter`; as in torchvision, the longer one is rounded down."""
    width, height = size
    short = min(size)
    return int(shorter * width / short), int(shorter * height / short)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is empty" if not path.stat().st_size else "it is no image of a known format"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
