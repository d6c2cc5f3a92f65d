"""Pictures of runs: curves over steps, and a grid of predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

_WRONG, _RIGHT = "#c1121f", "#2a7f3f"


def curves(runs: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Loss and top-1 error over epochs, training thin and evaluation thick, one colour a run, as PNG.

    Args:
      runs: name of each run -> its lines of metrics.jsonl.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss, error = figure.subplots(1, 2)
    for i, (name, lines) in enumerate(runs.items()):
        for phase, style in (
            ("train", {"lw": 1, "alpha": 0.5}),
            ("eval", {"lw": 2, "marker": ".", "label": name}),
        ):
            points = [line for line in lines if f"{phase}/loss" in line]
            epochs = [line["epoch"] for line in points]
            loss.plot(epochs, [line[f"{phase}/loss"] for line in points], color=f"C{i}", **style)
            error.plot(epochs, [100 * (1 - line[f"{phase}/top1"]) for line in points], color=f"C{i}", **style)
    loss.set(xlabel="epoch", ylabel="cross-entropy, nats", title="loss", yscale="log")
    error.set(xlabel="epoch", ylabel="top-1 error, %", title="top-1 error", yscale="symlog", ylim=(0, None))
    error.yaxis.set_major_formatter("{x:g}")
    for axes in (loss, error):
        axes.grid(alpha=0.3)
    loss.legend(title="thick: evaluation, thin: training", fontsize=8, title_fontsize=8)
    figure.savefig(out, dpi=120, format="png")


def prediction_grid(
    images: np.ndarray,
    labels: Sequence[int] | None,
    probabilities: np.ndarray,
    names: Sequence[str],
    out: Path,
    side: int = 6,
) -> None:
    """The first side² images with the class predicted, its probability, and the truth where it is another, as PNG.

    Args:
      images: uint8 (N, H, W, C), C of 1 or 3.
      labels: true classes (N,), or None where they are not known.
      probabilities: (N, classes).
    """
    count = min(len(images), side * side)
    columns = min(count, side)
    rows = -(-count // columns)
    figure = Figure(figsize=(1.6 * columns, 1.9 * rows), layout="constrained")
    for i, axes in enumerate(np.ravel(figure.subplots(rows, columns, squeeze=False))):
        axes.axis("off")
        if i >= count:
            continue
        axes.imshow(images[i].squeeze(-1) if images.shape[-1] == 1 else images[i], cmap="gray", vmin=0, vmax=255)
        guess = int(np.argmax(probabilities[i]))
        title, colour = f"{names[guess]} {probabilities[i, guess]:.0%}", "black"
        if labels is not None:
            wrong = guess != labels[i]
            colour = _WRONG if wrong else _RIGHT
            title += f"\nis {names[labels[i]]}" if wrong else ""
        axes.set_title(title, fontsize=8, color=colour)
    figure.savefig(out, dpi=120, format="png")
