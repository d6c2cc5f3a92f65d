"""One linear SVM for each class, trained with hard negatives: Girshick et al. 2014, section 2.3 and appendix B.

Positives are the objects of a class alone, negatives the windows that overlap each of them by an IoU of less than 0.3;
what lies between is neither. The negatives are too many to be held: one pass over the images adds those that the SVM so
far does not score well below its margin, trains again when enough have come, and drops those that have become easy.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

NORM = 20.0  # mean norm that features are scaled to: C means nothing without it (rcnn_scale_features.m)
# Of rcnn_train.m.
BIAS = 10.0  # value of the feature whose weight is the bias, which is regularised with the other weights
POSITIVE_WEIGHT = 2.0  # of a positive's loss
RETRAIN = 2000  # negatives of a class that have come since it was trained
HARD, EASY = -1.0001, -1.2  # scores from which on a negative is added, and below which it is dropped


class Regions(NamedTuple):
    """The windows of one image: its objects, then its proposals.

    Attributes:
      features: (R, F), of any float type.
      classes: int (R,), of an object that is a positive its class, else 0.
      overlap: (R, classes), the highest IoU with an object of each class; class 0 is the background.
    """

    features: np.ndarray
    classes: np.ndarray
    overlap: np.ndarray


class Svm(NamedTuple):
    """The SVMs of all classes: the scores of features x (N, F) are x · weights + bias.

    Attributes:
      weights: float32 (F, classes); those of the background are 0.
      bias: float32 (classes,).
      trained: int (classes,), how often each was trained.
      negatives: int (classes,), how many negatives each was trained on last.
    """

    weights: np.ndarray
    bias: np.ndarray
    trained: np.ndarray
    negatives: np.ndarray


def fit(
    positives: np.ndarray, negatives: np.ndarray, c: float, tolerance: float = 1e-3
) -> tuple[np.ndarray, np.floating[Any]]:
    """Return weights (F,) and bias of the SVM of positives (P, F) and negatives (N, F), P and N 1 or more.

    It minimises ½|w|² + ½(b / BIAS)² + c · (POSITIVE_WEIGHT · Σ hinge of positives + Σ hinge of negatives), as
    `liblinear -s 3 -B 10 -w1 2 -c C` does.

    Args:
      tolerance: of the solver.
    """
    from sklearn.svm import LinearSVC  # Not at the top: it takes a second, and scoring needs none of it.

    bias: Any = BIAS  # Its stub takes whole numbers alone.
    solver: Any = LinearSVC(
        loss="hinge", C=c, tol=tolerance, intercept_scaling=bias, class_weight={1: POSITIVE_WEIGHT}, max_iter=10_000,
        random_state=0,
    )  # fmt: skip
    solver.fit(np.concatenate([positives, negatives]), np.repeat([1, -1], [len(positives), len(negatives)]))
    return solver.coef_[0].astype(np.float32), np.float32(solver.intercept_[0])


class _Class:
    """What is held of one class: all its positives, and the negatives that are hard."""

    def __init__(self, positives: np.ndarray):
        self.positives = positives
        self.negatives = [positives[:0]]
        self.added = self.trained = 0

    def add(self, negatives: np.ndarray) -> None:
        if len(negatives):
            self.negatives.append(negatives)
            self.added += len(negatives)

    def train(self, c: float) -> tuple[np.ndarray, Any]:
        """Train on what is held, and drop the negatives that are easy now."""
        held = np.concatenate(self.negatives)
        weights, bias = fit(self.positives, held, c)
        self.seen, self.added, self.trained = len(held), 0, self.trained + 1
        self.negatives = [held[held @ weights + bias >= EASY]]
        return weights, bias


def train(images: Iterable[Regions], positives: Sequence[np.ndarray], scale: float, c: float, iou: float) -> Svm:
    """Train all SVMs in one pass over the images.

    Each window is seen once, so that none is added twice. A class without positives, or without negatives, has a score
    of minus BIAS everywhere.

    Args:
      positives: features of each class (P, F), as they are; of the background they are not used.
      scale: factor on all features, which brings their mean norm to `NORM`.
      c: the SVM's constant; the paper's is 0.001.
      iou: a window is a negative of a class below this IoU with its objects; the paper's is 0.3.
    """
    held = [_Class(scaled(rows, scale)) for rows in positives]
    width, classes = positives[0].shape[1], range(1, len(positives))
    weights, bias = np.zeros((width, len(positives)), np.float32), np.full(len(positives), -BIAS, np.float32)
    bias[0] = 0.0

    def retrain(label: int) -> None:
        weights[:, label], bias[label] = held[label].train(c)

    present = [label for label in classes if len(positives[label])]
    for regions in images:
        features = scaled(regions.features, scale)
        scores = features @ weights + bias  # (R, classes)
        for label in present:
            negative = regions.overlap[:, label] < iou
            # Before a class is trained for the first time, all of an image's negatives are hard.
            chosen = negative & (scores[:, label] > HARD) if held[label].trained else negative
            held[label].add(features[chosen])
            if held[label].added and (not held[label].trained or held[label].added > RETRAIN):
                retrain(label)
    for label in present:
        if held[label].added:
            retrain(label)
    trained = np.array([each.trained for each in held])
    return Svm(weights, bias, trained, np.array([each.seen if each.trained else 0 for each in held]))


def scaled(features: np.ndarray, scale: float) -> np.ndarray:
    """Return features as float32, times `scale`."""
    return features.astype(np.float32) * np.float32(scale)


def positives_of(images: Iterable[Regions], classes: int) -> list[np.ndarray]:
    """Return the features of the objects of each class, (P, F) each; there must be an image."""
    found: list[list[np.ndarray]] = [[] for _ in range(classes)]
    for regions in images:
        for label, rows in enumerate(found):
            rows.append(regions.features[(regions.classes == label) & (label > 0)])
    return [np.concatenate(rows) for rows in found]


def norms_of(images: Iterable[np.ndarray], most: int = 200) -> Iterator[np.ndarray]:
    """Yield the norms of some rows of each image's features (R, F): `most` at random, the same ones every time.

    rcnn_feature_stats.m takes 200 windows each of 200 images; their mean is what features are scaled by.
    """
    rng = np.random.default_rng(0)
    for features in images:
        rows = rng.permutation(len(features))[:most]
        yield np.linalg.norm(features[rows].astype(np.float32), axis=1)
