"""The views of an image that the papers average over in their tests: crops at several places and scales.

Scales and crops are the papers', for networks of 224 pixels, and in proportion for others. For a network whose images
are no square, what the papers say of a square is true of a frame in the shape of its images, and of its longer side.
Images are resized bilinearly with antialiasing, as Pillow and torchvision do; what the papers used they do not say. The
mirrored half of the views is made on the device.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import grain
import numpy as np

from jaxcnn import UserError
from jaxcnn.data.batches import WHOLE, Batch, Slice, read_ahead
from jaxcnn.data.images.decode import MAX_PIXELS, cover, frame, resize
from jaxcnn.data.sources import Source

Size = tuple[int, int]  # (height, width)

_GRID = 32  # dense: the aspect of an image is rounded to 32nds of its shorter side, by 1.6 % at most


def one_crop(image: np.ndarray, size: Size, scale: int) -> list[np.ndarray]:
    """Return the centre of an image whose shorter side is `scale`: torchvision's Resize and CenterCrop, to the bit."""
    return [_centre(_covering(image, frame(size, scale)), size)]


def ten_crop(image: np.ndarray, size: Size, scale: int) -> list[np.ndarray]:
    """Return the four corners and the centre, with their mirror images ten: Krizhevsky et al. 2012, section 4.1.

    Of the central square, 256 pixels wide, which is all that the paper keeps of an image (section 2). torchvision's
    TenCrop takes the corners of the whole rectangle.
    """
    square = frame(size, scale)
    return _five(_centre(_covering(image, square), square), size)


def multi_crop(image: np.ndarray, size: Size, scale: int) -> list[np.ndarray]:
    """Return 18 of the 36 crops at one of four scales, without their mirror images: Szegedy et al. 2015, section 7.

    Of the left, central and right square, or the top, central and bottom one of a portrait: the four corners, the
    centre, and the square itself resized to `size`.
    """
    height, width = frame(size, scale)
    covering = _covering(image, (height, width))
    last = covering.shape[0] - height, covering.shape[1] - width  # 0 along the shorter side
    starts = [(0, 0), (round(last[0] / 2), round(last[1] / 2)), last]
    squares = [covering[top : top + height, left : left + width] for top, left in starts]
    return [view for square in squares for view in (*_five(square, size), resize(square, size))]


class _Protocol(NamedTuple):
    """Scales, for 224 pixels, and the views at one: their number without mirror images, and what cuts them out."""

    scales: tuple[int, ...]
    number: int = 1
    crops: Callable[[np.ndarray, Size, int], list[np.ndarray]] = one_crop


_PROTOCOLS = {
    "1crop": _Protocol((256,)),
    "10crop": _Protocol((256,), 5, ten_crop),
    "144crop": _Protocol((256, 288, 320, 352), 18, multi_crop),
    "dense": _Protocol((256, 384, 512)),
}
PROTOCOLS = tuple(_PROTOCOLS)


@dataclass(frozen=True)
class Views:
    """A protocol for a network of images of `size`.

    `dense` is Simonyan and Zisserman 2015, section 3.2: the whole image at each scale. Its aspect is rounded to 32nds
    of the shorter side, so that programs are compiled for tens of shapes and not for thousands.

    Attributes:
      protocol: one of PROTOCOLS.
      size: (height, width) of a crop in pixels.
      scales: lengths in pixels that an image's shorter side is brought to; see `frame` where `size` is no square.
    """

    protocol: str
    size: Size
    scales: tuple[int, ...]

    @property
    def mirrored(self) -> bool:
        """Return whether each view counts a second time, mirrored left to right."""
        return self.protocol != "1crop"

    @property
    def count(self) -> int:
        """Return the number of views of an image, mirror images included."""
        return _PROTOCOLS[self.protocol].number * len(self.scales) * (1 + self.mirrored)

    def shape(self, scale: int, aspect: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the views at a scale of an image of `aspect` (of no matter to crops)."""
        if self.protocol != "dense":
            return self.size
        height, width = (round(scale * side / _GRID) for side in aspect)
        return height, width

    def aspect(self, height: int, width: int) -> tuple[int, int]:
        """Return what images share whose views have the same shapes: sides, the shorter one 32; of crops all do."""
        if self.protocol != "dense":
            return _GRID, _GRID
        short = min(height, width)
        return round(_GRID * height / short), round(_GRID * width / short)

    def pixels(self, aspect: tuple[int, int]) -> int:
        """Return the pixels of all views of an image."""
        areas = sum(math.prod(self.shape(scale, aspect)) for scale in self.scales)
        return areas * self.count // len(self.scales)

    def check(self, where: str, height: int, width: int) -> None:
        """Raise a UserError about the image `where` if it would have more than MAX_PIXELS when it is resized."""
        if (largest := max(self.scales)) ** 2 * max(height, width) / min(height, width) > MAX_PIXELS:
            fix = "take smaller --scales, or leave it out" if self.protocol == "dense" else "leave it out"
            raise UserError(
                f"{where} of {height}×{width} pixels has too many with {largest} along the shorter side: {fix}"
            )

    def crop(self, image: np.ndarray) -> list[np.ndarray]:
        """Return uint8 (views, *shape, C) of an image (H, W, C) for each scale; of crops one array for all."""
        if self.protocol == "dense":
            aspect = self.aspect(*image.shape[:2])
            return [resize(image, self.shape(scale, aspect))[None] for scale in self.scales]
        crops = _PROTOCOLS[self.protocol].crops
        return [np.stack([view for scale in self.scales for view in crops(image, self.size, scale)])]


def make_views(protocol: str, image_shape: Sequence[int], scales: Sequence[int] = (), resize: int = 0) -> Views:
    """Return the protocol for a network whose images are `image_shape` (H, W, C).

    Args:
      scales: instead of the paper's; for "dense" alone.
      resize: the scale of "1crop" and "10crop" (0: 256 for 224 pixels).

    Raises:
      UserError: a scale is below the longer side of the images.
    """
    size = image_shape[0], image_shape[1]
    if resize and protocol in ("1crop", "10crop"):
        scales = (resize,)
    scales = tuple(scales) or tuple(round(scale * max(size) / 224) for scale in _PROTOCOLS[protocol].scales)
    if min(scales) < max(size):
        raise UserError(
            f"--protocol {protocol} at scale {min(scales)}: the network sees {size[0]}×{size[1]} pixels, "
            f"take scales of {max(size)} or more"
        )
    return Views(protocol, size, scales)


def _covering(image: np.ndarray, size: Size) -> np.ndarray:
    """Return the image resized until it just covers `size`."""
    return resize(image, cover((image.shape[0], image.shape[1]), size))


def _centre(image: np.ndarray, size: Size) -> np.ndarray:
    """Return the centre (*size, C); half a pixel is rounded to the even one, as in torchvision."""
    top, left = (round((side - length) / 2) for side, length in zip(image.shape, size, strict=False))
    return image[top : top + size[0], left : left + size[1]]


def _five(square: np.ndarray, size: Size) -> list[np.ndarray]:
    """Return top left, top right, bottom left, bottom right and centre, each (*size, C)."""
    height, width = size
    tops, lefts = (0, square.shape[0] - height), (0, square.shape[1] - width)
    corners = [square[top : top + height, left : left + width] for top in tops for left in lefts]
    return [*corners, _centre(square, size)]


class Rows(NamedTuple):
    """The examples of a global batch, whose views have the same shapes; where there are too few, the last fills up."""

    aspect: tuple[int, int]
    examples: np.ndarray  # int (n,)
    mask: np.ndarray  # float32 (n,), 0 where it fills up


def plan(source: Source, views: Views, global_batch_size: int, devices: int = 1) -> list[Rows]:
    """Return every example of `source` once, in batches of about as many pixels as `global_batch_size` ordinary images.

    The number of rows divides by `devices` and is at least that. For `dense` the size of every image is read, where
    they differ: from its header, but the file is read for it.

    Raises:
      BadExample: an example cannot be read.
    """
    height, width, _ = source.image_shape
    if height and width:
        views.check(source.where(0), height, width)
        aspects = [views.aspect(height, width)] * len(source)
    elif views.protocol != "dense":
        aspects = [(_GRID, _GRID)] * len(source)
    else:
        sizes = source.sizes().tolist()
        for i, size in enumerate(sizes):
            views.check(source.where(i), *size)
        aspects = [views.aspect(*size) for size in sizes]
    groups: dict[tuple[int, int], list[int]] = {}
    for i, aspect in enumerate(aspects):
        groups.setdefault(aspect, []).append(i)
    batches = []
    for aspect, examples in sorted(groups.items()):
        rows = global_batch_size * math.prod(views.size) // views.pixels(aspect)
        rows = max(1, min(rows // devices, math.ceil(len(examples) / devices))) * devices
        for start in range(0, len(examples), rows):
            part = np.array(examples[start : start + rows])
            missing = rows - len(part)
            mask = np.pad(np.ones(len(part), np.float32), (0, missing))
            batches.append(Rows(aspect, np.pad(part, (0, missing), "edge"), mask))
    return batches


def view_batches(
    source: Source, views: Views, batches: Sequence[Rows], *, part: Slice = WHOLE, workers: int = 0, prefetch: int = 2
) -> Iterator[Batch]:
    """Return the batches that `plan` made, this process's rows: "label" and "example" int32 (n,), "mask" and the views.

    These are "views0" …, uint8 (n, views, H, W, C), one array for each shape that the views of an image have.

    Raises:
      BadExample: an example cannot be read: it is to be counted, so none is left out.
    """
    return read_ahead(grain.MapDataset.source(batches).map(partial(_batch, source, views, part)), workers, prefetch)


def _batch(source: Source, views: Views, part: Slice, rows: Rows) -> Batch:
    mine = part.rows(len(rows.examples))
    examples = rows.examples[mine].tolist()
    made = {}
    for i in dict.fromkeys(examples):
        example = source[i]
        views.check(source.where(i), *example["image"].shape[:2])
        made[i] = example["label"], views.crop(example["image"])
    labels, cuts = zip(*(made[i] for i in examples), strict=True)
    stacks = {f"views{k}": np.stack(arrays) for k, arrays in enumerate(zip(*cuts, strict=True))}
    named = {"label": np.array(labels, np.int32), "example": np.array(examples, np.int32), "mask": rows.mask[mine]}
    return stacks | named
