"""What is done to training images on the host, and how it is named."""

import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from jaxcnn import UserError
from jaxcnn.data.images import augment_host
from jaxcnn.data.images.augment_host import OPS, PRESETS, parse
from jaxcnn.data.images.decode import crop_resize

CROPS = [
    "fixed_scale(224)", "fixed_scale(256)", "scale_jitter(256,512)", "scale_jitter(256,256)", "random_area(0.08,1)",
    "random_area(1,1)", "random_area(0.0001,0.001)", "random_area(0.3,0.5,2,9)", "random_area(0.3,0.5,0.01,0.02)",
]  # fmt: skip
PIXELS = ["pca", "photometric", "randaugment(1,10)", "randaugment(3,0)", "randaugment(14,4.5)", "erase(1)"]
RAMP = np.linspace(90, 150, 64 * 48 * 3).astype(np.uint8).reshape(64, 48, 3)  # nothing is clipped soon


def rng_of(seed=0):
    return np.random.default_rng(seed)


def boxes_of(text, height, width, count=300):
    geometry, rng = parse(text).geometry, rng_of()
    assert geometry
    return np.array([geometry((height, width), (224, 224), rng) for _ in range(count)]).T


def change(text, image, seed=0):
    rng = rng_of(seed)
    for op in parse(text).pixels:
        image = op(image, rng)
    return image


def bound(partials):
    """Names of the functions, with the arguments they were given."""
    return [(function.func.__name__, function.keywords) for function in partials]


def noise(height, width, channels, seed=0):
    image = rng_of(seed).integers(0, 256, (height, width, channels), np.uint8)
    image.setflags(write=False)
    return image


@pytest.mark.parametrize("text", CROPS)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_crop_is_inside_the_image_of_whatever_size_and_a_function_of_the_draw(text, height, width, seed):
    geometry = parse(text).geometry
    assert geometry
    box = geometry((height, width), (224, 224), rng_of(seed))
    assert box.top >= 0
    assert box.left >= 0
    assert min(box.height, box.width) >= 1
    assert box.top + box.height <= height
    assert box.left + box.width <= width
    assert box == geometry((height, width), (224, 224), rng_of(seed))


@pytest.mark.parametrize("interpolation", ["bilinear", "antialias"])
@pytest.mark.parametrize("text", CROPS)
def test_crops_of_the_smallest_images_can_be_resized(text, interpolation):
    for height, width in ((1, 1), (1, 9), (9, 1), (2, 3)):
        for top, left, h, w in boxes_of(text, height, width, 10).T:
            box = augment_host.Box(top, left, h, w)
            assert crop_resize(noise(height, width, 3), 3, box, (4, 4), interpolation).shape == (4, 4, 3)


def test_a_fixed_scale_crops_the_central_square():
    top, left, height, width = boxes_of("fixed_scale(256)", 256, 500)
    np.testing.assert_allclose([height, width], 224)
    assert 0 <= top.min() < 1
    assert 31 < top.max() <= 32
    assert 122 <= left.min() < 123
    assert 153 < left.max() <= 154


def test_scales_are_uniform_over_their_range_and_crops_lie_anywhere():
    _, left, height, width = boxes_of("scale_jitter(256,512)", 300, 400)
    scales = 300 * 224 / height
    np.testing.assert_array_equal(height, width)
    assert 256 <= scales.min() < 260
    assert 508 < scales.max() <= 512
    assert scales.mean() == pytest.approx(384, abs=20)
    assert left.min() < 5
    assert (left + width).max() > 395
    assert np.ptp(boxes_of("scale_jitter(300,300)", 300, 400)[2]) == 0


def test_areas_are_uniform_and_wide_crops_are_as_likely_as_tall_ones():
    _, _, height, width = boxes_of("random_area(0.08,0.5)", 300, 300, 2000)
    area, aspect = height * width / 300**2, np.log(width / height)
    assert 0.08 <= area.min() < 0.09
    assert 0.49 < area.max() <= 0.5
    assert area.mean() == pytest.approx(0.29, abs=0.01)
    assert np.abs(aspect).max() <= np.log(4 / 3) + 1e-9
    assert np.ptp(aspect) > 0.98 * 2 * np.log(4 / 3)
    assert abs(aspect.mean()) < 0.015


def test_where_no_draw_fits_the_crop_is_the_largest_central_one_of_a_legal_aspect():
    np.testing.assert_allclose(boxes_of("random_area(0.9,1)", 300, 3000, 1)[:, 0], (0, 1300, 300, 400))
    np.testing.assert_allclose(boxes_of("random_area(0.9,1)", 1000, 75, 1)[:, 0], (450, 0, 100, 75))
    np.testing.assert_allclose(boxes_of("random_area(1,1,0.5,2)", 100, 110, 1)[:, 0], (0, 0, 100, 110))


@pytest.mark.parametrize("text", PIXELS)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_an_operation_keeps_shape_and_type_and_is_a_function_of_the_draw(text, height, width, channels, seed):
    image = noise(height, width, channels)  # not writable
    before = image.copy()
    changed = change(text, image, seed)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(changed, change(text, image, seed))
    np.testing.assert_array_equal(changed, change(text, image[::-1][::-1], seed))  # however it lies in memory
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("text", ["pca", "photometric", "randaugment(3,9)", "erase(1)"])
def test_an_operation_changes_images_and_draws_again_for_each(text, channels):
    image = RAMP[..., :channels]
    changed = [change(text, image, seed) for seed in range(10)]
    assert sum((one != image).any() for one in changed) >= 8  # a small shift may round to none
    assert len({one.tobytes() for one in changed}) >= 7


def test_the_colour_shift_is_one_for_all_pixels_along_the_principal_components():
    np.testing.assert_allclose(augment_host._COMPONENTS.T @ augment_host._COMPONENTS, np.eye(3), atol=1e-3)
    shifts = []
    for seed in range(2000):
        shift = change("pca", RAMP[:4], seed).astype(int) - RAMP[:4]
        assert (shift == shift[0, 0]).all()
        shifts.append(shift[0, 0])
    spread = np.std(np.array(shifts) @ augment_host._COMPONENTS, axis=0)
    np.testing.assert_allclose(spread[0], 25.5 * 0.2175, rtol=0.06)
    assert spread[1:].max() < 0.8  # little but the rounding
    grey = change("pca", RAMP[..., :1]).astype(int) - RAMP[..., :1]
    assert np.ptp(grey) == 0
    assert abs(grey[0, 0, 0] - round(augment_host._LUMA @ shifts[0])) <= 1


def test_photometric_distortion_is_pillows_in_a_random_order():
    orders = set()
    for seed in range(40):
        rng, image = rng_of(seed), Image.fromarray(RAMP)
        order = tuple(rng.permutation(3))
        for kind in order:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind]
            image = enhance(image).enhance(rng.uniform(0.5, 1.5))
        expected = np.asarray(image).astype(int)
        if expected.min() > 0 and expected.max() < 255:
            assert np.abs(change("photometric", RAMP, seed) - expected).max() <= 4  # Pillow rounds three times
            orders.add(order)
    assert len(orders) >= 5


def test_randaugment_has_fourteen_operations_of_which_the_weakest_but_three_change_nothing():
    image = Image.fromarray(noise(16, 16, 3))
    weak = [np.asarray(operation(image, 0.0)) for operation in augment_host._OPERATIONS]
    strong = {np.asarray(operation(image, 0.9)).tobytes() for operation in augment_host._OPERATIONS}
    changed = [i for i, pixels in enumerate(weak) if (pixels != np.asarray(image)).any()]
    assert len(weak) == 14
    assert len(strong) >= 13  # noise has full contrast
    assert changed in ([2], [1, 2])  # autocontrast and equalize know no magnitude


def test_randaugment_draws_every_operation_and_both_signs():
    column = np.zeros((20, 20, 1), np.uint8)
    column[:, 10] = 255
    seen = {int(np.argmax(change("randaugment(1,4)", column, seed)[10, :, 0])) for seed in range(300)}
    assert {10 - 4, 10, 10 + 4} <= seen  # 0.45 · 0.4 of 20 pixels to either side
    np.testing.assert_array_equal(change("randaugment(2,0)", column), column)


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_what_is_erased_is_one_rectangle_of_noise_within_the_limits(seed):
    image = np.full((60, 80, 3), 77, np.uint8)
    foreign = (change("erase(1)", image, seed) != 77).any(-1)
    rows, columns = (np.flatnonzero(foreign.any(axis)) for axis in (1, 0))
    h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert foreign.sum() > 0.98 * h * w - 2
    assert (h + 0.5) * (w + 0.5) >= 0.02 * 60 * 80
    assert (h - 0.5) * (w - 0.5) <= 0.33 * 60 * 80
    assert 0.3 * (w - 0.5) <= h + 0.5
    assert h - 0.5 <= (w + 0.5) / 0.3


def test_erasing_has_its_probability():
    image = np.full((10, 10, 1), 77, np.uint8)
    assert 60 < sum((change("erase(0.25)", image, seed) != 77).any() for seed in range(400)) < 140
    assert change("erase(0)", image) is image


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_it_stands_for_and_may_be_continued(name):
    preset, more = parse(name), parse(f"{name}, erase(0.25), mixup(0.2)")
    assert ("flip", ()) in preset.device
    assert bound(more.pixels) == [*bound(preset.pixels), ("erase", {"p": 0.25})]
    assert more.device == (*preset.device, ("mixup", (0.2,)))
    assert (preset.geometry is None) == (name == "pad_crop_flip")


def test_names_are_read_in_their_order_with_their_arguments():
    read = parse(" random_area( 0.08 , 1 ),flip,randaugment(2,9),pca,cutmix(1),pad_crop(3)")
    assert bound([read.geometry]) == [("random_area", {"lo": 0.08, "hi": 1})]
    assert bound(read.pixels) == [("randaugment", {"n": 2, "m": 9}), ("pca", {})]
    assert read.device == (("flip", ()), ("cutmix", (1,)), ("pad_crop", (3,)))
    assert parse("pad_crop").device == (("pad_crop", ()),)
    assert parse("pad_crop_flip").device == (("pad_crop", ()), ("flip", ()))
    assert parse("none") == (None, (), ())


@pytest.mark.parametrize("text", ["none", *PRESETS, "inception,pca,randaugment(2,9),erase(1),cutmix(1)"])
def test_worker_processes_can_be_sent_it(text):
    here, there = parse(text), pickle.loads(pickle.dumps(parse(text)))
    assert there.device == here.device
    for ours, theirs in zip(here.pixels, there.pixels, strict=True):
        np.testing.assert_array_equal(ours(RAMP, rng_of()), theirs(RAMP, rng_of()))
    if here.geometry:
        assert here.geometry((30, 40), (24, 24), rng_of()) == there.geometry((30, 40), (24, 24), rng_of())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("radnaugment(2,9)", "no 'radnaugment': did you mean 'randaugment'?"),
        ("AlexNet", "no 'AlexNet': did you mean 'alexnet'?"),
        ("zzz", "no 'zzz': the names are none, alexnet, vgg, inception,"),
        ("", "cannot read '': join names by commas, such as random_area(0.08,1),flip"),
        ("flip,", "cannot read '': join names"),
        ("flip(", "cannot read 'flip(': join names"),
        ("pca flip", "cannot read 'pca flip': join names"),
        ("pca\nflip", "cannot read 'pca flip': join names"),
        ("none,flip", "none stands alone"),
        ("flip(1)", "flip(1) must be flip"),
        ("resnet(50)", "resnet(50) must be resnet"),
        ("erase", "erase must be erase(P), 0 ≤ P ≤ 1"),
        ("erase(1.5)", "erase(1.5) must be erase(P), 0 ≤ P ≤ 1"),
        ("erase(nan)", "erase(nan) must be erase(P)"),
        ("erase(a)", "erase(a) must be erase(P)"),
        ("mixup(0)", "mixup(0) must be mixup(ALPHA), ALPHA > 0"),
        ("cutmix(inf)", "cutmix(inf) must be cutmix(ALPHA)"),
        ("randaugment(2)", "randaugment(2) must be randaugment(N,M)"),
        ("randaugment(1.5,9)", "randaugment(1.5,9) must be randaugment(N,M)"),
        ("randaugment(2,11)", "0 ≤ M ≤ 10"),
        ("pad_crop(0)", "pad_crop(0) must be pad_crop[(PAD)], PAD = 1, 2 …"),
        ("fixed_scale(200)", "fixed_scale(200) must be fixed_scale(S), S ≥ 224"),
        ("scale_jitter(512,256)", "224 ≤ LO ≤ HI"),
        ("random_area(0,1)", "0 < LO ≤ HI ≤ 1"),
        ("random_area(0.1,1,2,1)", "0 < ASPECT_LO ≤ ASPECT_HI"),
        ("flip,flip", "flip is there twice"),
        ("resnet,flip", "flip is there twice"),
        ("flip,torchvision", "there may be one crop, and it must come first: see random_area"),
        ("alexnet,vgg", "there may be one crop, and it must come first: see fixed_scale and scale_jitter"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse(text)
    assert str(caught.value).startswith(f"config.data.augment={text!r}: ")
    assert "\n" not in str(caught.value)


def test_a_name_is_an_operation_or_a_preset():
    assert not OPS.keys() & PRESETS.keys()


def test_the_colour_shift_ends_at_black_and_white():
    for value in (0, 255):
        image = np.full((2, 2, 3), value, np.uint8)
        for seed in range(20):
            assert np.abs(change("pca", image, seed).astype(int) - value).max() < 128, "it went round"


@pytest.mark.parametrize("number", [3, 4])  # solarize and posterize
def test_operations_that_have_no_sign_are_the_same_at_either(number):
    operation, image = augment_host._OPERATIONS[number], Image.fromarray(RAMP)
    np.testing.assert_array_equal(operation(image, -0.6), operation(image, 0.6))
    assert (np.asarray(operation(image, 0.6)) != RAMP).any()


def test_a_crop_at_a_fixed_scale_is_of_the_central_square():
    top, left, height, width = boxes_of("fixed_scale(256)", 300, 100)
    assert top.min() >= 100
    assert (top + height).max() <= 200
    assert (top.max() - top.min(), left.max() - left.min()) == pytest.approx((12.5, 12.5), abs=1)
    assert left.min() >= 0
    assert (left + width).max() <= 100
