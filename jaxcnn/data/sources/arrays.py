"""Images without labels in one NumPy file: uint8 or bool, (N, H, W) or (N, H, W, C) of one or three channels.

A tenth of them, drawn at random but always the same, is for validation, a tenth for the test. The Frey faces, 1,965
frames of a film (Roweis; no split is official), are the same kind of file with 200 frames for each.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import Any, ClassVar

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.sources import Source, kind_of, missing, one_line, path_of

_CHANNELS = (1, 3)
_HELD_OUT = {"frey": 200}  # examples for validation, and as many for the test; of the others, a tenth


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `arrays:FILE.npy` or `frey:FILE.npy`, whose splits are train, validation and test.

    Raises:
      UserError: there is no such file or split, or it holds other things than images of bytes.
    """
    places = _places(name)
    if split not in places:
        raise UserError(f"data set '{name}' has no split '{split}': its splits are {', '.join(places)}")
    images = _load(path_of(name))
    mean, std = _statistics(path_of(name), len(places["train"]))
    return _Arrays(name, split, len(places[split]), ("image",), images.shape[1:], mean, std, images, places[split])


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: len(places) for split, places in _places(name).items()}


@dataclass(frozen=True, eq=False, repr=False)
class _Arrays(Source):
    images: np.ndarray  # uint8 or bool (N, H, W, C)
    places: np.ndarray  # of this split's examples
    targets: ClassVar[tuple[str, ...]] = ()

    @property
    def levels(self) -> int:
        return 2 if self.images.dtype == np.bool_ else 256

    def _read(self, index: int) -> dict[str, Any]:
        image = self.images[self.places[index]]
        return {"image": image.astype(np.uint8) * 255 if self.levels == 2 else image}


def _places(name: str) -> dict[str, np.ndarray]:
    """Return which images each split has."""
    path = path_of(name)
    if not path.is_file():
        raise UserError(f"data set '{name}': there is no file {path}{missing(name)}")
    count = len(_load(path))
    held_out = _HELD_OUT.get(kind_of(name)) or count // 10
    if not 0 < 2 * held_out < count:
        raise UserError(f"{path} holds {count} images, too few to keep {held_out or 1} each for validation and test")
    order = _order(count)
    return {
        "train": order[2 * held_out :], "validation": order[:held_out], "test": order[held_out : 2 * held_out]
    }  # fmt: skip


def _order(count: int) -> np.ndarray:
    """Return the images in the order of which the splits are parts: validation, test, train."""
    return np.random.default_rng(0).permutation(count)


def _load(path: Path) -> np.ndarray:
    """Return the images of a file as it is now, (N, H, W, C)."""
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: Path, changed: int) -> np.ndarray:
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)  # a header cannot ask for more than the file has
    except (OSError, ValueError, EOFError, TokenError) as error:  # the last of a header that is no Python
        raise UserError(f"{path} is no NumPy array ({one_line(error)}): write one by numpy.save") from error
    if not isinstance(images, np.ndarray) or images.dtype not in (np.uint8, np.bool_):
        what = f"values of type {images.dtype}" if isinstance(images, np.ndarray) else "several arrays"
        raise UserError(f"{path} holds {what}: write one array of uint8, 0 … 255, or of bool")
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[-1] not in _CHANNELS or not math.prod(images.shape):
        raise UserError(f"{path} has the shape {images.shape}: write images (N, H, W) or (N, H, W, C), C of 1 or 3")
    images = np.array(images)  # now: another file may take its place
    images.setflags(write=False)  # every source of this process shares them
    return images


def _statistics(path: Path, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel of the last `count` of the images in their order, those of training."""
    images = _load(path)
    scale = 1 if images.dtype == np.bool_ else 255
    pixels = images[_order(len(images))[-count:]]
    mean, std = (np.array(f(pixels, axis=(0, 1, 2), dtype=np.float64)) / scale for f in (np.mean, np.std))
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())
