"""Index PNGs: numbers come back as they were stored, and what is no number is refused."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_files import PALETTE, png_of_bits
from PIL import Image

from jaxcnn.config import VOID
from jaxcnn.data.images.label_maps import NONE, numbering, read_index_png, renumbered, write_index_png


def png(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def grey_png(numbers: np.ndarray, bits: int) -> bytes:
    """A PNG of so many bits of grey a pixel, written by hand: Pillow writes 1, 8 and 16 of them alone."""
    height, width = numbers.shape
    places = (numbers[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(places.reshape(height, -1).astype(np.uint8), axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, 0, 0, 0, 0])
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_numbers_come_back_whatever_the_bits_the_palette_and_the_grey(bits, height, width, seed):
    numbers = np.random.default_rng(seed).integers(0, 2**bits, (height, width)).astype(np.uint8)
    for data in (png_of_bits(numbers, bits), grey_png(numbers, bits), write_index_png(numbers, PALETTE)):
        np.testing.assert_array_equal(read_index_png(data), numbers)


def test_sixteen_bits_are_read_where_the_numbers_are_those_of_classes():
    numbers = np.array([[0, 7], [255, 1]], np.uint16)
    np.testing.assert_array_equal(read_index_png(png(Image.fromarray(numbers))), numbers)
    with pytest.raises(ValueError, match="number 300, more than 255"):
        read_index_png(png(Image.fromarray(numbers * 0 + 300)))


def test_a_written_map_has_the_colours_of_its_palette():
    with Image.open(io.BytesIO(write_index_png(np.array([[3, 255]]), PALETTE))) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[0], PALETTE[[3, 255]])


COLOURS = Image.fromarray(np.zeros((4, 5, 3), np.uint8))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(COLOURS), r"colours \(RGB\)"),
        (png(COLOURS.convert("RGBA")), r"colours \(RGBA\)"),
        (png(COLOURS.convert("L"), "JPEG"), "JPEG, which may change numbers"),
        (png(COLOURS.convert("L"))[:-20], "truncated|broken"),
        (b"", "empty"),
        (b"<html>", "web page"),
    ],
)
def test_what_holds_no_numbers_is_refused(data, words):
    with pytest.raises(ValueError, match=f"(?i){words}"):
        read_index_png(data)


def test_a_numbering_has_classes_void_and_numbers_without_a_meaning():
    meanings = numbering([1, 2, 4], void=[0])
    assert meanings[[0, 1, 2, 3, 4, 5, 255]].tolist() == [VOID, 0, 1, NONE, 2, NONE, VOID]
    found = renumbered(np.array([[1, 4], [0, 255]], np.uint8), meanings)
    assert (found.dtype, found.tolist()) == (np.uint8, [[0, 2], [VOID, VOID]])
    with pytest.raises(ValueError, match="has 3 at row 1, column 0, but its numbers are 0 … 2, 4 and 255"):
        renumbered(np.array([[1, 4], [3, 7]], np.uint8), meanings)
