"""Image files to arrays: opened safely, turned upright, and the part that a network is given.

JPEGs go through libjpeg-turbo, which decodes no more than is wanted; all other formats go through Pillow. The part
is drawn once, as a `Crop`, and applied alike to the pixels and their targets.
"""

import contextlib
import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxcnn import UserError
from jaxcnn.data.images.metadata import bare_jpeg, bare_png, jpeg_orientation, orientation_of, turn, upright
from jaxcnn.safe_files import looks_like, read_bytes

MAX_PIXELS = 100_000_000  # a small file can claim to be enormous: refuse it before it fills the memory
MAX_BYTES = 2**30  # of a file: as many pixels of 16 bits in four channels take 800 MB
# Pillow's parsers of these alone: it has forty more, some of which start programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # channels: Pillow's name
_warnings_lock = threading.Lock()  # Python's filters of warnings are the whole process's
_COLOURS = {1: "GRAY", 3: "RGB"}
_BLOCK = 16  # rows that are decoded together where colour is subsampled, the most there is
_STRAY = 64  # bytes that may stand before the end marker: more are what damage leaves over
_SCALES = (8, 4, 2)  # those whose inverse transforms libjpeg-turbo has in SIMD: 7/8 or 5/8 take longer than all of it
_MOST_SCANS = 100  # encoders write ten or so; each costs a pass over all pixels, for as little as a few bytes


def decode(image: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Decode all of an image, upright: uint8 (H, W, channels) of a file's bytes, or of pixels with or without channels.

    Raises:
      ValueError: it is no image, is damaged, or has more than MAX_PIXELS.
    """
    if isinstance(image, np.ndarray):
        pixels = image.astype(np.uint8) * 255 if image.dtype == bool else image
        return pixels.reshape(*pixels.shape[:2], channels)
    header = read_header(image) if channels in (1, 3) else None
    if header:
        return turn(decode_jpeg(image, header, channels), header.orientation)
    pixels = np.asarray(_open(image, channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def size_of(image: bytes | np.ndarray) -> tuple[int, int]:
    """Return (height, width) of an upright image, from its headers alone.

    Raises:
      ValueError: as of `decode`.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    header = read_header(image)
    if header:
        turned = header.orientation >= 5
        return (header.width, header.height) if turned else (header.height, header.width)
    try:
        with open_image(image) as opened:
            turned = orientation_of(opened) >= 5
            return (opened.width, opened.height) if turned else (opened.height, opened.width)
    except Exception as error:
        raise ValueError(reason_of(image, error)) from error


def _open(data: bytes, channels: int) -> Image.Image:
    """Read a file, or its first frame, by Pillow: turned as EXIF says, in mode L (1 channel) or RGB (3).

    16 bits are scaled to 8, and transparency is dropped.

    Raises:
      ValueError: it cannot be read; the text says why.
    """
    try:
        with open_image(data) as image:
            check_pixels(image.width, image.height)
            image.load()  # Some formats have their metadata behind the pixels.
            turned = upright(image, orientation_of(image))
            if turned.mode == "F":
                raise ValueError("its pixels are fractions, whose range is not known")
            if turned.mode.startswith("I"):  # 16 bits, in PGM as 32: Pillow would clip them at 255
                deep = np.clip(np.asarray(turned), 0, 65535)
                turned = Image.fromarray((deep >> 8).astype(np.uint8))
            return turned.convert(_MODES[channels])
    except Exception as error:  # the decoders meet damage with struct.error, IndexError, zlib.error and others
        if channels in (1, 3) and (header := read_header(data)):  # libjpeg-turbo passes over more of the metadata
            with contextlib.suppress(ValueError):
                pixels = turn(decode_jpeg(data, header, channels), header.orientation)
                return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        raise ValueError(reason_of(data, error)) from error


@contextlib.contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Open the bytes by Pillow, which warns of what it goes on without, such as a damaged EXIF block."""
    check_scans(data)
    quiet = warnings.catch_warnings(action="ignore")
    with _warnings_lock, quiet, Image.open(io.BytesIO(bare_png(data)), formats=_FORMATS) as image:
        yield image


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError where an image has more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width}×{height} pixels: more than {MAX_PIXELS:,} are refused")


def reason_of(data: bytes, error: Exception) -> str:
    """Return why a file of these bytes cannot be read, for a line: `error` is what its decoder raised."""
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own bound, of twice as much, comes first
        return f"it has more than {MAX_PIXELS:,} pixels: so many are refused"
    if isinstance(error, UnidentifiedImageError):
        known = looks_like(data[:512])
        return f"it is no image, but {known}" if known else f"it is {'no image of a known format' if data else 'empty'}"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


class Header(NamedTuple):
    """What the headers of a JPEG say.

    Attributes:
      height, width: as it is stored, before it is turned upright.
      orientation: EXIF's, 1 to 8; 1 is upright.
      frame: where the frame header begins, in bytes.
      sequential: whether its rows come one after the other (not so in a progressive one).
    """

    height: int
    width: int
    orientation: int
    frame: int
    sequential: bool


def read_header(data: bytes) -> Header | None:
    """Return the header of a JPEG of 8 bits, grey or YCbCr; None for all else, CMYK too: Pillow reads it."""
    if data[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(data) - 9
    metadata: list[bytes] = []
    size, frame, sequential = (0, 0), 0, True
    while at < end:
        if data[at] != 0xFF:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA and frame:  # the pixels; metadata may stand between the frame's header and them
            break
        if marker in (0xC0, 0xC1, 0xC2):
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or components not in _COLOURS or not height or not width or frame:
                return None
            size, frame, sequential = (height, width), at, marker != 0xC2
        elif (0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker in (0xD8, 0xD9, 0xDA):
            return None
        elif marker == 0xE1:
            metadata.append(data[at + 4 : at + 2 + length])
        if length < 2:
            return None
        at += 2 + length
    if not frame:
        return None
    orientation = jpeg_orientation(metadata, lambda: _pillow_orientation(data)) if metadata else 1
    return Header(*size, orientation, frame, sequential)


def _pillow_orientation(data: bytes) -> int:
    try:
        with open_image(data) as image:
            return orientation_of(image)
    except Exception:  # whoever decodes it says what is wrong
        return 1


def check_scans(data: bytes) -> None:
    """Raise ValueError if `data` is a JPEG of so many scans that it is made to take minutes."""
    if data[:2] != b"\xff\xd8":
        return
    # `bytes.count` of two bytes takes seven times as long where the first of them is as frequent as in a JPEG.
    pairs = (np.frombuffer(data, "<u2", (len(data) - odd) // 2, odd) for odd in (0, 1))
    scans = sum(np.count_nonzero(pair == 0xDAFF) for pair in pairs)
    if scans > _MOST_SCANS:
        raise ValueError(f"it has {scans} scans: more than {_MOST_SCANS} are refused")


def decode_jpeg(data: bytes, header: Header, channels: int, bottom: int = 0, scale: int = 1) -> np.ndarray:
    """Decode `data`, as it is stored: uint8 (rows, columns, channels).

    Args:
      bottom: rows that are wanted (0: all); those below it may be missing.
      scale: 1, 2, 4 or 8: height and width are divided by it, rounded up, at the inverse transform.

    Raises:
      ValueError: it is damaged, or has more than MAX_PIXELS. Damage in rows that are not wanted is not seen.
    """
    check_pixels(header.width, header.height)
    check_scans(data)
    height = header.height
    if bottom and header.sequential:
        # libjpeg-turbo decodes so many rows as the header has. One more than is wanted: colour is interpolated.
        height = min(height, -(-(bottom + 1) // _BLOCK) * _BLOCK)
    rows, columns = -(-height // scale), -(-header.width // scale)
    pixels = np.empty((rows, columns, channels), np.uint8)

    def fill(file: bytes) -> None:
        simplejpeg.decode_jpeg(
            file, _COLOURS[channels], min_height=rows, min_width=columns, min_factor=scale, buffer=pixels
        )

    shortened, at = height < header.height, header.frame + 5
    try:
        fill(b"".join((data[:at], height.to_bytes(2), memoryview(data)[at + 2 :])) if shortened else data)
    except ValueError as error:
        # The first complaint is the one that is kept. This one comes after the last row: of a shortened image it is
        # about the rest of the data, which must be there; else about stray bytes. Damage before it is named instead.
        stray = re.search(r"(\d+) extraneous bytes before marker", f"{error}")
        if not stray or (not shortened and int(stray[1]) > _STRAY):
            if (bare := bare_jpeg(data)) != data and (found := read_header(bare)):
                return decode_jpeg(bare, found, channels, bottom, scale)  # It may be the metadata that are damaged.
            raise
    return pixels


def scale_for(crop: tuple[int, int], target: tuple[int, int]) -> int:
    """Return the largest scale, 1, 2, 4 or 8, at which a crop (height, width) still has the pixels of `target`."""
    return next((s for s in _SCALES if crop[0] >= s * target[0] and crop[1] >= s * target[1]), 1)


_RESAMPLING = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

# One example is one thread's work, and its result is the same on every processor: IPP's kernels round differently.
cv2.setNumThreads(0)
cv2.ipp.setUseIPP(False)


class Box(NamedTuple):
    """A rectangle in an image, in pixels; fractions are allowed."""

    top: float
    left: float
    height: float
    width: float

    def rounded(self) -> "Box":
        """Return the box in whole pixels, of one at least along each side."""
        top, left = round(self.top), round(self.left)
        bottom, right = round(self.top + self.height), round(self.left + self.width)
        return Box(top, left, max(1, bottom - top), max(1, right - left))


class Crop(NamedTuple):
    """The part of an image that is taken, and what becomes of it. Random draws end here: what follows is arithmetic.

    Attributes:
      box: in the original image, upright.
      size: (height, width) that the box is brought to.
      mirrored: whether left and right are exchanged then.
    """

    box: Box
    size: tuple[int, int]
    mirrored: bool = False

    def taken(self, interpolation: str) -> "Crop":
        """Return the crop that `crop_resize` takes: only antialiasing takes a box that is not of whole pixels."""
        return self if interpolation == "antialias" else self._replace(box=self.box.rounded())

    def aligned(self) -> "Crop":
        """Return the crop aligned to whole pixels of the resolution at which `crop_resize` decodes a JPEG for it.

        At half the resolution a box cannot begin at an odd pixel. Without alignment, targets would lie up to a pixel of
        the result beside the objects that they mark.
        """
        box = self.box.rounded()
        step = scale_for((int(box.height), int(box.width)), self.size)
        top, left = (-(-int(start) // step) * step for start in box[:2])
        bottom, right = (int(start + length) // step * step for start, length in zip(box[:2], box[2:], strict=True))
        if bottom <= top or right <= left:  # A result of one pixel leaves nothing.
            return self._replace(box=box)
        return self._replace(box=Box(top, left, bottom - top, right - left))

    def image(self, image: bytes | np.ndarray, channels: int, interpolation: str = "bilinear") -> np.ndarray:
        """Return the pixels, uint8 (*size, channels), as `crop_resize` does."""
        pixels = crop_resize(image, channels, self.box, self.size, interpolation)
        return np.ascontiguousarray(pixels[:, ::-1]) if self.mirrored else pixels

    def label_map(self, labels: np.ndarray) -> np.ndarray:
        """Return a class for each pixel: (H, W, …) -> (*size, …), each that of the pixel in which its centre lies."""
        rows, columns = (
            np.clip(np.floor(start + (np.arange(count) + 0.5) * (length / count)).astype(int), 0, side - 1)
            for start, length, count, side in zip(self.box[:2], self.box[2:], self.size, labels.shape[:2], strict=True)
        )
        return labels[rows[:, None], columns[::-1] if self.mirrored else columns]

    def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes moved with the crop and clipped to it, and which of them it shows.

        Args:
          boxes: (n, 4), x1, y1, x2, y2 in pixels of the original image.

        Returns:
          float32 (n, 4) in pixels of the result, and bool (n,), False for a box that lies outside.
        """
        top, left, height, width = self.box
        rows, columns = self.size
        scale = np.array([columns / width, rows / height] * 2)
        moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - [left, top, left, top]) * scale
        if self.mirrored:
            moved[:, [0, 2]] = columns - moved[:, [2, 0]]
        moved = np.clip(moved, 0, [columns, rows, columns, rows]).astype(np.float32)
        return moved, np.all(moved[:, 2:] > moved[:, :2], axis=1)


def center(image: tuple[int, int], size: tuple[int, int], resize: int) -> Crop:
    """Return the crop that evaluation sees of a photograph of (height, width): its centre, as torchvision rounds it.

    Args:
      size: (height, width) that the network is given.
      resize: side of the frame, in the shape of `size`, that the image is made to cover before its centre is cut out;
        where that is not less than `size`, the crop is within the image.
    """
    covered = cover(image, frame(size, resize))
    starts = [round((side - part) / 2) for side, part in zip(covered, size, strict=True)]
    (top, height), (left, width) = (
        (start * side / whole, part * side / whole)
        for start, part, side, whole in zip(starts, size, image, covered, strict=True)
    )
    return Crop(Box(top, left, height, width), size)


def frame(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """Return (height, width) in the shape of `size`, the longer side of `longer` pixels."""
    height, width = (round(longer * side / max(size)) for side in size)
    return height, width


def cover(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (height, width) in the shape of `image` that covers `size`.

    Of a square `size` it is torchvision's: the shorter side is that of the square, the longer one is rounded down.
    """
    height, width = image
    if size[0] * width >= size[1] * height:
        return size[0], int(size[0] * width / height)
    return int(size[1] * height / width), size[1]


def read_image(image: Path | np.ndarray, shape: tuple[int, int, int], resize: int | None = None) -> np.ndarray:
    """Bring the centre of an image, a file or pixels, upright, to `shape` (H, W, C): uint8, C of 1 or 3.

    Args:
      resize: as of `center`, which this is to the pixel of torchvision's evaluation (256 for the published weights);
        None: the largest centred part of the right aspect is scaled to the shape.

    Raises:
      UserError: the file is missing, no image, damaged, or of more than MAX_PIXELS, as it is or resized.
    """
    height, width, channels = shape
    opened = _pillow_image(image, channels)
    if resize is None:
        opened = ImageOps.fit(opened, (width, height), Image.Resampling.BILINEAR)
    else:
        rows, columns = cover((opened.height, opened.width), frame((height, width), resize))
        if rows * columns > MAX_PIXELS:
            what = "an image" if isinstance(image, np.ndarray) else image
            raise UserError(
                f"{what} of {opened.width}×{opened.height} would be resized to {columns}×{rows} pixels: "
                f"more than {MAX_PIXELS:,} are refused; crop it first"
            )
        # As torchvision: half a pixel is rounded to the even one, but padding, which is black, to the smaller one.
        top, left = (
            round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
            for side, crop in ((rows, height), (columns, width))
        )
        opened = opened.resize((columns, rows), Image.Resampling.BILINEAR)
        opened = opened.crop((left, top, left + width, top + height))
    return np.asarray(opened).reshape(height, width, channels)


def read_all(image: Path | np.ndarray, channels: int) -> np.ndarray:
    """Return all of an image, a file or pixels, upright: uint8 (H, W, channels), of 1 or 3.

    Raises:
      UserError: as of `read_image`.
    """
    pixels = np.asarray(_pillow_image(image, channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def _pillow_image(image: Path | np.ndarray, channels: int) -> Image.Image:
    """Open the image in a file, or its pixels uint8 (H, W) or (H, W, C), in mode L (1 channel) or RGB (3)."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)):
            raise UserError(
                f"an image of {image.dtype} {image.shape}: give uint8 (H, W) or (H, W, C) of 1, 3 or 4 channels"
            )
        return Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).convert(_MODES[channels])
    try:
        return _open(read_bytes(image, MAX_BYTES), channels)
    except FileNotFoundError as error:
        raise UserError(f"cannot read the image {image}: no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the image {image}: {getattr(error, 'strerror', None) or error}") from error


def crop_resize(
    image: bytes | np.ndarray, channels: int, box: Box, size: tuple[int, int], interpolation: str = "bilinear"
) -> np.ndarray:
    """Bring the part `box` of an upright image to `size` (height, width): uint8 (height, width, channels).

    Of a JPEG no more is decoded than is needed: no rows below the box, and half, a quarter or an eighth of the
    resolution where the box has that many times the pixels of `size`.

    Args:
      interpolation: "bilinear" and "bicubic" between neighbours, as tf.image does, in which the box is rounded to whole
        pixels; "antialias" weighs all pixels, bilinear as Pillow and torchvision do, takes the box as it is, and
        decodes everything: how Pillow rounds depends on the rows there are.

    Raises:
      ValueError: as of `decode`.
    """
    if interpolation == "antialias":
        pixels = decode(image, channels)
        squeezed = pixels[..., 0] if channels == 1 else pixels
        exact = (box.left, box.top, box.left + box.width, box.top + box.height)
        resized = Image.fromarray(squeezed).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=exact)
        return np.asarray(resized).reshape(*size, channels)
    top, left, height, width = map(int, box.rounded())
    bottom, right = top + height, left + width
    header = read_header(image) if isinstance(image, bytes) and channels in (1, 3) else None
    if isinstance(image, bytes) and header and header.orientation == 1:
        scale = scale_for((height, width), size)
        pixels = decode_jpeg(image, header, channels, min(bottom, header.height), scale)
    else:  # a turned one has other rows, and Pillow decodes all of an image
        scale, pixels = 1, decode(image, channels)
    part = pixels[top // scale : -(-bottom // scale), left // scale : -(-right // scale)]
    if part.shape[:2] == size:
        return part
    resized = cv2.resize(part, (size[1], size[0]), interpolation=_RESAMPLING[interpolation])
    return resized.reshape(*size, channels)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 (H, W, C) to (*size, C), bilinear with antialiasing; unchanged where it fits."""
    height, width, channels = image.shape
    if (height, width) == size:
        return image
    return crop_resize(image, channels, Box(0, 0, height, width), size, "antialias")
