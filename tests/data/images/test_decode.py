"""Image files of every kind, and those that are none."""

from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from jaxcnn import UserError
from jaxcnn.data.images import decode
from jaxcnn.data.images.decode import read_image

GOLDEN = Path(__file__).parents[2] / "golden" / "torchvision_preprocess.npz"
RAMP = np.linspace(0, 255, 24 * 36, dtype=np.uint8).reshape(24, 36)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "1", "LA"])
def test_every_mode_is_read_as_the_channels_asked_for(tmp_path, suffix, mode):
    stored = Image.fromarray(RAMP).convert("RGB" if mode == "P" else "L").convert(mode)
    if (suffix != "png" and mode in ("RGBA", "P", "1", "LA")) or (suffix != "jpg" and mode == "CMYK"):
        suffix = "tiff"
    path = tmp_path / f"image.{suffix}"
    stored.save(path)
    for channels in (1, 3):
        image = read_image(path, (24, 36, channels))
        assert image.shape == (24, 36, channels)
        assert image.dtype == np.uint8
        assert image[0, 0].max() < 80 < 170 < image[-1, -1].min(), "dark stays dark: CMYK is not inverted"


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 24 * 36).astype(np.uint16).reshape(24, 36)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "deep.pgm")
    for name in ("deep.png", "deep.pgm"):
        assert (read_image(tmp_path / name, (24, 36, 1))[..., 0] == deep >> 8).all()


def test_an_image_is_turned_upright_and_its_centre_fitted(tmp_path):
    image = Image.fromarray(RAMP)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    upright = read_image(tmp_path / "turned.jpg", (24, 36, 1))[..., 0]
    assert np.abs(upright.astype(int) - RAMP[::-1, ::-1]).mean() < 3
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", (10, 10, 3)) == 200).all()


def test_what_cannot_be_read_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    text, cut, empty = tmp_path / "text.png", tmp_path / "cut.jpg", tmp_path / "empty.webp"
    text.write_text("no image")
    Image.fromarray(RAMP).save(cut)
    cut.write_bytes(cut.read_bytes()[:300])
    empty.touch()
    for path in (text, cut, empty, tmp_path, tmp_path / "missing.png"):
        with pytest.raises(UserError, match=f"cannot read the image {path}"):
            read_image(path, (8, 8, 1))
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    Image.fromarray(RAMP).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="more than 100 are refused"):
        read_image(tmp_path / "large.png", (8, 8, 1))


def test_only_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"moving.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert np.abs(read_image(path, (8, 8, 3)).astype(int) - [255, 0, 0]).max() < 9


def test_transparency_of_a_palette_is_dropped(tmp_path):
    image = Image.fromarray(RAMP).convert("P")
    image.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    assert (read_image(tmp_path / "palette.png", (24, 36, 1))[..., 0] == RAMP).all()


def test_the_reason_is_told(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "pointer.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for name, reason in [
        ("empty.png", "it is empty"),
        ("text.png", "it is no image of a known format"),
        ("pointer.jpg", "git lfs pull`"),
        ("missing.png", "no such file"),
        ("", "Is a directory"),
    ]:
        with pytest.raises(UserError, match=f"{reason}$"):
            read_image(tmp_path / name, (8, 8, 3))


def test_a_jpeg_cut_short_is_an_error_not_grey(tmp_path):
    photo = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cut\.jpg: image file is truncated"):
        read_image(tmp_path / "cut.jpg", (224, 224, 3), resize=256)


@pytest.mark.parametrize("photo", ["china", "flower"])
def test_photographs_are_resized_and_cropped_as_torchvision_does(photo):
    path = Path(sklearn.datasets.__file__).parent / "images" / f"{photo}.jpg"
    ours = read_image(path, (224, 224, 3), resize=256)[::3, ::3].astype(int)
    with np.load(GOLDEN) as golden:
        for way in ("pil", "tensor"):
            difference = np.abs(ours - golden[f"{photo}/{way}"])
            assert (difference.mean() <= 0.2, difference.max() <= 1) == (True, True), way


@pytest.mark.parametrize(
    ("side", "resize", "crop", "expected"),
    [
        # torchvision 0.29.1 rounds half a pixel to the even one, where it crops, and to the smaller one, where it pads.
        (7, 7, 4, [2, 3, 4, 5]),
        (9, 9, 4, [2, 3, 4, 5]),
        (3, 3, 4, [0, 1, 2, 99]),
        (1, 1, 4, [99, 0, 99, 99]),
        (4, 4, 4, [0, 1, 2, 3]),
    ],
)
def test_the_centre_is_cut_where_torchvision_cuts_it(tmp_path, side, resize, crop, expected):
    """Row i has the value i + 1; 0 is the padding."""
    rows = np.tile(np.arange(1, side + 1, dtype=np.uint8)[:, None], (1, side))
    Image.fromarray(rows).save(tmp_path / "rows.png")
    image = read_image(tmp_path / "rows.png", (crop, crop, 1), resize)[..., 0]
    assert [99 if v == 0 else int(v) - 1 for v in image.max(axis=1)] == expected


def test_the_longer_side_is_rounded_down_and_kept_within_bounds(tmp_path, monkeypatch):
    for size in ((1, 1), (1, 300), (299, 200), (2, 3)):
        Image.new("RGB", size, "red").save(tmp_path / "image.png")
        assert (read_image(tmp_path / "image.png", (224, 224, 3), resize=256) == [255, 0, 0]).all()
    assert decode.cover((427, 640), (256, 256)) == (256, 383)
    monkeypatch.setattr(decode, "MAX_PIXELS", 1_000_000)
    Image.new("RGB", (1, 5000)).save(tmp_path / "long.png")
    with pytest.raises(UserError, match=r"1×5000 .*256×1280000"):
        read_image(tmp_path / "long.png", (224, 224, 3), resize=256)


def test_pixels_that_are_fractions_are_refused(tmp_path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match=r"float\.tiff: its pixels are fractions"):
        read_image(tmp_path / "float.tiff", (8, 8, 3))
