"""Region proposals as data: for each image boxes that may hold an object, in one file; and selective search.

FILE.npz holds plain arrays, which are read without unpickling anything:

    names   str (n,)           the images: `file(i)` of their source without folder and ending
    counts  int32 (n,)         boxes of each image
    boxes   float32 (sum, 4)   x1, y1, x2, y2, corners as points, in pixels of the stored image, upright
    scores  float32 (sum,)     optional; without them a file's order is the rank
    method  str ()             JSON: how they were made, by which versions

FILE.json holds detections in COCO's result format, whose "image_id" is the data set's own number of the image.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxcnn import UserError
from jaxcnn.data.images.decode import resize
from jaxcnn.data.sources import Source, one_line
from jaxcnn.locations import location
from jaxcnn.safe_files import not_written, parse_json, read_json

WIDTH = 500  # pixels to which selective search brings an image: VOC's photographs have them
MIN_SIDE = 20  # pixels of the resized image: Girshick's code of R-CNN leaves out what is smaller
_SCALES = (50, 50)  # k of the initial segmentation, first and step: his "fast" mode has 50 and 100
_ARRAYS = {"names": "U", "counts": "iu", "boxes": "f", "scores": "f", "method": "U"}  # kinds of NumPy types
_MOST = 2**32  # bytes of a file's arrays: 2,000 boxes each of 120,000 images
_RATIO = 64  # the arrays' bytes, in those of the file: boxes that are compressed have a fifth or so
_ROOM = 2**16  # boxes of an image


@dataclass(frozen=True, eq=False, repr=False)
class Proposals:
    """The proposals of several images, those of one after those of another, each image's by falling rank.

    Attributes:
      names: of the images; from a .json file the data set's own numbers.
      counts: boxes of each image, int32 (n,).
      boxes: float32 (sum of counts, 4), x1, y1, x2, y2 in pixels of the stored image.
      scores: float32 (sum of counts,), or None.
      method: how they were made.
      file: what errors call them.
    """

    names: Sequence[str]
    counts: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    file: str = "the proposals"

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of names, counts, boxes and scores: equal files of equal boxes have one digest."""
        found = hashlib.sha256("\n".join(self.names).encode())
        for array, kind in ((self.counts, "<i4"), (self.boxes, "<f4"), (self.scores, "<f4")):
            if array is not None:
                found.update(np.ascontiguousarray(array, kind).tobytes())
        return found.hexdigest()

    @property
    def numbered(self) -> bool:
        """Return whether `names` are the data set's own numbers."""
        return self.file.endswith(".json")

    @property
    def search(self) -> tuple[int, int] | None:
        """Return the width and the shortest side of `selective_search`, None of boxes that were made otherwise."""
        known = method_of()
        if any(self.method.get(key) != known[key] for key in ("method", "k")):
            return None
        width, min_side = (self.method.get(key) for key in ("width", "min_side"))
        return (width, min_side) if type(width) is int and type(min_side) is int else None

    def of(self, source: Source) -> list[np.ndarray]:
        """Return the boxes (n, 4) of each example of a source.

        Raises:
          UserError: there are none of an image; it is named.
        """
        rows = {name: row for row, name in enumerate(self.names)}
        parts = np.split(self.boxes, np.cumsum(self.counts)[:-1]) if len(self.counts) else []
        numbers = getattr(source, "numbers", ()) if self.numbered else ()
        found = []
        for i in range(len(source)):
            name = str(numbers[i]) if len(numbers) else name_of(source, i)
            if name not in rows:
                raise UserError(
                    f"{source.where(i)} has no proposals in {self.file}: make them by `jaxcnn data propose` for split "
                    f"'{source.split}', and list all files in config.task.proposals"
                )
            found.append(parts[rows[name]])
        return found

    def write(self, path: Path) -> None:
        """Write an .npz file, which replaces one of that name in one move."""
        arrays = {
            "names": np.array(self.names, np.str_), "counts": np.asarray(self.counts, np.int32),
            "boxes": np.asarray(self.boxes, np.float32), "method": np.array(json.dumps(dict(self.method))),
        }  # fmt: skip
        if self.scores is not None:
            arrays["scores"] = np.asarray(self.scores, np.float32)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise not_written(path, error) from error


def name_of(source: Source, index: int) -> str:
    """Return the name by which a file of proposals knows an example."""
    return Path(source.file(index)).stem


def joined(parts: Sequence[Proposals]) -> Proposals:
    """Return the proposals of several files as one.

    Raises:
      UserError: two have the same image, only some have scores, or only some know images by numbers.
    """
    if len(parts) == 1:
        return parts[0]
    files = ", ".join(part.file for part in parts)
    if len({part.numbered for part in parts}) > 1:
        raise UserError(f"of {files} some know images by their names, some by numbers: give .npz or .json files alone")
    owner: dict[str, str] = {}
    for part in parts:
        for name in part.names:
            if name in owner:
                raise UserError(
                    f"{owner[name]} and {part.file} both have proposals of image '{name}': give one of them"
                )
            owner[name] = part.file
    scores = [part.scores for part in parts if part.scores is not None]
    if len(scores) not in (0, len(parts)):
        raise UserError(f"of {files} some have scores, some not: make them alike")
    return Proposals(
        [*owner], np.concatenate([part.counts for part in parts]), np.concatenate([part.boxes for part in parts]),
        np.concatenate(scores) if scores else None, parts[0].method, files,
    )  # fmt: skip


def read_proposals(path: Path) -> Proposals:
    """Return the proposals in a file; those of an image with scores by falling score.

    Raises:
      UserError: it cannot be read, or its arrays are not those that this module lists.
    """
    try:
        found = _of_results(path) if path.suffix == ".json" else _of_arrays(path)
    except FileNotFoundError:
        raise UserError(f"there is no file of proposals {path}: make it by `jaxcnn data propose`") from None
    except Exception as error:  # NumPy and zipfile raise what they like where a file is damaged.
        raise UserError(f"cannot read the proposals {path} ({one_line(error)}): make the file again") from error
    if found.scores is None:
        return found
    owner = np.repeat(np.arange(len(found.counts)), found.counts)
    order = np.lexsort((-found.scores, owner))  # Stable: equal scores keep the order of the file.
    return Proposals(
        found.names, found.counts, found.boxes[order], found.scores[order], found.method, found.file
    )  # fmt: skip


def _of_arrays(path: Path) -> Proposals:
    """Return the proposals of an .npz file as they stand there; ValueError, KeyError … where it is none."""
    with zipfile.ZipFile(path) as archive:
        size, most = sum(member.file_size for member in archive.infolist()), min(_MOST, _RATIO * path.stat().st_size)
        if size > most:
            raise ValueError(f"its arrays have {size:,} bytes, more than {most:,}")
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in _ARRAYS if name in file.files}
    for name in ("names", "counts", "boxes", "method"):
        if name not in arrays:
            raise ValueError(f"it has no array '{name}'")
    for name, array in arrays.items():
        if array.dtype.kind not in _ARRAYS[name]:
            raise ValueError(f"its '{name}' are of type {array.dtype}")
    names, counts = [str(name) for name in arrays["names"].ravel()], arrays["counts"].ravel().astype(np.int64)
    if len(counts) != len(names) or ((counts < 0) | (counts > _ROOM)).any():
        raise ValueError(f"its 'counts' are not one number of 0 … {_ROOM:,} for each of {len(names)} images")
    if len({*names}) < len(names):
        raise ValueError("it names an image twice")
    boxes, scores = arrays["boxes"].astype(np.float32, copy=False), arrays.get("scores")
    if boxes.shape != (counts.sum(), 4) or (scores is not None and scores.shape != (len(boxes),)):
        raise ValueError(f"its 'boxes' or 'scores' have not the {counts.sum():,} rows of its 'counts'")
    _check_boxes(boxes, scores)
    method = parse_json(str(arrays["method"]))
    if not isinstance(method, dict):
        raise ValueError("its 'method' is no JSON object")
    scores = None if scores is None else scores.astype(np.float32)
    return Proposals(names, counts.astype(np.int32), boxes, scores, method, str(path))


def _of_results(path: Path) -> Proposals:
    """Return the proposals in a list of {"image_id", "bbox": [x, y, width, height], "score"}."""
    rows = read_json(path, _MOST)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is no list of detections in COCO's result format")
    images = [str(int(row["image_id"])) for row in rows]
    names, owner = np.unique(np.array(images, np.str_), return_inverse=True)
    boxes = np.array([row["bbox"] for row in rows], np.float32) if rows else np.zeros((0, 4), np.float32)
    if boxes.shape != (len(rows), 4):
        raise ValueError("it has a 'bbox' that is not four numbers")
    scores = np.array([row["score"] for row in rows], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    _check_boxes(boxes, scores)
    order, counts = np.argsort(owner, kind="stable"), np.bincount(owner, minlength=len(names)).astype(np.int32)
    return Proposals(names.tolist(), counts, boxes[order], scores[order], {"method": "a file"}, str(path))


def _check_boxes(boxes: np.ndarray, scores: np.ndarray | None) -> None:
    """Raise ValueError where a box or a score is of no use."""
    if not np.isfinite(boxes).all() or (scores is not None and not np.isfinite(scores).all()):
        raise ValueError("it has a box or a score that is not finite")
    if (wrong := (boxes[:, 2:] < boxes[:, :2]).any(1)).any():
        edges = ", ".join(f"{edge:g}" for edge in boxes[wrong.argmax()])
        raise ValueError(f"it has a box {edges} with its corners in the wrong order")


def method_of(width: int = WIDTH, min_side: int = MIN_SIDE) -> dict[str, Any]:
    """Return what a file of `selective_search` says of its boxes."""
    scales = [_SCALES[0], sum(_SCALES)]
    about = {"method": "selective search, fast", "k": scales, "width": width, "min_side": min_side}
    return about | {"opencv": cv2.__version__}


def selective_search(image: np.ndarray, width: int = WIDTH, min_side: int = MIN_SIDE) -> np.ndarray:
    """Return boxes that may hold an object, by rank: uint8 (H, W, 3) RGB -> float32 (R, 4), x1, y1, x2, y2.

    Uijlings et al. 2013 in its fast form, as of R-CNN (Girshick et al. 2014): HSV and Lab, two similarities, k of 50
    and 100. In the paper's section 4.3 a box's rank is its place in the hierarchy, the whole image first, times a
    random number. OpenCV finds the same boxes each time, but its ranks differ from call to call and leave no trace
    of the hierarchy: here the place is that by falling area, and the random numbers are the same for every image.

    Args:
      width: pixels to which the image is resized before, less where its height would be more than twice that; 0: it
        stays.
      min_side: pixels of the resized image; boxes with a shorter side are left out.
    """
    height, own = image.shape[:2]
    factor = min(width / own, 2 * width / height) if width else 1.0
    size = max(1, round(height * factor)), max(1, round(own * factor))
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(resize(image, size)[..., ::-1]))  # OpenCV has BGR.
    search.switchToSelectiveSearchFast(*_SCALES)
    found = np.unique(np.asarray(search.process()).reshape(-1, 4), axis=0)  # (R, 4), left, top, width, height
    found = found[(found[:, 2:] >= min_side).all(1)]
    place = np.empty(len(found), np.int64)
    place[np.argsort(-found[:, 2:].prod(1), kind="stable")] = np.arange(1, len(found) + 1)
    found = found[np.argsort(place * np.random.default_rng(0).random(len(found)), kind="stable")]
    corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)
    return (corners * (np.array([own, height] * 2) / np.array(size[::-1] * 2))).astype(np.float32)


def open_proposals(files: Sequence[str]) -> Proposals:
    """Return the proposals of all these files; errors are those of `read_proposals` and `joined`."""
    return joined([read_proposals(location(file, "config.task.proposals")) for file in files])
