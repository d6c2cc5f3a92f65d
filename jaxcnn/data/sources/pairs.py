"""Images beside label maps in files of their own, index PNGs: what the sources of that form share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.images.decode import MAX_BYTES, size_of
from jaxcnn.data.images.label_maps import read_index_png, renumbered
from jaxcnn.data.sources import BadExample, Source, imagenet, one_line
from jaxcnn.safe_files import MAX_JSON, read_bytes


class Pair(NamedTuple):
    """Files of an image and its label map, below the folder of a data set."""

    image: str
    mask: str


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(Source):
    """A source of `Pair`s.

    Attributes:
      root: the folder that the files are below.
      pairs: the files of each example.
      meanings: what the numbers in a mask mean, by `label_maps.numbering`.
    """

    root: Path
    pairs: Sequence[Pair]
    meanings: np.ndarray
    targets: ClassVar[tuple[str, ...]] = ("label_map",)

    def where(self, index: int) -> str:
        """Return what an error calls an example: with its image's file."""
        return f"{super().where(index)} ({self.root / self.pairs[index].image})"

    def file(self, index: int) -> str:
        """Return the file of an example's image."""
        return self.pairs[index].image

    @property
    def fix(self) -> str:
        """Return what an error about one example advises."""
        return "replace the file"

    def _image(self, index: int) -> bytes:
        return read_bytes(self.root / self.pairs[index].image, MAX_BYTES)

    def _read(self, index: int) -> dict[str, Any]:
        image, mask = self._image(index), self.root / self.pairs[index].mask
        try:
            labels = renumbered(self.numbers(mask), self.meanings)
            if labels.shape != (size := size_of(image)):
                raise ValueError(f"it has {_by(labels.shape)} pixels, its image {_by(size)}")
        except (OSError, ValueError) as error:
            reason = f"the mask {mask} cannot be used ({one_line(error)})"
            raise BadExample(f"{self.where(index)}: {reason}: {self.fix}") from error
        return {"image": image, "label_map": labels}

    def numbers(self, mask: Path) -> np.ndarray:
        """Return the numbers in the file of a mask, uint8 (H, W); another form of masks has another method."""
        return read_index_png(read_bytes(mask, MAX_BYTES))


def make_pairs(
    name: str, split: str, root: Path, pairs: Sequence[Pair], class_names: Sequence[str], meanings: np.ndarray,
    kind: type[Pairs] = Pairs,
) -> Pairs:  # fmt: skip
    """Return the source of photographs with these masks; mean and deviation are those of ImageNet."""
    about = len(pairs), tuple(class_names), (None, None, 3), imagenet.MEAN, imagenet.STD
    return kind(name, split, *about, root, pairs, meanings)


def lines_of(path: Path) -> list[str]:
    """Return the lines of a list that are not empty, without space around them.

    Raises:
      UserError: it cannot be read, or is no UTF-8 text.
    """
    try:
        text = read_bytes(path, MAX_JSON).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        what = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else one_line(error)
        raise UserError(f"cannot read the list {path} ({what}): replace the file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _by(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
