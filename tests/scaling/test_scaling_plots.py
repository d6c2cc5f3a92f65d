"""What the pictures of `jaxcnn scaling` hold, read off their artists."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image
from scaling_rows import FLOPS, GIB, INTENSITY, ROOFS, forty, measured, predicted, unfit

from jaxcnn.scaling.chips import wire_bytes
from jaxcnn.scaling.plots import draw, memory, roofline, throughput, wire

PICTURES = {"throughput": throughput, "memory": memory, "roofline": roofline, "wire": wire}
pictures = pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)


def made(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def lines(axes: Axes, name: str) -> list[np.ndarray]:
    """The points (n, 2) of each line of that name."""
    return [np.asarray(line.get_xydata()) for line in axes.lines if line.get_gid() == name and line.get_visible()]


def spans(axes: Axes) -> np.ndarray:
    """Low and high end of each interval, (n, 2), series after series."""
    found = [c for c in axes.collections if isinstance(c, LineCollection) and c.get_gid() == "interval"]
    return np.array([np.asarray(segment)[:, 1] for c in found for segment in c.get_segments()])


def bars(axes: Axes) -> dict[str, dict[float, float]]:
    """Kind -> place -> width of its bar."""
    stacks = [c for c in axes.containers if isinstance(c, BarContainer)]
    return {
        str(stack.get_label()): {
            bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in stack if bar.get_width()
        }
        for stack in stacks
    }


def notes(axes: Axes) -> list[str]:
    """What is written beside the bars, row after row."""
    return [text.get_text() for text in axes.texts if text.get_gid() == "sum"]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def test_a_row_of_each_kind_gives_pngs_with_something_on_them(tmp_path):
    paths = draw([predicted(), measured()], tmp_path)
    assert [path.name for path in paths] == ["throughput.png", "memory.png", "roofline.png", "wire.png"]
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert path.read_bytes().startswith(b"\x89PNG")
        assert pixels.shape[1] == 1080
        assert 0.01 < (pixels != 255).any(-1).mean() < 0.9


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([], []),
        ([measured()], ["throughput.png"]),
        ([predicted(chips=1)], ["throughput.png", "memory.png", "roofline.png"]),
        ([unfit(2e10), unfit(None)], ["memory.png"]),
    ],
    ids=["nothing", "measured", "one chip", "unfit"],
)
def test_what_has_nothing_to_show_is_not_drawn(tmp_path, rows, names):
    assert [path.name for path in draw(rows, tmp_path)] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pictures
def test_rows_of_little_known_are_no_error(picture: Callable, tmp_path: Path):
    bare = {"predicted_efficiency": None, "labels": {}, "hbm_limit_bytes": None, "fits": None}
    figure = made(picture([predicted(**bare), unfit(None), measured(measured_efficiency=None)]))
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


LONG = {"norm.scope": "shard", "optimizer.name": "lars", "optimizer.learning_rate": 0.025, "mesh.model": 4}
EIGHT = [predicted(chips=2**i, variant=LONG if i % 2 else {}, batch=1024 / 2**i) for i in range(1, 9)]


@pytest.mark.parametrize("rows", [[predicted(chips=4)], EIGHT, forty()], ids=len)
@pictures
def test_nothing_written_covers_anything_else(picture: Callable, rows: list):
    figure = made(picture(rows))
    figure.draw_without_rendering()
    texts = [*figure.findobj(Annotation), *(text for axes in figure.axes for text in axes.texts if text.get_gid())]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [Text.get_window_extent(text) for text in texts if text.get_text()]  # without an annotation's line
    boxes = [box.padded(-1) for box in [*boxes, *(legend.get_window_extent() for legend in figure.legends)]]
    assert len(boxes) > 6
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(box.xmin >= 0 and box.xmax <= figure.bbox.xmax and box.ymin >= 0 for box in boxes)
    places = [axes.get_window_extent() for axes in figure.axes]
    assert not [1 for legend in figure.legends for place in places if legend.get_window_extent().overlaps(place)]
    assert min(place.width for place in places) > 0.3 * figure.bbox.width


def test_a_prediction_never_looks_measured():
    both = made(throughput([predicted(), measured()]))
    for axes in both.axes:
        assert "measured and predicted" in axes.get_title()
        assert "measured and predicted" in axes.get_ylabel()
        faces = {
            str(line.get_label()): line.get_markerfacecolor() for line in axes.lines if ":" in str(line.get_label())
        }
        assert {label.split(":")[0]: face == "white" for label, face in faces.items()} == {
            "predicted": True,
            "measured, on simulated devices": False,
        }
    for picture, said in ((memory, "compiled"), (wire, "predicted"), (PICTURES["roofline"], "predicted")):
        axes = made(picture([predicted()])).axes[0]
        assert said in axes.get_title()
        assert said in axes.get_xlabel() + axes.get_ylabel()
    assert "measured" not in " ".join(words(made(throughput([predicted()]))))


def test_throughput_holds_the_intervals_and_the_ideal_line():
    rows = [predicted(chips=n) for n in (4, 8, 64)]
    total, efficiency = made(throughput(rows)).axes
    rates = np.array([row["predicted_images_per_sec_per_chip"] for row in rows])
    np.testing.assert_allclose(spans(total), rates * [[4], [8], [64]])
    np.testing.assert_allclose(spans(efficiency), [[98, 100]] * 3)
    np.testing.assert_allclose(lines(total, "ideal"), [[[4, 4 * rates[0, 1]], [64, 64 * rates[0, 1]]]])
    assert {y for _, y in lines(efficiency, "ideal")[0]} == {100}


def test_a_measurement_spans_its_extremes_about_its_median():
    axes = made(throughput([measured(4, 100.0), measured(8, 180.0)])).axes[0]
    np.testing.assert_allclose(spans(axes), [[80, 110], [144, 198]])
    (median,) = [line for line in axes.lines if "measured" in str(line.get_label())]
    np.testing.assert_allclose(np.asarray(median.get_xydata()), [[4, 100], [8, 180]])
    np.testing.assert_allclose(lines(axes, "ideal"), [[[4, 100], [8, 200]]])


def test_series_with_the_same_figures_stand_side_by_side():
    axes = made(
        throughput([predicted(chips=n, variant=v) for v in ({}, {"norm.scope": "shard"}) for n in (4, 8)])
    ).axes[0]
    points = np.concatenate([c.get_segments() for c in axes.collections if isinstance(c, LineCollection)])[:, 0, 0]
    assert len(set(points.round(3))) == 4
    np.testing.assert_allclose(points, [4, 8, 4, 8], rtol=0.05)


def test_rows_left_out_of_a_picture_are_counted():
    assert "not drawn: 2 of 3 rows, whose images/s are unknown" in words(
        made(throughput([predicted(), unfit(None), unfit(2e10)]))
    )


def test_bars_of_memory_are_the_kinds_bytes_beside_the_limit():
    rows = [predicted(), predicted(model="vgg16", chip="h100"), predicted(batch=64.0)]
    axes = made(memory(rows)).axes[0]
    places = {0: 1, 2: 2, 1: 4}  # rows of one model together, its name above them
    found = bars(axes)
    for i, place in places.items():
        for kind, nbytes in rows[i]["memory"].items():
            assert found[kind][place] * GIB == pytest.approx(nbytes)
    assert [label.get_text() for label in axes.get_yticklabels()][::3] == ["resnet50_tv", "vgg16"]
    limits = {np.mean(points[:, 1]): points[0, 0] for points in lines(axes, "limit")}
    assert limits == {1: 15.75, 2: 15.75, 4: 78}
    assert axes.get_xlim()[1] > 78


def test_what_does_not_fit_is_marked_and_drawn_as_far_as_it_is_known():
    rows = [predicted(), unfit(2e11, batch=1024), unfit(None, batch=4096), predicted(batch=512.0)]
    axes = made(memory(rows)).axes[0]
    found = bars(axes)
    assert found["total, its kinds unknown"] == {2: pytest.approx(2e11 / GIB)}
    assert found["parameters"].keys() == {1, 4}
    total = next(c for c in axes.containers if c.get_label() == "total, its kinds unknown")
    assert all(bar.get_hatch() for bar in total if bar.get_width())
    assert [note.split(", ")[1:] for note in notes(axes)] == [[]] + 3 * [["does not fit"]]
    assert notes(axes)[1:3] == ["186 GiB, does not fit", "unknown, does not fit"]


def test_bars_of_the_wire_are_what_each_chip_sends():
    rows = [predicted(chips=1), predicted(chips=4), unfit(None)]
    axes = made(wire(rows)).axes[0]
    assert bars(axes) == {
        "all-reduce": {2: pytest.approx(wire_bytes("all-reduce", 100.2e6, 4) / 2**20)},
        "all-gather": {2: pytest.approx(wire_bytes("all-gather", 4e6, 4) / 2**20)},
    }
    assert "MiB" in axes.get_xlabel()
    assert notes(axes) == ["0 MiB", "146 MiB", "unknown, does not fit"]


def test_points_stand_on_their_roofs_with_the_predicted_interval_below():
    rows = [predicted(m, c, n) for m in FLOPS for c in ("v5e", "h100") for n in (8, 4)]
    axes = made(roofline(rows)).axes[0]
    few = [row for row in rows if row["chips"] == 4]
    roofs = [ROOFS[row["chip"], "bfloat16"] for row in few]
    on = [
        [INTENSITY[r["model"]], min(peak, INTENSITY[r["model"]] * rate)]
        for r, (peak, rate) in zip(few, roofs, strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(lines(axes, "point")), on)
    ends = [[end * r["flops_per_image"] for end in r["predicted_images_per_sec_per_chip"]] for r in few]
    np.testing.assert_allclose([points[:, 1] for points in lines(axes, "interval")], ends)
    for points, (peak, rate), row in zip(lines(axes, "reach"), roofs, few, strict=True):
        np.testing.assert_allclose(points[[0, -1], 0], [INTENSITY[row["model"]], 2 * INTENSITY[row["model"]]])
        np.testing.assert_allclose(points[:, 1], np.minimum(peak, rate * points[:, 0]))
    peaks = [points[-1, 1] for points in lines(axes, "roof")]
    assert peaks == [197e12, 989.4e12]
    named = {text.get_text(): text.xy for text in axes.texts if isinstance(text, Annotation)}
    assert named["vgg16, h100"] == tuple(on[[(r["model"], r["chip"]) for r in few].index(("vgg16", "h100"))])
    assert len(named) == 8


def test_a_gpu_has_a_roof_for_each_dtype_and_a_chip_of_none_is_left_out():
    rows = [predicted(chip="h100", dtype=dtype) for dtype in ("bfloat16", "float32")]
    unknown = predicted() | {"chip": "v99"}
    axes = made(roofline([*rows, unknown])).axes[0]
    assert [points[-1, 1] for points in lines(axes, "roof")] == [989.4e12, 494.7e12]
    assert roofline([unknown, predicted(dtype="bfloat16") | {"dtype": "float8"}]) is None
