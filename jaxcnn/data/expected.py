"""The images and classes that a checkpoint or a file of weights expects, and the data brought to them.

All commands ask here: the "input" that weights come with stands where a config sets nothing of its own, and the classes
of a data set are found among the network's by their names.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from jaxcnn import UserError
from jaxcnn.config import VOID, height_width, sides_of
from jaxcnn.data.sources import Source, imagenet
from jaxcnn.data.sources.boxed import Boxed

_COLOURS = {1: " (grey)", 3: " (colour)"}


class Network(NamedTuple):
    """A network that data is brought to.

    Attributes:
      name: what errors call it, such as the folder of its run.
      channels: of its images.
      classes: names of its classes, whose labels the examples are given; None: the labels stay the data's own.
    """

    name: str
    channels: int
    classes: Sequence[str] | None = None


def with_settings(given: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """Return the "input" of weights, but for what a config's `data` sets itself.

    Args:
      given: "image_shape" (H, W, C), "mean", "std", "class_names", and "resize" of photographs.
      data: the group `config.data`, or its keys "image_size", "eval_size", "resize", "mean" and "std". Where it has
        another size and no "resize", the crop keeps its share of the image. Where `given` has "min_size" and
        "max_size", the sides of images that are padded, not cut, `data` has them too.
    """
    height, width, channels = given["image_shape"]
    size = height_width(data["eval_size"] or data["image_size"]) or (height, width)
    changed: dict[str, Any] = {"image_shape": [*size, channels]}
    changed |= {key: list(data[key]) for key in ("mean", "std") if data[key]}
    if "resize" in given:
        changed["resize"] = data["resize"] or round(given["resize"] * max(size) / max(height, width))
    if "min_size" in given:
        changed["min_size"] = max(sides_of(data["min_size"])) or given["min_size"]
    if "max_size" in given:
        changed["max_size"] = data["max_size"] or given["max_size"]
    return {**given, **changed}


def of_weights(config: Any, given: Mapping[str, Any], padded: bool = False) -> tuple[Any, str]:
    """Return a copy of `config` that takes its images from weights where it sets nothing, and words of what it took.

    Args:
      given: the "input" of the weights, checked; {} where they do not say, which changes nothing.
      padded: whether the images of `config` are padded, each at its own size: then no size is taken.
    """
    if not given:
        return config, ""
    config = config.copy_and_resolve_references()
    data, taken, own = config.data, [], []
    wanted = with_settings(given, data)
    for key in ("mean", "std"):
        (own if data[key] else taken).append(f"{key} {_numbers(data[key] or given[key])}")
        data[key] = tuple(map(float, wanted[key]))
    sized = bool(data.image_size or data.eval_size or data.buckets)
    if not sized and not padded:
        height, width, _ = given["image_shape"]
        with data.ignore_type():  # the copy holds a key to the type of its value, and this one takes two
            data.image_size = height if height == width else (height, width)
        taken.append(f"size {height}×{width}")
    if "resize" in given and not (data.resize or data.buckets or padded):
        data.resize = wanted["resize"]
        taken.append(f"resize {data.resize}" + " (in proportion)" * (wanted["resize"] != given["resize"]))
    words = [f"{', '.join(taken)} of the weights"] * bool(taken) + [f"{', '.join(own)} of the config"] * bool(own)
    return config, "; ".join(words)


def differences(given: Mapping[str, Any], images: Mapping[str, Any], data: Any) -> str:
    """Return words of how images differ from those that weights expect of a config's `data`; "" where they do not.

    Args:
      given, images: the "input" of the weights and of the images.
    """
    wanted, names = with_settings(given, data), {"mean": "mean", "std": "deviation"}
    if not data.buckets:
        names["image_shape"] = "shape"
    differing = [key for key in names if key in images and list(images[key]) != list(wanted[key])]
    return ", ".join(f"{names[key]} {_numbers(images[key])}, not {_numbers(wanted[key])}" for key in differing)


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _keys(names: Sequence[str]) -> tuple[str, ...]:
    """Return names as they are compared: composed Unicode, and words for the ids of ImageNet."""
    return imagenet.readable(tuple(unicodedata.normalize("NFC", name) for name in names))


def _unnamed(names: Sequence[str]) -> bool:
    return tuple(names) == tuple(map(str, range(len(names))))


def same_names(left: Sequence[str], right: Sequence[str]) -> bool:
    """Return whether both are the same names in the same order."""
    return _keys(left) == _keys(right)


def find_classes(known: Sequence[str], names: Sequence[str], what: str, where: str) -> tuple[int, ...]:
    """Return which of the network's classes each class of a data set is, by their names.

    Where one of the two has numbers for names, as many classes on both sides are matched by their place.

    Args:
      known, names: of the network's and of the data set's classes.
      what, where: the network and the data set, for the error.

    Raises:
      UserError: the network does not know a class, or two classes have one name.
    """
    ours, theirs = _keys(known), _keys(names)
    if ours == theirs:
        return tuple(range(len(ours)))
    places = {name: place for place, name in enumerate(ours)}
    unknown = [name for name, key in zip(names, theirs, strict=True) if key not in places]
    if unknown and len(known) == len(names) and (_unnamed(known) or _unnamed(names)):
        return tuple(range(len(ours)))
    if unknown:
        counts = f" ({len(known)} classes, {len(names)} there)" if len(known) != len(names) else ""
        raise UserError(f"{what} has no class '{unknown[0]}', which {where} has{counts}: take data of its classes")
    for key in theirs:
        if theirs.count(key) > 1 or ours.count(key) > 1:
            raise UserError(f"{what} and {where}: the name '{key}' is that of two classes: rename one")
    return tuple(places[key] for key in theirs)


@dataclass(frozen=True, eq=False, repr=False)
class Relabelled(Source):
    """A source whose labels are those of a network that has its classes in another order, or more of them.

    Attributes:
      source: whose examples these are.
      labels: the network's class for each of its classes.
    """

    source: Source
    labels: tuple[int, ...]

    @property
    def by_place(self) -> str:
        """Return words of classes that were found by their place, for want of names on one side; "" of names."""
        names = self.source.class_names
        pairs = [(ours, theirs) for ours, theirs in zip(self.class_names, names, strict=False) if ours != theirs]
        if len(names) != len(self.class_names) or self.labels != tuple(range(len(names))) or not pairs:
            return ""
        if same_names(self.class_names, names):
            return ""
        return f"its classes are taken in their order, not by name: '{pairs[0][1]}' is '{pairs[0][0]}' of the network"

    def read(self, index: SupportsIndex) -> dict[str, Any]:
        """Return example `index` with the network's labels."""
        example = self.source.read(index)
        if "label" in example:
            example |= {"label": self.labels[example["label"]]}
        if "label_map" in example:
            network = np.full(256, VOID, np.uint8)
            network[: len(self.labels)] = self.labels
            example |= {"label_map": network[example["label_map"]]}
        return example

    @property
    def targets(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the names of what `read` gives besides "image"."""
        return self.source.targets

    def sizes(self, skip: bool = False) -> np.ndarray:
        """Return the height and width of every image; see `Source.sizes`."""
        return self.source.sizes(skip)

    def where(self, index: int) -> str:
        """Return what an error calls the example."""
        return self.source.where(index)

    def file(self, index: int) -> str:
        """Return the file of the example."""
        return self.source.file(index)

    @property
    def fix(self) -> str:
        """Return what an error about one example advises."""
        return self.source.fix

    def _read(self, index: int) -> dict[str, Any]:
        return self.read(index)


def brought_to(network: Network, source: Source) -> Source:
    """Return `source` with the labels of the network's classes.

    Raises:
      UserError: its images have another number of channels, or as of `find_classes`.
    """
    channels, known = source.image_shape[-1], network.classes
    if channels != network.channels:
        there, here = (f"{n} channel{'s' * (n > 1)}{_COLOURS.get(n, '')}" for n in (network.channels, channels))
        raise UserError(
            f"{network.name} takes images of {there}, those of {source.name} have {here}: take other data or weights"
        )
    if known is None:
        return source
    labels = find_classes(known, source.class_names, network.name, source.name)
    if tuple(source.class_names) == tuple(known):
        return source
    if isinstance(source, Boxed):
        return source.relabelled(known, labels)
    about = source.image_shape, source.mean, source.std
    return Relabelled(source.name, source.split, source.size, tuple(known), *about, source, labels)
