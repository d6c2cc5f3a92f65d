"""The SVMs: the objective of liblinear, hard negatives, and what a class without examples gives."""

import numpy as np
import pytest
from scipy.optimize import minimize

from jaxcnn.rcnn import svm
from jaxcnn.rcnn.svm import BIAS, Regions


def clouds(seed: int, positives: int = 30, negatives: int = 200, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.8, 1, (positives, width)), rng.normal(-0.3, 1, (negatives, width))


def objective(w: np.ndarray, positives: np.ndarray, negatives: np.ndarray, c: float) -> float:
    """½|w|² with the bias as the weight of a feature of 10, and hinges of which a positive's counts twice."""
    wide = [np.concatenate([x, np.full((len(x), 1), 10.0)], 1) for x in (positives, negatives)]
    hinges = 2 * np.maximum(0, 1 - wide[0] @ w).sum() + np.maximum(0, 1 + wide[1] @ w).sum()
    return w @ w / 2 + c * hinges


@pytest.mark.parametrize("c", [0.001, 0.1])
def test_a_fit_minimises_the_objective_of_the_authors(c):
    positives, negatives = clouds(0)
    weights, bias = svm.fit(positives, negatives, c, tolerance=1e-8)
    found = objective(np.append(weights.astype(float), bias / BIAS), positives, negatives, c)
    # The objective is not smooth: a search from the solution and one from nothing both end no lower.
    for start in (np.append(weights, bias / BIAS), np.zeros(7)):
        best = minimize(objective, start, (positives, negatives, c), "Powell", options={"ftol": 1e-12, "xtol": 1e-8})
        assert found <= best.fun * (1 + 1e-4)


def images(seed: int, count: int = 12, rows: int = 300) -> list[Regions]:
    """Images whose first window is an object of class 1 or 2, and whose last half of windows overlaps class 1."""
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        label = 1 + i % 2
        features = rng.normal(-0.3, 1, (rows, 6))
        features[0] += 1.5 * (np.arange(6) // 3 == label - 1)
        overlap = np.zeros((rows, 4))
        overlap[0, label] = 1
        overlap[rows // 2 :, 1] = 0.3 if label == 1 else 0
        classes = np.zeros(rows, int)
        classes[0] = label
        found.append(Regions(features.astype(np.float16), classes, overlap))
    return found


def all_negatives(regions: list[Regions], label: int) -> np.ndarray:
    return np.concatenate([each.features[each.overlap[:, label] < 0.3] for each in regions]).astype(np.float32)


def test_hard_negatives_in_one_pass_come_close_to_training_on_all(monkeypatch):
    monkeypatch.setattr(svm, "RETRAIN", 60)
    data = images(0)
    positives = svm.positives_of(data, 4)
    found = svm.train(iter(data), positives, 1.0, 0.05, 0.3)
    for label in (1, 2):
        rows = positives[label].astype(np.float32)
        everything = all_negatives(data, label)
        weights, bias = svm.fit(rows, everything, 0.05)
        mined, best = (
            objective(np.append(w.astype(float), b / BIAS), rows, everything, 0.05)
            for w, b in ((found.weights[:, label], found.bias[label]), (weights, bias))
        )
        assert best <= mined * 1.001
        assert mined < 1.05 * best
        assert found.trained[label] > 2, "it was trained again as negatives came"


def test_windows_between_are_neither_positives_nor_negatives():
    data = images(1)
    positives = svm.positives_of(data, 4)
    found = svm.train(iter(data), positives, 1.0, 0.05, 0.3)
    moved = [each._replace(features=np.where(each.overlap[:, 1:2] == 0.3, 9.0, each.features)) for each in data]
    again = svm.train(iter(moved), positives, 1.0, 0.05, 0.3)
    np.testing.assert_array_equal(found.weights[:, 1], again.weights[:, 1])
    assert not np.array_equal(found.weights[:, 2], again.weights[:, 2]), "they are negatives of the other class"


def test_a_factor_on_features_is_undone_by_the_scale():
    data = images(2)
    positives = svm.positives_of(data, 4)
    large = [each._replace(features=each.features * 4) for each in data]
    found = svm.train(iter(data), positives, 1.0, 0.05, 0.3)
    again = svm.train(iter(large), svm.positives_of(large, 4), 0.25, 0.05, 0.3)
    np.testing.assert_array_equal(found.weights, again.weights)


def test_a_class_without_objects_and_the_background_are_never_found():
    data = images(3)
    found = svm.train(iter(data), svm.positives_of(data, 4), 1.0, 0.05, 0.3)
    assert not found.weights[:, [0, 3]].any()
    assert found.bias[3] == -BIAS
    assert found.trained.tolist()[0] == found.trained.tolist()[3] == 0


def test_norms_are_of_some_rows_the_same_ones_each_time():
    rows = [np.full((500, 4), 2.0), np.ones((3, 4))]
    first, second = svm.norms_of(rows, most=10)
    np.testing.assert_array_equal(first, np.full(10, 4.0))
    np.testing.assert_array_equal(second, np.full(3, 2.0))
