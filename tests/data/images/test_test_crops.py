"""The views of each protocol against a slow reading of its paper, on images of every shape; each example once."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxcnn import UserError
from jaxcnn.commands import evaluate
from jaxcnn.data.batches import Slice
from jaxcnn.data.images import test_crops as module
from jaxcnn.data.images.decode import read_image
from jaxcnn.data.images.test_crops import PROTOCOLS, Views, make_views, plan, view_batches
from jaxcnn.data.sources import BadExample, Source

GOLDEN = Path(__file__).parents[2] / "golden" / "torchvision_preprocess.npz"
PHOTOS = Path(sklearn.datasets.__file__).parent / "images"


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def shorter_to(image: Image.Image, side: int) -> Image.Image:
    if image.width < image.height:
        return image.resize((side, int(side * image.height / image.width)), Image.Resampling.BILINEAR)
    return image.resize((int(side * image.width / image.height), side), Image.Resampling.BILINEAR)


def part(image: Image.Image, where: str, width: int, height: int) -> Image.Image:
    """Krizhevsky's and Szegedy's words, such as "top left", as a crop by Pillow."""
    right, bottom = image.width - width, image.height - height
    left = 0 if "left" in where else right if "right" in where else round(right / 2)
    top = 0 if "top" in where else bottom if "bottom" in where else round(bottom / 2)
    return image.crop((left, top, left + width, top + height))


FIVE = ("top left", "top right", "bottom left", "bottom right", "centre")


def slow(protocol: str, image: np.ndarray, size: int, scales: tuple[int, ...]) -> list[Image.Image]:
    """Half of the views, in any order: without the mirror images."""
    found = []
    for scale in scales:
        resized = shorter_to(picture(image), scale)
        if protocol == "1crop":
            found.append(part(resized, "centre", size, size))
        if protocol == "10crop":
            square = part(resized, "centre", scale, scale)
            found += [part(square, where, size, size) for where in FIVE]
        if protocol == "144crop":
            portrait = resized.height > resized.width
            for where in ("top", "centre", "bottom") if portrait else ("left", "centre", "right"):
                square = part(resized, where, scale, scale)
                found += [part(square, corner, size, size) for corner in FIVE]
                found.append(square.resize((size, size), Image.Resampling.BILINEAR))
    return found


def multiset(images: Any) -> list[bytes]:
    return sorted(np.asarray(image).tobytes() for image in images)


shapes = st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]))


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from(["1crop", "10crop", "144crop"]), st.integers(3, 40))
@example((48, 64, 3), "144crop", 28)
@example((64, 48, 3), "144crop", 28)
@example((40, 40, 1), "10crop", 28)
@example((1, 1, 1), "144crop", 8)
@example((37, 61, 3), "10crop", 7)
def test_crops_are_those_of_the_paper_whatever_the_image(shape, protocol, size):
    image, views = pixels(*shape), make_views(protocol, (size, size, shape[2]))
    (found,) = views.crop(image)
    assert (found.shape[1:], found.dtype) == ((size, size, shape[2]), np.uint8)
    assert len(found) * (1 + views.mirrored) == views.count
    assert multiset(found) == multiset(slow(protocol, image, size, views.scales))


def test_the_papers_numbers():
    made = {name: make_views(name, (224, 224, 3)) for name in PROTOCOLS}
    assert {name: views.count for name, views in made.items()} == {"1crop": 1, "10crop": 10, "144crop": 144, "dense": 6}
    assert made["1crop"].scales == made["10crop"].scales == (256,)
    assert made["144crop"].scales == (256, 288, 320, 352)
    assert made["dense"].scales == (256, 384, 512)
    assert [name for name in PROTOCOLS if not made[name].mirrored] == ["1crop"]
    assert make_views("144crop", (32, 32, 3)).scales == (37, 41, 46, 50)
    assert make_views("dense", (8, 8, 1)).scales == (9, 14, 18)


def test_the_command_line_offers_the_protocols_there_are():
    assert evaluate._PROTOCOLS == PROTOCOLS


def test_views_of_a_square_overlap_but_are_all_there():
    """Left, centre and right are one square here: each of its six crops counts three times."""
    (found,) = make_views("144crop", (224, 224, 3)).crop(pixels(300, 300))
    assert len(found) == 72
    assert len(set(multiset(found))) == 24


@pytest.mark.parametrize("name", ["china", "flower"])
def test_the_centre_of_a_photograph_is_that_of_torchvision_and_of_predict(name, tmp_path):
    path = PHOTOS / f"{name}.jpg"
    with Image.open(path) as opened:
        photo = np.asarray(opened)
    (found,) = make_views("1crop", (224, 224, 3)).crop(photo)
    with np.load(GOLDEN) as golden:
        np.testing.assert_array_equal(found[0][::3, ::3], golden[f"{name}/pil"])
    np.testing.assert_array_equal(found[0], read_image(path, (224, 224, 3), 256))
    (other,) = make_views("1crop", (224, 224, 3), resize=300).crop(photo.swapaxes(0, 1))
    Image.fromarray(photo.swapaxes(0, 1)).save(tmp_path / "turned.png")
    np.testing.assert_array_equal(other[0], read_image(tmp_path / "turned.png", (224, 224, 3), 300))


@settings(max_examples=60, deadline=None)
@given(shapes, st.lists(st.integers(20, 90), min_size=1, max_size=3, unique=True))
@example((48, 64, 3), [20, 40])
@example((500, 375, 3), [256, 384])
def test_dense_views_are_whole_images_whose_aspect_is_rounded_a_little(shape, scales):
    image, views = pixels(*shape), Views("dense", (20, 20), tuple(scales))
    found, ratio = views.crop(image), Fraction(max(shape[:2]), min(shape[:2]))
    assert views.count == 2 * len(scales)
    for scale, stack in zip(scales, found, strict=True):
        assert stack.shape[0] == 1
        short, long = sorted(stack.shape[1:3])
        assert short == scale
        rounded = Fraction(round(32 * ratio), 32)
        assert abs(rounded / ratio - 1) <= Fraction(1, 64)
        assert abs(long - scale * rounded) <= Fraction(1, 2)
        assert (shape[0] > shape[1]) <= (stack.shape[1] >= stack.shape[2])
        whole = picture(image).resize((stack.shape[2], stack.shape[1]), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(stack[0].squeeze(), np.asarray(whole).squeeze())
        assert stack.shape[1:3] == views.shape(scale, views.aspect(*shape[:2]))


def test_at_256_pixels_the_longer_side_is_a_multiple_of_eight():
    views = make_views("dense", (224, 224, 3))
    sides = {views.shape(256, views.aspect(500, width))[1] for width in range(500, 1500, 7)}
    assert {side % 8 for side in sides} == {0}
    assert len(sides) == 65


class Mixed(Source):
    """Noise of several sizes, PNG bytes or pixels; the label is the index. Example `broken` is no image."""

    def __init__(self, size: int, sides: Any = ((9, 12), (12, 9), (10, 10)), broken: int = -1):
        height, width = sides[0] if len(sides) == 1 else (None, None)
        names = tuple(map(str, range(size)))
        super().__init__("mixed", "all", size, names, (height, width, 3), (0.5,) * 3, (0.5,) * 3)
        object.__setattr__(self, "sides", sides)
        object.__setattr__(self, "broken", broken)

    def pixels(self, index: int) -> np.ndarray:
        height, width = self.sides[index % len(self.sides)]  # type: ignore[attr-defined]
        return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)

    def _read(self, index: int) -> dict[str, Any]:
        if index == self.broken:  # type: ignore[attr-defined]
            return {"image": b"no image", "label": index}
        picture(self.pixels(index)).save(file := io.BytesIO(), "PNG")
        return {"image": file.getvalue(), "label": index}


CASES = st.tuples(st.integers(1, 40), st.integers(1, 300), st.sampled_from([1, 2, 8]), st.sampled_from(PROTOCOLS))


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_a_plan_has_every_example_once_in_batches_that_spread_and_fit(case):
    size, batch, devices, protocol = case
    source, views = Mixed(size), make_views(protocol, (8, 8, 3))
    batches = plan(source, views, batch, devices)
    counted = [int(i) for rows in batches for i, m in zip(rows.examples, rows.mask, strict=True) if m]
    assert sorted(counted) == list(range(size))
    for rows in batches:
        assert len(rows.examples) % devices == 0
        assert rows.mask[0] == 1
        aspects = {views.aspect(*source.pixels(int(i)).shape[:2]) for i in rows.examples}
        assert aspects == {rows.aspect}
        assert len(rows.examples) == devices or len(rows.examples) * views.pixels(rows.aspect) <= batch * 64
    for aspect in {rows.aspect for rows in batches}:
        assert len({len(rows.examples) for rows in batches if rows.aspect == aspect}) == 1, "one program a shape"
    assert len({rows.aspect for rows in batches}) == (min(size, 3) if protocol == "dense" else 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_hold_the_views_of_their_examples_and_processes_share_them(protocol):
    source, views = Mixed(11), make_views(protocol, (8, 8, 3))
    batches = plan(source, views, 60, 2)
    whole = list(view_batches(source, views, batches))
    shares = [list(view_batches(source, views, batches, part=Slice(p, 2))) for p in range(2)]
    assert len(whole) == len(batches) == len(shares[0]) == len(shares[1])
    seen = []
    for rows, batch, *halves in zip(batches, whole, *shares, strict=True):
        assert batch["label"].tolist() == rows.examples.tolist()
        assert [str(batch[key].dtype) for key in ("label", "mask", "views0")] == ["int32", "float32", "uint8"]
        seen += batch["label"][batch["mask"] == 1].tolist()
        for k, i in enumerate(rows.examples.tolist()):
            for j, stack in enumerate(views.crop(source.pixels(i))):
                np.testing.assert_array_equal(batch[f"views{j}"][k], stack)
        assert batch.keys() == halves[0].keys()
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), value)
    assert sorted(seen) == list(range(11))


def test_images_of_one_size_need_not_be_opened_to_plan():
    source = Mixed(5, sides=((9, 12),), broken=0)
    assert {rows.aspect for rows in plan(source, make_views("dense", (8, 8, 3)), 64)} == {(32, 43)}


@pytest.mark.parametrize("protocol", ["10crop", "dense"])
def test_a_broken_example_is_an_error_that_names_it(protocol):
    source, views = Mixed(5, broken=3), make_views(protocol, (8, 8, 3))
    with pytest.raises(BadExample, match="mixed, split 'all', example 3"):
        list(view_batches(source, views, plan(source, views, 64)))


def test_an_endless_strip_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 10_000)
    source, views = Mixed(1, sides=((1, 300),)), make_views("10crop", (8, 8, 3))
    with pytest.raises(UserError, match=r"example 0 .*1×300"):
        list(view_batches(source, views, plan(source, views, 64)))
    with pytest.raises(UserError, match=r"example 0 .*1×300.*--scales"):
        plan(source, make_views("dense", (8, 8, 3)), 64)  # before anything is compiled


def test_what_does_not_fit_the_network_is_refused():
    with pytest.raises(UserError, match=r"dense .*200.* 224"):
        make_views("dense", (224, 224, 3), scales=(256, 200))
    assert make_views("dense", (224, 224, 3), scales=(224,)).scales == (224,)
    assert make_views("144crop", (224, 224, 3), resize=300).scales == (256, 288, 320, 352)
