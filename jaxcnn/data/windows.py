"""Windows of a data set with boxes, as the examples of a classifier: what R-CNN is fine-tuned on.

Girshick et al. 2014, section 2.3: a window that overlaps an object by an IoU of 0.5 or more has the class of the one it
overlaps most, every other is background. The windows are the objects themselves and the proposals, warped by
`warping.warp`. A batch has a quarter of objects and three quarters of background, in the paper 32 and 96 windows, for
there are far fewer of the former.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.proposals import Proposals
from jaxcnn.data.sources import Source
from jaxcnn.data.sources.boxed import Boxed
from jaxcnn.warping import warp

POSITIVE = 0.5  # IoU from which on a window has the class of its object
SHARE = Fraction(1, 4)  # A quarter of a batch are objects.
SAMPLE = 12_800  # windows of an evaluation: the authors' 100 batches


@dataclass(frozen=True, eq=False, repr=False)
class Windows(Source):
    """A source of windows of another source's images. `make_windows` makes it.

    Attributes:
      source: the images, with their objects.
      image: the image of each window, int32 (n,).
      boxes: of each window, float32 (n, 4), x1, y1, x2, y2 in pixels of the image.
      labels: of each window, int32 (n,), 0 the background.
      context: pixels of a window around its box, on each side.
      fill: what a window shows outside of the image, float32 (C,).
    """

    source: Boxed
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    context: int
    fill: np.ndarray

    @property
    def strata(self) -> tuple[tuple[Fraction, np.ndarray], ...]:
        """Return the objects and the background, with their shares of a training batch."""
        return (SHARE, np.flatnonzero(self.labels)), (1 - SHARE, np.flatnonzero(self.labels == 0))

    @property
    def digest(self) -> str:
        """Return a digest of which windows there are."""
        found = hashlib.sha256(f"{self.image_shape} {self.context}".encode())
        for array in (self.image, self.boxes, self.labels):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]

    def where(self, index: int) -> str:
        """Return the words for a window in an error: its image, and its box."""
        edges = ", ".join(f"{edge:g}" for edge in self.boxes[index])
        return f"{self.source.where(int(self.image[index]))}, window {edges},"

    def file(self, index: int) -> str:
        """Return the file of a window's image."""
        return self.source.file(int(self.image[index]))

    @property
    def fix(self) -> str:
        """Return the advice in an error about one example."""
        return self.source.fix

    def _read(self, index: int) -> dict[str, Any]:
        number = int(self.image[index])
        pixels = self.source.decoded(self.source.read(number)["image"])
        side = self.image_shape[0] or 0
        window = warp(pixels, self.boxes[index], pixels.shape[:2], side, self.context, self.fill)
        return {"image": np.rint(window).astype(np.uint8), "label": int(self.labels[index])}


def make_windows(
    source: Source, proposals: Proposals, side: int, context: int, mean: Sequence[float], sample: int = 0
) -> Windows:
    """Return the windows of a source's objects and proposals.

    Args:
      side, context: pixels of a window, and of its border around the box; see `warping.warp`.
      mean: of each channel, of pixels in 0 … 1: what a window shows outside of its image.
      sample: windows at most (0: all), as many of the two kinds as in a batch, spread over the images.

    Raises:
      UserError: the source has no boxes, an image no proposals, or there is no window of one of the two kinds.
    """
    if not isinstance(source, Boxed):
        raise UserError(f"{source.name} has no boxes, so it has no windows: leave config.data.windows out")
    if 2 * context >= side:
        raise UserError(f"config.data.context={context} leaves no pixel of config.data.image_size={side} to the box")
    parts = list(_of_images(source, proposals))
    image = np.repeat(np.arange(len(parts), dtype=np.int32), [len(labels) for _, labels in parts])
    boxes, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if missing := [kind for kind, there in (("object", labels > 0), ("background", labels == 0)) if not there.any()]:
        raise UserError(
            f"{source.name}, split '{source.split}', has no window of the {missing[0]} in {proposals.file}: take other "
            "proposals or another split"
        )
    if sample:
        keep = _sampled(labels, sample)
        image, boxes, labels = image[keep], boxes[keep], labels[keep]
    about = source.class_names, (side, side, source.image_shape[-1]), source.mean, source.std
    fill = 255 * np.asarray(mean, np.float32)
    return Windows(source.name, source.split, len(labels), *about, source, image, boxes, labels, context, fill)


def _of_images(source: Boxed, proposals: Proposals) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the windows of each image: boxes (n, 4), labels int32 (n,)."""
    for i, (found, size) in enumerate(zip(proposals.of(source), source.pixels, strict=True)):
        truth = source.truth(i)
        objects, classes = truth["boxes"][~truth["crowd"]], truth["labels"][~truth["crowd"]]
        boxes = np.concatenate([objects, within(found, size)])
        overlap = overlaps(boxes, objects)  # (n, objects)
        if not len(objects):
            yield boxes, np.zeros(len(boxes), np.int32)
            continue
        yield boxes, np.where(overlap.max(1) >= POSITIVE, classes[overlap.argmax(1)], 0).astype(np.int32)


def within(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return boxes (n, 4) clipped to an image of (height, width), without those that have no area in it."""
    height, width = size
    clipped = np.clip(boxes, 0, np.array([width, height, width, height], np.float32)).astype(np.float32)
    return clipped[(clipped[:, 2:] > clipped[:, :2]).all(1)]


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of all pairs of boxes that have an area, corners as points: (n, 4), (m, 4) -> float64 (n, m)."""
    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)  # (n, m, 2)
    shared = sides.prod(-1)
    return shared / ((a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared)


def _sampled(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of `count` windows at most, rising, with the shares of a batch; the same ones every time."""
    rng, objects = np.random.default_rng(0), int(count * SHARE)
    kinds = (np.flatnonzero(labels), objects), (np.flatnonzero(labels == 0), count - objects)
    return np.sort(np.concatenate([rng.permutation(members)[:most] for members, most in kinds]))
