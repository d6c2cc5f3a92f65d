"""The curves of runs: which scores are drawn, and on what axes."""

from typing import Any

import numpy as np
import pytest

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
    assert [axes.get_yscale() for axes in figure.axes] == ["linear"] * 3  # no score spans much
    train, one, _, two = (np.asarray(line.get_xydata()).tolist() for line in loss.lines)
    assert (train, one, two) == ([[1, 2]], [[1, 1.5], [2, 1]], [[1, 1.5]])
    assert np.asarray(elbo.lines[1].get_xydata()).tolist() == [[1, -90], [2, -80]]
    assert np.asarray(miou.lines[1].get_xydata()).tolist() == [[1, 75], [2, 50]]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [text.get_text() for text in miou.texts] == ["50.00", "75.00"]


def lines(*scores: float) -> list[dict[str, Any]]:
    return [{"step": i, "epoch": float(i), "eval/miou": 1 - score / 100} for i, score in enumerate(scores, 1)]


def test_runs_that_differ_in_the_seed_are_a_mean_with_a_band_and_end_in_their_mean_and_sd(tmp_path):
    runs = {"a": lines(80, 30, 9), "b": lines(60, 20, 5), "c": lines(70, 25, 7, 6), "other": lines(50, 40)}
    (axes,) = curves(runs, [HEADLINE[2]], tmp_path / "a.png", [["a", "b", "c"]]).axes
    _, mean, _, other = (np.asarray(line.get_xydata()) for line in axes.lines)
    np.testing.assert_allclose(mean, [[1, 70], [2, 25], [3, 7]])  # where all three have a score
    np.testing.assert_allclose(other, [[1, 50], [2, 40]])
    (band,) = axes.collections
    corners = np.asarray(band.get_paths()[0].vertices)
    np.testing.assert_allclose([corners[corners[:, 0] == 3, 1].min(), corners[:, 1].max()], [5, 80])
    assert {text.get_text() for text in axes.texts} == {"7.00 ± 2.00", "40.00"}


@pytest.mark.parametrize(
    ("scores", "scale", "ticks"),
    [
        ((90, 30, 6.5), "log", ["5", "10", "20", "50", "100"]),
        ((90, 3, 0), "symlog", ["0", "2", "5", "10", "20", "50", "100"]),
        ((9, 7, 6), "linear", []),
    ],
)
def test_errors_have_an_axis_on_which_they_can_be_read(scores, scale, ticks, tmp_path):
    figure = curves({"run": lines(*scores)}, [HEADLINE[2]], tmp_path / "a.png")
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    shown = [x.get_text() for x in axes.get_yticklabels() if low <= x.get_position()[1] <= high]
    assert axes.get_yscale() == scale
    assert len(shown) >= 4
    assert not ticks or shown == ticks


def test_final_values_that_are_alike_are_not_written_upon_one_another(tmp_path):
    figure = curves({str(i): lines(50, 10 + i / 100) for i in range(4)}, [HEADLINE[2]], tmp_path / "a.png")
    figure.draw_without_rendering()
    heights = sorted(text.get_window_extent().y0 for text in figure.axes[0].texts)
    assert min(np.diff(heights)) >= 0.9 * (figure.axes[0].texts[0].get_window_extent().height - 2)
