"""One example, from a source to the row of a batch: read, decoded as far as is needed, cropped, changed at random."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.images.augment_host import Augmentation
from jaxcnn.data.images.decode import Box, Crop, center, decode, resize, size_of
from jaxcnn.data.sources import BadExample, Source

Row = dict[str, Any]  # "image" uint8 (H, W, C), the targets, and "broken": see `Reader.train`
Specs = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]  # of one example's targets: (shape, type)

PLACED = frozenset(["label_map", "boxes"])  # targets that lie in the image, and move with it
LABEL: Specs = {"label": ((), np.dtype(np.int32))}
_TRIES = 100  # neighbours that may be broken too, before it is the data set that is


@dataclass(frozen=True)
class Reader:
    """How the examples of `source` become rows. Picklable, and safe to use from several threads.

    Attributes:
      size: (height, width) of a row's image.
      resize: side of the frame that a photograph is made to cover before its centre is cut out; see `crop.center`.
      augmentation: what happens to a training image here, on the host.
      interpolation: of training crops; evaluation is "antialias" always.
      skip: whether a broken example is replaced, and not an error.
      seed: of all random draws.
      targets: shape and type of each target of a row. Of a raw target with fewer rows than that, the rest is zeros;
        "valid", bool, says which rows are those of boxes that are seen.
      mirror: whether half of the training images are mirrored here; else that is left to the device.
      members: int (n,), the examples of the source that are brought to `size`; None: all of them.
    """

    source: Source
    size: tuple[int, int]
    resize: int
    augmentation: Augmentation
    interpolation: str = "bilinear"
    skip: bool = False
    seed: int = 0
    targets: Specs = field(default_factory=lambda: dict(LABEL))
    mirror: bool = False
    members: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source) if self.members is None else len(self.members)

    def example(self, place: int) -> int:
        """Return the example at `place` among its own; past the last one, a number that no example has."""
        if self.members is None:
            return place
        return int(self.members[place]) if place < len(self) else len(self.source) + place - len(self)

    def train(self, epoch: int, example: int) -> Row:
        """Return the row of an example in an epoch: a function of (seed, epoch, example), whoever computes it.

        Its "broken" is -1, or `example` where that could not be read and another is in its place.

        Raises:
          BadExample: it cannot be read. With `skip` the next example that can be read takes its place.
        """
        for attempt in range(_TRIES if self.skip else 1):
            index = (example + attempt) % len(self.source)
            try:
                row = self._augmented(epoch, index)
            except BadExample:
                if attempt + 1 == _TRIES or not self.skip:
                    raise
            else:
                row["broken"] = example if attempt else -1
                return row
        raise AssertionError("the last attempt returns or raises")

    def eval(self, example: int) -> Row:
        """Return the row of an example in evaluation; past the last example a black one, which must not be counted.

        Raises:
          BadExample: it cannot be read. With `skip` the row is black too, and its "broken" is `example`.
        """
        if example >= len(self.source):
            return self._black(-1)
        try:
            raw = self.source.read(example)
            with self._naming(example):
                pixels, crop = self._centre(raw["image"], "antialias")
            return {"image": pixels, **self._moved(raw, crop, "antialias", example), "broken": -1}
        except BadExample:
            if not self.skip:
                raise
            return self._black(example)

    def _black(self, broken: int) -> Row:
        targets = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.targets.items()}
        return {"image": np.zeros((*self.size, self.source.image_shape[-1]), np.uint8), **targets, "broken": broken}

    def _augmented(self, epoch: int, example: int) -> Row:
        raw = self.source.read(example)
        image, geometry, changes = raw["image"], self.augmentation.geometry, self.augmentation.pixels
        with self._naming(example):
            if not geometry and not changes and not self.mirror:
                pixels, crop = self._centre(image, self.interpolation)
                return {"image": pixels, **self._moved(raw, crop, self.interpolation, example)}
            rng = np.random.Generator(np.random.Philox(key=[(epoch << 32) + self.seed, example]))
            if geometry:
                box = geometry(size_of(image), self.size, rng)
                crop = Crop(box, self.size, self.mirror and rng.random() < 0.5)
                pixels = crop.image(image, self.source.image_shape[-1], self.interpolation)
            else:
                pixels, crop = self._centre(image, self.interpolation, self.mirror and rng.random() < 0.5)
        for change in changes:
            pixels = change(pixels, rng)
        return {"image": pixels, **self._moved(raw, crop, self.interpolation, example)}

    @contextmanager
    def _naming(self, example: int) -> Iterator[None]:
        """Let what is found broken name the example."""
        try:
            yield
        except ValueError as error:
            raise self.source.bad(example, error) from error

    def _centre(self, image: bytes | np.ndarray, interpolation: str, mirrored: bool = False) -> tuple[np.ndarray, Crop]:
        """Return the centre of a photograph; all of an image where all images have one size, resized if it must be."""
        channels = self.source.image_shape[-1]
        if None in self.source.image_shape:
            crop = center(size_of(image), self.size, self.resize)._replace(mirrored=mirrored)
            return crop.image(image, channels, interpolation), crop
        pixels = decode(image, channels)
        if pixels.shape != self.source.image_shape:
            raise ValueError(f"its shape is {pixels.shape}, not {self.source.image_shape}")
        crop = Crop(Box(0, 0, *pixels.shape[:2]), self.size, mirrored)
        pixels = resize(pixels, self.size)
        return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels, crop

    def _moved(self, raw: Row, crop: Crop, interpolation: str, example: int) -> Row:
        """Return the targets as the row has them: moved with the image, and filled up to the shape of `targets`.

        Raises:
          UserError: there are more boxes than the task has room for.
        """
        seen, targets = None, {}
        if PLACED & self.targets.keys():
            crop = crop.taken(interpolation)
        if "boxes" in self.targets:
            boxes, seen = crop.boxes(raw["boxes"])
            raw = raw | {"boxes": boxes, "valid": np.ones(len(boxes), bool)}
        if "label_map" in self.targets:
            raw = raw | {"label_map": crop.label_map(raw["label_map"])}
        for name, (shape, dtype) in self.targets.items():
            value = raw[name]
            if not shape:
                targets[name] = value
                continue
            value = np.asarray(value)
            if seen is not None and len(value) == len(seen) and name != "label_map":
                value = value[seen]  # what belongs to boxes that are not seen is not seen either
            if len(value) > shape[0]:
                raise UserError(
                    f"{self.source.where(example)} has {len(value)} rows of '{name}', there is room for {shape[0]}: "
                    "raise their number in config.task"
                )
            targets[name] = np.zeros(shape, dtype)
            targets[name][: len(value)] = value
        return targets
