"""The sources by name: handwritten digits, synthetic images, TFDS data sets that are prepared, folders of images
and packed ones.

Reading imports neither JAX nor TensorFlow.
"""

import difflib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.sources import folder, packed, tfds
from jaxcnn.data.sources.base import Source

SYNTHETIC = "synthetic[:CLASSES[:EXAMPLES]]"
_ON_DISK = {"folder": folder, "packed": packed}  # their names hold the path
_SIDE = 32  # of a synthetic image


def make_source(name: str, split: str = "train", *, data_dir: str = "") -> Source:
    """Open one split of a data set.

    Args:
      name: `digits`, `synthetic[:CLASSES[:EXAMPLES]]`, `tfds:NAME[/CONFIG][:VERSION]`, `folder:DIR` or
        `packed:DIR`.
      split: `train` or `test`; or what DIR has; for TFDS any of its splits, or an expression such as `train[:90%]`.
      data_dir: folder of TFDS data sets ('': TFDS_DATA_DIR, or ~/tensorflow_datasets).

    Raises:
      UserError: no such data set or split, or it is not prepared, or is no set of labelled 8-bit images.
    """
    if _kind(name) == "tfds":
        return tfds.open_split(name, split, data_dir)
    if module := _ON_DISK.get(_kind(name)):
        return module.open_split(name, split)
    sizes = split_sizes(name)
    if split not in sizes:
        raise UserError(f"data set '{name}' has no split '{split}': its splits are {', '.join(sizes)}")
    return _digits_source(split) if name == "digits" else _synthetic_source(name, split, sizes[split])


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Number of examples of each split of a data set; arguments and errors are those of `make_source`."""
    if _kind(name) == "tfds":
        return tfds.split_sizes(name, data_dir)
    if module := _ON_DISK.get(_kind(name)):
        return module.split_sizes(name)
    if _kind(name) == "synthetic":
        _, examples = _synthetic_numbers(name)
        return {"train": examples, "test": max(1, examples // 4)}
    if name == "digits":
        return {split: len(_digits(split)[1]) for split in ("train", "test")}
    raise UserError(f"no data set '{name}': {_hint(name)} (jaxcnn data list shows those at hand)")


def _hint(name: str) -> str:
    """What may have been meant by a name that is none."""
    kind, _, rest = name.partition(":")
    known = {"digits": "digits", "synthetic": SYNTHETIC} | {n: f"tfds:{n}" for n in tfds.STATISTICS}
    path = Path(os.path.expanduser(name))
    if name and name not in known and "\0" not in name and path.is_dir():
        return f"it is a folder, write {'packed' if (path / packed.MANIFEST).exists() else 'folder'}:{name}"
    known |= {kind: f"{kind}:{rest}" for kind in (*_ON_DISK, "tfds") if rest}
    near = [known[n] for n in difflib.get_close_matches(kind, known, n=2)]
    there = f"there are digits, {SYNTHETIC}, tfds:NAME, folder:DIR and packed:DIR"
    return f"did you mean {' or '.join(near)}?" if near else there


def labelled_splits(name: str, data_dir: str = "") -> list[str]:
    """The splits whose labels are known; arguments and errors are those of `make_source`."""
    # The images of a folder need not be counted for it.
    splits = folder.split_names(name) if _kind(name) == "folder" else split_sizes(name, data_dir)
    return [split for split in splits if not (split == "test" and tfds.hides_test_labels(name))]


def eval_split(name: str, data_dir: str = "") -> str:
    """The split to evaluate on: `val`, as folders name it, or `test`, or `validation` where no test split has labels.

    Raises:
      UserError: there is none, or as of `make_source`.
    """
    splits = labelled_splits(name, data_dir)
    for split in ("val", "test", "validation"):
        if split in splits:
            return split
    raise UserError(
        f"data set '{name}' has no labelled val, test or validation split: set config.data.eval_split to one of "
        f"{', '.join(splits)}{', or to a slice such as train[90%:]' if _kind(name) == 'tfds' else ''}"
    )


def describe_sources(data_dir: str = "") -> list[dict[str, Any]]:
    """What is at hand: the built-in sources, and the TFDS data sets found in `data_dir`.

    Returns:
      One dict each: name, splits {name: examples}, image_shape, num_classes (empty or None where it cannot be read)
      and status, 'ready' or the obstacle.
    """
    names = tfds.find(data_dir)
    if not any(name.startswith("tfds:fashion_mnist") for name in names):
        names.append("tfds:fashion_mnist")  # its status says how to get it
    return [_describe(name, data_dir) for name in ("digits", "synthetic", *names)]


def _describe(name: str, data_dir: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "splits": {},
        "image_shape": None,
        "num_classes": None,
        "status": "ready",
    }
    try:
        row["splits"] = split_sizes(name, data_dir)
        source = make_source(name, next(iter(row["splits"])), data_dir=data_dir)
        row |= {"image_shape": source.image_shape, "num_classes": source.num_classes}
    except UserError as error:
        row["status"] = str(error)
    return row


def _kind(name: str) -> str:
    return name.partition(":")[0]


@dataclass(frozen=True, eq=False, repr=False)
class _Digits(Source):
    images: np.ndarray  # uint8 (N, 8, 8, 1)
    labels: np.ndarray

    def _read(self, index: int) -> tuple[bytes | np.ndarray, int]:
        return self.images[index], int(self.labels[index])


@lru_cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of scikit-learn's digits; of each class, every fifth example is for the test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    rank = np.empty(len(labels), int)  # of each example within its class
    for label in range(10):
        rank[labels == label] = np.arange((labels == label).sum())
    chosen = (rank % 5 == 4) == (split == "test")
    images, labels = images[chosen], labels[chosen]
    images.setflags(write=False)  # every source of this process shares them
    return images, labels


def _digits_source(split: str) -> Source:
    pixels = _digits("train")[0] / 255
    mean, std = (float(pixels.mean()),), (float(pixels.std()),)
    images, labels = _digits(split)
    names = tuple(str(n) for n in range(10))
    return _Digits("digits", split, len(labels), names, (8, 8, 1), mean, std, images, labels)


@dataclass(frozen=True, eq=False, repr=False)
class _Synthetic(Source):
    def _read(self, index: int) -> tuple[np.ndarray, int]:
        label = index % self.num_classes
        # Counter-based: the stream is a function of the key alone, and starting one costs little.
        words = np.random.Philox(key=[self.split == "test", index]).random_raw(_SIDE * _SIDE * 3 // 8)
        noise = words.view(np.uint8).reshape(_SIDE, _SIDE, 3)
        return _pattern(label) + (noise >> 1), label  # 0 … 127 each


@lru_cache(maxsize=4096)
def _pattern(label: int) -> np.ndarray:
    """A grating, uint8 (32, 32, 3) in 0 … 127; its direction, frequency and colour are those of the class."""
    # Multiples of these irrational numbers, modulo 1, fill the cube evenly: classes stay apart, however many.
    direction, frequency, colour = np.modf(label / 1.2207440846057596 ** np.arange(1, 4))[0]
    y, x = np.mgrid[:_SIDE, :_SIDE] * (2 * np.pi / _SIDE)
    wave = (2 + 6 * frequency) * (x * np.cos(np.pi * direction) + y * np.sin(np.pi * direction))
    return (63.5 + 63.5 * np.sin(wave[..., None] + 2 * np.pi * colour * np.arange(3))).astype(np.uint8)


def _synthetic_numbers(name: str) -> tuple[int, int]:
    """Classes and training examples that the name asks for."""
    if match := re.fullmatch(r"synthetic(?::([1-9]\d*))?(?::([1-9]\d*))?", name):
        return int(match[1] or 10), int(match[2] or 4096)
    raise UserError(f"cannot read the data set name '{name}': write {SYNTHETIC}, both positive integers")


def _synthetic_source(name: str, split: str, size: int) -> Source:
    names = tuple(f"class {n}" for n in range(_synthetic_numbers(name)[0]))
    return _Synthetic(name, split, size, names, (_SIDE, _SIDE, 3), (0.496,) * 3, (0.228,) * 3)
