"""Fully connected layers by the largest singular values of their kernels: two thin layers in place of a wide one."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcnn import UserError


def low_rank(params: Mapping[str, Any], ranks: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the parameters with some layers as `models.fast_rcnn.LowRank` has them, and each layer's error.

    Girshick 2015, section 3.1: W ≈ U Σ Vᵀ by the largest singular values. The error is that of the kernel in the
    Frobenius norm, divided by the kernel's own norm: the root of the share of the squared singular values left out.

    Args:
      params: {layer: {"kernel": (…, features), "bias": (features,)}, …}.
      ranks: {layer: singular values that are kept}.

    Raises:
      UserError: there is no such layer, it is of low rank already, or has not so many singular values.
    """
    made, errors = dict(params), {}
    for name, rank in ranks.items():
        layer = params.get(name, {})
        if not {"kernel", "bias"} <= layer.keys():
            raise UserError(f"--ranks: the network has no whole layer '{name}': its layers are {', '.join(params)}")
        kernel = np.asarray(layer["kernel"], np.float32)
        rows = kernel.reshape(-1, kernel.shape[-1])  # (H · W · C, features): x @ rows, the transpose of the paper's W
        if not 0 < rank <= min(rows.shape):
            raise UserError(f"--ranks {name}={rank}: its kernel has {min(rows.shape)} singular values, keep 1 or more")
        u, values, v = np.linalg.svd(rows, full_matrices=False)
        made[name] = {
            "fc1": {"kernel": u[:, :rank] * values[:rank]},
            "fc2": {"kernel": v[:rank], "bias": np.asarray(layer["bias"])},
        }
        squares = values.astype(np.float64) ** 2
        errors[name] = float(np.sqrt(squares[rank:].sum() / max(squares.sum(), np.finfo(float).tiny)))
    return made, errors
