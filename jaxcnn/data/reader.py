"""One example as the row of a batch: read, decoded, cropped or padded, and changed at random, with its targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxcnn import UserError
from jaxcnn.config import VOID
from jaxcnn.data.images import augment_host
from jaxcnn.data.images.canvases import padded, scaled
from jaxcnn.data.images.decode import Box, Crop, center, resize, size_of
from jaxcnn.data.sources import BadExample, Source

Row = dict[str, Any]  # "image" uint8 (H, W, C), the targets, and "broken": see `Reader.train`
Specs = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]  # of one example's targets: (shape, type)

PLACED = frozenset(["label_map", "boxes"])  # targets that lie in the image, and move with it
MADE = frozenset(["valid", "sizes", "original_sizes"])  # targets that no source has: a `Reader` makes them
OF_BOXES = ("labels", "difficult", "crowd", "area")  # raw targets with a row for each box
LABEL: Specs = {"label": ((), np.dtype(np.int32))}
_TRIES = 100  # neighbours that may be broken too, before it is the data set that is


@dataclass(frozen=True)
class Reader:
    """The reading of `source`'s examples into rows. Picklable, and safe to use from several threads.

    Attributes:
      size: (height, width) of a row's image.
      resize: side of the frame that a photograph is made to cover before its centre is cut out; see `decode.center`.
        Where "sizes" is a target, nothing is cut out: it is the shorter side that all of an image is brought to, 0 for
        its own size, and the rest of the row is padding.
      longest: where "sizes" is a target, pixels of the longer side at most (0: no limit); see `canvases.scaled`.
      sides: likewise, shorter sides of which one is drawn for each training image; none: `resize`.
      augmentation: what happens to a training image here, on the host.
      interpolation: of training crops; evaluation is "antialias" always, which torchvision's detection is not where it
        shrinks an image.
      skip: whether a broken example is replaced, and not an error.
      seed: of all random draws.
      targets: shape and type of each target of a row. Of a raw target with fewer rows than that, the rest is zeros;
        "valid", bool, says which rows are those of boxes that are seen. "sizes", int (2,), is the height and width of
        what is no padding; in the padding a label map is void. "original_sizes", int (2,), is that of the image as it
        is stored, upright.
      mirror: whether half of the training images are mirrored here; else that is left to the device.
      members: int (n,), the examples of the source that are brought to `size`; None: all of them.
    """

    source: Source
    size: tuple[int, int]
    resize: int
    augmentation: augment_host.Augmentation
    interpolation: str = "bilinear"
    skip: bool = False
    seed: int = 0
    targets: Specs = field(default_factory=lambda: dict(LABEL))
    mirror: bool = False
    members: np.ndarray | None = None
    longest: int = 0
    sides: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Return the number of examples."""
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
        tries = _TRIES if self.skip else 1
        for attempt in range(tries):
            try:
                row = self._augmented(epoch, (example + attempt) % len(self.source))
                return row | {"broken": example if attempt else -1}
            except BadExample:
                if attempt + 1 == tries:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def eval(self, example: int) -> Row:
        """Return the row of an example in evaluation; past the last example a black one, which must not be counted.

        Raises:
          BadExample: it cannot be read. With `skip` the row is black too, and its "broken" is `example`.
        """
        if example >= len(self.source):
            return self._black(-1)
        try:
            return self._whole(self.source.read(example), example, "antialias") | {"broken": -1}
        except BadExample:
            if not self.skip:
                raise
            return self._black(example)

    def _black(self, broken: int) -> Row:
        targets = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.targets.items()}
        for name in targets.keys() & {"sizes", "original_sizes"}:
            targets[name][:] = self.size  # a network may divide by them
        return {"image": np.zeros((*self.size, self.source.image_shape[-1]), np.uint8), **targets, "broken": broken}

    def _augmented(self, epoch: int, example: int) -> Row:
        raw, geometry, changes = self.source.read(example), self.augmentation.geometry, self.augmentation.pixels
        if not (geometry or changes or self.mirror or self.sides):
            return self._whole(raw, example, self.interpolation)
        rng = np.random.Generator(np.random.Philox(key=[(epoch << 32) + self.seed, example]))
        side = self.sides[rng.integers(len(self.sides))] if self.sides else self.resize
        with self.source.naming(example, ValueError):
            if geometry:
                crop = self._drawn(size_of(raw["image"]), side, rng)
                crop = crop._replace(mirrored=self.mirror and rng.random() < 0.5)
                pixels = crop.image(raw["image"], self.source.image_shape[-1], self.interpolation)
            else:
                mirrored = self.mirror and rng.random() < 0.5
                pixels, crop = self._centre(raw["image"], self.interpolation, side, mirrored)
        for change in changes:
            pixels = change(pixels, rng)
        return {"image": padded(pixels, self.size), **self._moved(raw, crop, self.interpolation, example)}

    def _drawn(self, image: tuple[int, int], side: int, rng: np.random.Generator) -> Crop:
        """Draw the crop of a training image of (height, width); where rows are padded, `side` is its shorter one."""
        assert self.augmentation.geometry
        seen = scaled(image, side, self.longest) if "sizes" in self.targets else image
        drawn = self.augmentation.geometry(seen, self.size, rng)
        crop = drawn if isinstance(drawn, Crop) else Crop(drawn, self.size)
        rows, columns = (side / part for side, part in zip(image, seen, strict=True))
        top, left, height, width = crop.box
        crop = crop._replace(box=Box(top * rows, left * columns, height * rows, width * columns))
        follows = self.interpolation != "antialias" and PLACED & self.targets.keys()
        return crop.aligned() if follows else crop

    def _whole(self, raw: Row, example: int, interpolation: str) -> Row:
        """Return the row of an example that nothing is changed in at random."""
        with self.source.naming(example, ValueError):
            pixels, crop = self._centre(raw["image"], interpolation, self.resize)
        return {"image": padded(pixels, self.size), **self._moved(raw, crop, interpolation, example)}

    def _centre(
        self, image: bytes | np.ndarray, interpolation: str, side: int, mirrored: bool = False
    ) -> tuple[np.ndarray, Crop]:
        """Return the centre of a photograph; all of an image where all images have one size, resized if it must be.

        Where rows are padded, all of any image, its shorter side brought to `side`.
        """
        if "sizes" in self.targets:
            height, width = size_of(image)
            rows, columns = scaled((height, width), side, self.longest)
            if rows > self.size[0] or columns > self.size[1]:
                raise ValueError(
                    f"its {rows}×{columns} pixels are more than the {self.size[0]}×{self.size[1]} of a row"
                )
            crop = Crop(Box(0, 0, height, width), (rows, columns), mirrored)
            return crop.image(image, self.source.image_shape[-1], interpolation), crop
        if None in self.source.image_shape:
            crop = center(size_of(image), self.size, side)._replace(mirrored=mirrored)
            return crop.image(image, self.source.image_shape[-1], interpolation), crop
        pixels = self.source.decoded(image)
        crop = Crop(Box(0, 0, *pixels.shape[:2]), self.size, mirrored)
        pixels = resize(pixels, self.size)
        return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels, crop

    def _moved(self, raw: Row, crop: Crop, interpolation: str, example: int) -> Row:
        """Return the targets as the row has them: moved with the image, and filled up to the shape of `targets`.

        Raises:
          UserError: there are more boxes than the task has room for.
        """
        if PLACED & self.targets.keys():
            crop = crop.taken(interpolation)
        if "boxes" in self.targets:
            boxes, seen = crop.boxes(raw["boxes"])  # of n boxes, bool (n,): those of which the crop shows something
            raw = raw | {name: raw[name][seen] for name in OF_BOXES if name in raw}
            raw |= {"boxes": boxes[seen], "valid": np.ones(seen.sum(), bool)}
        if "label_map" in self.targets:
            raw = raw | {"label_map": padded(crop.label_map(raw["label_map"]), self.size, VOID)}
        if "sizes" in self.targets:
            raw = raw | {"sizes": np.array(crop.size)}
        if "original_sizes" in self.targets:
            raw = raw | {"original_sizes": np.array(size_of(raw["image"]))}
        targets = {}
        for name, (shape, dtype) in self.targets.items():
            value = raw[name]
            if not shape:
                targets[name] = value
                continue
            value = np.asarray(value)
            if len(value) > shape[0]:
                raise UserError(
                    f"{self.source.where(example)} has {len(value)} rows of '{name}', there is room for {shape[0]}: "
                    "raise their number in config.task"
                )
            targets[name] = np.zeros(shape, dtype)  # (room, …) for (n, …): one shape for all rows of a batch
            targets[name][: len(value)] = value
        return targets
