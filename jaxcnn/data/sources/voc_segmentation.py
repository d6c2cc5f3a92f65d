"""PASCAL VOC's segmentation, 20 classes and background, as the archives of 2007 to 2012 unpack.

    DIR/JPEGImages/NAME.jpg, SegmentationClass/NAME.png, ImageSets/Segmentation/{train,val,trainval,…}.txt

DIR is such a folder (VOC2012), VOCdevkit, or what has it. A split is a list; one's own may lie beside the others, such
as the 736 names of the FCN paper's `seg11valid.txt`. A mask is SegmentationClass/NAME.png, whose 255 along the borders
is void, or else SegmentationClassAug/NAME.png.

Hariharan et al. 2011 ("SBD") annotated more images. With their folder in that of the year or beside it, called
benchmark_RELEASE/dataset or SBD, with cls/NAME.mat, img/NAME.jpg and the lists train.txt and val.txt, there are the
splits `sbd_train` and `sbd_val`, whose masks are theirs, and of VOC2011 `seg11valid`: `val` without `sbd_train`.
"""

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.images.decode import MAX_BYTES, MAX_PIXELS
from jaxcnn.data.images.label_maps import numbering
from jaxcnn.data.sources import Source, is_plain, missing, path_of
from jaxcnn.data.sources.pairs import Pair, Pairs, lines_of, make_pairs
from jaxcnn.safe_files import read_bytes

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_LISTS = "ImageSets/Segmentation"
_WITHIN = ("VOC*", "VOCdevkit/VOC*", "TrainVal/VOCdevkit/VOC*")  # the archive of 2011 has TrainVal
_MASKS = ("SegmentationClass", "SegmentationClassAug")
_OF_SBD = ("sbd_train", "sbd_val")
_SBD = ("benchmark_RELEASE/dataset", "SBD", "sbd")
_HEADER = 128  # bytes of a MAT file of version 5


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `voc_segmentation:DIR`.

    Raises:
      UserError: DIR is no such folder, has no such split, or a file that the list names is missing.
    """
    root, lists = _root(name), _lists(name)
    if split not in lists:
        raise UserError(f"{name} has no split '{split}': its lists are {', '.join(lists)}")
    sbd, theirs = _sbd(root), split in _OF_SBD
    pairs = [_pair(root, file, sbd, theirs) for file in lists[split]]
    return make_pairs(name, split, root, pairs, CLASSES, numbering(range(len(CLASSES))), _Voc)


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: len(files) for split, files in _lists(name).items()}


def labelled_splits(name: str, data_dir: str = "") -> list[str]:
    """Return the splits but for `test`, whose masks are not published."""
    return [split for split in _lists(name) if split != "test"]


@dataclass(frozen=True, eq=False, repr=False)
class _Voc(Pairs):
    def numbers(self, mask: Path) -> np.ndarray:
        return read_sbd(read_bytes(mask, MAX_BYTES)) if mask.suffix == ".mat" else super().numbers(mask)


def read_sbd(data: bytes) -> np.ndarray:
    """Return the classes in one of SBD's files, uint8 (H, W): GTcls.Segmentation of a MAT file of version 5.

    Raises:
      ValueError: it is none, or is too large.
    """
    from scipy.io import loadmat

    try:
        found: Any = loadmat(io.BytesIO(_inflated(data)), variable_names=["GTcls"])
        labels = found["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # whatever damage causes in SciPy's reader
        raise ValueError("it is no MAT file with GTcls.Segmentation") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"its GTcls.Segmentation is {labels.dtype} {labels.shape}, not uint8 (H, W)")
    return labels


def _inflated(data: bytes) -> bytes:
    """Return a MAT file without compression, so that how much it holds is known before it is read."""
    parts, at, left = [data[:_HEADER]], _HEADER, 4 * MAX_PIXELS
    while at + 8 <= len(data):
        kind, size = (int.from_bytes(data[place : place + 4], "little") for place in (at, at + 4))
        part = data[at : at + 8 + size]
        if kind == 15:  # compressed
            part = zlib.decompressobj().decompress(part[8:], left)
        parts.append(part)
        at, left = at + 8 + size, left - len(part)
        if left <= 0:
            raise ValueError("it holds too much")
    return b"".join(parts)


def _root(name: str) -> Path:
    """Return the folder of a year."""
    path = path_of(name)
    places = [path, *(folder for pattern in _WITHIN for folder in sorted(path.glob(pattern)))]
    found = [folder for folder in places if (folder / _LISTS).is_dir()]
    if len(found) > 1:
        years = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise UserError(f"{path} has several years: write voc_segmentation:{path}/YEAR, of {years}")
    if not found:
        raise UserError(
            f"{path} has no {_LISTS}{missing(name)}: write voc_segmentation:DIR, where DIR is VOCdevkit or the folder "
            "of a year in it"
        )
    return found[0]


def _sbd(root: Path) -> Path | None:
    """Return the folder of SBD: within that of the year, or one or two above."""
    places = (above / folder for above in (root, root.parent, root.parent.parent) for folder in _SBD)
    return next((place for place in places if (place / "cls").is_dir()), None)


def _lists(name: str) -> dict[str, list[str]]:
    """Return the names in each list."""
    root = _root(name)
    files = {path.stem: path for path in sorted((root / _LISTS).glob("*.txt"))}
    sbd = _sbd(root)
    if sbd:
        files |= {split: sbd / f"{split.removeprefix('sbd_')}.txt" for split in _OF_SBD}
    lists = {split: _names(path) for split, path in files.items()}
    if root.name == "VOC2011" and sbd and "val" in lists:
        trained = set(lists["sbd_train"])
        lists.setdefault("seg11valid", [file for file in lists["val"] if file not in trained])
    if lists:
        return lists
    raise UserError(f"{root / _LISTS} has no lists of images: get the data set again")


def _names(path: Path) -> list[str]:
    names = [line.split()[0] for line in lines_of(path)]
    if bad := [name for name in names if not is_plain(name)]:
        raise UserError(f"{path} names {bad[0]!r}, which is no name of an image: correct that line")
    return names


def _pair(root: Path, file: str, sbd: Path | None, theirs: bool) -> Pair:
    """Return the files of an image and its mask, which is SBD's where it is to be `theirs`."""
    images, masks = [root / "JPEGImages" / f"{file}.jpg"], [root / f"{folder}/{file}.png" for folder in _MASKS]
    if sbd:
        images.append(sbd / "img" / f"{file}.jpg")
        masks = [sbd / "cls" / f"{file}.mat"] if theirs else masks
    found = []
    for places in (images, masks):
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            wanted = " or ".join(map(str, places))
            raise UserError(f"there is no {wanted}, which a list names: add it, or remove the name")
        found.append(str(path.relative_to(root) if path.is_relative_to(root) else path))
    return Pair(*found)
