"""Metadata around sound pixels: the orientation is Pillow's for every reader of ours, and damage hides no image."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from jaxcnn.data.images.decode import decode, read_image, size_of

XMP = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
EXIF = b"Exif\0\0"


def directory(*entries: tuple[int, int, int, int], order: str = "<") -> bytes:
    """Return a TIFF directory of (tag, type, count, value)."""
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    packed = b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    return magic + struct.pack(order + "IH", 8, len(entries)) + packed + bytes(4)


def segment(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def jpeg(*segments: bytes, before: bytes = b"\xff\xdb") -> bytes:
    """Return 30 × 20 pixels, the segments in front of the first marker `before`."""
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (9, 99, 199)).save(file, "JPEG")
    data = file.getvalue()
    at = data.index(before)
    return data[:at] + b"".join(map(segment, segments)) + data[at:]


SIX = directory((274, 3, 1, 6))
OTHERS = [(50000 + i, 3, 1, 0) for i in range(69)]


@pytest.mark.parametrize(
    ("data", "turned"),
    [
        (jpeg(), False),
        (jpeg(EXIF + SIX), True),
        (jpeg(EXIF + directory((274, 3, 1, 6 << 16), order=">")), True),
        (jpeg(EXIF + directory((274, 4, 1, 6))), True),  # of type LONG
        (jpeg(EXIF + directory((274, 3, 2, 6 | 6 << 16))), True),  # two values
        (jpeg(EXIF + EXIF + SIX), True),
        (jpeg(EXIF + SIX, EXIF + directory((305, 2, 4, 0x636261))), True),
        (jpeg(EXIF + directory(*OTHERS, (274, 3, 1, 6))), True),
        (jpeg(EXIF + directory((274, 3, 1, 1), (274, 3, 1, 6))), False),  # Pillow takes the first
        (jpeg(XMP), True),
        (jpeg(EXIF + directory(*OTHERS), XMP), True),
        (jpeg(EXIF + directory((274, 3, 1, 1)), XMP), False),
        (jpeg(EXIF + SIX, before=b"\xff\xc4"), True),  # behind the frame's header
        (jpeg(EXIF + directory((274, 3, 1, 9))), False),
        (jpeg(EXIF + SIX[:12]), False),
        (jpeg(EXIF + b"no TIFF at all"), False),
        (jpeg(b"\0" * 60_000, b"\0" * 60_000), False),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of damage
def test_the_orientation_is_that_of_pillow_to_every_reader(data, turned, tmp_path):
    (tmp_path / "x.jpg").write_bytes(data)
    height, width = (30, 20) if turned else (20, 30)
    assert decode(data, 3).shape == (height, width, 3)
    assert size_of(data) == (height, width)
    with Image.open(io.BytesIO(data)) as image:
        try:
            orientation = image.getexif().get(274, 1)
        except Exception:
            orientation = 1  # Pillow fails, although the pixels are sound
        assert (orientation == 6) == turned
    assert read_image(tmp_path / "x.jpg", (height, width, 3)).std(axis=(0, 1)).max() < 2, "nothing is cut or padded"


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "avif"])
def test_other_formats_are_turned_too(suffix):
    exif = Image.Exif()
    exif[274] = 6
    file = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(file, suffix, exif=exif)
    assert decode(file.getvalue(), 3).shape == (30, 20, 3)
    assert size_of(file.getvalue()) == (30, 20)


def chunk(kind: bytes, body: bytes, damage: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ damage)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**22))),
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2**22))),
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**22))),
        chunk(b"iCCP", b"no profile"),
        chunk(b"tEXt", b"a\0comment", damage=1),
        chunk(b"pHYs", b"\0"),
        chunk(b"tRNS", b"\0"),
        chunk(b"tRNS", bytes(6), damage=1),
        chunk(b"eXIf", b"II*\0", damage=1),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>", damage=1),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**22))),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**22))),
    ],
)
@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
def test_a_png_is_read_whatever_its_comments(extra, place):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = file.getvalue()
    at = data.index(place) - 4
    assert (decode(data[:at] + extra + data[at:], 3) == pixels).all()


def test_a_png_keeps_its_orientation_in_xmp():
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "PNG", pnginfo=text)
    assert decode(file.getvalue(), 3).shape == (30, 20, 3)


@pytest.mark.parametrize(
    "extra",
    [
        b"\xff\xe2\0\x17ICC_PROFILE\0\1\2no profile"[:25],
        b"\xff\xe0\0\x07JFIF\0",
        b"\xff\xee\0\x08Adobe\0",
        b"\xff\xe0\0\x10JFIF\0\3" + bytes(8),
        b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\7",
    ],
)
def test_a_jpeg_is_read_whatever_its_metadata_to_every_reader(extra, tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 200, 40, 90
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    sound = file.getvalue()
    data = sound[:2] + extra + sound[2:]
    (path := tmp_path / "x.jpg").write_bytes(data)
    assert (decode(data, 3) == decode(sound, 3)).all()
    assert (read_image(path, (16, 32, 3)) == decode(sound, 3)).all()


def test_a_damaged_profile_hides_no_damage_of_the_pixels():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, "JPEG")
    sound = file.getvalue()
    data = sound[:2] + b"\xff\xe2\0\x17ICC_PROFILE\0\1\2no profile"[:25] + sound[2:]
    with pytest.raises(ValueError, match="Premature end"):
        decode(data[: len(data) // 2], 1)
