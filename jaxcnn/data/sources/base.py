"""What a source of data is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.images.decode import decode


class BadExample(UserError):
    """One example cannot be read: what `config.data.on_error=skip` goes on without."""


@dataclass(frozen=True, eq=False, repr=False)
class Source(ABC):
    """One split of a data set, with random access. Picklable, and safe to read from several threads.

    Attributes:
      name: as given to `make_source`.
      split: likewise.
      size: number of examples.
      class_names: name of each class, in the order of the labels.
      image_shape: (H, W, C); None where images differ in size.
      mean: of each channel, of pixels scaled to 0 … 1, over the training split.
      std: standard deviation, likewise.
    """

    name: str
    split: str
    size: int
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """Labels are 0 … num_classes - 1."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Number of examples."""
        return self.size

    def record(self, index: SupportsIndex) -> tuple[bytes | np.ndarray, int]:
        """Example `index` as it is stored: an image file's bytes, or pixels uint8 (H, W, C); and its label.

        Raises:
          IndexError: `index` is not in 0 … len - 1.
          BadExample: it cannot be read, or its label is no class.
        """
        i = index.__index__()
        if not 0 <= i < self.size:
            raise IndexError(f"{self!r} has no example {i}")
        try:
            image, label = self._read(i)
        except UserError:
            raise
        except Exception as error:  # the storage's libraries each raise what they like
            raise self.bad(i, error) from error
        if not 0 <= label < self.num_classes:
            hint = "a split without labels? take another" if label == -1 else self.mend
            raise BadExample(f"{self.where(i)} has label {label}, not 0 … {self.num_classes - 1}: {hint}")
        return image, label

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Example `index`, decoded: {"image": uint8 (H, W, C), "label": int}.

        Raises:
          IndexError, BadExample: as of `record`; the image cannot be decoded, or is of another shape than it should be.
        """
        image, label = self.record(index)
        try:
            pixels = decode(image, self.image_shape[-1])
            if any(want not in (None, have) for want, have in zip(self.image_shape, pixels.shape, strict=True)):
                raise ValueError(f"its shape is {pixels.shape}, not {self.image_shape}")
        except ValueError as error:
            raise self.bad(index.__index__(), error) from error
        return {"image": pixels, "label": label}

    def __repr__(self) -> str:
        """No path in it: the same data elsewhere reads the same."""
        return f"<{self.name}, {self.split}: {self.size} examples>"

    def where(self, index: int) -> str:
        """What an error calls example `index`; a source of files names the file too."""
        return f"{self.name}, split '{self.split}', example {index}"

    @property
    def mend(self) -> str:
        """What an error about one example advises."""
        return "get the data again"

    def bad(self, index: int, error: BaseException) -> BadExample:
        """The error for an example that cannot be read because of `error`."""
        reason = " ".join(f"{error}".split())[:200] or type(error).__name__
        return BadExample(f"{self.where(index)} cannot be read ({reason}): {self.mend}")

    @abstractmethod
    def _read(self, index: int) -> tuple[bytes | np.ndarray, int]: ...
