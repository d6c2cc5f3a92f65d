"""Draw the scores of runs over epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxcnn.tasks.base import Headline


def curves(runs: dict[str, list[dict[str, Any]]], headline: Sequence[Headline], out: Path) -> Figure:
    """Draw a panel for each score that has an axis, as PNG: training thin, evaluation thick, one colour a run.

    Args:
      runs: name of each run -> its lines of metrics.jsonl.
      headline: what a task shows. Errors are drawn as 1 - score, in %; other scores, where all are positive, on a log
        scale.
    """
    drawn = [score for score in headline if score.axis] or [Headline("loss", "loss {:.4f}", "loss")]
    figure = Figure(figsize=(5.5 * len(drawn), 4.2), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        positive = True
        for i, (name, lines) in enumerate(runs.items()):
            thin, thick = {"lw": 1, "alpha": 0.5}, {"lw": 2, "marker": ".", "label": name}
            for phase, style in (("train", thin), ("eval", thick)):
                key = f"{phase}/{score.name}"
                points = [(line["epoch"], line[key]) for line in lines if line.keys() >= {"epoch", key}]
                heights = [100 * (1 - value) if score.error else value for _, value in points]
                positive &= all(height > 0 for height in heights)
                axes.plot([epoch for epoch, _ in points], heights, color=f"C{i}", **style)
        axes.set(xlabel="epoch", ylabel=score.axis, title=score.axis.partition(",")[0] if score.error else score.name)
        if score.error:
            axes.set(yscale="symlog", ylim=(0, None))
            axes.yaxis.set_major_formatter("{x:g}")
        elif positive:
            axes.set(yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(title="thick: evaluation, thin: training", fontsize=8, title_fontsize=8)
    figure.savefig(out, dpi=120, format=out.suffix[1:].lower() or "png")
    return figure
