"""Dense application: a fully connected layer as the convolution that it is, over images larger than it was made for."""

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax

from jaxcnn import UserError


def convolve(x: jax.Array, params: Mapping[str, jax.Array], dtype: Any) -> jax.Array:
    """A hidden layer at every place of a map: (N, H, W, C) -> (N, H - h + 1, W - w + 1, features) in `dtype`.

    VGG, section 3.2: the first layer becomes a convolution of its map's size, the later ones of 1×1.

    Args:
      params: "kernel" (h, w, C, features), or (C, features) of a later layer, and "bias" (features,); not copied.

    Raises:
      UserError: there are no such parameters yet, or the map is smaller than the kernel.
    """
    if "kernel" not in params:
        raise UserError("model.overrides.dense is for evaluation: parameters are made for one image size, leave it off")
    kernel, bias = params["kernel"].astype(dtype), params["bias"].astype(dtype)
    kernel = kernel.reshape((1, 1) * (kernel.ndim == 2) + kernel.shape)
    (height, width), (rows, columns) = kernel.shape[:2], x.shape[1:3]
    if rows < height or columns < width:
        raise UserError(
            f"dense application: the images leave {rows}×{columns} pixels to a layer that sees {height}×{width}: "
            "take them at least as large as those of training"
        )
    x = x.astype(dtype)
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
