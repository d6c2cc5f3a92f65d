"""ImageNet, the 1,000 classes of ILSVRC 2012 (Russakovsky et al. 2015): their names, and statistics of the images."""

from functools import lru_cache
from pathlib import Path

# Per channel, of pixels in 0 … 1: what the published weights were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def class_names() -> tuple[str, ...]:
    """The 1,000 names in the order of the class index: the first of WordNet's synonyms, all of them different.

    Where two classes share it, the name says which one is meant: "crane (bird)" and "crane (machine)".
    """
    return tuple(name for _, name in _classes())


def wnids() -> tuple[str, ...]:
    """The 1,000 WordNet ids, such as "n01440764", in the order of the class index, which is that of the ids."""
    return tuple(wnid for wnid, _ in _classes())


def readable(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names`, or their words where all of them are WordNet ids of ImageNet."""
    words = dict(_classes())
    return tuple(words[name] for name in names) if words.keys() >= set(names) else names


@lru_cache
def _classes() -> tuple[tuple[str, str], ...]:
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines)
    return tuple((wnid, name) for wnid, name in rows)
