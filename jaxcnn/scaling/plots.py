"""Pictures of the rows of `jaxcnn scaling`: throughput, memory, roofline, and bytes between the chips.

Each function draws the rows that have what it shows, writes a PNG where `out` is given, and returns the figure; where
no row has it, it returns None and writes nothing. Markers of what is predicted are hollow, of what is measured filled.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from jaxcnn.scaling.chips import CHIPS, sent_bytes
from jaxcnn.scaling.rows import Row, differences, is_measured, series, traits
from jaxcnn.training.hlo import KINDS

NAMES = ("throughput.png", "memory.png", "roofline.png", "wire.png")

# Okabe and Ito's colours, which colour-blind readers tell apart; markers and hatches go round at other lengths.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
_MARKERS = ("o", "s", "^", "D", "v")
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "--", "////")
_TOTAL = "total, its kinds unknown"
_MEMORY = ("parameters", "optimizer", "batch", "other", "activations", "temporaries", _TOTAL)
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))
_WIDTH = 9  # inches: 1080 pixels, a little more than a README's 900


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Write throughput.png, memory.png, roofline.png and wire.png into `folder`, those that have something to show."""
    a, b, c, d = paths = [folder / name for name in NAMES]
    figures = throughput(rows, a), memory(rows, b), roofline(rows, c), wire(rows, d)
    return [path for path, figure in zip(paths, figures, strict=True) if figure]


def throughput(rows: list[Row], out: Path | None = None) -> Figure | None:
    """Images/s of all chips, and efficiency in %, over the number of chips: intervals beside the ideal line."""
    drawn = [row for row in rows if interval(row, "images")]
    if not drawn:
        return None
    lines, said = (
        series(drawn),
        " and ".join(sorted({"measured" if is_measured(row) else "predicted" for row in drawn})),
    )
    figure = Figure(figsize=(_WIDTH, 4.6 + 0.2 * len(lines)), layout="constrained")
    total, efficiency = figure.subplots(1, 2)
    few, many = min(row["chips"] for row in drawn), max(row["chips"] for row in drawn)
    room = min(0.008, 0.004 * (len(lines) - 1))  # the intervals of two series may be the same: they stand side by side
    asides = max(many / few, 2) ** np.linspace(-room, room, len(lines))
    for style, (label, points) in enumerate(lines.items()):
        _intervals(total, points, "images", style, asides[style], label)
        _intervals(efficiency, points, "efficiency", style, asides[style], label)
        chips = np.array([points[0]["chips"], points[-1]["chips"]])
        ideal = interval(points[0], "images")[1] * chips / chips[0]  # from the high end, or the median
        total.plot(chips * asides[style], ideal, ":", color=_style(style)[0], gid="ideal", zorder=1)
    efficiency.axhline(100, ls=":", color="black", gid="ideal", zorder=1)
    total.set(title=f"throughput, {said}", ylabel=f"images/s of all chips, {said}", yscale="log")
    efficiency.set(title=f"efficiency, {said}", ylabel=f"efficiency, %, {said}")
    _log_ticks(total.yaxis)
    for axes in (total, efficiency):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="chips", xlim=(few * asides[0] / 1.2, many * asides[-1] * 1.2))
        axes.xaxis.set_major_formatter("{x:g}")
    ideal = Line2D([], [], ls=":", color="black", label="ideal: each chip as fast as with the fewest chips")
    left = len(rows) - len(drawn)
    missing = f"not drawn: {left} of {len(rows)} rows, whose images/s are unknown" if left else ""
    return _finish(figure, drawn, [*total.get_legend_handles_labels()[0], ideal], out, missing)


def memory(rows: list[Row], out: Path | None = None) -> Figure | None:
    """GiB on each chip, a bar for each row by kind, beside what a program may have there."""
    drawn = [row for row in rows if "hbm_bytes" in row and not is_measured(row)]
    if not drawn:
        return None
    parts = [row.get("memory") or ({_TOTAL: row["hbm_bytes"]} if row["hbm_bytes"] else None) for row in drawn]
    figure, axes, places = _bars(drawn, parts, _MEMORY, _UNITS[0])
    limits = [(row.get("hbm_limit_bytes") or 0) / 2**30 for row in drawn]
    for limit, y in zip(limits, places, strict=True):
        axes.plot([limit, limit], [y - 0.5, y + 0.5], color="black", lw=2, gid="limit", visible=limit > 0)
    axes.set_xlim(0, max(axes.get_xlim()[1], 1.05 * max(limits)))
    said = origin(drawn, "hbm_bytes")
    axes.set(title=f"memory of each chip, {said}", xlabel=f"GiB on each chip, {said}")
    limit = Line2D([], [], color="black", lw=2, label="what a program may have")
    return _finish(figure, drawn, [*axes.get_legend_handles_labels()[0], limit], out)


def wire(rows: list[Row], out: Path | None = None) -> Figure | None:
    """Bytes that each chip sends in a step, a bar for each row by kind of collective."""
    drawn = [row for row in rows if "collective_groups" in row and not is_measured(row)]
    parts = [sent(row) for row in drawn]
    most = max((sum(part.values()) for part in parts if part), default=0)
    if not most:
        return None
    unit = next(unit for unit in _UNITS if most >= unit[1] or unit[1] == 1)
    figure, axes, _ = _bars(drawn, parts, KINDS, unit)
    said = origin(drawn, "wire_bytes", "predicted")
    axes.set(title=f"bytes between the chips, {said}", xlabel=f"{unit[0]} that each chip sends in a step, {said}")
    return _finish(figure, drawn, axes.get_legend_handles_labels()[0], out)


def roofline(rows: list[Row], out: Path | None = None) -> Figure | None:
    """FLOP/s of a chip over FLOPs/byte: each chip's roof, each row's point on it, and the row's predicted interval.

    The point counts all bytes accessed; a pale line leads to where it would be with those of HBM alone. Of rows that
    differ in chips only, the one of the fewest is drawn: a roof knows no network. Rows of unknown chips are left out.
    """
    drawn = fewest([row for row in rows if row.get("intensity") and _roof(row)])
    if not drawn:
        return None
    own = [_roof(row) for row in drawn]
    kinds = list(dict.fromkeys(own))  # a TPU has one roof for both dtypes
    words = [textwrap.fill(label, 36) for label in differences(drawn, keep={"model"}, drop={"chips"})]
    step = 0.08 + 0.16 * (1 + max(label.count("\n") for label in words))  # inches a label
    high = max(3.5, step * len(words))
    figure = Figure(figsize=(_WIDTH, high + 1.9 + 0.1 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    points = [_on_roof(axes, row, roof, kinds.index(roof)) for row, roof in zip(drawn, own, strict=True)]
    bends = [peak / rate for _, peak, rate in kinds]
    left, right = min(axes.dataLim.xmin, *bends) / 2, max(axes.dataLim.xmax, *bends) * 2
    for style, (chip, peak, rate) in enumerate(kinds):
        name = f"{chip}: {peak / 1e12:.4g} TFLOP/s, {rate / 1e9:.4g} GB/s published"
        axes.plot([left, peak / rate, right], [left * rate, peak, peak], color=_style(style)[0], label=name, gid="roof")
    x, y = origin(drawn, "intensity"), origin(drawn, "predicted_images_per_sec_per_chip", "predicted")
    axes.set(xscale="log", yscale="log", xlim=(left, right), title=f"roofline: FLOPs/byte {x}, FLOP/s {y}")
    axes.set(xlabel=f"FLOPs/byte, {x}", ylabel=f"FLOP/s of a chip, {y}")
    _log_ticks(axes.xaxis)
    _log_ticks(axes.yaxis)
    _beside(axes, points, words, step / high)
    most = Line2D([], [], color="black", marker="o", mfc="white", ls="", label=f"{y}: roof, by all bytes accessed")
    reach = Line2D([], [], color="black", lw=6, alpha=0.25, label=f"{y}: roof, up to HBM's bytes alone")
    bar = Line2D([], [], color="black", marker="_", label=f"{y}: interval, with the network")
    return _finish(figure, drawn, [*axes.get_legend_handles_labels()[0], most, reach, bar], out)


def _intervals(axes: Axes, points: list[Row], what: str, style: int, aside: float, label: str) -> None:
    """Each point's interval as a bar: of a prediction between two hollow markers, of a measurement about its median."""
    known = [(row["chips"] * aside, ends) for row in points if (ends := interval(row, what))]
    chips, low, high = [n for n, _ in known], [ends[0] for _, ends in known], [ends[-1] for _, ends in known]
    colour, marker = _style(style)
    axes.vlines(chips, low, high, color=colour, lw=1.5, gid="interval")
    if is_measured(points[0]):
        axes.plot(chips, [ends[1] for _, ends in known], marker + "-", color=colour, lw=1, label=label)
    else:
        axes.fill_between(chips, low, high, color=colour, alpha=0.07, lw=0)
        axes.plot(chips * 2, low + high, marker, color=colour, mfc="white", ms=5, label=label)


def _bars(
    rows: list[Row], parts: Sequence[dict[str, float] | None], order: Sequence[str], unit: tuple[str, int]
) -> tuple[Figure, Axes, list[int]]:
    """A bar of stacked parts for each row, under its model's name, its sum beside it; and the place of each row."""
    words = [textwrap.fill(label, 48) for label in differences(rows, keep={"chips"}, drop={"model"})]
    ticks, places = [], [0] * len(rows)
    models = [traits(row)["model"] for row in rows]
    for model in dict.fromkeys(models):
        ticks.append(model)
        for i in (i for i, other in enumerate(models) if other == model):
            places[i] = len(ticks)
            ticks.append(words[i])
    height = 0.1 + 0.16 * (1 + max(label.count("\n") for label in words))
    figure = Figure(figsize=(_WIDTH, 2.2 + height * len(ticks)), layout="constrained")
    axes = figure.subplots()
    starts = np.zeros(len(rows))
    for style, kind in enumerate(dict.fromkeys([*order, *(kind for part in parts for kind in part or {})])):
        widths = np.array([(part or {}).get(kind, 0) / unit[1] for part in parts])
        if widths.any():
            bars = axes.barh(places, widths, 0.72, starts, color=_style(style)[0], ec="white", lw=0, label=kind)
            for bar in bars:
                bar.set_hatch(_HATCHES[style % len(_HATCHES)])
        starts += widths
    for row, part, y, total in zip(rows, parts, places, starts, strict=True):
        note = "unknown" if part is None else f"{total:.3g} {unit[0]}"
        note += ", does not fit" if row.get("fits") is False else ""
        axes.text(1.01, y, note, va="center", fontsize=9, transform=axes.get_yaxis_transform(), gid="sum")
    axes.set_yticks(range(len(ticks)), ticks, fontsize=9)
    for y in set(range(len(ticks))) - set(places):
        axes.get_yticklabels()[y].set_fontweight("bold")
    axes.set(ylim=(len(ticks) - 0.4, -0.6), xlim=(0, None))
    return figure, axes, places


def _roof(row: Row) -> tuple[Any, ...]:
    """Return the chip, its peak FLOP/s and its HBM's bytes/s; () if unknown."""
    chip = CHIPS.get(row.get("chip", ""))
    peak = chip and chip.flops.get(row["dtype"])
    return (row["chip"], peak.value, chip.memory_bandwidth.value) if chip and peak else ()


def _on_roof(axes: Axes, row: Row, roof: tuple[Any, ...], style: int) -> tuple[float, float]:
    """The row's interval as a bar, its reach along the roof, and its point there, whose place is returned."""
    (_, peak, rate), (colour, marker), x = roof, _style(style), row["intensity"]
    far = row["flops_per_image"] / (row.get("hbm_traffic_per_image") or row["bytes_per_image"])
    xs = np.array([x, np.clip(peak / rate, x, far), far])
    ys = np.minimum(peak, rate * xs)
    axes.plot(xs, ys, color=colour, lw=6, alpha=0.25, solid_capstyle="butt", gid="reach")
    if row.get("predicted_images_per_sec_per_chip"):
        ends = [images * row["flops_per_image"] for images in row["predicted_images_per_sec_per_chip"]]
        axes.plot([x, x], ends, "_-", color=colour, lw=1.5, ms=8, gid="interval")
    axes.plot(x, ys[0], marker, color=colour, mfc="white", gid="point", zorder=3)
    return x, ys[0]


def _beside(axes: Axes, points: list[tuple[float, float]], words: list[str], gap: float) -> None:
    """Writes the words on each point right of the axes, `gap` of their height apart, with a thin line to the point."""
    low, high = np.log(axes.get_ylim())
    order = sorted(range(len(words)), key=lambda i: (-points[i][1], -points[i][0]))  # so that no two lines cross
    places = (np.log([points[i][1] for i in order]) - low) / (high - low)
    for rank in range(1, len(order)):
        places[rank] = min(places[rank], places[rank - 1] - gap)
    places += max(0.0, -places[-1])
    leader = {"arrowstyle": "-", "color": "grey", "lw": 0.6, "shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)}
    for i, place in zip(order, places, strict=True):
        there = {"xytext": (1.03, place), "textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        axes.annotate(words[i], points[i], arrowprops=leader, fontsize=9, **there)


def origin(rows: list[Row], key: str, default: str = "compiled") -> str:
    """Return what the rows' labels call the figure `key`: compiled, predicted, measured, or several of these."""
    return " and ".join(sorted({row.get("labels", {}).get(key, default) for row in rows}))


def interval(row: Row, what: str) -> list[float]:
    """Return the low end, median if measured, and high end of the "images" a second of all chips, or "efficiency" in %.

    [] where it is unknown.
    """
    if is_measured(row):
        figures = row["measured_images_per_sec"] if what == "images" else row.get("measured_efficiency") or {}
        ends, scale = [figures.get(key) for key in ("min", "median", "max")], 1
    else:
        key = "predicted_images_per_sec_per_chip" if what == "images" else "predicted_efficiency"
        ends, scale = row.get(key) or [], row["chips"]
    return [(100 if what == "efficiency" else scale) * end for end in ends if end is not None]


def sent(row: Row) -> dict[str, float] | None:
    """Return, by kind of collective, the bytes that each chip sends for it in a step; None if unknown."""
    if row.get("wire_bytes") is None:
        return None
    found: dict[str, float] = {}
    for group in row["collective_groups"]:
        kind, each = group["kind"], sent_bytes(group["kind"], group["bytes"], group["group_size"], group["spans"])
        found[kind] = found.get(kind, 0) + group["count"] * each
    return found


def common(rows: list[Row]) -> str:
    """Return the traits that all rows share."""
    first, *others = [traits(row) for row in rows]
    return ", ".join(word for key, word in first.items() if all(words.get(key) == word for words in others))


def fewest(rows: list[Row]) -> list[Row]:
    """Return, of rows that differ only in chips and batch, those of the fewest chips."""
    groups: dict[str, list[Row]] = {}
    for row, label in zip(rows, differences(rows, drop={"chips", "batch"}), strict=True):
        groups.setdefault(label, []).append(row)
    return [row for group in groups.values() for row in group if row["chips"] == min(r["chips"] for r in group)]


def _style(i: int) -> tuple[str, str]:
    """Colour and marker of the series `i`."""
    return _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]


def _log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of each decade where these are few, with SI prefixes."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def _finish(figure: Figure, rows: list[Row], handles: list[Artist], out: Path | None, missing: str = "") -> Figure:
    """The figure with what its rows have in common above it and the legend below it, written as PNG."""
    for axes in figure.axes:
        axes.grid(alpha=0.3, axis="x" if axes.containers else "both")
        axes.set_axisbelow(True)
    figure.suptitle("\n".join(textwrap.wrap(common(rows), 100)), fontsize=10)
    names = [textwrap.fill(str(handle.get_label()), 110) for handle in handles]
    style = {"ncols": 2 if max(map(len, names)) < 60 else 1, "fontsize": 9, "title_fontsize": 9}
    figure.legend(handles, names, loc="outside lower center", title=missing, **style)
    if out:
        figure.savefig(out, dpi=120, format="png")
    return figure
