"""Read the records of a run, metrics.jsonl and result.json; no JAX is imported."""

import json
from pathlib import Path
from typing import Any

from jaxcnn import UserError
from jaxcnn.safe_files import read_bytes, read_json

_MOST = 2**30  # bytes of a metrics.jsonl


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; a last line that a crash truncated is left out.

    Raises:
      UserError: another line is damaged.
    """
    try:
        texts = read_bytes(path, _MOST).splitlines() if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path} is no file of metrics: {error}") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if not all(type(value) in (int, float) for value in line.values()):
                raise ValueError
            lines.append(line | {"step": int(line["step"])})
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            if number < len(texts):
                raise UserError(f"{path}:{number} is no line of metrics: fix or remove that line") from None
    return lines


def read_result(workdir: Path) -> dict[str, Any]:
    """Return what result.json holds; {} where there is none, or none that can be read: it is then written again."""
    try:
        result = read_json(workdir / "result.json")
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}
