"""Print the table of experiments/results/fused-norm.md from the record of its study, fused_norm.toml beside this file.

    python experiments/scaling/fused_norm.py

Each pair of rows, `norm.fused` off and auto, is a line: before → after.
"""

import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "results" / "scaling" / "fused_norm" / "scaling.json"
COLUMNS = {  # head: (figure of a row, digits)
    "HBM, MB an image": (lambda row: row["hbm_traffic_per_image"] / 1e6, 1),
    "accessed, MB": (lambda row: row["bytes_per_image"] / 1e6, 1),
    "temporaries, GB": (lambda row: row["temp_bytes"] / 1e9, 2),
    "GFLOP": (lambda row: row["flops_per_image"] / 1e9, 2),
    "all-reduces": (lambda row: row["collectives"]["all-reduce"]["count"], 0),
    "of MB": (lambda row: row["collectives"]["all-reduce"]["bytes"] / 1e6, 1),
    "images/s a chip": (lambda row: row["predicted_images_per_sec_per_chip"][1], 0),
}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the lines, in the study's order."""
    from jaxcnn.text_table import markdown_table

    pairs: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        variant = dict(row["variant"])
        form = variant.pop("norm.fused")
        changed = ", ".join(f"{key}={value}" for key, value in variant.items() if value != "global")
        name = row["model"], row["topology"], str(row["batch_per_chip"]), changed
        pairs.setdefault(name, {})[form] = row
    lines = [["network", "slice", "a chip", "changed", *COLUMNS]]
    for name, pair in pairs.items():
        figures = [
            " → ".join(f"{figure(pair[form]):,.{digits}f}" if form in pair else "?" for form in ("off", "auto"))
            for figure, digits in COLUMNS.values()
        ]
        lines.append([*name, *figures])
    return markdown_table(lines)


if __name__ == "__main__":
    print(table(json.loads(RECORD.read_text(encoding="utf-8"))), end="")
