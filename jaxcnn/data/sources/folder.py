"""Images in folders, DIR/SPLIT/CLASS/…: the layout of torchvision's ImageFolder.

The files of a split stand in its order: class after class, in a class folder after folder, sorted by name. DIR may be
the address of an object store, of which every image is read when it is needed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn import UserError, stores
from jaxcnn.data.images.decode import MAX_BYTES
from jaxcnn.data.sources import Source, address_of, imagenet, missing, path_of
from jaxcnn.locations import Address, composed, is_address
from jaxcnn.safe_files import printable, read_bytes

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    *(".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
)  # in any case
_SPLITS = ("train", "val", "test", "validation")  # as folders of them are called
_NOT_OURS = ("__MACOSX",)  # macOS puts it into archives, with a file of its own for each of ours
_ENDINGS = tuple(extension.encode() for extension in EXTENSIONS)


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `folder:DIR`, of the files in DIR/SPLIT.

    The classes are the folders of DIR/train, by name; ImageNet's ids are given their words. Other splits may
    lack some of them; where there is no DIR/train, each has its own.

    Raises:
      UserError: DIR or the split is missing, has a class that DIR/train lacks, or the folder of a class has no image.
    """
    root, splits = _root(name), labelled_splits(name)
    if split not in splits:
        if split == "train" and not _is_dir(root / split):
            raise UserError(
                f"{root} has no train/CLASS folders, which training needs: it has {', '.join(splits)} alone"
            )
        without = f": {root / split} has no folders, one of each class" if _is_dir(root / split) else ""
        raise UserError(f"{name} has no split '{split}'{without}: its splits are {', '.join(splits)}")
    here = _folders(root / split)
    classes = _folders(root / "train") if "train" in splits else here
    if unknown := sorted(here.keys() - classes.keys()):
        raise UserError(f"{root / split} has class '{unknown[0]}', which train lacks: rename or remove its folder")
    ids, files, labels, others = sorted(classes), [], [], Counter[str]()
    for label, class_folder in ((label, root / split / here[name]) for label, name in enumerate(ids) if name in here):
        for _, paths, endings in sorted(_walk(os.fsencode(class_folder)), key=lambda found: _in_order(found[0])):
            files += paths
            labels += [label] * len(paths)
            others.update(endings)
        if label not in labels[-1:]:
            kinds = " ".join(EXTENSIONS)
            raise UserError(f"{class_folder} has no image ({kinds}): add some, or remove the folder")
    names = imagenet.readable(tuple(map(printable, ids)))  # to a file system a name need not be text
    shape, endings = (None, None, 3), dict(others.most_common())
    return _Folder(name, split, len(files), names, shape, imagenet.MEAN, imagenet.STD, files, labels, endings)


def labelled_splits(name: str, data_dir: str = "") -> list[str]:
    """Return the folders of DIR that have folders with images; others may hold annotations.

    Raises:
      UserError: DIR is missing, or has none.
    """
    root = _root(name)
    if not _is_dir(root):
        _refuse_slice(name)
        raise UserError(
            f"{name}: there is no folder {root}{missing(name)}: write folder:DIR, where DIR holds train/CLASS/…"
        )
    splits = [name for name, folder in sorted(_folders(root).items()) if _is_split(root / folder)]
    if "train" not in splits and (meant := _meant(root)):
        raise UserError(f"{root} has no train/CLASS folders, but {meant} has: write folder:{meant}")
    if not splits and _is_split(root):  # CLASS/IMAGE, without the folder of a split
        raise UserError(
            f"{root} has folders of classes, but none of a split: move them into {root / 'train'}; to evaluate on a "
            "part of them, set config.data.train_split=train[:80%] and config.data.eval_split=train[80%:]"
        )
    if not splits:
        raise UserError(f"{root} has no train/CLASS folders: images must lie in {root}/train/CLASS and …/val/CLASS")
    return splits


def _refuse_slice(name: str) -> None:
    """Raise a UserError where a slice stands behind the folder, and not behind a split: `folder:DIR[:80%]`."""
    if match := re.fullmatch(r"(.*[^/\[])/*\[(-?\d*%?):(-?\d*%?)\]", name):
        folder, low, high = match.groups()
        above, _, split = folder.rpartition("/")
        rest = f"[{high}:]" if high and not low else f"[:{low}]" if low and not high else "[90%:]"
        raise UserError(
            f"{name}: a slice is of a split, not of a folder: write {above if split in _SPLITS and above else folder}, "
            f"with config.data.train_split=train[{low}:{high}] and config.data.eval_split=train{rest}"
        )


def _meant(root: Path | Address) -> Path | Address | None:
    """Return the folder with train/CLASS that `root` is a split or a class of, or that is in `root`."""
    above = [folder.parent for folder in (root, root.parent) if folder.name in _SPLITS]
    places = (*above, *(root / name for name in _folders(root).values()))
    return next((place for place in places if _is_dir(place / "train") and _is_split(place / "train")), None)


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of images of each split; errors are those of `open_split`."""
    return {split: len(open_split(name, split)) for split in labelled_splits(name)}


@dataclass(frozen=True, eq=False, repr=False)
class _Folder(Source):
    files: list[bytes]  # paths; a hundred bytes each, 150 MB for all of ImageNet
    labels: list[int]
    others: dict[str, int]

    def where(self, index: int) -> str:
        return f"{super().where(index)} ({os.fsdecode(self.files[index])})"

    def file(self, index: int) -> str:
        return os.fsdecode(self.files[index]).removeprefix(f"{_root(self.name) / self.split}/")

    @property
    def left_out(self) -> dict[str, int]:
        return self.others

    @property
    def fix(self) -> str:
        return "replace the file"

    def _read(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        read = stores.read_bytes if is_address(os.fsdecode(file)) else read_bytes
        return {"image": read(file, MAX_BYTES), "label": self.labels[index]}


def _root(name: str) -> Path | Address:
    return address_of(name) or path_of(name)


def _is_dir(path: Path | Address) -> bool:
    return path.is_dir() if isinstance(path, Path) else bool(_entries(os.fsencode(path)))


def _entries(folder: bytes) -> list[tuple[bytes, bool]]:
    """Return the names in a folder, but for hidden ones, each with whether it is a folder."""
    if is_address(written := os.fsdecode(folder)):
        entries = stores.entries(Address(written))
    else:
        try:
            with os.scandir(folder) as found:
                entries = [(entry.name, entry.is_dir()) for entry in found]
        except OSError as error:
            raise UserError(f"cannot list the folder {os.fsdecode(folder)}: {error.strerror}") from error
    return [(name, is_folder) for name, is_folder in entries if not name.startswith(b".")]


def _folders(path: Path | Address) -> dict[str, str]:
    """Return the folders in a folder: their names, composed, so that those of all systems compare -> as they are."""
    names = [os.fsdecode(name) for name, is_folder in _entries(os.fsencode(path)) if is_folder]
    names = [name for name in names if name not in _NOT_OURS]
    folders = {composed(name): name for name in names}
    if len(folders) < len(names):
        twice = next(name for name in names if name not in folders.values())
        raise UserError(f"{path} has '{twice}' twice, in two Unicode forms of one name: put their files together")
    return folders


def _in_order(path: bytes) -> bytes:
    """Return a path as it is sorted: the order is the same on a file system that decomposes names."""
    return path if path.isascii() else os.fsencode(composed(os.fsdecode(path)))


def _is_split(folder: Path | Address) -> bool:
    """Whether the folder has folders, and an image in one of them or deeper."""
    inner = (os.fsencode(folder / name) for name in _folders(folder).values())
    return any(images for path in inner for _, images, _ in _walk(path))


def _walk(
    folder: bytes, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[bytes, list[bytes], list[str]]]:
    """Yield a folder and those in it, each with the sorted paths of its images; links are followed.

    Third come the endings of its other files, such as ".heic".

    Args:
      above: device and inode of the folders that this one is in.
    """
    found = _entries(folder)
    if not is_address(os.fsdecode(folder)):
        stat = os.stat(folder)
        if (here := (stat.st_dev, stat.st_ino)) in above:  # a link to a folder that it is in
            return
        above |= {here}
    images = sorted((n for n, is_folder in found if not is_folder and n.lower().endswith(_ENDINGS)), key=_in_order)
    others = [name for name, is_folder in found if not is_folder and not name.lower().endswith(_ENDINGS)]
    endings = [printable(os.path.splitext(os.fsdecode(name))[1].lower()) or "without an ending" for name in others]
    yield folder, [folder + b"/" + name for name in images], endings
    for name, is_folder in found:
        if is_folder:
            yield from _walk(folder + b"/" + name, above)
