"""Draw which classes are taken for which: a confusion matrix, and the worst mistakes below it.

As `overlays`, it needs NumPy and matplotlib only: a task draws with it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcnn.figures.overlays import shorten, show

MISTAKES = 12  # images in the strip
_SHOWN = 20  # classes in the matrix, at most
_ROW = 6  # images side by side


def confusion(
    matrix: np.ndarray, names: Sequence[str], images: Sequence[np.ndarray], captions: Sequence[str]
) -> Figure:
    """Draw the matrix and the mistakes.

    Where there are many classes, those of the most frequent confusions are shown, each beside the one it is taken for;
    the last column counts all other predictions. A colour is a share of its row: green where right, red elsewhere.

    Args:
      matrix: int (classes, classes), [true, predicted] -> number of examples.
      images: uint8 (H, W, C) of the worst mistakes, at most `MISTAKES` of them; sizes may differ.
      captions: a text for each image.
    """
    shown = _most_confused(matrix) if len(names) > _SHOWN else list(range(len(names)))
    strips = -(-len(images) // _ROW)
    side, strip = 0.42 * max(len(shown), 8) + 2.0, 1.75
    width, below = max(side, 1.55 * _ROW), max(strips, 0.3) * strip
    figure = Figure(figsize=(width, side + below), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[side, below])
    above, under = parts
    axes = above.subplots()
    _matrix(axes, matrix, shown, names)
    correct, total = int(np.trace(matrix)), int(matrix.sum())
    some = f"; the {len(shown)} classes most confused of {len(names)}" if len(shown) < len(names) else ""
    axes.set_title(f"{total - correct:,} of {total:,} are wrong{some}\ncoloured by the share of the row", fontsize=10)
    title = "the mistakes of the highest probability: #example (probability): what was predicted, what it is"
    under.suptitle(title if len(images) else "no mistakes", fontsize=10)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        cell = under.add_subplot(strips, _ROW, i + 1)
        cell.axis("off")
        show(cell, image, "")
        lines = (shorten(line, 26) for line in caption.split("\n"))
        cell.set_title("\n".join(lines), fontsize=8, pad=3, parse_math=False)
    return figure


def _most_confused(matrix: np.ndarray) -> list[int]:
    """Return the classes of the most frequent confusions, the most frequent one first."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    chosen: list[int] = []
    for place in np.argsort(-wrong, axis=None, kind="stable"):
        true, predicted = divmod(int(place), len(wrong))
        new = [c for c in (true, predicted) if c not in chosen]
        if not wrong[true, predicted] or len(chosen) + len(new) > _SHOWN:
            break
        chosen += new
    return chosen or list(range(_SHOWN))


def _matrix(axes: Axes, matrix: np.ndarray, shown: Sequence[int], names: Sequence[str]) -> None:
    """Draw rows and columns `shown`, and a column of all others where some are left out."""
    counts, labels = matrix[np.ix_(shown, shown)], [shorten(names[c], 18) for c in shown]
    columns = labels
    if len(shown) < len(names):
        rest = matrix[shown].sum(1) - counts.sum(1)
        counts, columns = np.column_stack([counts, rest]), [*labels, "any other"]
    shares = counts / np.maximum(matrix[shown].sum(1), 1)[:, None]
    right = np.eye(*counts.shape, dtype=bool)
    most = max(shares[~right].max(initial=0), 1e-9)
    colours = np.where(right[..., None], colormaps["Greens"](0.7 * shares), colormaps["Reds"](0.7 * shares / most))
    colours[counts == 0] = 1.0  # white, where the palettes begin with a tint
    axes.imshow(colours)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7 if count < 1000 else 5.5)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8, parse_math=False)
    axes.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
