"""Data sets that need no files: scikit-learn's handwritten digits, and synthetic images."""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxcnn import UserError
from jaxcnn.config import VOID
from jaxcnn.data.images.object_masks import RunLengths, run_lengths
from jaxcnn.data.sources import KINDS, Source, imagenet, kind_of
from jaxcnn.data.sources.boxed import BACKGROUND, Boxed

_SIDE = 32  # of a synthetic image
_CANVAS = (96, 128)  # height and width of a synthetic image with boxes


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `digits`, `synthetic[_masks|_boxes][:CLASSES[:EXAMPLES]]`, of splits train and test.

    Raises:
      UserError: there is no such data set or split.
    """
    sizes = split_sizes(name)
    if split not in sizes:
        raise UserError(f"data set '{name}' has no split '{split}': its splits are {', '.join(sizes)}")
    if name == "digits":
        pixels = _digits("train")[0] / 255
        mean, std = (float(pixels.mean()),), (float(pixels.std()),)
        images, labels = _digits(split)
        return _Digits(name, split, sizes[split], tuple(map(str, range(10))), (8, 8, 1), mean, std, images, labels)
    names = tuple(f"class {n}" for n in range(_synthetic_numbers(name)[0]))
    if kind_of(name) == "synthetic_boxes":
        return _boxes(name, split, sizes[split], names)
    made = _SyntheticMasks if kind_of(name) == "synthetic_masks" else _Synthetic
    return made(name, split, sizes[split], names, (_SIDE, _SIDE, 3), (0.496,) * 3, (0.228,) * 3)


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    if kind_of(name) == "digits":
        if name != "digits":
            raise UserError(f"no data set '{name}': write digits")
        return {split: len(_digits(split)[1]) for split in ("train", "test")}
    _, examples = _synthetic_numbers(name)
    return {"train": examples, "test": max(1, examples // 4)}


def find(data_dir: str = "") -> list[str]:
    """Return the names of the data sets."""
    return ["digits", "synthetic", "synthetic_masks", "synthetic_boxes"]


@dataclass(frozen=True, eq=False, repr=False)
class _Digits(Source):
    images: np.ndarray  # uint8 (N, 8, 8, 1)
    labels: np.ndarray

    def _read(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


@lru_cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of scikit-learn's digits; of each class, every fifth example is for the test."""
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


@dataclass(frozen=True, eq=False, repr=False)
class _Synthetic(Source):
    def _read(self, index: int) -> dict[str, Any]:
        label = index % self.num_classes
        # Counter-based: the stream is a function of the key alone, and starting one costs little.
        words = np.random.Philox(key=[self.split == "test", index]).random_raw(_SIDE * _SIDE * 3 // 8)
        noise = words.view(np.uint8).reshape(_SIDE, _SIDE, 3)
        return {"image": _pattern(label) + (noise >> 1), "label": label}  # 0 … 127 each


@dataclass(frozen=True, eq=False, repr=False)
class _SyntheticMasks(_Synthetic):
    """Upper and lower halves of two classes, each with the grating of its own."""

    targets: ClassVar[tuple[str, ...]] = ("label_map",)

    def _read(self, index: int) -> dict[str, Any]:
        upper, lower = super()._read(index), super()._read(index + 1)
        half = _SIDE // 2
        labels = np.full((_SIDE, _SIDE), upper["label"], np.uint8)
        labels[half:] = lower["label"]
        return {"image": np.concatenate([upper["image"][:half], lower["image"][half:]]), "label_map": labels}


def _boxes(name: str, split: str, count: int, classes: tuple[str, ...]) -> Source:
    """Return images with a block in each third, whose size, place and class are random."""
    rng, (height, width) = np.random.default_rng(int(split == "test")), _CANVAS
    # The objects of all images are drawn at once, so that the annotations are known before an image is made.
    side = rng.integers(height // 6, width // 3, (count, 3, 2))  # width and height
    left, top = np.arange(3) * (width // 3), rng.integers(0, height - side[..., 1] + 1)
    corner = np.stack([left + rng.integers(0, width // 3 - side[..., 0] + 1), top], -1)
    boxes = np.concatenate([corner, corner + side], -1).reshape(-1, 4).astype(np.float32)
    labels = rng.integers(1, len(classes) + 1, 3 * count).astype(np.int32)
    nothing = np.zeros(3 * count, bool)
    objects = {"boxes": boxes, "labels": labels, "difficult": nothing, "crowd": nothing}
    objects["area"] = side.prod(-1).ravel().astype(np.float32)
    about = count, (BACKGROUND, *classes), (None, None, 3), imagenet.MEAN, imagenet.STD
    pixels, first = np.tile(np.array(_CANVAS, np.int32), (count, 1)), 3 * np.arange(count + 1)
    files, numbers = [f"image {i}" for i in range(count)], range(count)
    return _SyntheticBoxes(
        name, split, *about, Path(), files, numbers, pixels, first, objects, range(len(classes) + 1), dropped=0
    )


@dataclass(frozen=True, eq=False, repr=False)
class _SyntheticBoxes(Boxed):
    """Blocks on grey noise, each with the grating of its class; they fill their boxes.

    Attributes:
      masked: whether examples have masks.
    """

    masked: bool = False
    targets: ClassVar[tuple[str, ...]] = (*Boxed.targets, "masks")

    def with_masks(self) -> Boxed:
        """Return the source with masks."""
        return replace(self, masked=True)

    def masks(self, index: int) -> list[RunLengths]:
        """Return the blocks as masks."""
        corners = self.truth(index)["boxes"].tolist()
        return [run_lengths([[x1, y1, x2, y1, x2, y2, x1, y2]], _CANVAS) for x1, y1, x2, y2 in corners]

    def _read(self, index: int) -> dict[str, Any]:
        objects = self.truth(index)
        noise = np.random.Philox(key=[self.split == "test", index]).random_raw(_CANVAS[0] * _CANVAS[1] * 3 // 8)
        image = (noise.view(np.uint8).reshape(*_CANVAS, 3) >> 2) + np.uint8(96)
        for (x1, y1, x2, y2), label in zip(objects["boxes"].astype(int), objects["labels"], strict=True):
            grating = np.tile(2 * _pattern(int(label) - 1), (_CANVAS[0] // _SIDE, _CANVAS[1] // _SIDE, 1))
            image[y1:y2, x1:x2] = grating[: y2 - y1, : x2 - x1]
        return {"image": image, **objects} | ({"masks": self.masks(index)} if self.masked else {})


@lru_cache(maxsize=4096)
def _pattern(label: int) -> np.ndarray:
    """Return a grating, uint8 (32, 32, 3) in 0 … 127; its direction, frequency and colour are those of the class."""
    # Multiples of these irrational numbers, modulo 1, fill the cube evenly: classes stay apart, however many.
    direction, frequency, colour = np.modf(label / 1.2207440846057596 ** np.arange(1, 4))[0]
    y, x = np.mgrid[:_SIDE, :_SIDE] * (2 * np.pi / _SIDE)
    wave = (2 + 6 * frequency) * (x * np.cos(np.pi * direction) + y * np.sin(np.pi * direction))
    return (63.5 + 63.5 * np.sin(wave[..., None] + 2 * np.pi * colour * np.arange(3))).astype(np.uint8)


def _synthetic_numbers(name: str) -> tuple[int, int]:
    """Return the classes and training examples that the name asks for."""
    if match := re.fullmatch(r"synthetic(_masks|_boxes)?(?::([1-9]\d*))?(?::([1-9]\d*))?", name):
        classes = int(match[2] or 10)
        if match[1] == "_masks" and classes > VOID:
            raise UserError(f"{name} has {classes} classes: a label map has {VOID} at most")
        return classes, int(match[3] or 4096)
    raise UserError(f"cannot read the data set name '{name}': write {KINDS[kind_of(name)].form}, of positive integers")
