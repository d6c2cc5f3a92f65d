"""Present the rows of `jaxcnn scaling` as JSON, CSV, Markdown, pictures and lines of a terminal."""

import csv
import io
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxcnn.safe_files import write_atomically
from jaxcnn.scaling import plots
from jaxcnn.scaling.ahead_of_time import plugins
from jaxcnn.scaling.chips import CHIPS
from jaxcnn.scaling.rows import Row, differences, is_measured, series
from jaxcnn.text_table import text_table
from jaxcnn.training.run_log import commit

_GIB = 2**30


def as_csv(rows: Sequence[Row]) -> str:
    """Return one line a row; a column's name says what its figures are, lists and tables are spread over columns."""
    flat = [dict(_flat(row)) for row in rows]
    columns = list(dict.fromkeys(column for line in flat for column in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(row: Row) -> Iterable[tuple[str, Any]]:
    for key, value in row.items():
        said = f" [{row['labels'][key]}]" if key in row.get("labels", {}) else ""
        if key in ("labels", "collective_groups", "published"):
            continue
        if key == "notes":
            yield key, "; ".join(value)
        elif isinstance(value, dict):
            for name, inner in value.items():
                if isinstance(inner, dict):
                    yield from ((f"{key} {name} {what}{said}", number) for what, number in inner.items())
                elif not isinstance(inner, list):
                    yield f"{key} {name}{said}", inner
        elif isinstance(value, list):
            yield from ((f"{key} {end}{said}", number) for end, number in zip(("low", "high"), value, strict=True))
        else:
            yield key + said, value


def as_markdown(rows: Sequence[Row], title: str, about: str, pictures: Sequence[str] = ()) -> str:
    """Return what was compiled, what is predicted, how that compares with what was published, and the figures used."""
    compiled, timed = ([row for row in rows if is_measured(row) is run] for run in (False, True))
    parts = [f"# {title}", about.strip(), _made()]
    parts += [f"![{name}]({name})" for name in pictures]
    if compiled:
        notes = [f"{note}." for note in _notes(compiled)]
        parts += ["## Compiled", " ".join([_COMPILED_WORDS, *notes]), _table(compiled, _COMPILED)]
        parts += ["## Predicted", _PREDICTED_WORDS, _table(compiled, _PREDICTED)]
    if timed:
        parts += ["## Measured", *_notes(timed), _table(timed, _MEASURED)]
    if published := [row for row in compiled if row.get("published")]:
        parts += ["## Predicted against published", _validation(published)]
    if any(row.get("collective_groups") for row in rows):
        parts += ["## Collectives (compiled)", _collectives(rows)]
    if chips := list(dict.fromkeys(row["chip"] for row in compiled)):
        parts += ["## Ceilings and their sources", *(_ceilings(chip) for chip in chips)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _notes(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(note for row in rows for note in row["notes"]))


_COMPILED_WORDS = "The step that `jaxcnn train` runs, compiled by XLA for each slice; no such device was there."
_PREDICTED_WORDS = (
    "Not measured. Intervals: from no overlap of arithmetic, memory and network, each at its ceiling, to full overlap. "
    "Efficiency is images/s a chip against the fewest chips of the same series."
)


def _number(value: float | None, unit: float = 1, digits: int = 0) -> str:
    return "–" if value is None else f"{value / unit:,.{digits}f}"


def _interval(values: Sequence[float] | None, unit: float = 1, digits: int = 0) -> str:
    return "–" if not values else "–".join(_number(value, unit, digits) for value in values)


def _memory(*kinds: str) -> Callable[[Row], str]:
    return lambda row: _number(sum(row["memory"][kind] for kind in kinds) if row["memory"] else None, _GIB, 2)


def _fits(row: Row) -> str:
    over = (row["hbm_bytes"] - row["hbm_limit_bytes"]) / _GIB
    return "yes" if row["fits"] else f"**no**, by {over:.2f}"


def _figure(key: str, unit: float = 1, digits: int = 0, show: Callable[..., str] = _number) -> Callable[[Row], str]:
    return lambda row: show(row[key], unit, digits)


def _each(key: str, words: Callable[[str, float], str]) -> Callable[[Row], str]:
    return lambda row: ", ".join(words(kind, figure) for kind, figure in row[key].items()) or "–"


def _spread(values: dict[str, Any], unit: float, digits: int) -> str:
    median, low, high = (_number(values[key], unit, digits) for key in ("median", "min", "max"))
    return f"{median} ({low}–{high})"


# Tables: the head of each column -> its cell of a row.
_Columns = dict[str, Callable[[Row], str]]
_PLACE: _Columns = {
    "slice": lambda row: row["topology"],
    "chips": lambda row: f"{row['chips']:,}",
    "a chip": lambda row: f"{row['batch_per_chip']:g}",
}
_COMPILED: _Columns = _PLACE | {
    "GFLOP an image": _figure("flops_per_image", 1e9, 2), "MB accessed": _figure("bytes_per_image", 1e6, 1),
    "of it HBM": _figure("hbm_traffic_per_image", 1e6, 1), "FLOP/byte": _figure("intensity", 1, 1),
    "parameters, GiB": _memory("parameters"), "optimizer": _memory("optimizer"),
    "batch, other": _memory("batch", "other"), "activations": _memory("activations"),
    "temporaries": _memory("temporaries"), "peak": _figure("hbm_bytes", _GIB, 2),
    "of": _figure("hbm_limit_bytes", _GIB, 2), "fits": _fits, "compile s": _figure("compile_seconds"),
}  # fmt: skip
_PREDICTED: _Columns = _PLACE | {
    "images/s a chip": _figure("predicted_images_per_sec_per_chip", show=_interval),
    "efficiency, %": _figure("predicted_efficiency", 0.01, 1, _interval),
    "step, ms": _figure("predicted_step_seconds", 1e-3, 2, _interval),
    "compute, ms": _figure("compute_seconds", 1e-3, 2), "memory, ms": _figure("memory_seconds", 1e-3, 2),
    "HBM alone": _figure("hbm_seconds", 1e-3, 2), "network, ms": _figure("network_seconds", 1e-3, 3),
    "of it latency": _figure("latency_seconds", 1e-3, 3), "MB sent": _figure("wire_bytes", 1e6, 2),
    "bound": lambda row: row["bound"] or "–",
}  # fmt: skip
_MEASURED: _Columns = _PLACE | {
    "images/s": _figure("measured_images_per_sec", 1, 1, _spread),
    "efficiency, %": _figure("measured_efficiency", 0.01, 1, _spread),
    "step, ms": _figure("measured_step_seconds", 1e-3, 1, _spread),
    "collectives, ms a step": _each("collective_seconds", lambda kind, time: f"{kind} {_number(time, 1e-3, 2)}"),
    "collectives that ran": _each("collective_counts", lambda kind, count: f"{count:g} × {kind}"),
}


def _table(rows: Sequence[Row], columns: _Columns) -> str:
    names = differences(list(rows), drop={"chips", "batch", "chip"})
    names = ["" if name == "as configured" else name for name in names]
    named = any(names)
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    body = [[name, *line] if named else line for name, line in zip(names, cells, strict=True)]
    return _markdown(["what"] * named + list(columns), body)


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table; columns whose cells begin with a digit are set to the right."""
    right = [all(row[i][:1].isdigit() or row[i] == "–" for row in body) for i in range(len(head))]
    lines = [head, ["--:" if is_right else "---" for is_right in right], *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _collectives(rows: Sequence[Row]) -> str:
    body = []
    for name, row in zip(differences(list(rows), drop={"batch", "chip", "chips"}), rows, strict=True):
        groups: dict[tuple[str, int, int], list[int]] = {}
        for entry in row.get("collective_groups", ()):
            kind = f"{entry['kind']}, between slices" if entry.get("between_slices") else entry["kind"]
            sums = groups.setdefault((kind, entry["groups"], entry["group_size"]), [0, 0])
            sums[0] += entry["count"]
            sums[1] += entry["count"] * entry["bytes"]
        for (kind, parts, size), (count, total) in groups.items():
            place = [row["topology"], f"{row['batch_per_chip']:g}"]
            body.append([*place, name, kind, str(count), _number(total, 1e6, 3), f"{parts} × {size}"])
    return _markdown(["slice", "a chip", "what", "kind", "count", "MB, results", "groups × devices"], body)


def _validation(rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        interval = row["predicted_images_per_sec_per_chip"]
        for figure in row["published"]:
            rate, verdict = figure["images_per_sec_per_chip"], "–"
            if interval:
                low, high = interval
                verdict = "inside" if low <= rate <= high else f"{rate / (low if rate < low else high) - 1:+.0%}"
            cells = [row["topology"], f"{row['batch_per_chip']:g}", _interval(interval), _number(rate), verdict]
            body.append([*cells, figure["source"], figure.get("why", "")])
    head = ["slice", "a chip", "predicted images/s a chip", "published", "against the nearer end", "source", "remark"]
    return _markdown(head, body)


def _ceilings(chip: str) -> str:
    body = [[name, f"{figure.value:g}", figure.source] for name, figure in CHIPS[chip].figures().items()]
    return _markdown([CHIPS[chip].name, "value", "source"], body)


_HBM_LIMITS: _Columns = {
    "slice": _PLACE["slice"],
    "chips": _PLACE["chips"],
    "compiled HBM, GiB": lambda row: (
        f"{_number(row['hbm_bytes'], _GIB, 1)} of {_number(row['hbm_limit_bytes'], _GIB, 1)}"
    ),
    "predicted images/s": _figure("predicted_images_per_sec_per_chip", show=_interval),
    "eff., %": _figure("predicted_efficiency", 0.01, show=_interval),
    "bound": lambda row: row["bound"] if row["fits"] else "too big",
}
_TIMES: _Columns = {
    "slice": _PLACE["slice"],
    "chips": _PLACE["chips"],
    "measured images/s": _figure("measured_images_per_sec", show=_spread),
    "step, ms": lambda row: _number(row["measured_step_seconds"]["median"], 1e-3, 1),
    "eff., %": lambda row: _number(row["measured_efficiency"]["median"], 0.01),
}


def in_terminal(rows: Sequence[Row]) -> str:
    """Return a table of each series: what fits, how fast it is, how it scales; or what was measured."""
    lines = []
    for name, points in series(list(rows)).items():
        columns = _TIMES if is_measured(points[0]) else _HBM_LIMITS
        cells = [[cell(row) for cell in columns.values()] for row in points]
        lines += [name, textwrap.indent(text_table(list(columns), cells, right=range(1, 5)), "  ")]
        notes = _notes(row for row in points if row.get("simulated"))
        lines += [textwrap.fill(note, 80, initial_indent="  ", subsequent_indent="  ") for note in notes]
    if not all(map(is_measured, rows)):
        lines.append("images/s of one chip, from no overlap to full: predicted, not measured")
    return "\n".join(lines)


def advice(row: Row) -> str:
    """Return by how much a program does not fit, and what would make it fit, as far as arithmetic shows."""
    needed, limit, batch = row["hbm_bytes"], row["hbm_limit_bytes"], row["batch_per_chip"]
    state = sum(row["memory"].get(kind, 0) for kind in ("parameters", "optimizer", "other"))
    fitting = int(batch * max(0, limit - state) / max(1, needed - state))
    step = 2 ** max(0, fitting.bit_length() - 3)  # three binary digits are enough of an estimate
    ways = [f"about {fitting // step * step} images a chip"] if 0 < fitting < batch else []
    ways += ["remat=block, which takes less"] if row["remat"] == "none" and batch > 1 else []
    sharded = row["memory"].get("parameters", 0) + row["memory"].get("optimizer", 0)
    if row["placement"] == "replicated" and sharded * (1 - 1 / row["chips"]) > needed - limit:
        ways += ["mesh.placement=fsdp"]
    fix = f"try {' or '.join(ways)}" if ways else "take a chip with more memory"
    over = f"{needed / _GIB:.2f} GiB of {limit / _GIB:.2f}, {(needed - limit) / 2**20:,.0f} MiB too many"
    what = f"{row['model']} at {batch:,} images a chip does not fit {row['topology']}"
    return f"{what}: it takes {over}: {fix}; --unfit makes it a result"


def write(out: Path, rows: list[Row], title: str, about: str = "") -> list[str]:
    """Write scaling.md, .csv, .json and the pictures that have something to show into a folder; return their names."""
    for name in plots.NAMES:
        (out / name).unlink(missing_ok=True)  # an earlier study may have drawn it
    pictures = [path.name for path in plots.draw(rows, out)]
    texts = {".md": as_markdown(rows, title, about, pictures), ".csv": as_csv(rows)}
    texts[".json"] = json.dumps(rows, indent=1) + "\n"
    for suffix, text in texts.items():
        write_atomically(out / f"scaling{suffix}", text)
    return ["scaling.md", ".csv", ".json", *pictures]


def _made() -> str:
    """Return what the figures were made with."""
    found = {d.name: d.version for d in metadata.distributions(path=[*sys.path, str(plugins())])}
    names = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
    versions = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    return f"Made by `jaxcnn scaling`, commit {commit() or 'unknown'}; {versions}."
