"""Canvases hold every image, are few, and pad little."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn.data.images.canvases import choose_canvases, padded, scaled, smallest_canvas

sizes = st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=60)


@given(sizes, st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_every_image_has_a_canvas_that_holds_it_and_no_smaller_one_does(sizes, most):
    canvases = choose_canvases(np.array(sizes), most)
    assert 1 <= len(canvases) <= most
    assert canvases == choose_canvases(np.array(sizes[::-1]), most)
    for (height, width), chosen in zip(sizes, smallest_canvas(np.array(sizes), canvases), strict=True):
        holding = [h * w for h, w in canvases if height <= h and width <= w]
        h, w = canvases[chosen]
        assert height <= h
        assert width <= w
        assert h * w == min(holding)


def test_few_sizes_are_their_own_canvases_and_rare_ones_join_their_likes():
    shapes = [(375, 500)] * 50 + [(500, 375)] * 20 + [(333, 500)] * 10
    assert choose_canvases(np.array(shapes)) == [(333, 500), (375, 500), (500, 375)]
    assert choose_canvases(np.array(shapes), 2) == [(375, 500), (500, 375)]
    assert choose_canvases(np.array(shapes), 1) == [(500, 500)]


def test_hundreds_of_sizes_take_no_more_canvases():
    shapes = np.random.default_rng(0).integers(100, 600, (2000, 2))
    canvases = choose_canvases(shapes)
    assert len(canvases) <= 6
    held = np.array(canvases)[smallest_canvas(shapes, canvases)]
    assert (held >= shapes).all()
    assert held.prod(1).sum() < 2 * shapes.prod(1).sum()


def test_what_no_canvas_holds_has_none():
    assert smallest_canvas(np.array([[5, 9], [4, 4], [1, 1]]), [(4, 8), (4, 4)]).tolist() == [-1, 1, 1]


def test_the_shorter_side_is_brought_to_a_length_as_torchvision_rounds():
    assert [scaled(size, 520) for size in ((375, 500), (500, 375), (427, 640))] == [(520, 693), (693, 520), (520, 779)]
    assert scaled((375, 500), 0) == (375, 500)


def test_the_longer_side_may_have_a_limit_and_both_are_then_rounded_down():
    assert [scaled(size, 800, 1333) for size in ((375, 500), (300, 500), (480, 640))] == [
        (800, 1066), (799, 1333), (800, 1066),
    ]  # fmt: skip
    assert scaled((194, 200), 800, 1333) == (799, 824), "194 · (800 / 194) is less than 800 in torchvision, too"
    assert scaled((30, 50), 0, 40) == (24, 40)
    assert scaled((30, 50), 0, 100) == (30, 50)
    assert scaled((1, 500), 800, 100) == (1, 100), "no side is without a pixel"


@given(sizes, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_sides_of_canvases_are_multiples_where_they_must_be(sizes, most):
    canvases = np.array(choose_canvases(np.array(sizes), most, 32))
    assert len(canvases) <= most
    assert not (canvases % 32).any()
    assert (smallest_canvas(np.array(sizes), canvases.tolist()) >= 0).all()


def test_padding_is_below_and_to_the_right():
    found = padded(np.ones((2, 3), np.uint8), (3, 4), 255)
    assert found.tolist() == [[1, 1, 1, 255], [1, 1, 1, 255], [255] * 4]
    assert padded(found, (3, 4)) is found
