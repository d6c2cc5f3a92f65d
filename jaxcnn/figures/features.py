"""What a trained network sees: the filters of its first layer, and its feature maps from layer to layer."""

from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcnn import UserError


def filters_grid(kernel: Any) -> Figure:
    """The filters of a first layer (H, W, C, N), C of 1 or 3, as N images, each to its own scale: grey is zero.

    Raises:
      UserError: the layer does not see an image, but C other channels.
    """
    kernel = np.asarray(kernel, np.float32)
    if kernel.ndim != 4 or kernel.shape[2] not in (1, 3):
        raise UserError(f"a kernel of shape {kernel.shape} is no first layer's: it must be (H, W, 1 or 3, N)")
    peaks = np.abs(kernel).max(axis=(0, 1, 2))
    pictures = np.moveaxis(0.5 + 0.5 * kernel / np.where(peaks > 0, peaks, 1), -1, 0)
    columns = min(len(pictures), 16)
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(0.62 * columns, 0.62 * rows + 0.4), layout="constrained")
    for axes in np.ravel(figure.subplots(rows, columns, squeeze=False)):
        axes.axis("off")
    for axes, picture in zip(figure.axes, pictures, strict=False):
        _show(axes, picture)
    figure.suptitle(f"{len(pictures)} filters of {'×'.join(map(str, kernel.shape[:3]))}", fontsize=9)
    return figure


def strongest(maps: np.ndarray, count: int) -> np.ndarray:
    """The channels of `maps` (H, W, C) with the largest mean activations, strongest first: int (at most count,)."""
    return np.argsort(-maps.mean(axis=(0, 1)), kind="stable")[:count]


def feature_maps(model: Any, variables: Any, image: Any, count: int = 8) -> Figure:
    """The `count` strongest maps of each endpoint, a row each from the image to the head, each map to its own scale.

    Args:
      model: a network of the registry.
      image: float (H, W, C), C of 1 or 3, as the model takes it.
    """
    image = np.asarray(image, np.float32)
    outputs = jax.jit(model.apply)(variables, image[None])
    ends = {name: np.asarray(outputs[name][0], np.float32) for name in model.endpoints}
    figure = Figure(figsize=(1.05 * (count + 1), 1.15 * len(ends) + 0.2), layout="constrained")
    grid = figure.subplots(len(ends), count + 1, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    low, high = image.min(), image.max()
    _show(grid[0, 0], (image - low) / (high - low if high > low else 1))
    for i, (name, maps) in enumerate(ends.items()):
        row = grid[i]
        for axes, channel in zip(row[1:], strongest(maps, count), strict=False):
            axes.imshow(maps[..., channel], cmap="magma")
            axes.set_title(f"{name} #{channel}", fontsize=7, pad=2)
        size = f"{name}\n{'×'.join(map(str, maps.shape))}"
        y, va = (-0.05, "top") if i == 0 else (0.5, "center")  # below the image, or where one would be
        row[0].text(0.5, y, size, transform=row[0].transAxes, ha="center", va=va, fontsize=8)
    return figure


def _show(axes: Axes, picture: np.ndarray) -> None:
    """An image (H, W, 1 or 3) in 0 … 1."""
    axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
