"""Read the costs of all networks from a file: tracing every network of the registry takes most of a minute.

costs.json ships with the package. `python -m jaxcnn.papers.counted` writes it again, after a network was added or
changed; a test compares it with the networks' programs. Reading it imports no JAX.
"""

import json
import re
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("costs.json")


def counted() -> dict[str, dict[str, Any]]:
    """Return what `cost.describe` says of each network, but for its layers: {name: row}, resnet18 before resnet101."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: rows[name] for name in sorted(rows, key=_by_numbers)}


def count(name: str) -> dict[str, Any]:
    """Trace a network and return its row, as JSON has it."""
    from jaxcnn.papers.cost import describe

    row = describe(name)
    del row["layers"]
    return json.loads(json.dumps(row))


def _by_numbers(name: str) -> list[int | str]:
    """Return a name as it is sorted: the numbers in it compare as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _write() -> None:
    from jaxcnn.models import list_models

    lines = (f"{json.dumps(name)}: {json.dumps(count(name))}" for name in list_models())  # a line each, for diffs
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    _write()
