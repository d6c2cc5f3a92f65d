"""JPEG through libjpeg-turbo: its header, and no more of its pixels than are wanted."""

import re
import struct
from typing import NamedTuple

import numpy as np
import simplejpeg

_COLOURS = {1: "GRAY", 3: "RGB"}
_BLOCK = 16  # rows that are decoded together where colour is subsampled, the most there is
_STRAY = 64  # bytes that may stand before the end marker: more are what damage leaves over
_MOST_SCANS = 100  # encoders write ten or so; each costs a pass over all pixels, for as little as a few bytes
_SCALES = (8, 4, 2)  # those whose inverse transforms libjpeg-turbo has in SIMD: 7/8 or 5/8 take longer than the whole


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
    """The header of a JPEG of 8 bits, grey or YCbCr; None for all else, CMYK too: Pillow reads it."""
    if data[:2] != b"\xff\xd8":
        return None
    at, orientation, end = 2, 1, len(data) - 9
    while at < end:
        if data[at] != 0xFF:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (0xC0, 0xC1, 0xC2):
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or components not in _COLOURS or not height or not width:
                return None
            return Header(height, width, orientation, at, marker != 0xC2)
        if (0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker in (0xD8, 0xD9, 0xDA) or length < 2:
            return None
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    return None


def check_scans(data: bytes) -> None:
    """Raise ValueError if `data` is a JPEG of so many scans that it is made to take minutes."""
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) > _MOST_SCANS:
        raise ValueError(f"it has {scans} scans: more than {_MOST_SCANS} are refused")


def _orientation(tiff: bytes) -> int:
    """Tag 274 of EXIF's first directory; 1 where it is absent or damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        if not order:
            return 1
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(min(count, 64)):
            tag, kind, values, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if tag == 274:
                return value if kind == 3 and values == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def decode(data: bytes, header: Header, channels: int, bottom: int = 0, scale: int = 1) -> np.ndarray:
    """Pixels uint8 (rows, columns, channels) of `data`, as it is stored.

    Args:
      bottom: rows that are wanted (0: all); those below it may be missing.
      scale: 1, 2, 4 or 8: height and width are divided by it, rounded up, at the inverse transform.

    Raises:
      ValueError: it is damaged. Damage in rows that are not wanted is not seen.
    """
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

    cut, at = height < header.height, header.frame + 5
    try:
        fill(b"".join((data[:at], height.to_bytes(2), memoryview(data)[at + 2 :])) if cut else data)
    except ValueError as error:
        # The first complaint is the one that is kept. This one comes after the last row: of a shortened image it is
        # about the rest of the data, which must be there; else about stray bytes. Damage before it is named instead.
        stray = re.search(r"(\d+) extraneous bytes before marker", f"{error}")
        if not stray or (not cut and int(stray[1]) > _STRAY):
            raise
    return pixels


def scale_for(crop: tuple[int, int], target: tuple[int, int]) -> int:
    """The largest scale, 1, 2, 4 or 8, at which a crop (height, width) still has the pixels of `target`."""
    return next((s for s in _SCALES if crop[0] >= s * target[0] and crop[1] >= s * target[1]), 1)
