"""Images in folders, DIR/SPLIT/CLASS/…: the layout of torchvision's ImageFolder.

The files of a split stand in its order: class after class, in a class folder after folder, sorted by name.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.images.decode import MAX_BYTES
from jaxcnn.data.sources import Source, imagenet, path_of
from jaxcnn.safe_files import printable, read_bytes

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")  # in any case
_ENDINGS = tuple(extension.encode() for extension in EXTENSIONS)


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `folder:DIR`, of the files in DIR/SPLIT.

    The classes are the folders of DIR/train, by name; ImageNet's ids are given their words.

    Raises:
      UserError: DIR or the split is missing, has no class or another than DIR/train, or a class has no image.
    """
    root, splits = path_of(name), labelled_splits(name)
    if split not in splits:
        without = f": {root / split} has no folders, one of each class" if (root / split).is_dir() else ""
        raise UserError(f"{name} has no split '{split}'{without}: its splits are {', '.join(splits)}")
    classes = _folders(root / "train")
    if wrong := sorted(classes ^ _folders(root / split)):
        unknown = [w for w in wrong if w not in classes]
        what = f"class '{unknown[0]}', which train has not" if unknown else f"no class '{wrong[0]}', which train has"
        raise UserError(f"{root / split} has {what}: both must have the same folders")
    ids = sorted(classes)
    listing = _scan(root / split, ids)
    if empty := [root / split / ids[label] for label in np.flatnonzero(listing.counts(len(ids)) == 0)]:
        kinds = " ".join(EXTENSIONS)
        raise UserError(f"{empty[0]} has no image ({kinds}): add some, or remove the class from all splits")
    names = imagenet.readable(tuple(map(printable, ids)))  # to a file system a name need not be text
    size, shape = len(listing.file_ends), (None, None, 3)
    return _Folder(name, split, size, names, shape, imagenet.MEAN, imagenet.STD, root / split, listing)


def labelled_splits(name: str, data_dir: str = "") -> list[str]:
    """Return the folders of DIR that have folders, `train` among them.

    Raises:
      UserError: DIR is missing, or has no train/CLASS.
    """
    root = path_of(name)
    if not root.is_dir():
        raise UserError(f"{name}: there is no folder {root}: write folder:DIR, where DIR holds train/CLASS/…")
    splits = [split for split in sorted(_folders(root)) if _folders(root / split)]
    if "train" not in splits:
        raise UserError(f"{root} has no train/CLASS folders: images must lie in {root}/train/CLASS and …/val/CLASS")
    return splits


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of images of each split; errors are those of `open_split`."""
    return {split: len(open_split(name, split)) for split in labelled_splits(name)}


@dataclass(frozen=True, eq=False, repr=False)
class _Folder(Source):
    folder: Path  # of the split
    listing: "_Listing"

    def where(self, index: int) -> str:
        return f"{super().where(index)} ({os.fsdecode(self._path(index))})"

    def file(self, index: int) -> str:
        return os.fsdecode(self.listing.path(index))

    @property
    def fix(self) -> str:
        return "replace the file"

    def _path(self, index: int) -> bytes:
        return os.path.join(os.fsencode(self.folder), self.listing.path(index))

    def _read(self, index: int) -> dict[str, Any]:
        try:
            return {"image": read_bytes(self._path(index), MAX_BYTES), "label": self.listing.label(index)}
        except OSError as error:
            raise self.bad(index, ValueError(error.strerror)) from error


class _Listing(NamedTuple):
    """The files of a split, without a Python object for each.

    Attributes:
      files: the files' names one after the other.
      file_ends: int64 (files,), where each ends in `files`.
      folders: paths of the folders that hold them, from the split's.
      first: int64 (folders,), the first file of each folder; the next folder's is the end.
      labels: int64 (folders,).
    """

    files: bytes
    file_ends: np.ndarray
    folders: list[bytes]
    first: np.ndarray
    labels: np.ndarray

    def path(self, index: int) -> bytes:
        """Path of a file from the split's folder."""
        start = self.file_ends[index - 1] if index else 0
        return os.path.join(self.folders[self._folder_of(index)], self.files[start : self.file_ends[index]])

    def label(self, index: int) -> int:
        return int(self.labels[self._folder_of(index)])

    def counts(self, classes: int) -> np.ndarray:
        """Number of files of each class."""
        files = np.diff(self.first, append=len(self.file_ends))
        return np.bincount(self.labels, files, classes)

    def _folder_of(self, index: int) -> int:
        return int(self.first.searchsorted(index, "right")) - 1


def _folders(path: Path) -> set[str]:
    try:
        with os.scandir(path) as entries:
            return {e.name for e in entries if not e.name.startswith(".") and e.is_dir()}
    except OSError as error:
        raise UserError(f"cannot list the folder {path}: {error.strerror}") from error


def _scan(split: Path, classes: list[str]) -> _Listing:
    root = os.fsencode(split)
    folders, files, lengths, first, labels = [], [], [], [0], []
    for label, name in enumerate(classes):
        for path, names in sorted(_walk(root, os.fsencode(name), frozenset())):
            folders.append(path)
            files.append(b"".join(names))
            lengths.append(np.fromiter(map(len, names), np.int64, len(names)))
            first.append(first[-1] + len(names))
            labels.append(label)
    ends = np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))
    return _Listing(b"".join(files), ends, folders, np.array(first[:-1]), np.array(labels, np.int64))


def _walk(root: bytes, path: bytes, above: frozenset[tuple[int, int]]) -> Iterator[tuple[bytes, list[bytes]]]:
    """`path` and the folders in it, with the sorted names of their images; links are followed."""
    full = os.path.join(root, path)
    try:
        stat = os.stat(full)
        if (stat.st_dev, stat.st_ino) in above:  # a link to a folder that it is in
            return
        with os.scandir(full) as entries:
            found = [(e.name, e.is_dir()) for e in entries if not e.name.startswith(b".")]
    except OSError as error:
        raise UserError(f"cannot list the folder {os.fsdecode(full)}: {error.strerror}") from error
    if images := sorted(name for name, is_folder in found if not is_folder and name.lower().endswith(_ENDINGS)):
        yield path, images
    for name, is_folder in found:
        if is_folder:
            yield from _walk(root, os.path.join(path, name), above | {(stat.st_dev, stat.st_ino)})
