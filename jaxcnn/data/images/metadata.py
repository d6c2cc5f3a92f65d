"""The metadata around the pixels of an image file: the orientation is read, all else is passed over.

EXIF's orientation is 1 (upright) to 8, wherever Pillow finds one. Its reading counts, for it is what users see
elsewhere, but takes a tenth of the time of decoding a small JPEG: the block that cameras write, in which nothing is
doubtful, is read here, and gives the same.
"""

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, PngImagePlugin

_TAG = 274
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_SHORT, _ENTRY = 3, 12  # the type of 16 bits; the bytes of an entry of a directory
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"tRNS", b"eXIf")  # besides the critical chunks: they change what is seen
_PNG_COLOUR, _PNG_TRANSPARENT = 25, {0: 2, 2: 6}  # where the colour type is; of grey and RGB, the bytes of tRNS
_PNG_TEXT_KEPT = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # Pillow finds an orientation in these
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int:
    """Return the orientation of an image that Pillow has opened; 1 where there is none, or its metadata is damaged."""
    if image.format == "TIFF":
        return 1  # Pillow turns its size as it opens it, and its pixels as it loads them.
    try:
        value = image.getexif().get(_TAG, 1)
    except Exception:  # Pillow meets damage with struct.error, SyntaxError, KeyError and others.
        return 1
    return value if value in _TRANSPOSE else 1


def jpeg_orientation(segments: Sequence[bytes], ask: Callable[[], int]) -> int:
    """Return the orientation that a JPEG's metadata give.

    Args:
      segments: what its APP1 markers hold.
      ask: what Pillow says, as `orientation_of`; called where the metadata are not plain.
    """
    exif = [segment for segment in segments if segment.startswith(_EXIF)]
    if len(exif) > 1:  # Pillow joins them.
        return ask()
    found = _plain_orientation(exif[0][len(_EXIF) :]) if exif else 0
    if found is None:
        return ask()
    if not found and any(s.startswith(_XMP) and b"Orientation" in s for s in segments):
        return ask()
    return found or 1


def _plain_orientation(tiff: bytes) -> int | None:
    """Return the tag of EXIF's first directory, 0 where it is absent; None where it is not as cameras write it."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if not order:
        return None
    tag = struct.pack(order + "H", _TAG)
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        first = start + 2
        entries = [at for at in range(first, first + _ENTRY * count, _ENTRY) if tiff[at : at + 2] == tag]
        if not entries:
            return 0 if first + _ENTRY * count <= len(tiff) else None
        kind, values, value = struct.unpack_from(order + "HIH", tiff, entries[0] + 2)
    except struct.error:
        return None
    plain = len(entries) == 1 and (kind, values) == (_SHORT, 1) and 1 <= value <= 8
    return value if plain else None


def bare_png(data: bytes) -> bytes:
    """Return a PNG without what does not change its pixels, damaged or too large though it may be; all else as it is.

    Pillow refuses a file for a comment of more than a megabyte, or for a wrong checksum of one.
    """
    if not data.startswith(_PNG):
        return data
    kept, at, view = [memoryview(_PNG)], len(_PNG), memoryview(data)
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4])
        critical = not kind[0] & 32  # the first letter is a capital
        wanted = kind in _PNG_KEPT or data.startswith(_PNG_TEXT_KEPT, at + 8)
        if critical or (wanted and _is_sound(kind, data[at + 8 : end - 4], data[end - 4 : end], data[_PNG_COLOUR])):
            kept.append(view[at:end])
        at = end
        if kind == b"IEND":
            break
    return b"".join([*kept, view[at:]])


def _is_sound(kind: bytes, body: bytes, checksum: bytes, colour: int) -> bool:
    """Return whether Pillow takes a chunk that is no part of the pixels, in an image of this colour type."""
    if zlib.crc32(kind + body).to_bytes(4) != checksum:
        return False
    if kind == b"tRNS":
        return len(body) == _PNG_TRANSPARENT.get(colour, len(body))
    _, _, rest = body.partition(b"\0")
    if kind == b"zTXt":
        packed = rest[1:] if rest[:1] == b"\0" else b""
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    else:
        return True
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return bool(packed) and not unpacker.unconsumed_tail


def bare_jpeg(data: bytes) -> bytes:
    """Return a JPEG without what does not change its pixels: libjpeg complains of a damaged profile, and others refuse.

    What JFIF and Adobe say of the colours is kept, in a version that libjpeg knows.
    """
    kept, at, view = [data[:2]], 2, memoryview(data)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if end < at + 4:
            break
        segment = data[at:end]
        if marker == 0xE0 and len(segment) >= 11 and segment[4:9] == b"JFIF\0":
            kept.append(segment[:9] + b"\1\1" + segment[11:])
        elif marker == 0xEE and len(segment) >= 16 and segment[4:9] == b"Adobe":
            kept.append(segment[:15] + (segment[15:16] if segment[15] <= 2 else b"\1") + segment[16:])
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        at = end
    return b"".join([*kept, view[at:]])


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image of Pillow's."""
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W, C)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
