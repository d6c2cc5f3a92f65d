"""Pictures of a network: its diagram drawn from its code, the filters of its first layer, and its feature maps.

A diagram's boxes are the layers that `papers.cost` counts.
"""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.papers.cost import Layer, layers, paper_layers, total

COLOURS = {
    "images": "#c9ced6", "convolution": "#3b76af", "residual block": "#2a9187", "plain block": "#7a6bb0",
    "inception module": "#7a6bb0", "pooling": "#e08e45", "response norm": "#b9a44c", "fully connected": "#b5495b",
}  # fmt: skip
_SLIM = ("images", "pooling", "response norm")  # drawn as slabs of one width, and take less room
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_SLAB, _SLIM_SLOT, _MOST_SLICES = 0.2, 0.62, 12


class Box(NamedTuple):
    """A box: a layer or a block of layers, and those after it that are the same."""

    label: str  # such as "stage2 block2–4"
    kind: str  # a key of `COLOURS`
    words: str  # what is inside, such as "1×1 3×3 1×1"
    shape: tuple[int, ...]  # (H, W, C) or (C,) of its output for one image
    times: int  # how many layers or blocks it stands for; parameters and macs are of all of them
    parameters: int
    macs: int


def boxes_of(rows: Iterable[Layer], residual: bool = False) -> list[Box]:
    """Return the boxes of a diagram from the rows of `papers.cost.layers`.

    A module with several layers, such as an inception module, is one box; neighbours of the same layers and shapes
    are one box, too. BatchNorm belongs to the layer before it.

    Args:
      residual: whether blocks have shortcuts, which no row tells.
    """
    modules: list[list[Layer]] = []
    for row in rows:
        if modules and (row.kind == "norm" or _top(row) == _top(modules[-1][0])):
            modules[-1].append(row)
        else:
            modules.append([row])

    def signature(module: list[Layer]) -> Any:
        # Fully connected layers stay apart: of the same shape, they differ most in cost.
        return [(row.kind, row.shape, row.name if row.kind == "dense" else "") for row in module]

    return [_box(list(same), residual) for _, same in itertools.groupby(modules, key=signature)]


def _top(row: Layer) -> str:
    return row.name.split("/")[0]


def _box(same: Sequence[Sequence[Layer]], residual: bool) -> Box:
    first, names = [row for row in same[0] if row.kind != "norm"], [_top(module[0]) for module in (same[0], same[-1])]
    number = re.search(r"\d+$", names[1])
    label = names[0].replace("_", " ") + (f"–{number[0]}" if len(same) > 1 and number else "")
    convolutions = [row for row in first if row.kind.startswith("conv")]
    inside = [row.kind.removeprefix("conv ") for row in convolutions if "shortcut" not in row.name]
    beside = [row.kind.removeprefix("conv ") for row in convolutions if "shortcut" in row.name]
    shape = first[-1].shape
    if len(convolutions) < 2:
        words = first[0].kind
        kinds = {"dense": "fully connected", "LRN": "response norm"}
        kind = "convolution" if convolutions else kinds.get(words, "pooling")
    elif any(row.kind.endswith("pool") for row in first):  # branches, which the module joins
        kind, words = "inception module", " ".join(dict.fromkeys(sorted(inside)))
        shape = (*shape[:-1], sum(row.shape[-1] for row in convolutions if "reduce" not in row.name))
    else:
        kind = "residual block" if residual else "plain block"
        words = " ".join(inside) + "".join(f" + {words}" for words in beside)
        shape = next(row for row in reversed(convolutions) if "shortcut" not in row.name).shape
    rows = [row for module in same for row in module]
    return Box(label, kind, words, shape, len(same), total(rows, "parameters"), total(rows, "macs"))


def draw(model: str | nn.Module, image_shape: Sequence[int] | None = None) -> Figure:
    """Draw the diagram of a network: boxes from left to right, under each its share of the parameters and of the MACs.

    A box is as high as the side and as wide as the channels of its output, both on a log scale; n equal layers in a row
    are one box of n slices. Images, pooling and response normalisation are slabs of one width. An arch is a shortcut.

    Args:
      model: a name of the registry, drawn as its paper has it, or a network of the registry.
      image_shape: (H, W, C) of the images; by default 3 channels of the size that the network is meant for.

    Raises:
      UserError: an unknown name, or images that the model does not take.
    """
    module: Any = create_model(model) if isinstance(model, str) else model
    size = tuple(image_shape or (module.image_size, module.image_size, 3))
    named = isinstance(model, str) and image_shape is None
    rows = paper_layers(model) if named else layers(module, size)
    residual = bool(getattr(module.spec, "shortcut", ""))
    boxes = [Box("images", "images", "", size, 1, 0, 0), *boxes_of(rows, residual)]
    title = model if isinstance(model, str) else type(model).__name__

    slots = [_SLIM_SLOT if box.kind in _SLIM else 1.0 for box in boxes]
    ends = list(itertools.accumulate(slots))
    middles = [end - slot / 2 for end, slot in zip(ends, slots, strict=True)]
    figure = Figure(figsize=(max(8.0, min(13.0, 0.62 * ends[-1] + 1.2)), 6.0), layout="constrained")
    flow, parameters, macs = figure.subplots(3, 1, sharex=True, height_ratios=[3.6, 1, 1])
    flow.set_xlim(-0.1, ends[-1] + 0.1)
    _flow(flow, boxes, middles)
    colours = [COLOURS[box.kind] for box in boxes]
    _shares(parameters, "parameters", [box.parameters for box in boxes], middles, colours)
    _shares(macs, "multiply-accumulates", [box.macs for box in boxes], middles, colours)
    flow.set_title(f"{title}, images of {'×'.join(map(str, size))}", loc="left", fontsize=11, fontweight="bold")
    kinds = [kind for kind in COLOURS if any(box.kind == kind for box in boxes)]
    handles = [Patch(fc=COLOURS[kind], label=kind) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False)
    return figure


def _flow(axes: Axes, boxes: Sequence[Box], middles: Sequence[float]) -> None:
    """Draw the boxes around the line y = 0, their labels above and their output shapes below."""
    axes.axis("off")
    widest = max(math.log2(box.shape[-1]) for box in boxes if box.kind not in _SLIM)
    highest = max(map(_height, boxes))
    axes.set_ylim(-0.5 * highest - 5.2, 0.5 * highest + 9.5)
    axes.plot([middles[0], middles[-1]], [0, 0], color="#8a8f98", lw=1, zorder=0)
    for box, x in zip(boxes, middles, strict=True):
        slim, height = box.kind in _SLIM, _height(box)
        width = _SLAB if slim else 0.82 * max(math.log2(box.shape[-1]) / widest, 0.2)
        slices = box.times if box.times <= _MOST_SLICES else 1
        step = width / slices
        for left in (x - width / 2 + i * step for i in range(slices)):
            axes.add_patch(Rectangle((left, -height / 2), step, height, fc=COLOURS[box.kind], ec="white", lw=0.7))
            if box.kind == "residual block":
                ends, top = (left + 0.15 * step, left + 0.85 * step), height / 2
                axes.plot([ends[0], *ends, ends[1]], [top, top + 0.8, top + 0.8, top], color="#333a45", lw=0.9)
        lines = [box.words or box.label] if slim else [box.label, *box.words.replace(" + ", "\n+ ").split("\n")]
        label = "\n".join(lines + [f"×{box.times}"] * (box.times > 1))
        text = partial(axes.text, x, rotation=90, ha="center", parse_math=False)
        text(0.5 * highest + 1.7, label, va="bottom", ma="left", fontsize=7.5, linespacing=1.15)
        text(-0.5 * highest - 0.6, "×".join(map(str, box.shape)), va="top", fontsize=7, color="#555b65")


def _height(box: Box) -> float:
    """Return 1 for one pixel, one more each time the side doubles."""
    return 1 + math.log2(box.shape[0]) if len(box.shape) == 3 else 1


def _shares(axes: Axes, what: str, numbers: Sequence[int], middles: Sequence[float], colours: Sequence[str]) -> None:
    """Draw bars of each box's share of the sum; shares of a percent and more are written on them."""
    whole = sum(numbers)
    shares = [100 * number / whole for number in numbers]
    axes.bar(middles, shares, width=0.6, color=colours)
    for x, share in zip(middles, shares, strict=True):
        if share >= 0.5:
            axes.text(x, share, f"{share:.0f} %", ha="center", va="bottom", fontsize=7)
    axes.set(ylim=(0, 1.25 * max(shares)), xticks=[], yticks=[])
    axes.spines[["top", "right", "left"]].set_visible(False)
    unit, name = next(((unit, name) for unit, name in _UNITS if whole >= unit), (1, ""))
    axes.set_title(f"{what}: {whole / unit:.3g} {name}".rstrip(), loc="left", fontsize=8.5, pad=2)


def filters_grid(kernel: Any) -> Figure:
    """Draw the filters of a first layer (H, W, C, N), C of 1 or 3, as N images, each to its own scale: grey is zero.

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
    """Return the channels of `maps` (H, W, C) of the largest means, strongest first: int (at most count,)."""
    return np.argsort(-maps.mean(axis=(0, 1)), kind="stable")[:count]


def feature_maps(model: Any, variables: Any, image: Any, count: int = 8) -> Figure:
    """Draw the `count` strongest maps of each endpoint, a row each from the image to the head, each to its own scale.

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
    """Show an image (H, W, 1 or 3) in 0 … 1."""
    axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
