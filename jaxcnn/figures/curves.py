"""Draw the scores of runs over epochs: one curve a run, or one with a band for runs that differ in their seed alone."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from jaxcnn.tasks.base import Headline

Lines = Sequence[Mapping[str, Any]]  # the lines of a metrics.jsonl
_LOG_FROM = 8.0  # ratio of the largest to the smallest value from which on an axis is logarithmic
_ROOM, _LABEL = 9, 60  # points between the labels of two final values, and of the length of one


class _Curve(NamedTuple):
    """The mean of one or several runs, and their sample standard deviation (n - 1), 0 of one run."""

    epochs: list[float]
    means: list[float]
    spreads: list[float]


def curves(
    runs: Mapping[str, Lines], headline: Sequence[Headline], out: Path, seeds: Sequence[Sequence[str]] = ()
) -> Figure:
    """Draw a panel for each score that has an axis, as PNG: training thin, evaluation thick, one colour a run.

    The last value of each evaluation curve stands at its end. Errors are drawn as 1 - score, in %. An axis is
    logarithmic where its values are positive and span a factor of 8, and its ticks are at 1, 2, 5, 10, 20, …

    Args:
      runs: name of each run -> its lines of metrics.jsonl.
      headline: what a task shows.
      seeds: names of runs that differ in their seed alone: they are drawn as one, mean ± sd where all have a value.
    """
    drawn = [score for score in headline if score.axis] or [Headline("loss", "loss {:.4f}", "loss")]
    together = {name: group for group in seeds for name in group}
    groups = list(dict.fromkeys(tuple(together.get(name, (name,))) for name in runs))
    figure = Figure(figsize=(5.8 * len(drawn), 4.2), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        ends, values = [], []
        for i, names in enumerate(groups):
            for phase, style in (("train", {"lw": 1, "alpha": 0.5}), ("eval", {"lw": 2, "marker": ".", "ms": 5})):
                curve = _curve([runs[name] for name in names], f"{phase}/{score.name}", score.error)
                several = f"{names[0]} … {names[-1]}: mean ± sd of {len(names)} seeds"
                label = {"label": names[0] if len(names) == 1 else several} if phase == "eval" else {}
                axes.plot(curve.epochs, curve.means, color=f"C{i}", **style, **label)
                if any(curve.spreads):
                    low, high = ([m + sign * s for m, s in zip(*curve[1:], strict=True)] for sign in (-1, 1))
                    axes.fill_between(curve.epochs, low, high, color=f"C{i}", alpha=style.get("alpha", 0.8) / 4, lw=0)
                values += curve.means
                if phase == "eval" and curve.epochs:
                    ends.append((f"C{i}", *(part[-1] for part in curve), len(names) > 1))
        title = score.axis.partition(",")[0] if score.error else score.name
        axes.set(xlabel="epoch", ylabel=score.axis, title=title)
        _scale(axes, values)
        _label(figure, axes, ends, 2 if score.error else 4)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(title="thick: evaluation, thin: training", fontsize=8, title_fontsize=8)
    figure.savefig(out, dpi=120, format=out.suffix[1:].lower() or "png")
    return figure


def _curve(runs: Sequence[Lines], key: str, error: bool) -> _Curve:
    """Return the mean of a score at each epoch at which all runs have it."""
    points = [{line["epoch"]: line[key] for line in lines if line.keys() >= {"epoch", key}} for lines in runs]
    epochs = sorted(set(points[0]).intersection(*points[1:]))
    heights = [[100 * (1 - run[epoch]) if error else run[epoch] for run in points] for epoch in epochs]
    spreads = [statistics.stdev(row) if len(row) > 1 else 0.0 for row in heights]
    return _Curve(epochs, [statistics.fmean(row) for row in heights], spreads)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Make the axis logarithmic where the finite values span enough for it, with ticks that can be read between."""
    finite = [value for value in values if math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    if not positive or min(finite) < 0 or max(positive) < _LOG_FROM * min(positive):
        return
    low, high = min(positive), max(positive)
    steps = (1, 2, 5) if high < 1e4 * low else (1,)  # Of many decades the powers of ten are enough.
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    first = max((tick for tick in ticks if tick <= low), default=low)
    last = min((tick for tick in ticks if tick >= high), default=high)
    ticks = [tick for tick in ticks if first <= tick <= last]
    if min(finite) == 0:  # Zero has a place below the least error, on a linear stretch.
        axes.set_yscale("symlog", linthresh=low, linscale=0.5)
        axes.set_ylim(0, last * 1.05)
        ticks = [0.0, *ticks]
    else:
        axes.set_yscale("log")
        axes.set_ylim(first / 1.05, last * 1.05)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _label(figure: Figure, axes: Axes, ends: Sequence[tuple[str, float, float, float, bool]], decimals: int) -> None:
    """Write the last values of curves at their ends, moved apart where they would lie upon one another.

    Args:
      ends: colour, epoch, mean and standard deviation of each, and whether it is of several runs.
      decimals: of the values; they have at least three digits.
    """
    figure.draw_without_rendering()  # The layout says how many points apart two values are.
    points = 72 / figure.dpi
    below: dict[int, float] = {}  # column of labels -> height of the highest one yet
    for colour, epoch, mean, spread, several in sorted(ends, key=lambda end: end[2]):
        if not math.isfinite(mean):
            continue
        x, y = axes.transData.transform((epoch, mean)) * points
        column = int(x // _LABEL)
        below[column] = max(y, below.get(column, -math.inf) + _ROOM)
        digits = decimals if abs(mean) < 100 else 1
        words = f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if several else "")
        axes.annotate(
            words, (epoch, mean), xytext=(5, below[column] - y), textcoords="offset points", va="center", fontsize=8,
            color=colour, annotation_clip=False, bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5},
        )  # fmt: skip
