"""TFDS data sets whose images have `objects` with boxes, such as its `voc` and `coco`.

All records of a split are read when it is opened, for their objects and the sizes of the images; the images stay in
their files. TFDS's boxes are ymin, xmin, ymax, xmax as shares of height and width, in float32. They become pixels in
this module alone, rounded to a thousandth, which undoes the rounding of float32. TFDS's VOC counts pixels from 1, as
VOC's own files.
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
from jaxcnn.data.sources.boxed import AnnotatedImage, Annotation, Boxed, clipped, make_boxed
from jaxcnn.safe_files import printable

OBJECTS = "objects"
_FIRST = {"voc": 1.0}  # data set -> the number of its first pixel, if that is not 0
# COCO's categories are 1 … 90 without these; TFDS keeps their order, but not their numbers.
_COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_LOOKED_AT = 100  # examples of a split that are searched for an object, to see whether the split is annotated


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
    """Return the splits with objects; the tests of COCO and VOC 2012 are published without."""
    builder = _builder(name, data_dir)

    def annotated(split: str) -> bool:
        kept = tfds.records(builder, name, split, ["image"])
        return any(len(kept[i][OBJECTS]["label"]) for i in range(min(len(kept), _LOOKED_AT)))

    return [split for split in split_sizes(name, data_dir) if annotated(split)]


@dataclass(frozen=True, eq=False, repr=False)
class _Records(Boxed):
    records: Any  # TFDS's data source, whose images are left encoded

    def where(self, index: int) -> str:
        """Return the words for an example in an error, with the name that its image's file had."""
        return f"{Source.where(self, index)} ({self.files[index]})"

    @property
    def fix(self) -> str:
        """Return the advice in an error about one example."""
        return f"delete {self.root} and prepare it again"

    def _image(self, index: int) -> bytes:
        return self.records[index]["image"]


def _builder(name: str, data_dir: str) -> Any:
    builder = tfds.builder_of(name, data_dir)
    features = builder.info.features
    inner = getattr(features[OBJECTS], "feature", {}) if OBJECTS in features else {}  # features of one object
    if "image" not in features or not {"bbox", "label"} <= {*inner}:
        raise UserError(
            f"{name} has features {', '.join(sorted(features))}, not 'image' and '{OBJECTS}' with 'bbox' and 'label': "
            "take another data set"
        )
    form = getattr(inner["bbox"], "bbox_format", None)  # None: the data set is older than TFDS's other formats
    if form is not None and form.value != "REL_YXYX":
        raise UserError(f"boxes of {name} are not ymin, xmin, ymax, xmax in 0 … 1: take another data set")
    return builder


def _picture(records: Any, of: str, first: float, classes: int, index: int) -> tuple[AnnotatedImage, int]:
    """Return an image with its objects, and the number of objects that are left out as they have no area.

    Args:
      of: the split, for an error.
      first: the number of the first pixel, 0 or 1.
    """
    where = f"{of} example {index}"
    try:
        record: Mapping[str, Any] = records[index]
        size = size_of(record["image"])
        rows = list(zip(*_columns(record[OBJECTS], size, first, classes), strict=True))
    except Exception as error:  # ArrayRecord, a damaged header and a damaged object raise errors of many types.
        raise UserError(f"{where} cannot be read ({one_line(error)}): prepare the data set again") from error
    objects = []
    for corners, flat, label, *about in rows:
        box = clipped(tuple(corners), size, where)
        if box is not None and not flat:
            objects.append(Annotation(box, label + 1, *about))
    name = record.get("image/filename", f"example {index}")
    name = printable(name.decode(errors="replace") if isinstance(name, bytes) else str(name))
    return AnnotatedImage(name, size, objects, int(record.get("image/id", index))), len(rows) - len(objects)


def _columns(objects: Mapping[str, Any], size: tuple[int, int], first: float, classes: int) -> list[list[Any]]:
    """Return columns of an image's objects: the box, whether it has no area, class, difficult, crowd and area."""
    (height, width), labels = size, np.asarray(objects["label"])
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"an object has label {labels.max()}, not 0 … {classes - 1}")
    shares = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
    corners = np.round(shares * [width, height, width, height], 3)  # (n, 4)
    flat = (corners[:, 2:] == corners[:, :2]).any(1)
    boxes = corners - [first, first, 0, 0]
    none = np.zeros(len(labels), bool)
    flags = [np.asarray(objects.get(key, none), bool) for key in ("is_difficult", "is_crowd")]
    areas = np.asarray(objects.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(1)), np.float64)
    return [column.tolist() for column in (boxes, flat, labels, *flags, areas)]
