"""Tell the rows of `jaxcnn scaling` apart, and group them into series.

A row is one program on one slice. Every figure is labelled compiled, predicted or measured.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from jaxcnn.scaling.chips import PREDICTED

Row = dict[str, Any]

_COMPILED_KEYS = (
    "flops_per_image", "bytes_per_image", "hbm_traffic_per_image", "intensity", "memory", "temp_bytes", "hbm_bytes",
    "fits", "collectives", "collective_groups", "compile_seconds",
)  # fmt: skip
# Figure -> where a compiled row has it from.
LABELS = dict.fromkeys(_COMPILED_KEYS, "compiled") | dict.fromkeys(PREDICTED, "predicted")
_SIZES = {"global_batch_size", "mesh.data"}  # whoever set them, a row's own batch and chips say them


def is_measured(row: Row) -> bool:
    """Return whether the row was run, and not compiled only."""
    return bool(row.get("measured_images_per_sec"))


def traits(row: Row) -> dict[str, str]:
    """Return what may tell a row from another, each in a few words."""
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


def differences(rows: list[Row], keep: Collection[str] = (), drop: Collection[str] = ()) -> list[str]:
    """Return for each row the traits in which the rows differ, without those of `drop`, always with those of `keep`."""
    found = [traits(row) for row in rows]
    keys = [key for key in dict.fromkeys(key for words in found for key in words) if key not in drop]
    keys = [key for key in keys if key in keep or len({words.get(key) for words in found}) > 1]
    return [", ".join(words[key] for key in keys if key in words) or "as configured" for words in found]


def series(rows: list[Row]) -> dict[str, list[Row]]:
    """Group rows by series, fewest chips first: weak scaling where the batch of a chip stays, else strong.

    Each row is of one series. Those of several runs of a study are of different ones, but where all of both is weak.
    """
    groups: dict[tuple[str, Any], list[Row]] = {}
    for row, label in zip(rows, differences(rows, keep={"model"}, drop={"chips", "batch"}), strict=True):
        said = "measured" if is_measured(row) else "predicted"
        said += ", on simulated devices" if row.get("simulated") else ""
        groups.setdefault((f"{said}: {label}", row.get("run")), []).append(row)
    found: dict[str, list[Row]] = {}
    for (label, _), group in groups.items():
        for row in group:
            weak = {other["chips"] for other in group if other["batch_per_chip"] == row["batch_per_chip"]}
            strong = {other["chips"] for other in group if other["global_batch_size"] == row["global_batch_size"]}
            is_strong = len(weak) == 1 < len(strong)
            key = f"strong, global batch {row['global_batch_size']}" if is_strong else traits(row)["batch"]
            found.setdefault(f"{label}, {key}", []).append(row)
    return {label: sorted(points, key=lambda point: point["chips"]) for label, points in found.items()}
