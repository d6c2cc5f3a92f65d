"""The Fréchet distance between two sets of features.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium"
(arXiv:1706.08500), equation 6. It is a distance of features: two of different networks do not compare.
"""

from typing import NamedTuple

import numpy as np

from jaxcnn import UserError


class Moments(NamedTuple):
    """What of a set of features the distance needs, float64.

    Attributes:
      rows: their number.
      mean: (D,).
      scatter: (D, D), the sum over rows of the outer products of their deviations from the mean.
    """

    rows: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Return the unbiased covariance, (D, D).

        Raises:
          UserError: there are fewer than two rows.
        """
        if self.rows < 2:
            raise UserError(f"a covariance of {self.rows} images: the Fréchet distance needs 2 or more of each kind")
        return self.scatter / (self.rows - 1)


def moments(features: np.ndarray) -> Moments:
    """Return the moments of features (N, D), centred before they are multiplied so that nothing cancels."""
    features = np.asarray(features, np.float64)
    mean = features.mean(0) if len(features) else np.zeros(features.shape[1])
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def distance(left: Moments, right: Moments) -> float:
    """Return |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), at least 0 but for rounding.

    The trace of the root is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which has those of Σ₁ Σ₂ and is
    symmetric: none is complex, and of singular covariances nothing need be added to a diagonal.

    Raises:
      UserError: the features are of different widths, or there are fewer than two rows of one.
    """
    if left.mean.shape != right.mean.shape:
        raise UserError(
            f"features of {len(left.mean)} and of {len(right.mean)} values have no distance: take one feature network"
        )
    first, second = left.covariance, right.covariance
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ second @ root)
    apart = left.mean - right.mean
    trace = np.trace(first) + np.trace(second) - 2 * np.sqrt(np.maximum(shared, 0)).sum()
    return float(apart @ apart + trace)
