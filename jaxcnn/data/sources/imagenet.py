"""ImageNet, the 1,000 classes of ILSVRC 2012 (Russakovsky et al. 2015): their names, and statistics of the images."""

from functools import lru_cache
from pathlib import Path

# Per channel, of pixels in 0 … 1: what the published weights were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def class_names() -> tuple[str, ...]:
    """Return the 1,000 names in the order of the class index: the first of WordNet's synonyms, all of them different.

    Where two classes share it, the name says which one is meant: "crane (bird)" and "crane (machine)".
    """
    return tuple(words_of_ids().values())


def readable(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return `names`, or their words where all of them are WordNet ids of ImageNet."""
    words = words_of_ids()
    return tuple(words[name] for name in names) if words.keys() >= set(names) else names


@lru_cache
def words_of_ids() -> dict[str, str]:
    """Return the name of each WordNet id, such as "n01440764", in the order of the class index, that of the ids."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)
