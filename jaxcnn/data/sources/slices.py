"""Parts of a split, such as train[:90%], of sources that store their examples class after class.

TFDS shuffles a data set when it prepares it, so that neighbours are a fair sample. Files in folders stand class after
class: a slice of them is taken in a fixed order in which neighbours are spread evenly over all examples.
"""

import re
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.sources import Source

_FORM = re.compile(r"(.*?)\[(?:(-?\d{1,12})(%?))?:(?:(-?\d{1,12})(%?))?\]")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / φ: multiples of it, modulo 2^64, fill every interval evenly


def split_and_bounds(text: str) -> tuple[str, tuple[str, str] | None]:
    """Return the split of "train[10%:20]" and its bounds ("10%", "20"); None where there are no brackets.

    Raises:
      UserError: what is in the brackets is no slice.
    """
    if not text.endswith("]"):
        return text, None
    if not (match := _FORM.fullmatch(text)):
        raise UserError(f"split '{text[:100]}' is no slice: write one such as train[:90%], train[90%:] or train[:500]")
    split, low, low_unit, high, high_unit = match.groups(default="")
    return split, (low + low_unit, high + high_unit)


def sliced(source: Source, split: str, bounds: tuple[str, str]) -> Source:
    """Return the part of `source` that `split`, its name with bounds, means.

    Percentages are rounded to the nearest example, negative bounds count from the end, as TFDS has it: train[:90%] and
    train[90%:] share no example and lack none.

    Raises:
      UserError: a bound is outside of the split, or the part is empty.
    """
    low, high = (
        _place(bound, source.size, split) if bound else end for bound, end in zip(bounds, (0, source.size), strict=True)
    )
    if low >= high:
        raise UserError(f"{source.name}: split '{split}' has none of the {source.size:,} examples: widen the slice")
    # Example i has rank i·2^64/φ: each class, a run of neighbours, has nearly its share of examples in every slice.
    ranks = np.arange(source.size, dtype=np.uint64) * _GOLDEN
    members = np.sort(np.argsort(ranks)[low:high])
    about = source.class_names, source.image_shape, source.mean, source.std
    return _Sliced(source.name, split, len(members), *about, source, members)


def _place(bound: str, size: int, split: str) -> int:
    """Return the place, 0 … size, that a bound means."""
    number = int(bound.removesuffix("%"))
    limit = 100 if bound.endswith("%") else size
    if abs(number) > limit:
        raise UserError(f"split '{split}': {bound} is outside of its {size:,} examples: write {limit} at most")
    place = (number * size * 2 + 100) // 200 if bound.endswith("%") else number  # the nearest, without floats
    return place + size if bound.startswith("-") else place


@dataclass(frozen=True, eq=False, repr=False)
class _Sliced(Source):
    source: Source
    members: np.ndarray  # numbers of its examples, int64 (size,), in rising order

    def read(self, index: SupportsIndex) -> dict[str, Any]:
        return self.source.read(self._of(index.__index__()))

    def _of(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"{self!r} has no example {index}")
        return int(self.members[index])

    def _image(self, index: int) -> bytes | np.ndarray:
        return self.source._image(self._of(index))

    def _read(self, index: int) -> dict[str, Any]:
        return self.read(index)

    def where(self, index: int) -> str:
        return self.source.where(self._of(index))

    def file(self, index: int) -> str:
        return self.source.file(self._of(index))

    @property
    def targets(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.targets

    @property
    def left_out(self) -> dict[str, int]:
        return self.source.left_out

    @property
    def fix(self) -> str:
        return self.source.fix
