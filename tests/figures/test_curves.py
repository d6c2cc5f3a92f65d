"""The curves of runs: which scores are drawn, and on what axes."""

from typing import Any

import numpy as np

from jaxcnn.figures.curves import curves
from jaxcnn.tasks.base import Headline

HEADLINE = (
    Headline("loss", "{:.4f}", "nats"),
    Headline("elbo", "{:.1f}", "ELBO, nats"),
    Headline("miou", "{:.2%}", "1 - mean IoU, %", error=True),
    Headline("images", "{:.0f}"),
)
LINES: list[dict[str, Any]] = [
    {"step": 5, "epoch": 1.0, "train/loss": 2.0},
    {"step": 5, "epoch": 1.0, "eval/loss": 1.5, "eval/elbo": -90.0, "eval/miou": 0.25, "eval/images": 9},
    {"step": 9, "epoch": 2.0, "eval/loss": 1.0, "eval/elbo": -80.0, "eval/miou": 0.5, "eval/images": 9},
]


def test_each_score_with_an_axis_has_a_panel_and_each_run_a_curve(tmp_path):
    figure = curves({"one": LINES, "two": LINES[:2]}, HEADLINE, tmp_path / "a.png")
    loss, elbo, miou = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["nats", "ELBO, nats", "1 - mean IoU, %"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "symlog"]  # a negative score has no log
    train, one, _, two = (np.asarray(line.get_xydata()).tolist() for line in loss.lines)
    assert (train, one, two) == ([[1, 2]], [[1, 1.5], [2, 1]], [[1, 1.5]])
    assert np.asarray(elbo.lines[1].get_xydata()).tolist() == [[1, -90], [2, -80]]
    assert np.asarray(miou.lines[1].get_xydata()).tolist() == [[1, 75], [2, 50]]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
