"""Matching against torchvision's matcher, and samples by their counts and their keys."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import quick

from jaxcnn.models.matching import BACKGROUND, IGNORED, match, sample

DATA = golden("detection_ops.npz")
RPN = {"positive": 0.7, "negative": (0.0, 0.3), "low_quality": True}


@pytest.mark.parametrize("case", ["rpn", "roi", "low_quality_ties"])
def test_matches_are_torchvisions(case):
    data = {
        key: DATA[f"matcher/{case}/{key}"] for key in ("gt", "boxes", "high", "low", "allow_low_quality", "matches")
    }
    rule = {
        "positive": float(data["high"]),
        "negative": (0.0, float(data["low"])),
        "low_quality": bool(data["allow_low_quality"]),
    }
    np.testing.assert_array_equal(match(data["gt"], data["boxes"], **rule), data["matches"])
    compiled = quick(lambda truth, boxes, valid: match(truth, boxes, valid=valid, **rule))
    padded = np.concatenate([data["gt"], data["gt"][:1], np.zeros((2, 4), np.float32)])
    valid = np.arange(len(padded)) < len(data["gt"])
    np.testing.assert_array_equal(compiled(padded, data["boxes"], valid), data["matches"])


BOXES: Any = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 1], [20, 20, 30, 30], [5, 5, 5, 5]], np.float32)


def test_the_range_of_the_background_and_the_candidates_are_kept_to():
    truth = BOXES[:1]
    rule = {"positive": 0.6, "negative": (0.1, 0.6)}
    assert match(truth, BOXES, **rule).tolist() == [0, BACKGROUND, BACKGROUND, IGNORED, IGNORED]
    out = np.array([False, True, True, True, True])
    assert match(truth, BOXES, candidates=jnp.array(out), **RPN).tolist() == [IGNORED, 0, -1, -1, -1]


@pytest.mark.parametrize(
    ("truth", "valid"),
    [
        (np.zeros((0, 4)), None),
        (np.zeros((2, 4)), np.zeros(2, bool)),
        (BOXES[:2], np.zeros(2, bool)),
        (BOXES[4:], None),
    ],
)
def test_without_objects_or_with_none_that_has_an_area_all_is_background(truth, valid):
    found = quick(lambda truth: match(truth, BOXES, valid=valid, **RPN))(truth.astype(np.float32))
    assert found.tolist() == [BACKGROUND] * 5


def test_without_boxes_there_are_no_matches_and_no_samples():
    assert match(BOXES, jnp.zeros((0, 4)), **RPN).shape == (0,)
    index, drawn = sample(jnp.zeros(0, jnp.int32), jax.random.key(0), 4, 0.5)
    assert index.shape == drawn.shape == (0,)


draw = quick(lambda matches, key: sample(matches, key, 8, 0.25))


@settings(max_examples=30, deadline=None)
@given(matches=st.lists(st.integers(-2, 3), min_size=16, max_size=16), seed=st.integers(0, 99))
def test_a_sample_is_balanced_drawn_once_and_of_the_right_kinds(matches, seed):
    matches = np.array(matches, np.int32)
    index, drawn = (np.asarray(x) for x in draw(matches, jax.random.key(seed)))
    chosen = matches[index[drawn]]
    positives = min((matches >= 0).sum(), 2)
    backgrounds = min((matches == BACKGROUND).sum(), 8 - positives)
    assert (chosen >= 0).tolist() == [True] * positives + [False] * backgrounds
    assert IGNORED not in chosen
    assert len(set(index[drawn])) == drawn.sum()
    more = np.pad(matches, (0, 5), constant_values=IGNORED)
    for found, expected in zip(draw(more, jax.random.key(seed)), (index, drawn), strict=True):
        np.testing.assert_array_equal(found[drawn], expected[drawn])


def test_a_sample_depends_on_its_key_alone_and_every_box_is_as_likely():
    matches: Any = np.array([0, 1, 2, 3, *[BACKGROUND] * 12], np.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(800))
    index, drawn = quick(jax.vmap(lambda key: sample(matches, key, 8, 0.25)))(keys)
    assert drawn.all()
    np.testing.assert_array_equal(index[3], draw(matches, keys[3])[0])
    share = np.bincount(np.asarray(index).ravel(), minlength=16) / 800
    np.testing.assert_allclose(share, [0.5] * 16, atol=0.08)  # 2 of 4 positives, 6 of 12 of the background; sd 0.018


def test_a_sample_follows_the_ids_of_boxes_wherever_they_are():
    matches = np.random.default_rng(0).integers(-2, 2, 40).astype(np.int32)
    order = np.random.default_rng(1).permutation(40)
    draw_by_id = quick(lambda matches, ids: sample(matches, jax.random.key(3), 9, 0.5, ids))
    index, drawn = (np.asarray(x) for x in draw_by_id(matches, np.arange(40)))
    moved, present = (np.asarray(x) for x in draw_by_id(matches[order], order))
    assert set(index[drawn]) == set(order[moved[present]])


def test_more_samples_than_boxes_take_all_that_the_share_of_the_positives_allows():
    matches = np.array([0, 1, 2, BACKGROUND, IGNORED], np.int32)
    index, drawn = (np.asarray(x) for x in quick(lambda m: sample(m, jax.random.key(0), 8, 0.25))(matches))
    assert len(index) == 5
    assert sorted(matches[index[drawn]] >= 0) == [False, True, True]
