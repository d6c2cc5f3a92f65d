"""The regression of boxes: against the closed form, and the boxes that it gives back."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.models import boxes as box
from jaxcnn.rcnn import regression


def closed_form(features: np.ndarray, wanted: np.ndarray, ridge: float) -> np.ndarray:
    """Predictions for the same features, as appendix C and the authors' code have them: whiten, solve, undo."""
    mean = wanted.mean(0)
    covariance = (wanted - mean).T @ (wanted - mean) / len(wanted)
    variances, axes = np.linalg.eig(covariance)
    whiten, restore = (axes @ np.diag((variances + 0.001) ** power) @ axes.T for power in (-0.5, 0.5))
    rows = np.concatenate([features, np.ones((len(features), 1))], 1)
    weights = np.linalg.inv(rows.T @ rows + ridge * np.eye(rows.shape[1])) @ rows.T @ (wanted - mean) @ whiten
    return rows @ weights @ restore + mean


@pytest.mark.parametrize("count", [40, 8])
@pytest.mark.parametrize("ridge", [1.0, 1000.0])
def test_a_fit_is_the_closed_form_with_more_and_with_fewer_rows_than_features(count, ridge):
    rng = np.random.default_rng(count)
    features, wanted = rng.normal(0, 3, (count, 12)), rng.normal(0, [0.1, 0.2, 0.05, 0.3], (count, 4))
    kernel, bias = regression.fit(features, wanted, ridge)
    np.testing.assert_allclose(features @ kernel + bias, closed_form(features, wanted, ridge), atol=1e-9)


def test_a_linear_function_is_found_and_moves_boxes_to_their_objects():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 3, (400, 10))
    moves = features @ rng.normal(0, 0.02, (10, 4)) + 0.1
    corners = rng.uniform(0, 50, (400, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 40, (400, 2))], 1)
    truth = np.asarray(box.decode(jnp.asarray(boxes), jnp.asarray(moves)))
    kernel, bias = regression.fit(features, regression.targets(boxes, truth), 1e-3)
    found = np.asarray(box.decode(jnp.asarray(boxes), jnp.asarray(features @ kernel + bias)))
    np.testing.assert_allclose(found, truth, atol=0.02)


def test_targets_are_those_that_decoding_undoes():
    rng = np.random.default_rng(1)
    boxes = np.concatenate([rng.uniform(0, 20, (9, 2)), rng.uniform(25, 60, (9, 2))], 1)
    truth = np.concatenate([rng.uniform(0, 20, (9, 2)), rng.uniform(25, 60, (9, 2))], 1)
    np.testing.assert_allclose(
        regression.targets(boxes, truth), box.encode(jnp.asarray(boxes), jnp.asarray(truth)), atol=1e-5
    )


def test_without_rows_boxes_stay():
    kernel, bias = regression.fit(np.zeros((0, 5)), np.zeros((0, 4)), 1000.0)
    assert kernel.shape == (5, 4)
    assert not kernel.any()
    assert not bias.any()


def test_one_row_and_equal_targets_are_finite():
    kernel, bias = regression.fit(np.ones((1, 5)), np.zeros((1, 4)), 1000.0)
    assert np.isfinite(kernel).all()
    np.testing.assert_allclose(bias, 0, atol=1e-12)
