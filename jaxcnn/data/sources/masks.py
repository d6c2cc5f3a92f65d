"""Any folder of images and index PNGs: the pixels of a mask are the numbers of the lines in `classes.txt`, from 0.

    DIR/classes.txt, and of each split one of
    DIR/images/SPLIT/NAME.jpg with DIR/masks/SPLIT/NAME.png
    DIR/SPLIT/images/NAME.jpg with DIR/SPLIT/masks/NAME.png
    DIR/SPLIT/NAME.jpg        with DIR/SPLIT/NAME.png

A class is a line. One called `void` is none: its pixels count nowhere, like those of 255. Images are of any format, and
in folders of any depth, which the masks' follow; in the last form they are no PNG.
"""

import os
from collections import Counter
from pathlib import Path

from jaxcnn import UserError
from jaxcnn.data.images.label_maps import numbering
from jaxcnn.data.sources import Source, missing, path_of
from jaxcnn.data.sources.folder import EXTENSIONS
from jaxcnn.data.sources.pairs import Pair, lines_of, make_pairs
from jaxcnn.safe_files import printable

NAMES = "classes.txt"
_FORMS = (("images/{}", "masks/{}"), ("{}/images", "{}/masks"), ("{}", "{}"))
_NO_SPLITS = {"images", "masks"}


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `masks:DIR`.

    Raises:
      UserError: DIR has no such split or no classes.txt, or an image has no mask.
    """
    root, splits = _root(name), _splits(name)
    if split not in splits:
        raise UserError(f"{name} has no split '{split}': its splits are {', '.join(splits)}")
    names, stored, void = read_classes(root / NAMES)
    return make_pairs(name, split, root, _pairs(root, split), names, numbering(stored, void))


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: len(_pairs(_root(name), split)) for split in _splits(name)}


def read_classes(path: Path) -> tuple[list[str], list[int], list[int]]:
    """Return the names in a classes.txt, the number that each is stored as, and the numbers that are void.

    Raises:
      UserError: there is no such file, a name is there twice, or there are none or more than 255.
    """
    lines = [printable(line) for line in lines_of(path)]
    void = [number for number, line in enumerate(lines) if line.lower() == "void"]
    stored = [number for number in range(len(lines)) if number not in void]
    names = [lines[number] for number in stored]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path} has '{twice[0]}' twice: give each class a name of its own")
    if not names or len(lines) > 255:
        raise UserError(f"{path} has {len(names)} classes: give one a line, 1 to 255 of them")
    return names, stored, void


def _root(name: str) -> Path:
    root = path_of(name)
    if not (root / NAMES).is_file():
        raise UserError(
            f"{root} has no {NAMES}{missing(name)}: write masks:DIR, where DIR holds {NAMES}, a name a line, "
            "images/SPLIT and masks/SPLIT"
        )
    return root


def _splits(name: str) -> list[str]:
    """Return the splits: the folders of images, and those of DIR that are in none of the other forms."""
    root = _root(name)
    folders = [*_folders(root / "images"), *(folder for folder in _folders(root) if folder not in _NO_SPLITS)]
    splits = sorted({split for split in folders if _form(root, split)})
    if not splits:
        raise UserError(f"{root} has no images beside masks: put them into images/SPLIT and masks/SPLIT")
    return splits


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return [folder.name for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]


def _form(root: Path, split: str) -> tuple[Path, Path] | None:
    """Return the folders of a split's images and of its masks, in the first form that has both; None of none."""
    for images, masks in _FORMS:
        folders = root / images.format(split), root / masks.format(split)
        if all(folder.is_dir() for folder in folders) and any(_images(*folders)):
            return folders
    return None


def _images(images: Path, masks: Path) -> list[Path]:
    """Return the files of images below a folder, in their order; beside masks, PNGs are these."""
    endings = [extension for extension in EXTENSIONS if images != masks or extension != ".png"]
    found = (Path(folder) / file for folder, _, files in os.walk(images) for file in files)
    return sorted(path for path in found if path.suffix.lower() in endings and not path.name.startswith("."))


def _pairs(root: Path, split: str) -> list[Pair]:
    folders = _form(root, split)
    assert folders, "it is among the splits"
    pairs = []
    for image in _images(*folders):
        mask = (folders[1] / image.relative_to(folders[0])).with_suffix(".png")
        if not mask.is_file():
            raise UserError(f"the image {image} has no mask {mask}: add it, or remove the image")
        pairs.append(Pair(*(str(path.relative_to(root)) for path in (image, mask))))
    return pairs
