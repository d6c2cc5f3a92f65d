"""The static binarised MNIST: digits of 0 and 1, drawn once from the grey ones, as Larochelle published it.

Salakhutdinov and Murray 2008, "On the quantitative analysis of deep belief networks". DIR holds
`binarized_mnist_{train,valid,test}.amat`, text with an image a line: 784 times 0 or 1. There are no labels.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.sources import Source, missing, one_line, path_of
from jaxcnn.safe_files import read_bytes

_FILES = {"train": "train", "validation": "valid", "test": "test"}  # split: part of the name of its file
_SIDE = 28
_MOST = 2**27  # bytes of a file; that of training has 78 million


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `binarized_mnist:DIR`, whose pixels are 0 and 255.

    Raises:
      UserError: a file is missing or holds anything but images of 0 and 1, or there is no such split.
    """
    if split not in _FILES:
        raise UserError(f"data set '{name}' has no split '{split}': its splits are {', '.join(_FILES)}")
    images = _load(_path_of(name, split))
    share = float(_load(_path_of(name, "train")).mean())
    mean, std = (share,), ((share - share**2) ** 0.5,)
    return _Binarized(name, split, len(images), ("image",), (_SIDE, _SIDE, 1), mean, std, images)


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: len(_load(_path_of(name, split))) for split in _FILES}


@dataclass(frozen=True, eq=False, repr=False)
class _Binarized(Source):
    images: np.ndarray  # bool (N, 28, 28, 1)
    targets: ClassVar[tuple[str, ...]] = ()

    @property
    def levels(self) -> int:
        return 2

    def _read(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index].astype(np.uint8) * 255}


def _path_of(name: str, split: str) -> Path:
    folder = path_of(name)
    path = folder / f"binarized_mnist_{_FILES[split]}.amat"
    if not path.is_file():
        raise UserError(f"{folder} has no file {path.name}, one of the three of binarized_mnist:DIR{missing(name)}")
    return path


def _load(path: Path) -> np.ndarray:
    """Return the images of a file as it is now, bool (N, 28, 28, 1)."""
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=3)
def _read(path: Path, changed: int) -> np.ndarray:
    try:
        characters = np.frombuffer(read_bytes(path, _MOST), np.uint8)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): get the file again") from error
    values = characters[characters > ord(" ")] - ord("0")  # white space lies between them
    if not values.size or values.size % _SIDE**2 or values.max() > 1:
        raise UserError(f"{path} holds {values.size:,} values, no lines of {_SIDE**2} times 0 or 1: get the file again")
    images = values.astype(bool).reshape(-1, _SIDE, _SIDE, 1)
    images.setflags(write=False)  # every source of this process shares them
    return images
