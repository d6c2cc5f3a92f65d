"""Image files of every kind, and those that are none."""

import numpy as np
import pytest
from PIL import Image

from jaxcnn import UserError
from jaxcnn.data import decode
from jaxcnn.data.decode import read_image

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
    assert (read_image(tmp_path / "deep.png", (24, 36, 1))[..., 0] == deep >> 8).all()


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
