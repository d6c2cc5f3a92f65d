"""One example, from a source to the row of a batch: read, decoded as far as is needed, cropped, changed at random."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxcnn.data.images.augment_host import Augmentation
from jaxcnn.data.images.decode import Box, crop_resize, decode, resize, shorter_to, size_of
from jaxcnn.data.sources.base import BadExample, Source

_TRIES = 100  # neighbours that may be broken too, before it is the data set that is


class Row(NamedTuple):
    """A row of a batch.

    Attributes:
      image: uint8 (H, W, C).
      label: class.
      broken: index of the example that could not be read and has another in its place, or -1.
    """

    image: np.ndarray
    label: int
    broken: int = -1


@dataclass(frozen=True)
class Reader:
    """How the examples of `source` become rows. Picklable, and safe to use from several threads.

    Attributes:
      size: (height, width) of a row's image.
      resize: length that the shorter side of a photograph is brought to before its centre is cut out.
      augmentation: what happens to a training image here, on the host.
      interpolation: of training crops; evaluation is "antialias" always.
      skip: whether a broken example is replaced, and not an error.
      seed: of all random draws.
    """

    source: Source
    size: tuple[int, int]
    resize: int
    augmentation: Augmentation
    interpolation: str = "bilinear"
    skip: bool = False
    seed: int = 0

    def train(self, epoch: int, example: int) -> Row:
        """The row of an example in an epoch: a function of (seed, epoch, example), whoever computes it.

        Raises:
          BadExample: it cannot be read. With `skip` the next example that can be read takes its place.
        """
        for attempt in range(_TRIES if self.skip else 1):
            index = (example + attempt) % len(self.source)
            try:
                image, label = self._augmented(epoch, index)
            except BadExample:
                if attempt + 1 == _TRIES or not self.skip:
                    raise
            else:
                return Row(image, label, example if attempt else -1)
        raise AssertionError("the last attempt returns or raises")

    def eval(self, example: int) -> Row:
        """The row of an example in evaluation; past the last example a black one, which must not be counted.

        Raises:
          BadExample: it cannot be read. With `skip` the row is black too.
        """
        black = np.zeros((*self.size, self.source.image_shape[-1]), np.uint8)
        if example >= len(self.source):
            return Row(black, 0)
        try:
            image, label = self.source.record(example)
            with self._naming(example):
                return Row(self._whole(image, "antialias"), label)
        except BadExample:
            if not self.skip:
                raise
            return Row(black, 0, example)

    def _augmented(self, epoch: int, example: int) -> tuple[np.ndarray, int]:
        image, label = self.source.record(example)
        geometry, changes = self.augmentation.geometry, self.augmentation.pixels
        with self._naming(example):
            if not geometry and not changes:
                return self._whole(image, self.interpolation), label
            rng = np.random.Generator(np.random.Philox(key=[(epoch << 32) + self.seed, example]))
            if geometry:
                box = geometry(*size_of(image), self.size[0], rng)
                pixels = crop_resize(image, self.source.image_shape[-1], box, self.size, self.interpolation)
            else:
                pixels = self._whole(image, self.interpolation)
        for change in changes:
            pixels = change(pixels, rng)
        return pixels, label

    @contextmanager
    def _naming(self, example: int) -> Iterator[None]:
        """Let what is found broken name the example."""
        try:
            yield
        except ValueError as error:
            raise self.source.bad(example, error) from error

    def _whole(self, image: bytes | np.ndarray, interpolation: str) -> np.ndarray:
        """The centre of a photograph; all of an image where all images have one size, scaled if it must be."""
        channels = self.source.image_shape[-1]
        if None not in self.source.image_shape:
            pixels = decode(image, channels)
            if pixels.shape != self.source.image_shape:
                raise ValueError(f"its shape is {pixels.shape}, not {self.source.image_shape}")
            return resize(pixels, self.size)
        box = center_box(size_of(image), self.resize, self.size)
        return crop_resize(image, channels, box, self.size, interpolation)


def center_box(image: tuple[int, int], shorter: int, size: tuple[int, int]) -> Box:
    """The part of an image of (height, width) that is left when its shorter side is brought to `shorter` and its centre
    of `size` is cut out, rounded as torchvision rounds. Within the image, if `shorter` is not less than `size`.
    """
    scaled = shorter_to(image, shorter)
    starts = [round((whole - part) / 2) for whole, part in zip(scaled, size, strict=True)]
    (top, height), (left, width) = (
        (start * side / whole, part * side / whole)
        for start, part, side, whole in zip(starts, size, image, scaled, strict=True)
    )
    return Box(top, left, height, width)
