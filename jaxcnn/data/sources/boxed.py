"""Images with the boxes of their objects: what the sources of that form share.

A box is x1, y1, x2, y2 in pixels, corners as points: 0 and the width of the image are its edges. Labels begin at 1, as
class 0 is the background. All annotations are read when a split is opened, so that a bad one stops a run before step 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.images.decode import MAX_BYTES, MAX_PIXELS, size_of
from jaxcnn.data.sources import BadExample, Source, imagenet
from jaxcnn.safe_files import printable, read_bytes

BACKGROUND = "background"


class Thing(NamedTuple):
    """One annotated object.

    Attributes:
      box: x1, y1, x2, y2.
      label: its class, 1 or more.
      difficult: VOC's mark: it counts neither way in scores.
      crowd: COCO's: many objects in one box.
      area: pixels² that it covers; COCO's scores are by size.
    """

    box: tuple[float, float, float, float]
    label: int
    difficult: bool
    crowd: bool
    area: float


class Picture(NamedTuple):
    """An image and its objects.

    Attributes:
      file: of the image, below the folder of the data set.
      size: height and width in pixels.
      things: its objects; there may be none.
      number: what the data set itself calls the image by.
    """

    file: str
    size: tuple[int, int]
    things: list[Thing]
    number: int


@dataclass(frozen=True, eq=False, repr=False)
class Boxed(Source):
    """A source of `Picture`s.

    Attributes:
      root: the folder that the images are below.
      files, numbers: of each image.
      pixels: height and width of each image, int32 (N, 2).
      first: where the objects of each image begin in the arrays below, int64 (N + 1,).
      objects: {"boxes": float32 (n, 4), "labels": int32 (n,), "difficult", "crowd": bool (n,), "area": float32 (n,)}.
      category_ids: the data set's own number of each class; those of `class_names`, 0 for the background, -1 for
        classes of a network that the data set lacks.
      dropped: how many objects are left out, as their box has no area.
    """

    root: Path
    files: Sequence[str]
    numbers: Sequence[int]
    pixels: np.ndarray
    first: np.ndarray
    objects: Mapping[str, np.ndarray]
    category_ids: Sequence[int]
    dropped: int
    targets: ClassVar[tuple[str, ...]] = ("boxes", "labels", "difficult", "crowd", "area")

    def where(self, index: int) -> str:
        """Return what an error calls an example: with its image's file."""
        return f"{super().where(index)} ({self.root / self.files[index]})"

    def file(self, index: int) -> str:
        """Return the file of an example's image."""
        return self.files[index]

    @property
    def fix(self) -> str:
        """Return what an error about one example advises."""
        return "replace the file"

    @property
    def most(self) -> int:
        """Return the largest number of objects in an image."""
        return int(np.diff(self.first).max(initial=0))

    @property
    def fullest(self) -> int:
        """Return the example with the most objects, the first of them."""
        return int(np.diff(self.first).argmax())

    def truth(self, index: int) -> dict[str, np.ndarray]:
        """Return the objects of an example as annotated, in pixels of the stored image; its image is not read.

        Returns:
          "boxes" float32 (n, 4), "labels" int32 (n,), "difficult" and "crowd" bool (n,), "area" float32 (n,).
        """
        part = slice(self.first[index], self.first[index + 1])
        return {name: rows[part] for name, rows in self.objects.items()}

    def relabelled(self, names: Sequence[str], labels: Sequence[int]) -> "Boxed":
        """Return the source with the labels of a network.

        Args:
          names: of the network's classes.
          labels: the network's class for each class of the source.
        """
        categories = np.full(len(names), -1)
        categories[list(labels)] = self.category_ids
        objects = {**self.objects, "labels": np.array(labels, np.int32)[self.objects["labels"]]}
        return replace(self, class_names=tuple(names), objects=objects, category_ids=tuple(categories.tolist()))

    def sizes(self, skip: bool = False) -> np.ndarray:
        """Return the height and width of every image, int64 (N, 2), as annotated."""
        return self.pixels.astype(np.int64)

    def _image(self, index: int) -> bytes:
        return read_bytes(self.root / self.files[index], MAX_BYTES)

    def _read(self, index: int) -> dict[str, Any]:
        image = self._image(index)
        height, width = size_of(image)
        if (height, width) != (wanted := tuple(self.pixels[index])):
            reason = f"it has {height}×{width} pixels, its annotation says {wanted[0]}×{wanted[1]}"
            raise BadExample(f"{self.where(index)}: {reason}: {self.fix}, or correct the annotation")
        return {"image": image, **self.truth(index)}


def make_boxed(
    name: str, split: str, root: Path, pictures: Sequence[Picture], classes: Sequence[str],
    category_ids: Sequence[int], dropped: int, kind: type[Boxed] = Boxed, **more: Any,
) -> Boxed:  # fmt: skip
    """Return the source of these photographs; mean and deviation are those of ImageNet.

    Args:
      classes: without the background.
      category_ids: of these classes.
      kind, more: a subclass and what it has besides.
    """
    things = [thing for picture in pictures for thing in picture.things]
    objects = {
        "boxes": np.array([thing.box for thing in things], np.float32).reshape(-1, 4),
        "labels": np.array([thing.label for thing in things], np.int32),
        "difficult": np.array([thing.difficult for thing in things], bool),
        "crowd": np.array([thing.crowd for thing in things], bool),
        "area": np.array([thing.area for thing in things], np.float32),
    }
    first = np.cumsum([0, *(len(picture.things) for picture in pictures)], dtype=np.int64)
    about = len(pictures), (BACKGROUND, *map(printable, classes)), (None, None, 3), imagenet.MEAN, imagenet.STD
    files, numbers = [picture.file for picture in pictures], [picture.number for picture in pictures]
    pixels = np.array([picture.size for picture in pictures], np.int32).reshape(-1, 2)
    return kind(name, split, *about, root, files, numbers, pixels, first, objects, (0, *category_ids), dropped, **more)


def checked_size(height: float, width: float, where: str) -> tuple[int, int]:
    """Return the size in pixels that an annotation gives of an image.

    Raises:
      UserError: it is no size of an image.
    """
    if not (1 <= height <= MAX_PIXELS and 1 <= width <= MAX_PIXELS // height and height % 1 == width % 1 == 0):
        raise UserError(f"{where} says that its image has {height:g}×{width:g} pixels: correct it")
    return int(height), int(width)


def cut(
    box: tuple[float, float, float, float], size: tuple[int, int], where: str
) -> tuple[float, float, float, float] | None:
    """Return the part of a box within its image, None if the box has no area.

    Raises:
      UserError: it lies outside of the image, or is no box.
    """
    (x1, y1, x2, y2), (height, width) = box, size
    if not all(np.isfinite(box)):
        raise UserError(f"{where} has a box that is not four finite numbers: correct it, or remove it")
    if x2 <= x1 or y2 <= y1:
        return None
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        edges = ", ".join(f"{edge:g}" for edge in box)
        raise UserError(
            f"{where} has a box {edges} outside of its image of {height}×{width} pixels: correct it, or remove it"
        )
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
