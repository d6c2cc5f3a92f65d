"""What training images are changed by, named in `config.data.augment`, and the part of it that the host does.

The value joins names of OPS and PRESETS by commas, such as "random_area(0.08,1),flip,randaugment(2,9),mixup(0.2)": a
crop first, if any; then the host's and the device's operations (`augment_device.py`), each in their order. Scales such
as 256 are for crops of 224 pixels, and in proportion for others; a crop lies anywhere, not only at whole pixels of the
rescaled image. A crop has the shape of the size (height, width) that it is brought to; where that is no square, 224
pixels are its longer side, and aspects are relative to its own. Images are uint8 (H, W, C), grey or RGB, and never
changed in place.

Recipes of detection, whose boxes move along, are written with the sides that an image is brought to first:

    one scale           min_size=600, max_size=1000, "flip" (Faster R-CNN, section 3.3; torchvision: 800, 1333)
    several scales      min_size=(480, 576, 688, 864, 1200), max_size=2000, "flip" (Fast R-CNN, section 5.2), or 640,
                        672 … 800 and 1333; the canvas is that of the largest, so smaller scales save no time
    large-scale jitter  image_size, min_size and max_size 1024, "rescale(0.1,2),flip" (Ghiasi et al. 2021, section 3)
"""

import difflib
import inspect
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jaxcnn import UserError
from jaxcnn.data.images.decode import Box, Crop

Rng = np.random.Generator
Size = tuple[int, int]  # (height, width)
Geometry = Callable[[Size, Size, Rng], Any]  # (the image's size, the one that it is brought to, rng) -> Box or Crop
PixelOp = Callable[[np.ndarray, Rng], np.ndarray]

# Columns: principal components of ImageNet's RGB in 0 … 1, and their eigenvalues; as in fb.resnet.torch.
_COMPONENTS = np.array([(-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)])
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_LUMA = np.array([0.299, 0.587, 0.114])  # grey of RGB: ITU-R BT.601
_FILL = {"L": 128, "RGB": (128, 128, 128)}  # what is shown from outside the image


class Augmentation(NamedTuple):
    """A value of `config.data.augment`, understood. Picklable.

    Attributes:
      geometry: (image, size, rng) -> the Box of the image to crop, or a Crop if its result may be smaller than `size`;
        None if no crop is named.
      pixels: in order, (uint8 (H, W, C), rng) -> the same shape and type.
      device: (name, arguments) for `augment_device.augment`, in order; an argument that was left out is missing too.
    """

    geometry: Geometry | None
    pixels: tuple[PixelOp, ...]
    device: tuple[tuple[str, tuple[float, ...]], ...]


def parse(text: str) -> Augmentation:
    """Read `text`, a value of `config.data.augment`.

    Raises:
      UserError: a name is unknown or there twice, arguments are illegal, or a crop is not first or not the only one.
    """
    try:
        words = [] if text.strip() == "none" else _read(" ".join(text.split()))
        names = [name for name, _ in words]
        if any(name in _CROPS for name in names[1:]):
            crops = " and ".join(name for name in names if name in _CROPS)
            raise ValueError(f"there may be one crop, and it must come first: see {crops}")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is there twice (presets stand for several names)")
    except ValueError as error:
        raise UserError(f"config.data.augment={text!r}: {error}") from error
    geometry = [partial(_CROPS[name], **values) for name, values in words if name in _CROPS]
    pixels = tuple(partial(_PIXELS[name], **values) for name, values in words if name in _PIXELS)
    device = tuple((n, tuple(values.values())) for n, values in words if n not in _CROPS and n not in _PIXELS)
    return Augmentation(geometry[0] if geometry else None, pixels, device)


def moves(operation: PixelOp) -> bool:
    """Return whether an operation moves pixels, so that label maps and boxes of the image would no longer fit it."""
    return getattr(operation, "func", None) is randaugment


def _read(text: str) -> list[tuple[str, dict[str, float]]]:
    """Return the operations of `text` with their arguments, presets expanded; a ValueError says what is wrong."""
    words = []
    for word in map(str.strip, re.split(r",(?![^()]*\))", text)):
        match = re.fullmatch(r"([\w-]+)\s*(?:\(([^()]*)\))?", word)
        if not match:
            raise ValueError(f"cannot read {word!r}: join names by commas, such as random_area(0.08,1),flip")
        name, inside = match.groups()
        if name == "none":
            raise ValueError("none stands alone")
        if name not in (known := (*PRESETS, *OPS)):
            near = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the names are none, {', '.join(known)}"
            raise ValueError(f"no '{name}': {hint}")
        values = _arguments(word, name, inside or "")
        words += _read(PRESETS[name]) if name in PRESETS else [(name, values)]
    return words


def _arguments(word: str, name: str, inside: str) -> dict[str, float]:
    usage, legal = OPS.get(name, _NO_ARGUMENTS)
    try:
        values = [float(value) for value in inside.split(",")] if inside.strip() else []
        if all(map(math.isfinite, values)) and legal(*values):
            return inspect.signature(legal).bind(*values).arguments
    except (TypeError, ValueError):  # too many or too few, or no numbers
        pass
    raise ValueError(f"{word} must be {name}{usage}")


def fixed_scale(image: Size, size: Size, rng: Rng, scale: float) -> Box:
    """Draw a crop of the central square, as of 224 pixels where its side is `scale`: AlexNet, sections 2, 4.1."""
    height, width = _largest(image, size)
    box = _placed(height * 224 / scale, width * 224 / scale, height, width, rng)
    return box._replace(top=box.top + (image[0] - height) / 2, left=box.left + (image[1] - width) / 2)


def scale_jitter(image: Size, size: Size, rng: Rng, lo: float, hi: float) -> Box:
    """Draw a crop as of 224 pixels where the shorter side is `lo` … `hi`, uniform: VGG, section 3.1."""
    scale = rng.uniform(lo, hi)
    height, width = (side * 224 / scale for side in _largest(image, size))
    return _placed(height, width, *image, rng)


def random_area(
    image: Size, size: Size, rng: Rng, lo: float, hi: float, aspect_lo: float = 3 / 4, aspect_hi: float = 4 / 3
) -> Box:
    """Draw the area's share in `lo` … `hi`, uniform, and width / height, log-uniform: GoogLeNet, section 6.

    Log-uniform is ours, as torchvision's. Where ten draws do not fit: the largest central part with a legal aspect.
    """
    height, width = image
    lowest, highest = (aspect * (size[1] / size[0]) for aspect in (aspect_lo, aspect_hi))
    if sides := _sides(height, width, (lo, hi, lowest, highest), rng):
        return _placed(*sides, height, width, rng)
    h, w = max(1.0, min(height, width / lowest)), max(1.0, min(width, height * highest))
    return Box((height - h) / 2, (width - w) / 2, h, w)


def rescale(image: Size, size: Size, rng: Rng, lo: float, hi: float) -> Crop:
    """Draw a factor on the image's sides, uniform in `lo` … `hi`, and a crop of `size`, or less where it is smaller.

    The augmentation of label maps and boxes: torchvision's for segmentation, whose factors are 0.5 … 2 of 520 pixels,
    and large-scale jitter, 0.1 … 2 of the image that just fits into `size`.
    """
    scale = rng.uniform(lo, hi)
    rows, columns = (max(1, round(side * scale)) for side in image)
    rows, columns, height, width = min(size[0], rows), min(size[1], columns), *image
    part = min(height, rows / scale), min(width, columns / scale)
    return Crop(_placed(*part, height, width, rng), (rows, columns))


def _largest(image: Size, size: Size) -> tuple[float, float]:
    """Return the sides, a pixel at least, of the largest rectangle in an image that has the shape of `size`."""
    (height, width), longer = image, max(size)
    side = min(height * longer / size[0], width * longer / size[1])  # of the longer one; exact where `size` is a square
    return max(1.0, min(height, side * (size[0] / longer))), max(1.0, min(width, side * (size[1] / longer)))


def _sides(height: int, width: int, limits: tuple[float, ...], rng: Rng) -> tuple[float, float] | None:
    """Draw height and width of a rectangle that fits: share of the area uniform, width / height log-uniform."""
    lo, hi, aspect_lo, aspect_hi = limits
    for _ in range(10):
        part = height * width * rng.uniform(lo, hi)
        ratio = math.exp(rng.uniform(math.log(aspect_lo), math.log(aspect_hi)))
        h, w = math.sqrt(part / ratio), math.sqrt(part * ratio)
        if h <= height and w <= width:
            return h, w
    return None


def _placed(h: float, w: float, height: float, width: float, rng: Rng) -> Box:
    """Draw a box of these sides, but at least a pixel each, anywhere in the image."""
    h, w = max(1.0, h), max(1.0, w)
    return Box(rng.uniform(0, height - h), rng.uniform(0, width - w), h, w)


def pca(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Add each principal component times its eigenvalue and N(0, 0.1), drawn once, to all pixels: AlexNet, section 4.1.

    A grey image gets the grey of that shift.
    """
    shift = 255 * _COMPONENTS @ (_EIGENVALUES * rng.normal(0, 0.1, 3))
    shift = shift if image.shape[-1] == 3 else _LUMA @ shift[:, None]
    table = np.clip(np.rint(np.arange(256)[:, None] + shift), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None]).reshape(image.shape)


def photometric(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Scale brightness, contrast and colour by 0.5 … 1.5, uniform, in random order: Howard 2013 (arXiv:1312.5402).

    As Pillow's enhancements, which he used, but rounded once; his lighting noise is `pca`. Colour leaves grey as it is.
    """
    channels = image.shape[-1]
    luma = _LUMA if channels == 3 else np.ones(1)
    mean, total = np.append(cv2.mean(image)[:channels], 1), np.eye(channels + 1)
    for kind in rng.permutation(3):  # each pulls a pixel towards black, the mean grey, or its own grey
        target = np.diag([0.0] * channels + [1.0])
        if kind == 1:
            target[:-1, -1] = luma @ (total @ mean)[:-1]
        elif kind == 2:
            target[:-1, :-1] = luma
        factor = rng.uniform(0.5, 1.5)
        total = (factor * np.eye(channels + 1) + (1 - factor) * target) @ total
    return cv2.transform(image, total[:-1]).reshape(image.shape)


def randaugment(image: np.ndarray, rng: Rng, n: float, m: float) -> np.ndarray:
    """Apply `n` of 14 operations, drawn with replacement, at magnitude `m` of 0 … 10: Cubuk et al. 2020, section 3.

    10 is the strongest of AutoAugment's Table 6; torchvision counts to 30, its 9 is 3 here. Signs are random.
    """
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    for i in rng.integers(len(_OPERATIONS), size=int(n)):
        pixels = _OPERATIONS[i](pixels, m / 10 * rng.choice((-1, 1)))
    return np.asarray(pixels).reshape(image.shape)


def erase(image: np.ndarray, rng: Rng, p: float) -> np.ndarray:
    """Put noise, with probability `p`, in 2 … 33 % of the area, aspect 0.3 … 1 / 0.3: Zhong et al. 2020.

    Section 3 with its random values; area up to a third (paper: 40 %) and log-uniform aspect are torchvision's.
    """
    height, width, channels = image.shape
    sides = _sides(height, width, (0.02, 0.33, 0.3, 1 / 0.3), rng) if rng.random() < p else None
    if not sides:
        return image
    h, w = (max(1, round(side)) for side in sides)
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    erased = image.copy()
    erased[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, channels), np.uint8)
    return erased


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Return the image whose (x, y) shows the pixel nearest to (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=_FILL[image.mode])


_ENHANCE: tuple[Any, ...] = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, ImageEnhance.Sharpness)
_OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (  # RandAugment's, of (image, level in -1 … 1)
    lambda image, level: image,
    lambda image, level: ImageOps.autocontrast(image),
    lambda image, level: ImageOps.equalize(image),
    lambda image, level: ImageOps.solarize(image, round(256 * (1 - abs(level)))),
    lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    *(lambda image, level, kind=kind: kind(image).enhance(1 + 0.9 * level) for kind in _ENHANCE),
    lambda image, level: image.rotate(30 * level, fillcolor=_FILL[image.mode]),
    lambda image, level: _affine(image, 1, 0.3 * level, 0, 0, 1, 0),
    lambda image, level: _affine(image, 1, 0, 0, 0.3 * level, 1, 0),
    lambda image, level: _affine(image, 1, 0, 0.45 * level * image.width, 0, 1, 0),
    lambda image, level: _affine(image, 1, 0, 0, 0, 1, 0.45 * level * image.height),
)
_NO_ARGUMENTS = ("", lambda: True)
_CROPS = {"fixed_scale": fixed_scale, "scale_jitter": scale_jitter, "random_area": random_area, "rescale": rescale}
_PIXELS = {"pca": pca, "photometric": photometric, "randaugment": randaugment, "erase": erase}
OPS: dict[str, tuple[str, Callable[..., bool]]] = {  # arguments in words, and whether they, by name, are legal
    "fixed_scale": ("(S), S ≥ 224", lambda scale: scale >= 224),
    "scale_jitter": ("(LO,HI), 224 ≤ LO ≤ HI", lambda lo, hi: 224 <= lo <= hi),
    "random_area": (
        "(LO,HI[,ASPECT_LO,ASPECT_HI]), 0 < LO ≤ HI ≤ 1, 0 < ASPECT_LO ≤ ASPECT_HI",
        lambda lo, hi, aspect_lo=3 / 4, aspect_hi=4 / 3: 0 < lo <= hi <= 1 and 0 < aspect_lo <= aspect_hi,
    ),
    "rescale": ("(LO,HI), 0 < LO ≤ HI ≤ 16", lambda lo, hi: 0 < lo <= hi <= 16),
    "pca": _NO_ARGUMENTS,
    "photometric": _NO_ARGUMENTS,
    "randaugment": ("(N,M), N = 1, 2 … 14, 0 ≤ M ≤ 10", lambda n, m: n in range(1, 15) and 0 <= m <= 10),
    "erase": ("(P), 0 ≤ P ≤ 1", lambda p: 0 <= p <= 1),
    "pad_crop": ("[(PAD)], PAD = 1, 2 … 512", lambda pad=1: pad in range(1, 513)),
    "flip": _NO_ARGUMENTS,
    "mixup": ("(ALPHA), ALPHA > 0", lambda alpha: alpha > 0),
    "cutmix": ("(ALPHA), ALPHA > 0", lambda alpha: alpha > 0),
}
PRESETS = {
    "alexnet": "fixed_scale(256),flip,pca",  # Krizhevsky et al. 2012, sections 2 (scale) and 4.1
    "vgg": "scale_jitter(256,512),flip,pca",  # Simonyan and Zisserman 2015, section 3.1; its colour shift is AlexNet's
    "inception": "random_area(0.08,1),flip,photometric",  # Szegedy et al. 2015, section 6, but with one interpolation
    "resnet": "scale_jitter(256,480),flip,pca",  # He et al. 2016, section 3.4
    "torchvision": "random_area(0.08,1),flip",  # the recipe of its first published weights
    "pad_crop_flip": "pad_crop,flip",  # He et al. 2016, section 4.2, for CIFAR-10
}
