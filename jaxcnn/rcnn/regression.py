"""The regression of boxes: Girshick et al. 2014, appendix C, as in the authors' rcnn_train_bbox_regressor.m.

For each class, the four numbers that move a proposal to the object it overlaps most are a linear function of pool5,
found by ridge regression on the windows that overlap an object of the class by an IoU of more than 0.6. Their
targets are centred and decorrelated first, so that all four weigh alike against the ridge.
"""

import numpy as np

IOU = 0.6  # above which a window is trained on
_LEAST = 0.001  # added to the variances of the targets


def targets(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the numbers that move boxes to their objects, (n, 4) both: float64 (n, 4).

    They are those of `models.boxes.encode`, of boxes with an area.
    """
    boxes, truth = boxes.astype(np.float64), truth.astype(np.float64)
    (start, sides), (there, wanted) = ((x[:, :2], x[:, 2:] - x[:, :2]) for x in (boxes, truth))
    move = (there + wanted / 2 - start - sides / 2) / sides
    return np.concatenate([move, np.log(wanted / sides)], 1)


def fit(features: np.ndarray, wanted: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel (F, 4) and bias (4,), float64, of the ridge regression of targets (n, 4) on features (n, F).

    In the authors' code a constant feature of 1, whose weight is regularised with the others, has the bias. The
    decorrelation is undone: kernel and bias give the targets as they are. Without rows, both are 0.

    Args:
      ridge: λ, factor on the squared weights; the paper's is 1000.
    """
    count, width = features.shape
    if not count:
        return np.zeros((width, 4)), np.zeros(4)
    mean = wanted.mean(0)
    centred = wanted - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / count)  # (4,), (4, 4)
    deviations = np.sqrt(np.maximum(variances, 0) + _LEAST)
    whiten, restore = axes / deviations @ axes.T, axes * deviations @ axes.T
    rows = np.concatenate([features.astype(np.float64), np.ones((count, 1))], 1)  # (n, F + 1)
    weights = _solve(rows, centred @ whiten, ridge) @ restore  # (F + 1, 4)
    return weights[:-1], weights[-1] + mean


def _solve(rows: np.ndarray, wanted: np.ndarray, ridge: float) -> np.ndarray:
    """Return the weights that minimise |rows · w - wanted|² + ridge · |w|², by the smaller of two systems."""
    count, width = rows.shape
    if width <= count:
        return np.linalg.solve(rows.T @ rows + ridge * np.eye(width), rows.T @ wanted)
    return rows.T @ np.linalg.solve(rows @ rows.T + ridge * np.eye(count), wanted)
