"""COCO with the 21 classes of PASCAL VOC, a class for each pixel, as torchvision makes label maps of its polygons.

    DIR/annotations/instances_{train,val}2017.json, DIR/{train,val}2017/NAME.jpg

Objects of other classes are background, and a pixel in which two objects overlap is void. A crowd, one region for many
objects, has the class of its objects: it is not left out. An image of `train2017` is used where the objects of those
classes cover more than 1,000 pixels, and every image of `val2017` (torchvision, references/segmentation/coco_utils.py).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxcnn import UserError
from jaxcnn.config import VOID
from jaxcnn.data.images.decode import MAX_BYTES, check_pixels, size_of
from jaxcnn.data.images.object_masks import check
from jaxcnn.data.sources import BadExample, Source, imagenet, is_plain, missing, one_line, path_of
from jaxcnn.data.sources.voc_segmentation import CLASSES
from jaxcnn.safe_files import read_bytes, read_json

# COCO's number of each class of VOC, in VOC's order after background.
_CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
_LEAST_AREA = 1000  # pixels of objects in an image that is trained on
_MAX_ANNOTATIONS = 2**30  # bytes; instances_train2017.json has 449 million
_FILE = re.compile(r"instances_(\w+)\.json")


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `coco_segmentation:DIR`.

    Raises:
      UserError: DIR is no such folder, has no such split, or its annotations are damaged.
    """
    root, files = path_of(name), _files(name)
    if split not in files:
        raise UserError(f"{name} has no split '{split}': its splits are {', '.join(files)}")
    images, objects = _read(files[split], files[split].stat().st_mtime_ns)
    folder = root / _FILE.fullmatch(files[split].name)[1]  # type: ignore[index]
    about = len(images), CLASSES, (None, None, 3), imagenet.MEAN, imagenet.STD
    return _Coco(name, split, *about, folder, images, objects)


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: len(_read(file, file.stat().st_mtime_ns)[0]) for split, file in _files(name).items()}


def labelled_splits(name: str, data_dir: str = "") -> list[str]:
    """Return the splits, without reading their annotations, which takes a while."""
    return list(_files(name))


@dataclass(frozen=True, eq=False, repr=False)
class _Coco(Source):
    """A split of COCO.

    Attributes:
      folder: the folder of the images.
      images: the file of each.
      objects: the objects in each: [[class, polygons or a region's run lengths], …] as JSON, a fifth of its size else.
    """

    folder: Path
    images: Sequence[str]
    objects: Sequence[bytes]
    targets: ClassVar[tuple[str, ...]] = ("label_map",)

    def where(self, index: int) -> str:
        """Return what an error calls an example: with its image's file."""
        return f"{super().where(index)} ({self.folder / self.images[index]})"

    def file(self, index: int) -> str:
        """Return the file of an example's image."""
        return self.images[index]

    @property
    def fix(self) -> str:
        """Return what an error about one example advises."""
        return "get the image or the annotations again"

    def _image(self, index: int) -> bytes:
        return read_bytes(self.folder / self.images[index], MAX_BYTES)

    def _read(self, index: int) -> dict[str, Any]:
        image = self._image(index)
        try:
            labels = rasterise(json.loads(self.objects[index]), size_of(image))
        except ValueError as error:
            raise BadExample(f"{self.where(index)}: its annotations are damaged ({error}): {self.fix}") from error
        return {"image": image, "label_map": labels}


def rasterise(objects: Sequence[tuple[int, Any]], size: tuple[int, int]) -> np.ndarray:
    """Return the class of each pixel, uint8 (H, W): 0 outside of all objects, `VOID` within two.

    Args:
      objects: (class, segmentation) of each object, as COCO's files have it: a list of polygons [x1, y1, x2, y2, …] in
        pixels, or {"size": [H, W], "counts": run lengths down the columns} of a crowd.
      size: height and width of the image.

    Raises:
      ValueError: a segmentation is neither, or does not fit the image.
    """
    from pycocotools import mask

    check_pixels(size[1], size[0])
    labels, covered = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for label, segmentation in objects:
        check(segmentation, size)
        region = mask.decode(mask.frPyObjects(segmentation, *size))  # (H, W), or (H, W, polygons)
        inside = region.any(-1) if region.ndim == 3 else region > 0
        labels[inside] = label
        covered[inside] = np.minimum(covered[inside] + 1, 2)
    labels[covered > 1] = VOID
    return labels


def _files(name: str) -> dict[str, Path]:
    """Return the annotations of each split: `train` and `val`, whatever the year."""
    root = path_of(name)
    found = {}
    for file in sorted(root.glob("annotations/instances_*.json")):
        if (match := _FILE.fullmatch(file.name)) and (root / match[1]).is_dir():
            found[re.sub(r"\d{4}$", "", match[1])] = file
    if not found:
        raise UserError(
            f"{root} has no annotations/instances_SPLIT.json beside a folder SPLIT{missing(name)}: write "
            "coco_segmentation:DIR, where DIR has annotations, train2017 and val2017"
        )
    return found


@lru_cache(maxsize=2)
def _read(file: Path, changed: int) -> tuple[list[str], list[bytes]]:
    """Return the files of the images of a split and their objects; `changed` is when its annotations were written."""
    try:
        annotations = read_json(file, _MAX_ANNOTATIONS)
        images = {image["id"]: image["file_name"] for image in annotations["images"]}
        objects: dict[int, list[Any]] = {number: [] for number in images}
        areas = dict.fromkeys(images, 0.0)
        for found in annotations["annotations"]:
            if (category := found["category_id"]) in _CATEGORIES:
                segmentation = found["segmentation"]
                objects[found["image_id"]].append([1 + _CATEGORIES.index(category), segmentation])
                areas[found["image_id"]] += float(found["area"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"cannot read the annotations {file} ({reason}): get the file again") from error
    if bad := [image for image in images.values() if not isinstance(image, str) or not is_plain(image)]:
        raise UserError(f"{file} names {bad[0]!r}, which is no name of an image: get the file again")
    train = file.stem.startswith("instances_train")
    kept = [number for number in sorted(images) if not train or areas[number] > _LEAST_AREA]
    return [images[n] for n in kept], [json.dumps(objects[n]).encode() for n in kept]
