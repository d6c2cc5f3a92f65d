"""COCO's detection, and other data sets of its layout.

    DIR/annotations/instances_SPLIT.json, DIR/SPLIT/NAME.jpg (or DIR/images/SPLIT/NAME.jpg)

A split has the name of its file, without the year if there is only one: `val` is instances_val2017.json. The classes
are the file's categories by rising id. Ids have gaps and labels do not: the source's `category_ids` maps labels to
ids. A box x, y, width, height becomes x, y, x + width, y + height; one without area is left out and counted. Masks,
polygons or run lengths, are read for the networks that need them (`Boxed.with_masks`).
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from jaxcnn import UserError
from jaxcnn.data.images.object_masks import RunLengths, run_lengths
from jaxcnn.data.sources import BadExample, Source, is_plain, missing, one_line, path_of
from jaxcnn.data.sources.boxed import BACKGROUND, AnnotatedImage, Annotation, Boxed, checked_size, clipped, make_boxed
from jaxcnn.safe_files import read_json, shown

# COCO's 80 categories by their ids, which have gaps; "" where there is none.
CATEGORIES = (
    "", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "", "backpack", "umbrella", "", "", "handbag", "tie", "suitcase",
    "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana",
    "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "", "dining table", "", "", "toilet", "", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

_MAX_JSON = 2**30  # bytes; instances_train2017.json has 448,000,000
_MAX_NUMBER = 2**63  # A larger integer is no id, and a much larger one overflows as a float.
_PREFIX = "instances_"


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `coco:DIR`.

    Raises:
      UserError: DIR is no such folder or has no such split, or the file is damaged, or has an object of an unknown
        class or image or with a box outside of its image.
    """
    root, files = path_of(name), _files(name)
    if split not in files:
        raise UserError(f"{name} has no split '{split}': its splits are {', '.join(files)}")
    path = files[split]
    folder = path.stem.removeprefix(_PREFIX)
    folder = f"images/{folder}" if (root / "images" / folder).is_dir() else folder
    data = _read(path)
    categories = {row["id"]: row["name"] for row in sorted(data["categories"], key=lambda row: row["id"])}
    labels = {number: label for label, number in enumerate(categories, start=1)}
    pictures = {row["id"]: _picture(path, folder, row) for row in data["images"]}
    there = {entry.name for entry in os.scandir(root / folder)} if (root / folder).is_dir() else set()
    if lacking := [picture.file for picture in pictures.values() if Path(picture.file).name not in there]:
        raise UserError(f"there is no {root / lacking[0]}, which {path} lists: get the images, or remove the entry")
    dropped = 0
    for row in data["annotations"]:
        where = f"{path}, annotation {row['id']}"
        if row["image_id"] not in pictures or row["category_id"] not in labels:
            key = "image_id" if row["image_id"] not in pictures else "category_id"
            raise UserError(f"{where} has {key} {row[key]}, which the file does not list: correct it, or remove it")
        picture, (x, y, width, height) = pictures[row["image_id"]], row["bbox"]
        box = clipped((x, y, x + width, y + height), picture.size, where)
        if box is None:
            dropped += 1
            continue
        area = (box[2] - box[0]) * (box[3] - box[1]) if row.get("area") is None else row["area"]
        picture.objects.append(Annotation(box, labels[row["category_id"]], False, bool(row.get("iscrowd", 0)), area))
    return make_boxed(
        name, split, root, list(pictures.values()), list(categories.values()), list(labels), dropped,
        kind=_Coco, annotations=path,
    )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class _Coco(Boxed):
    """A split of COCO.

    Attributes:
      annotations: its file.
      segments: of each image the segmentations of its objects, as JSON, which takes a fifth of the memory; () until
        `with_masks` reads them.
    """

    annotations: Path
    segments: Sequence[bytes] = ()
    targets: ClassVar[tuple[str, ...]] = (*Boxed.targets, "masks")

    def with_masks(self) -> Boxed:
        """Return the source with masks; the file is read once more, as a detector of boxes need not keep them."""
        if self.segments:
            return self
        found: dict[int, list[Any]] = {number: [] for number in self.numbers}
        for row in _read(self.annotations)["annotations"]:
            x, y, width, height = row["bbox"]
            if x + width > x and y + height > y:  # as of the objects that have not been dropped
                found[row["image_id"]].append(row.get("segmentation"))
        return replace(self, segments=[json.dumps(rows).encode() for rows in found.values()])

    def masks(self, index: int) -> list[RunLengths]:
        """Return the masks of an example's objects in the stored image.

        Raises:
          BadExample: one is damaged, or missing.
        """
        size = int(self.pixels[index][0]), int(self.pixels[index][1])
        try:
            return [run_lengths(segmentation, size) for segmentation in json.loads(self.segments[index])]
        except ValueError as error:
            reason = f"a mask in {self.annotations} is damaged ({error})"
            raise BadExample(f"{self.where(index)}: {reason}: correct it, or remove the object") from error

    def _read(self, index: int) -> dict[str, Any]:
        return super()._read(index) | ({"masks": self.masks(index)} if self.segments else {})


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: len(_read(path)["images"]) for split, path in _files(name).items()}


def labelled_splits(name: str, data_dir: str = "") -> list[str]:
    """Return the splits, all of which have annotations."""
    return list(_files(name))


def class_names(classes: int) -> tuple[str, ...]:
    """Return the names of the classes of a network trained on COCO; () if it has neither 81 nor 91 classes.

    With 91 a label is COCO's id, with 81 the rank of the id.
    """
    if classes == len(CATEGORIES):
        names = [name or f"unused {number}" for number, name in enumerate(CATEGORIES)]
    else:
        names = [BACKGROUND, *filter(None, CATEGORIES)]
    return (BACKGROUND, *names[1:]) if classes == len(names) else ()


def _files(name: str) -> dict[str, Path]:
    """Return the file of each split, by the name of the split; the year is left out if only one file has the rest."""
    root = path_of(name)
    paths = sorted((root / "annotations").glob(f"{_PREFIX}*.json"))
    if not paths:
        raise UserError(
            f"{root} has no annotations/{_PREFIX}SPLIT.json{missing(name)}: write coco:DIR, where DIR has the "
            "archive's folder annotations, and the images in DIR/SPLIT"
        )
    full = {path.stem.removeprefix(_PREFIX): path for path in paths}
    short = [split.rstrip("0123456789") for split in full]
    return {a if short.count(a) == 1 and a else split: full[split] for a, split in zip(short, full, strict=True)}


def _picture(path: Path, folder: str, row: dict[str, Any]) -> AnnotatedImage:
    if not is_plain(row["file_name"]):
        raise UserError(f"{path} has an image {shown(row['file_name'])}, which is no name of a file: correct it")
    size = checked_size(row["height"], row["width"], f"{path}, image {row['id']},")
    return AnnotatedImage(f"{folder}/{row['file_name']}", size, [], row["id"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {  # {list: {key of its rows: check of the value}}
    "images": {"id": _is_whole, "file_name": lambda v: isinstance(v, str), "height": _is_whole, "width": _is_whole},
    "categories": {"id": lambda v: _is_whole(v) and v >= 0, "name": lambda v: isinstance(v, str)},
    "annotations": {
        "id": _is_whole,
        "image_id": _is_whole,
        "category_id": _is_whole,
        "bbox": _is_box,
        "area": lambda v: v is None or (_is_number(v) and v >= 0),
        "iscrowd": lambda v: v is None or v in (0, 1),
    },
}


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the lists of images, categories and annotations.

    Raises:
      UserError: the file cannot be read, or one of the lists is missing or damaged, or has an id twice.
    """
    try:
        data = read_json(path, _MAX_JSON)
        for name, fields in _FIELDS.items():
            rows = data.get(name) if isinstance(data, dict) else None
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError(f"it has no list of {name}")
            for number, row in enumerate(rows):
                if bad := [field for field, fits in fields.items() if not fits(row.get(field))]:
                    raise ValueError(f"entry {number} of {name} has {bad[0]} {shown(row.get(bad[0]))}")
            if len({row["id"] for row in rows}) < len(rows):
                raise ValueError(f"two entries of {name} have one id")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the annotations {path} ({one_line(error)}): replace the file") from error
    return data
