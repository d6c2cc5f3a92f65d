"""TFDS data sets whose images have `objects` with boxes, such as its `voc` and `coco`.

All records of a split are read once when it is opened, for their objects and the size of each image; the images stay in
their files. TFDS's boxes are ymin, xmin, ymax, xmax as shares of height and width, in float32. They become pixels here
alone, rounded to a thousandth, which undoes the rounding of float32. TFDS's VOC counts pixels from 1, as its maker.
"""

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import UserError
from jaxcnn.data import usable_cores
from jaxcnn.data.images.decode import size_of
from jaxcnn.data.sources import Source, one_line, tfds
from jaxcnn.data.sources.boxed import Boxed, Picture, Thing, cut, make_boxed
from jaxcnn.safe_files import printable

OBJECTS = "objects"
_FIRST = {"voc": 1.0}  # the number of the first pixel, where it is not 0, by the name of the data set
# COCO's categories are 1 … 90 without these; TFDS has them in their order, but not their numbers.
_COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_LOOKED_AT = 100  # examples of a split, of which one has an object where the split is annotated


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `tfds_detection:NAME[/CONFIG][:VERSION]`; `split` may be a slice, as of `tfds:`.

    Raises:
      UserError: as of `tfds:`; or the data set has no boxes, or an image cannot be read.
    """
    builder = _builder(name, data_dir)
    kept = tfds.records(builder, name, split, ["image"])
    classes = tuple(map(printable, builder.info.features[OBJECTS].feature["label"].names))
    print(f"reading    the boxes of {len(kept):,} images of {name}, split '{split}'", file=sys.stderr)
    with ThreadPoolExecutor(usable_cores()) as threads:
        read = partial(_picture, kept, f"{name}, split '{split}',", _FIRST.get(builder.name, 0.0), len(classes))
        found = list(threads.map(read, range(len(kept))))
    pictures, dropped = [picture for picture, _ in found], sum(count for _, count in found)
    numbers = range(1, len(classes) + 1)
    if builder.name == "coco" and len(classes) == 90 - len(_COCO_GAPS):
        numbers = [number for number in range(1, 91) if number not in _COCO_GAPS]
    root = Path(builder.data_dir)
    return make_boxed(name, split, root, pictures, classes, numbers, dropped, kind=_Records, records=kept)


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: int(info.num_examples) for split, info in _builder(name, data_dir).info.splits.items()}


def labelled_splits(name: str, data_dir: str = "") -> list[str]:
    """Return the splits with objects: those of COCO's tests and VOC 2012's are not published."""
    builder = _builder(name, data_dir)

    def annotated(split: str) -> bool:
        kept = tfds.records(builder, name, split, ["image"])
        return any(len(kept[i][OBJECTS]["label"]) for i in range(min(len(kept), _LOOKED_AT)))

    return [split for split in split_sizes(name, data_dir) if annotated(split)]


@dataclass(frozen=True, eq=False, repr=False)
class _Records(Boxed):
    records: Any  # TFDS's data source, whose images are left encoded

    def where(self, index: int) -> str:
        """Return what an error calls an example: with the name that its image's file had."""
        return f"{Source.where(self, index)} ({self.files[index]})"

    @property
    def fix(self) -> str:
        """Return what an error about one example advises."""
        return f"delete {self.root} and prepare it again"

    def _image(self, index: int) -> bytes:
        return self.records[index]["image"]


def _builder(name: str, data_dir: str) -> Any:
    builder = tfds.builder_of(name, data_dir)
    features = builder.info.features
    inner = getattr(features[OBJECTS], "feature", {}) if OBJECTS in features else {}  # of the sequence
    if "image" not in features or not {"bbox", "label"} <= {*inner}:
        raise UserError(
            f"{name} has features {', '.join(sorted(features))}, not 'image' and '{OBJECTS}' with 'bbox' and 'label': "
            "take another data set"
        )
    form = getattr(inner["bbox"], "bbox_format", None)  # None of a set that was built before there were others
    if form is not None and form.value != "REL_YXYX":
        raise UserError(f"boxes of {name} are not ymin, xmin, ymax, xmax in 0 … 1: take another data set")
    return builder


def _picture(records: Any, of: str, first: float, classes: int, index: int) -> tuple[Picture, int]:
    """Return an image with its objects, and how many objects without an area are left out.

    Args:
      of: the split, for an error.
      first: the number that the first pixel has.
    """
    where = f"{of} example {index}"
    try:
        record: Mapping[str, Any] = records[index]
        size = size_of(record["image"])
        rows = list(zip(*_columns(record[OBJECTS], size, first, classes), strict=True))
    except Exception as error:  # whatever ArrayRecord raises, or the image's header or an object is damaged
        raise UserError(f"{where} cannot be read ({one_line(error)}): prepare the data set again") from error
    things = []
    for corners, flat, label, *about in rows:
        box = cut(tuple(corners), size, where)
        if box is not None and not flat:
            things.append(Thing(box, label + 1, *about))
    name = record.get("image/filename", f"example {index}")
    name = printable(name.decode(errors="replace") if isinstance(name, bytes) else str(name))
    return Picture(name, size, things, int(record.get("image/id", index))), len(rows) - len(things)


def _columns(objects: Mapping[str, Any], size: tuple[int, int], first: float, classes: int) -> list[list[Any]]:
    """Return of the objects of an image x1, y1, x2, y2, whether that is flat, the class, its two flags and the area."""
    (height, width), labels = size, np.asarray(objects["label"])
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"an object has label {labels.max()}, not 0 … {classes - 1}")
    shares = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
    corners = np.round(shares * [width, height, width, height], 3)  # (n, 4)
    flat = (corners[:, 2:] <= corners[:, :2]).any(1)
    boxes = corners - [first, first, 0, 0]
    none = np.zeros(len(labels), bool)
    flags = [np.asarray(objects.get(key, none), bool) for key in ("is_difficult", "is_crowd")]
    areas = np.asarray(objects.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(1)), np.float64)
    return [column.tolist() for column in (boxes, flat, labels, *flags, areas)]
