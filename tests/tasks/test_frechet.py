"""The Fréchet distance against pytorch-fid's and torchmetrics' (tests/golden), and its moments."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcnn import UserError
from jaxcnn.tasks.frechet import distance, moments

GOLDEN = Path(__file__).parents[1] / "golden" / "gan.npz"
RNG = np.random.default_rng(0)


@cache
def golden() -> dict[str, Any]:
    with np.load(GOLDEN) as arrays:
        return {key: arrays[key] for key in arrays.files if key.startswith("fid/")}


@pytest.mark.parametrize(("case", "tolerance"), [("plain", 1e-8), ("fewer_samples_than_features", 1e-6)])
def test_the_distance_is_that_of_the_libraries(case, tolerance):
    a, b = (moments(golden()[f"fid/{case}/{side}"]) for side in "ab")
    assert distance(a, b) == pytest.approx(golden()[f"fid/{case}/value"], rel=tolerance)
    assert distance(b, a) == pytest.approx(distance(a, b), rel=tolerance)


def test_the_same_features_have_none():
    a, b = (moments(golden()[f"fid/same/{side}"]) for side in "ab")
    assert abs(distance(a, b)) < 1e-6


def test_of_two_gaussians_along_the_axes_it_is_the_known_sum():
    """Means apart by d and deviations s and t along each axis: d² + (s - t)²."""
    rows = RNG.standard_normal((50, 3))
    white = np.linalg.qr(np.column_stack([np.ones(50), rows]))[0][:, 1:] * 7.0  # exact: mean 0, covariance I
    left, right = moments(white), moments(white * [3.0, 1.0, 0.0] + [0.0, 2.0, 0.5])
    assert distance(left, right) == pytest.approx(4 + 0 + 1 + 4 + 0.25)


def test_too_few_rows_and_other_features_are_refused():
    with pytest.raises(UserError, match="2 or more"):
        distance(moments(np.zeros((1, 3))), moments(np.zeros((5, 3))))
    with pytest.raises(UserError, match="one feature network"):
        distance(moments(np.zeros((5, 2))), moments(np.zeros((5, 3))))
