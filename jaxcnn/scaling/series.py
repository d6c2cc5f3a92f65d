"""The rows of `jaxcnn scaling` told apart: in what words they differ, and which of them make one series."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from jaxcnn.scaling.chips import sent_bytes

Row = dict[str, Any]

_SIZES = {"global_batch_size", "mesh.data"}  # whoever set them, a row's own batch and chips say them


def measured(row: Row) -> bool:
    """Whether the row was run, and not compiled only."""
    return bool(row.get("measured_images_per_sec"))


def origin(rows: list[Row], key: str, default: str = "compiled") -> str:
    """What the rows' labels call the figure `key`: compiled, predicted, measured, or several of these."""
    return " and ".join(sorted({row.get("labels", {}).get(key, default) for row in rows}))


def interval(row: Row, what: str) -> list[float]:
    """Low end, median if measured, and high end of the "images" a second of all chips, or "efficiency" in %.

    [] where it is unknown.
    """
    if measured(row):
        figures = row["measured_images_per_sec"] if what == "images" else row.get("measured_efficiency") or {}
        ends, scale = [figures.get(key) for key in ("min", "median", "max")], 1
    else:
        key = "predicted_images_per_sec_per_chip" if what == "images" else "predicted_efficiency"
        ends, scale = row.get(key) or [], row["chips"]
    return [(100 if what == "efficiency" else scale) * end for end in ends if end is not None]


def sent(row: Row) -> dict[str, float] | None:
    """Kind of collective -> bytes that each chip sends for it in a step; None if unknown."""
    if row.get("wire_bytes") is None:
        return None
    sent: dict[str, float] = {}
    for group in row["collective_groups"]:
        kind, each = group["kind"], sent_bytes(group["kind"], group["bytes"], group["group_size"], group["spans"])
        sent[kind] = sent.get(kind, 0) + group["count"] * each
    return sent


def facts(row: Row) -> dict[str, str]:
    """What may tell the row from another, each in a few words."""
    model, shape = row["model"], row["topology"].split(":")[-1]
    config = Path(row.get("config", "").rpartition(":")[2]).stem  # of FILE:ARGUMENT the argument
    changed = {key: value for key, value in row.get("variant", {}).items() if key not in _SIZES}
    if (row.get("mesh") or {}).get("model", 1) > 1:
        changed.setdefault("mesh.model", row["mesh"]["model"])
    return {
        "model": config if config.startswith(model) else f"{model} ({config})" if config else model,
        "chip": row.get("chip") or row["topology"].split(":")[0],
        "chips": f"{row['chips']} chip{'s' * (row['chips'] != 1)}" + (f" ({shape})" if "x" in shape else ""),
        "batch": f"{row['batch_per_chip']:g} images/chip",
        "dtype": row["dtype"],
        # matplotlib takes what stands between two dollars for a formula
        **{key: f"{key}={value}".replace("$", r"\$") for key, value in changed.items()},
    }


def labels(rows: list[Row], keep: Collection[str] = (), drop: Collection[str] = ()) -> list[str]:
    """For each row the facts in which the rows differ, less those of `drop`, and those of `keep` in any case."""
    told = [facts(row) for row in rows]
    keys = [key for key in dict.fromkeys(key for words in told for key in words) if key not in drop]
    keys = [key for key in keys if key in keep or len({words.get(key) for words in told}) > 1]
    return [", ".join(words[key] for key in keys if key in words) or "as configured" for words in told]


def common(rows: list[Row]) -> str:
    """The facts that hold of every row."""
    first, *others = [facts(row) for row in rows]
    return ", ".join(word for key, word in first.items() if all(words.get(key) == word for words in others))


def series(rows: list[Row]) -> dict[str, list[Row]]:
    """Label -> rows of one series, fewest chips first: weak scaling where the batch of a chip stays, else strong.

    Each row is of one series. Those of several runs of a study are of different ones, but where all of both is weak.
    """
    groups: dict[tuple[str, Any], list[Row]] = {}
    for row, label in zip(rows, labels(rows, keep={"model"}, drop={"chips", "batch"}), strict=True):
        said = "measured" if measured(row) else "predicted"
        simulated = ", on simulated devices" if row.get("simulated") else ""
        groups.setdefault((f"{said}{simulated}: {label}", row.get("run")), []).append(row)
    found: dict[str, list[Row]] = {}
    for (label, _), group in groups.items():
        for row in group:
            weak = {other["chips"] for other in group if other["batch_per_chip"] == row["batch_per_chip"]}
            strong = {other["chips"] for other in group if other["global_batch_size"] == row["global_batch_size"]}
            if len(weak) == 1 < len(strong):
                key = f"strong, global batch {row['global_batch_size']}"
            else:
                key = f"{row['batch_per_chip']:g} images/chip"
            found.setdefault(f"{label}, {key}", []).append(row)
    return {label: sorted(points, key=lambda point: point["chips"]) for label, points in found.items()}


def fewest(rows: list[Row]) -> list[Row]:
    """Of the rows that differ in nothing but chips and batch, those of the fewest chips."""
    groups: dict[str, list[Row]] = {}
    for row, label in zip(rows, labels(rows, drop={"chips", "batch"}), strict=True):
        groups.setdefault(label, []).append(row)
    return [row for group in groups.values() for row in group if row["chips"] == min(r["chips"] for r in group)]
