"""Image files to arrays."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jaxcnn import UserError

MAX_PIXELS = 100_000_000  # a small file can claim to be enormous: refuse it before it fills the memory


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The image in `path`, upright, its centre fitted to `shape` (H, W, C): uint8, C of 1 (grey) or 3 (RGB).

    Raises:
      UserError: the file is missing, no image, damaged, or of more than MAX_PIXELS.
    """
    height, width, channels = shape
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path} has {image.width}×{image.height} pixels: more than {MAX_PIXELS:,} are refused")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            upright = upright.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(f"cannot read the image {path}: {reason}") from error
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(height, width, channels)
