"""What a source of data is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np


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

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Example `index`: {"image": uint8 (H, W, C), "label": int}.

        Raises:
          IndexError: `index` is not in 0 … len - 1.
          UserError: the stored example is damaged, or its label is no class.
        """
        i = index.__index__()
        if not 0 <= i < self.size:
            raise IndexError(f"{self!r} has no example {i}")
        image, label = self._read(i)
        return {"image": image, "label": label}

    def __repr__(self) -> str:
        """No path in it: the same data elsewhere reads the same."""
        return f"<{self.name}, {self.split}: {self.size} examples>"

    @abstractmethod
    def _read(self, index: int) -> tuple[np.ndarray, int]: ...
