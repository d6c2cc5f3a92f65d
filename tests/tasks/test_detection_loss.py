"""The losses against loops in float64, for each form, with an RPN and without; rows that do not count; smooth L1."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.models.matching import BACKGROUND, IGNORED
from jaxcnn.tasks.detection_loss import FORMS, detection_terms, smooth_l1

N, A, R, C = 3, 7, 5, 4
SIZES = np.array([[32, 48], [64, 16], [48, 48]], np.int32)
TERMS = ("objectness", "rpn_box", "classifier", "box")


@pytest.fixture
def outputs() -> dict[str, np.ndarray]:
    """Outputs for three images; the second has no object, and the regression targets reach beyond every β."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "rpn_logits": rng.normal(0, 2, (N, A)), "rpn_deltas": rng.normal(0, 1, (N, A, 4)),
        "box_logits": rng.normal(0, 2, (N, R, C)), "box_deltas": rng.normal(0, 1, (N, R, C, 4)),
    }  # fmt: skip
    matches = np.array([[0, 1, -1, -2, -1, 0, -2], [-1, -1, -2, -2, -2, -2, -1], [2, -2, -1, -1, -1, -1, -1]])
    labels = np.array([[1, 3, 0, 0, 2], [0, 0, 0, 0, 0], [2, 0, 0, 1, 0]])
    valid = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 1]], bool)
    made |= {
        "rpn_targets": np.where((matches >= 0)[..., None], rng.normal(0, 1, (N, A, 4)), 0),
        "box_targets": np.where((labels > 0)[..., None], rng.normal(0, 1, (N, R, 4)), 0),
    }
    made = {name: x.astype(np.float32) for name, x in made.items()}
    return made | {"rpn_matches": matches.astype(np.int32), "roi_labels": labels.astype(np.int32), "roi_valid": valid}


def l1(x: float, beta: float) -> float:
    return x * x / (2 * beta) if abs(x) < beta else abs(x) - beta / 2


def of_image(outputs: dict[str, np.ndarray], i: int, rpn_beta: float, beta: float) -> tuple[list[float], int, int]:
    """The four sums of an image, and how many anchors and regions are in its samples."""
    o = {name: x[i].astype(float) if x.dtype == np.float32 else x[i] for name, x in outputs.items()}
    objectness = rpn_box = classifier = box = 0.0
    for a in np.flatnonzero(o["rpn_matches"] != IGNORED):
        found = o["rpn_matches"][a] != BACKGROUND
        p = 1 / (1 + math.exp(-o["rpn_logits"][a]))
        objectness -= math.log(p if found else 1 - p)
        if found:
            rpn_box += sum(l1(x, rpn_beta) for x in o["rpn_deltas"][a] - o["rpn_targets"][a])
    for r in np.flatnonzero(o["roi_valid"]):
        label = o["roi_labels"][r]
        classifier += math.log(np.exp(o["box_logits"][r]).sum()) - o["box_logits"][r, label]
        if label:
            box += sum(l1(x, beta) for x in o["box_deltas"][r, label] - o["box_targets"][r])
    return [objectness, rpn_box, classifier, box], int((o["rpn_matches"] != IGNORED).sum()), int(o["roi_valid"].sum())


def by_hand(outputs: dict[str, np.ndarray], form: str, images: list[int]) -> list[float]:
    of_forms = {
        "torchvision": (1 / 9, 1 / 9, 1), "port": (1 / 9, 1, 1), "paper": (1, 1, 10), "fast_rcnn": (1 / 9, 1, 1),
    }  # fmt: skip
    rpn_beta, beta, factor = of_forms[form]
    parts = [of_image(outputs, i, rpn_beta, beta) for i in images]
    if form in ("torchvision", "fast_rcnn"):
        anchors, regions = sum(part[1] for part in parts), sum(part[2] for part in parts)
        divisors = (anchors, anchors, regions, regions)
        return [sum(part[0][k] for part in parts) / divisors[k] for k in range(4)]
    means = []
    for i, (sums, anchors, regions) in zip(images, parts, strict=True):
        positions = SIZES[i].prod() / 256 if form == "paper" else anchors
        divisors = (anchors, positions / factor, regions, regions)
        means.append([total / divisor for total, divisor in zip(sums, divisors, strict=True)])
    return np.mean(means, axis=0).tolist()


def losses(outputs: Any, present: Any, form: str, weight: float = 0.0) -> dict[str, float]:
    terms = detection_terms(outputs, jnp.asarray(present), jnp.asarray(SIZES), FORMS[form], weight)
    return {name: float(total) / float(divisor or 1) for name, (total, divisor) in terms.items()}


@pytest.mark.parametrize("form", FORMS)
def test_the_losses_are_those_of_the_form(outputs, form):
    found = losses(outputs, [True] * N, form)
    assert found == pytest.approx(dict(zip(TERMS, by_hand(outputs, form, [0, 1, 2]), strict=True)), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_does_not_count_changes_nothing_even_with_a_nan_in_it(outputs, form):
    damaged = {name: x.copy() for name, x in outputs.items()}
    for name in ("rpn_logits", "rpn_deltas", "box_logits", "box_deltas"):
        damaged[name][1] = np.nan
    present = [True, False, True]
    assert losses(damaged, present, form) == pytest.approx(
        dict(zip(TERMS, by_hand(outputs, form, [0, 2]), strict=True)), rel=1e-5
    )

    def total(values: Any) -> Any:
        terms: Any = detection_terms(damaged | values, jnp.asarray(present), jnp.asarray(SIZES), FORMS[form])
        return sum(x / weight for x, weight in terms.values())

    gradient = jax.grad(total)({name: x for name, x in damaged.items() if x.dtype == np.float32})
    for name, x in gradient.items():
        assert np.isfinite(x).all(), name
        assert not x[1].any(), name
    assert losses(damaged, [False] * N, form) == dict.fromkeys(TERMS, 0.0)


def test_an_image_without_anything_in_its_sample_has_no_loss(outputs):
    outputs["rpn_matches"][:], outputs["roi_valid"][:] = IGNORED, False
    for form in FORMS:
        assert losses(outputs, [True] * N, form) == dict.fromkeys(TERMS, 0.0)


def test_the_weight_of_the_proposals_boxes_can_be_chosen(outputs):
    own, twice = losses(outputs, [True] * N, "paper"), losses(outputs, [True] * N, "paper", 20.0)
    assert twice == pytest.approx(own | {"rpn_box": 2 * own["rpn_box"]})


@pytest.mark.parametrize("form", FORMS)
def test_without_an_rpn_the_two_losses_of_the_regions_are_as_they_were(outputs, form):
    own = losses(outputs, [True] * N, form)
    alone = {name: x for name, x in outputs.items() if not name.startswith("rpn_")}
    assert losses(alone, [True] * N, form) == {name: own[name] for name in ("classifier", "box")}


def test_the_weight_of_the_box_loss_of_the_head_can_be_chosen(outputs):
    outputs = {name: jnp.asarray(x) for name, x in outputs.items()}
    own = losses(outputs, [True] * N, "fast_rcnn")

    def without(deltas: Any) -> Any:
        found: Any = detection_terms(
            outputs | {"box_deltas": deltas}, jnp.ones(N, bool), jnp.asarray(SIZES), FORMS["fast_rcnn"], 0.0, 0.0
        )
        return sum(total / weight for total, weight in found.values())

    assert float(without(outputs["box_deltas"])) == pytest.approx(sum(own.values()) - own["box"], rel=1e-5)
    assert not jax.grad(without)(outputs["box_deltas"]).any()


def test_smooth_l1_is_steep_up_to_beta_and_has_slope_one_beyond():
    x, zeros = jnp.array([[0.0, 0.05, 0.5, -3.0]]), jnp.zeros((1, 4))
    gradient = jax.grad(lambda x: smooth_l1(x, zeros, jnp.array([True]), 1 / 9).sum())(x)
    np.testing.assert_allclose(gradient, [[0, 0.45, 1, -1]], rtol=1e-6)
