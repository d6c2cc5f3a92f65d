"""JPEGs: what is decoded of them, and that it is what decoding everything would give."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from jaxcnn.data.images import decode as module
from jaxcnn.data.images.decode import Box, crop_resize, decode, size_of

PHOTO = load_sample_image("flower.jpg")[100:397, 200:501]  # 297 × 301: no whole number of blocks


def encoded(pixels=PHOTO, kind="JPEG", **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def oriented(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(exif=exif, subsampling=0)


FILES = {
    "420": encoded(quality=90, subsampling=2),
    "422": encoded(quality=90, subsampling=1),
    "444": encoded(quality=95, subsampling=0),
    "restarts": encoded(quality=90, restart_marker_rows=1),
    "progressive": encoded(progressive=True),
    "grey": encoded(Image.fromarray(PHOTO).convert("L")),
    "cmyk": encoded(Image.fromarray(PHOTO).convert("CMYK")),
    "png": encoded(kind="PNG"),
    **{f"exif{n}": oriented(n) for n in range(1, 9)},
}
boxes = st.tuples(*(st.floats(0, 0.9),) * 2, *(st.floats(0.02, 1),) * 2)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    boxes,
    st.sampled_from(["bilinear", "bicubic", "antialias"]),
    st.sampled_from([1, 3]),
)
def test_a_part_is_what_cropping_the_whole_would_give(name, shares, interpolation, channels):
    data = FILES[name]
    whole = decode(data, channels)
    height, width = size_of(data)
    assert whole.shape == (height, width, channels)
    top, left = shares[0] * height, shares[1] * width
    box = Box(top, left, min(shares[2] * height, height - top), min(shares[3] * width, width - left))
    size = (int(box.height) + 20, int(box.width) + 20)  # enlarged: nothing is decoded at a smaller scale
    part = crop_resize(data, channels, box, size, interpolation)
    assert part.shape == (*size, channels)
    np.testing.assert_array_equal(part, crop_resize(whole, channels, box, size, interpolation))


@pytest.mark.parametrize("name", sorted(FILES))
def test_pixels_are_those_of_pillow(name):
    with Image.open(io.BytesIO(FILES[name])) as image:
        upright = np.asarray(image.convert("RGB"))
    if name.startswith("exif"):
        upright = np.asarray(Image.open(io.BytesIO(FILES["exif1"])).convert("RGB"))
        upright = _shown(upright, int(name[4:]))
    ours = decode(FILES[name], 3)
    assert ours.shape == upright.shape
    assert np.abs(ours.astype(int) - upright).max() <= 3
    assert np.abs(ours.astype(int) - upright).mean() < 0.2


def _shown(stored, orientation):
    """What a viewer shows of stored pixels, row by row of the EXIF table."""
    first_row, first_column = {  # where the stored row 0 and column 0 are shown
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    shown = stored if first_row in ("top", "bottom") else stored.transpose(1, 0, 2)
    if "bottom" in (first_row, first_column):
        shown = shown[::-1]
    if "right" in (first_row, first_column):
        shown = shown[:, ::-1]
    return shown


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("name", ["420", "444", "progressive", "grey"])
def test_a_large_part_is_decoded_smaller_and_looks_the_same(name, scale, monkeypatch):
    data, scales = FILES[name], []
    true = module.decode_jpeg
    monkeypatch.setattr(module, "decode_jpeg", lambda *args: scales.append(args[-1]) or true(*args))
    box = Box(8, 16, 256, 240)
    size = (256 // scale, 240 // scale)
    got = crop_resize(data, 3, box, size).astype(int)
    assert scales == [scale]
    want = cv2.resize(decode(data, 3)[8:264, 16:256], size[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(got - want).mean() < 2.5


def test_no_rows_below_the_part_are_decoded(monkeypatch):
    rows = []
    true = module.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        module.simplejpeg, "decode_jpeg", lambda data, *a, **k: rows.append(k["buffer"].shape[0]) or true(data, *a, **k)
    )
    crop_resize(FILES["420"], 3, Box(40, 0, 50, 200), (60, 210))
    assert rows == [96]  # 90 are wanted, and blocks are of 16


def test_a_colour_shift_does_not_leak_in_where_the_part_ends():
    """The row below the part is needed to interpolate colour: 16 rows of blocks would not do."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:32, :, 0] = stripes[32:, :, 2] = 255
    data = encoded(stripes, subsampling=2)
    for bottom in range(28, 36):
        part = crop_resize(data, 3, Box(0, 0, bottom, 64), (bottom, 64))
        np.testing.assert_array_equal(part, decode(data, 3)[:bottom])


@pytest.mark.parametrize("name", ["420", "progressive", "grey", "cmyk", "png"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
def test_what_is_cut_short_is_an_error(name, share):
    data = FILES[name][: int(share * len(FILES[name]))]
    with pytest.raises(ValueError, match=r"\w"):
        decode(data, 3)
    with pytest.raises(ValueError, match=r"\w"):
        crop_resize(data, 3, Box(0, 0, 296, 301), (224, 224))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["420", "444", "progressive", "grey", "exif6"]), st.data())
def test_damage_gives_an_image_or_an_error_of_the_kind_that_is_told(name, data):
    damaged = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
    try:
        height, width = size_of(bytes(damaged))
        part = crop_resize(bytes(damaged), 3, Box(0, 0, height / 2, width / 2), (32, 32))
    except ValueError:
        return
    assert part.shape == (32, 32, 3)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_have_a_header_or_none(tail):
    for data in (tail, b"\xff\xd8" + tail, b"\xff\xd8\xff\xe1\x00\x40Exif\0\0II*\0" + tail):
        header = module.read_header(data)
        assert header is None or header.height > 0


def test_too_many_pixels_are_refused_before_they_are_decoded():
    data = bytearray(FILES["420"])
    header = module.read_header(bytes(data))
    assert header
    at = header.frame
    data[at + 5 : at + 9] = (60000).to_bytes(2) + (60000).to_bytes(2)
    with pytest.raises(ValueError, match="60000×60000 pixels: more than 100,000,000"):
        decode(bytes(data), 3)
    with pytest.raises(ValueError, match="60000×60000 pixels"):
        crop_resize(bytes(data), 3, Box(0, 0, 10, 10), (10, 10))


def rotten(share, length, fill=None):
    """A JPEG whose data has other bytes from `share` on."""
    data = bytearray(FILES["420"])
    at, rng = int(share * len(data)), np.random.default_rng(0)
    data[at : at + length] = (
        rng.integers(0, 255, length, np.uint8).tobytes() if fill is None else bytes([fill]) * length
    )
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        rotten(0.4, 2000), rotten(0.5, 4000, 0), rotten(0.3, 3000, 0),
        FILES["420"][: len(FILES["420"]) // 2] + b"\xff\xd9", FILES["444"][:9000] + b"\xff\xd9",
    ],
)  # fmt: skip
def test_damage_within_the_data_is_an_error(data):
    with pytest.raises(ValueError, match=r"(?i)corrupt JPEG data|premature end"):
        decode(data, 3)


def test_a_header_that_claims_more_rows_than_there_are_is_an_error():
    data = bytearray(FILES["420"])
    header = module.read_header(bytes(data))
    assert header
    data[header.frame + 5 : header.frame + 9] = (4000).to_bytes(2) + (4000).to_bytes(2)
    with pytest.raises(ValueError, match=r"(?i)premature end"):
        decode(bytes(data), 3)
    with pytest.raises(ValueError, match=r"(?i)premature end"):
        crop_resize(bytes(data), 3, Box(0, 0, 2000, 2000), (224, 224))


def test_what_does_no_harm_is_forgiven():
    """Bytes between the last row and the end marker: libjpeg warns of them."""
    padded = FILES["420"][:-2] + bytes(40) + FILES["420"][-2:]
    np.testing.assert_array_equal(decode(padded, 3), decode(FILES["420"], 3))
