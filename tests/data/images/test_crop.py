"""A crop moves the image and its targets alike: coordinates are written into an image and followed."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxcnn.data.images.augment_host import parse
from jaxcnn.data.images.decode import Box, Crop, center, cover, frame

HEIGHT, WIDTH = 120, 200
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
COORDINATES = np.stack([ROWS, COLUMNS, 0 * ROWS], -1).astype(np.uint8)  # of each pixel: its row, its column
FILE = io.BytesIO()
Image.fromarray(COORDINATES).save(FILE, "JPEG", quality=100, subsampling=0)
JPEG = FILE.getvalue()
PLACES = ROWS * 1000 + COLUMNS  # both, in one number that no interpolation may touch

crops = st.builds(
    lambda top, left, height, width, size, mirrored: Crop(
        Box(top * (HEIGHT - height), left * (WIDTH - width), height, width), size, mirrored
    ),
    st.floats(0, 1), st.floats(0, 1), st.floats(20, HEIGHT), st.floats(20, WIDTH),
    st.tuples(st.integers(8, 60), st.integers(8, 60)), st.booleans(),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(crops, st.sampled_from(["bilinear", "bicubic", "antialias"]))
def test_image_label_map_and_boxes_go_the_same_way(drawn, interpolation):
    crop = drawn.taken(interpolation)
    pixels, places = crop.image(COORDINATES, 3, interpolation).astype(int), crop.label_map(PLACES)
    assert pixels.shape == (*crop.size, 3)
    assert places.shape == crop.size
    inner = (slice(2, -2), slice(2, -2))  # at the edge antialiasing and cubics lean on what is inside
    spread = np.array([crop.box.height / crop.size[0], crop.box.width / crop.size[1]])
    seen = np.stack([places // 1000, places % 1000], -1)
    # The nearest pixel is half a pixel away at most, and the interpolated one has its own centre rounded.
    assert (np.abs(seen[inner] - pixels[inner][..., :2]) <= 1.5 + 0.05 * spread).all()
    # A box around one pixel of the original holds the result's pixels that show it, and they are where its box is.
    row, column = (int(v) for v in seen[crop.size[0] // 2, crop.size[1] // 2])
    boxes, kept = crop.boxes(np.array([[column, row, column + 1, row + 1]]))
    assert kept.all()
    x1, y1, x2, y2 = boxes[0]
    i, j = np.argwhere(places == row * 1000 + column).T
    assert y1 - 1e-3 <= i.min() + 0.5 <= i.max() + 0.5 <= y2 + 1e-3
    assert x1 - 1e-3 <= j.min() + 0.5 <= j.max() + 0.5 <= x2 + 1e-3


def test_a_label_map_is_exact_and_mirrored_with_the_image():
    crop = Crop(Box(10, 20, 40, 60), (40, 60), mirrored=True)
    np.testing.assert_array_equal(crop.label_map(PLACES), PLACES[10:50, 20:80][:, ::-1])
    np.testing.assert_array_equal(crop.image(COORDINATES, 3), COORDINATES[10:50, 20:80][:, ::-1])


def test_boxes_are_clipped_and_those_outside_are_flagged():
    crop = Crop(Box(10, 20, 40, 80), (80, 80))
    given_boxes = [[20, 10, 100, 50], [0, 0, 60, 30], [0, 0, 20, 50], [40, 20, 40, 30], [150, 60, 160, 70]]
    boxes, kept = crop.boxes(np.array(given_boxes))
    assert kept.tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(boxes[:2], [[0, 0, 80, 80], [0, 0, 40, 40]])
    mirrored, _ = crop._replace(mirrored=True).boxes(np.array(given_boxes))
    np.testing.assert_allclose(mirrored[:2], [[0, 0, 80, 80], [40, 0, 80, 40]])
    assert crop.boxes(np.zeros((0, 4)))[0].shape == (0, 4)


@given(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), st.tuples(st.integers(1, 300), st.integers(1, 300)))
@settings(max_examples=100, deadline=None)
def test_the_centre_is_within_an_image_of_any_size_and_has_the_shape_of_the_result(image, size):
    resize = round(max(size) * 256 / 224)
    covered = cover(image, frame(size, resize))
    assert all(a >= b for a, b in zip(covered, frame(size, resize), strict=True))
    box = center(image, size, resize).box
    assert min(box) >= 0
    assert box.top + box.height <= image[0] + 1e-9
    assert box.left + box.width <= image[1] + 1e-9


@pytest.mark.parametrize("text", ["fixed_scale(256)", "scale_jitter(256,480)", "random_area(0.9,1,1,1)"])
@given(st.integers(1, 900), st.integers(1, 900), st.tuples(st.integers(16, 300), st.integers(16, 300)))
@settings(max_examples=40, deadline=None)
def test_drawn_crops_have_the_shape_of_the_result_and_are_inside(text, height, width, size):
    geometry = parse(text).geometry
    assert geometry
    box = geometry((height, width), size, np.random.default_rng(0))
    assert min(box.top, box.left) >= 0
    assert box.top + box.height <= height + 1e-9
    assert box.left + box.width <= width + 1e-9
    if min(box.height, box.width) > 1:  # no side is below a pixel
        assert box.height * size[1] == pytest.approx(box.width * size[0])


@pytest.mark.parametrize("step", [2, 4, 8])
def test_of_a_jpeg_of_less_resolution_an_aligned_crop_has_the_pixels_of_its_box(step):
    errors = {True: 0.0, False: 0.0}  # of the rows and columns seen, in pixels of the result, at most
    for start in range(1, 25):
        drawn = Crop(Box(start, 25 - start, 10 * step + 2, 10 * step + 3), (10, 10))
        for aligned in errors:
            crop = drawn.aligned() if aligned else drawn
            pixels = crop.image(JPEG, 3).astype(float)
            for axis, line in enumerate((pixels[:, 5, 0], pixels[5, :, 1])):
                centres = crop.box[axis] + (np.arange(10) + 0.5) * (crop.box[axis + 2] / 10) - 0.5
                error = np.abs(np.median(line - centres)) / step
                errors[aligned] = max(errors[aligned], error)
    assert errors[True] < 0.3 < 0.35 < errors[False]


def test_a_rounded_box_has_a_pixel_at_least():
    assert Box(3.1, 7.2, 0.2, 0.1).rounded() == (3, 7, 1, 1)
    assert Box(2.6, 1.4, 2.8, 3.0).rounded() == (3, 1, 2, 3)
