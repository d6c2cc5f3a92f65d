"""Pictures of runs: curves over steps."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


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
            points = [line for line in lines if line.keys() >= {"epoch", f"{phase}/loss", f"{phase}/top1"}]
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
