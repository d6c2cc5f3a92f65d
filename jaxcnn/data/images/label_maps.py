"""Label maps, a class for each pixel: read from index PNGs, checked, and written as such.

An index PNG holds numbers, not colours: it has a palette, as PASCAL VOC's, or is grey, as CamVid's.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxcnn.config import VOID
from jaxcnn.data.images.decode import check_pixels, open_image, reason_of

NONE = -1  # in a numbering: a stored number that means nothing
# What Pillow multiplies the values of a grey PNG of so many bits by, to make shades of them.
_STRETCHED = {2: 85, 4: 17}
_DEPTH, _COLOUR_TYPE = 24, 25  # bytes of a PNG's header


def read_index_png(data: bytes) -> np.ndarray:
    """Return the numbers in an index PNG, uint8 (H, W).

    Raises:
      ValueError: it is no PNG, is damaged or too large, or holds colours or numbers above 255.
    """
    try:
        with open_image(data) as image:
            check_pixels(image.width, image.height)
            if image.format != "PNG":
                raise ValueError(f"it is {image.format}, which may change numbers: save it as PNG")
            image.load()
            mode, numbers = image.mode, np.asarray(image)
    except Exception as error:  # the decoder meets damage with struct.error, zlib.error and others
        raise ValueError(reason_of(data, error)) from error
    if mode not in ("P", "L", "1") and not mode.startswith("I"):
        raise ValueError(f"it holds colours ({mode}), not numbers of classes: save it with a palette, or in grey")
    if numbers.max(initial=0) > 255:
        raise ValueError(f"it has the number {numbers.max()}, more than 255: classes are 0 … 254")
    if mode == "L" and data[_COLOUR_TYPE] == 0 and data[_DEPTH] in _STRETCHED:
        numbers = numbers // _STRETCHED[data[_DEPTH]]
    return numbers.astype(np.uint8)


def write_index_png(labels: np.ndarray, palette: np.ndarray) -> bytes:
    """Return a label map, uint8 (H, W), as a PNG with a palette.

    Args:
      palette: uint8 (256, 3), the colour of each number.
    """
    image, file = Image.fromarray(np.asarray(labels, np.uint8), "L"), io.BytesIO()
    image.putpalette(np.asarray(palette, np.uint8).tobytes())
    image.save(file, "PNG")
    return file.getvalue()


def numbering(stored: Sequence[int], void: Sequence[int] = ()) -> np.ndarray:
    """Return what each stored number means, int16 (256,): a class, `VOID` or `NONE`.

    Args:
      stored: the number that each class is stored as.
      void: numbers that stand for no class, besides 255.
    """
    meanings = np.full(256, NONE, np.int16)
    meanings[[*void, VOID]] = VOID
    meanings[list(stored)] = np.arange(len(stored))
    return meanings


def renumbered(numbers: np.ndarray, meanings: np.ndarray) -> np.ndarray:
    """Return the class of each pixel, uint8 (H, W), `VOID` where it has none.

    Args:
      numbers: as stored, uint8 (H, W).
      meanings: what each means, by `numbering`.

    Raises:
      ValueError: a number means nothing; which, and where the first is.
    """
    labels = meanings[numbers]
    if (labels == NONE).any():
        row, column = np.unravel_index((labels == NONE).argmax(), labels.shape)
        raise ValueError(
            f"it has {numbers[row, column]} at row {row}, column {column}, but its numbers are {_words(meanings)}; a "
            "palette turned into shades of grey has others"
        )
    return labels.astype(np.uint8)


def _words(meanings: np.ndarray) -> str:
    """Return the numbers that mean something: "0 … 20 and 255"."""
    known = np.flatnonzero(meanings != NONE)
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    words = [f"{run[0]} … {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
