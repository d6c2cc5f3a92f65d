"""Make one example a row of a batch: read, decode, crop or pad, and augment it, with its targets."""

from collections.abc import Mapping, Sequence
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
Specs = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]  # {target: (shape, type)} of one example

PLACED = frozenset(["label_map", "boxes"])  # targets that lie in the image, and move with it
MADE = frozenset(["valid", "sizes", "original_sizes", "proposals"])  # targets of a `Reader`, as no source has them
OF_BOXES = ("labels", "difficult", "crowd", "area")  # raw targets with a row for each box
LABEL: Specs = {"label": ((), np.dtype(np.int32))}
_TRIES = 100  # examples that are tried one after another; if all are broken, so is the data set


@dataclass(frozen=True)
class Reader:
    """The examples of `source` as rows of a batch. Picklable, and safe to use from several threads.

    A row is cropped to `size`, or, if "sizes" is a target, all of an image is resized and padded to it.

    Attributes:
      size: (height, width) of a row's image.
      resize: of cropped rows, side of the frame that a photograph covers before its centre is cropped, see
        `decode.center`; of padded rows, the shorter side to which an image is resized, 0 for its own size.
      longest: of padded rows, pixels of the longer side at most (0: no limit); see `canvases.scaled`.
      sides: of padded rows, shorter sides of which one is drawn for each training image; none: `resize`.
      augmentation: random changes to training images, the host's part.
      interpolation: of training crops. Evaluation always is "antialias"; torchvision's detection is not.
      skip: whether a broken example is replaced instead of raised as an error.
      seed: seed of all random draws.
      targets: shape and type of each target of a row. A raw target with fewer rows is filled up with zeros. "valid",
        bool, says which rows are boxes of which the row's image shows something. "sizes", int (2,), is the height and
        width of the image without its padding, in which a label map is void. "original_sizes", int (2,), is the height
        and width of the stored image, upright.
      mirror: whether half of the training images are mirrored here; else the device may do it.
      members: int (n,), the examples of the source that go into rows of `size`; None: all of them.
      proposals: of each example, the boxes (n, 4) by rank of which the target "proposals" has as many as there is room
        for, moved with the image; what it does not show is left out.
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
    proposals: Sequence[np.ndarray] = ()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.source) if self.members is None else len(self.members)

    def example(self, place: int) -> int:
        """Return the example at `place` among its own; past the last one, a number that no example has."""
        if self.members is None:
            return place
        return int(self.members[place]) if place < len(self) else len(self.source) + place - len(self)

    def train(self, epoch: int, example: int) -> Row:
        """Return the row of an example in an epoch: a function of (seed, epoch, example), on any process.

        Its "broken" is -1, or `example` if that could not be read and another takes its place.

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
            return self._unchanged(self.source.read(example), example, "antialias") | {"broken": -1}
        except BadExample:
            if not self.skip:
                raise
            return self._black(example)

    def _black(self, broken: int) -> Row:
        """Return a row of zeros."""
        targets = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.targets.items()}
        for name in targets.keys() & {"sizes", "original_sizes"}:
            targets[name][:] = self.size  # Networks and scores may divide by them.
        return {"image": np.zeros((*self.size, self.source.image_shape[-1]), np.uint8), **targets, "broken": broken}

    def _augmented(self, epoch: int, example: int) -> Row:
        """Return the row of a training example, with its random changes."""
        raw, geometry, changes = self.source.read(example), self.augmentation.geometry, self.augmentation.pixels
        if not (geometry or changes or self.mirror or self.sides):
            return self._unchanged(raw, example, self.interpolation)
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
        """Draw the crop of a training image of (height, width), in pixels of the stored image.

        The augmentation draws from the image as resized: for padded rows, to a shorter side of `side`.
        """
        assert self.augmentation.geometry
        seen = scaled(image, side, self.longest) if "sizes" in self.targets else image
        drawn = self.augmentation.geometry(seen, self.size, rng)
        crop = drawn if isinstance(drawn, Crop) else Crop(drawn, self.size)
        # From pixels of the resized image to those of the stored one.
        rows, columns = (stored / resized for stored, resized in zip(image, seen, strict=True))
        top, left, height, width = crop.box
        crop = crop._replace(box=Box(top * rows, left * columns, height * rows, width * columns))
        follows = self.interpolation != "antialias" and PLACED & self.targets.keys()
        return crop.aligned() if follows else crop

    def _unchanged(self, raw: Row, example: int, interpolation: str) -> Row:
        """Return the row of an example without random changes."""
        with self.source.naming(example, ValueError):
            pixels, crop = self._centre(raw["image"], interpolation, self.resize)
        return {"image": padded(pixels, self.size), **self._moved(raw, crop, interpolation, example)}

    def _centre(
        self, image: bytes | np.ndarray, interpolation: str, side: int, mirrored: bool = False
    ) -> tuple[np.ndarray, Crop]:
        """Return the pixels of an image without random changes, and the crop that they are.

        For padded rows they are all of the image, its shorter side resized to `side`. Else they are the centre of a
        photograph, or all of an image, resized to the row, if all images of the source have one size.
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
        """Return the targets of the row: moved with the image, and filled up to the shapes in `targets`.

        Raises:
          UserError: there are more boxes than the task has room for.
        """
        if PLACED & self.targets.keys():
            crop = crop.taken(interpolation)
        if "boxes" in self.targets:
            boxes, visible = crop.boxes(raw["boxes"])  # (n, 4), bool (n,): those of which the crop shows something
            raw = raw | {name: raw[name][visible] for name in OF_BOXES if name in raw}
            raw |= {"boxes": boxes[visible], "valid": np.ones(visible.sum(), bool)}
        if "proposals" in self.targets:
            boxes, visible = crop.boxes(self.proposals[example])
            raw = raw | {"proposals": boxes[visible][: self.targets["proposals"][0][0]]}
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
            targets[name] = np.zeros(shape, dtype)  # (n, …) becomes (room, …), one shape for all rows of a batch.
            targets[name][: len(value)] = value
        return targets
