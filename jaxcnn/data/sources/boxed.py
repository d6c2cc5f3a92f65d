"""Images with the boxes of their objects: the part that all such sources share.

A box is x1, y1, x2, y2 in pixels, corners as points: 0 and the width of the image are its edges. Labels begin at 1, as
class 0 is the background. A source reads all annotations when a split is opened, so that a bad one stops a run before
step 1: it makes an `AnnotatedImage` of each image, and `make_boxed` a `Boxed` of these.
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


class Annotation(NamedTuple):
    """One annotated object.

    Attributes:
      box: x1, y1, x2, y2.
      label: its class, 1 or more.
      difficult: VOC's mark of an object that counts neither way in scores.
      crowd: COCO's mark of a box that holds many objects.
      area: pixels² that the object covers; COCO's scores by size use it.
    """

    box: tuple[float, float, float, float]
    label: int
    difficult: bool
    crowd: bool
    area: float


class AnnotatedImage(NamedTuple):
    """An image and its objects.

    Attributes:
      file: path of the image, below the folder of the data set.
      size: height and width in pixels.
      objects: its annotated objects; there may be none.
      number: the data set's own number of the image.
    """

    file: str
    size: tuple[int, int]
    objects: list[Annotation]
    number: int


@dataclass(frozen=True, eq=False, repr=False)
class Boxed(Source):
    """A source of `AnnotatedImage`s.

    Attributes:
      root: the folder that the images are below.
      files, numbers: path, and the data set's own number, of each image.
      pixels: height and width of each image, int32 (N, 2).
      first: row of each image's first object in the arrays below, and their length, int64 (N + 1,).
      objects: {"boxes": float32 (n, 4), "labels": int32 (n,), "difficult", "crowd": bool (n,), "area": float32 (n,)}.
      category_ids: the data set's own number of each of `class_names`: 0 for the background, -1 for a class of a
        network that the data set lacks.
      dropped: number of objects that are left out because their box has no area.
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
        """Return the words for an example in an error, with its image's file."""
        return f"{super().where(index)} ({self.root / self.files[index]})"

    def file(self, index: int) -> str:
        """Return the file of an example's image."""
        return self.files[index]

    @property
    def fix(self) -> str:
        """Return the advice in an error about one example."""
        return "replace the file"

    @property
    def most(self) -> int:
        """Return the largest number of objects in an image."""
        return int(np.diff(self.first).max(initial=0))

    @property
    def fullest(self) -> int:
        """Return the index of the first example with the most objects."""
        return int(np.diff(self.first).argmax())

    def truth(self, index: int) -> dict[str, np.ndarray]:
        """Return the objects of an example as annotated, in pixels of the stored image; its image is not read.

        Returns:
          "boxes" float32 (n, 4), "labels" int32 (n,), "difficult" and "crowd" bool (n,), "area" float32 (n,).
        """
        part = slice(self.first[index], self.first[index + 1])
        return {name: rows[part] for name, rows in self.objects.items()}

    def with_masks(self) -> "Boxed":
        """Return the source with the masks of its objects: `read` then has "masks", and `masks` gives them alone.

        Raises:
          UserError: it has none.
        """
        raise UserError(f"{self.name} has no masks of its objects: take coco:DIR, or a network of boxes alone")

    def masks(self, index: int) -> list[dict[str, Any]]:
        """Return the masks of an example's objects in the stored image, as run lengths; of a source `with_masks`."""
        raise NotImplementedError

    def relabelled(self, names: Sequence[str], labels: Sequence[int]) -> "Boxed":
        """Return the source with the labels of a network.

        Args:
          names: the names of the network's classes.
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
    name: str, split: str, root: Path, images: Sequence[AnnotatedImage], classes: Sequence[str],
    category_ids: Sequence[int], dropped: int, kind: type[Boxed] = Boxed, **more: Any,
) -> Boxed:  # fmt: skip
    """Return the source of these photographs, with ImageNet's mean and deviation.

    Args:
      classes: names of the classes without the background.
      category_ids: the data set's own numbers of these classes.
      kind, more: a subclass of `Boxed`, and its further fields.

    Raises:
      UserError: there are no images, or two classes have one name.
    """
    where = f"{name}, split '{split}',"
    if not images:
        raise UserError(f"{where} lists no images: take another split, or get the data set again")
    if twice := [word for word in classes if list(classes).count(word) > 1]:
        raise UserError(f"{where} has two classes called '{printable(twice[0])}': rename one in its annotations")
    annotations = [row for image in images for row in image.objects]
    objects = {
        "boxes": np.array([row.box for row in annotations], np.float32).reshape(-1, 4),
        "labels": np.array([row.label for row in annotations], np.int32),
        "difficult": np.array([row.difficult for row in annotations], bool),
        "crowd": np.array([row.crowd for row in annotations], bool),
        "area": np.array([row.area for row in annotations], np.float32),
    }
    first = np.cumsum([0, *(len(image.objects) for image in images)], dtype=np.int64)
    about = len(images), (BACKGROUND, *map(printable, classes)), (None, None, 3), imagenet.MEAN, imagenet.STD
    files, numbers = [image.file for image in images], [image.number for image in images]
    pixels = np.array([image.size for image in images], np.int32).reshape(-1, 2)
    return kind(name, split, *about, root, files, numbers, pixels, first, objects, (0, *category_ids), dropped, **more)


def checked_size(height: float, width: float, where: str) -> tuple[int, int]:
    """Return the height and width in pixels that an annotation gives.

    Raises:
      UserError: no image has such a size.
    """
    if not (1 <= height <= MAX_PIXELS and 1 <= width <= MAX_PIXELS // height and height % 1 == width % 1 == 0):
        raise UserError(f"{where} says that its image has {height:g}×{width:g} pixels: correct it")
    return int(height), int(width)


def clipped(
    box: tuple[float, float, float, float], size: tuple[int, int], where: str
) -> tuple[float, float, float, float] | None:
    """Return a box clipped to its image, None if the box has no area.

    Raises:
      UserError: the box lies outside of the image, has its corners in the wrong order, or a coordinate that is not
        finite.
    """
    (x1, y1, x2, y2), (height, width) = box, size
    if not all(np.isfinite(box)):
        raise UserError(f"{where} has a box that is not four finite numbers: correct it, or remove it")
    edges = ", ".join(f"{edge:g}" for edge in box)
    if x2 < x1 or y2 < y1:
        raise UserError(f"{where} has a box {edges} with its corners in the wrong order: correct it, or remove it")
    if x2 == x1 or y2 == y1:
        return None
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise UserError(
            f"{where} has a box {edges} outside of its image of {height}×{width} pixels: correct it, or remove it"
        )
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
