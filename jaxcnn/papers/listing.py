"""The table of all networks, as lines of a terminal; no JAX is imported."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from jaxcnn.papers.published import RULE
from jaxcnn.text_table import text_table

_LIST_NOTE = (
    "MACs: multiply-accumulates for one image. MB: activations, the outputs of the layers that `jaxcnn models NAME` "
    "lists, one image in bfloat16. Error: top-1/top-5 in %, as the paper has it."
)


def listing(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of all models, and where the papers' figures stand."""

    def published(row: dict[str, Any], quantity: str) -> str:
        figure = row["paper"].get(quantity)
        return f"{figure['printed']} {figure['agreement'] or ''}".strip() if figure else "–"

    head, lines = ["network", "parameters", "paper", "MACs", "paper", "MB", "paper's error"], []
    notes, sources = [_LIST_NOTE, _images_of(rows), f"Agreement: {RULE}."], defaultdict[str, list[str]](list)
    for row in rows:
        lines.append([
            row["name"], f"{row['parameters']:,}", published(row, "parameters"), prefixed(row["macs"]),
            published(row, "macs"), f"{row['activation_bytes'] / 1e6:,.1f}", published(row, "error"),
        ])  # fmt: skip
        if row["aux_parameters"]:
            notes.append(f"{row['name']}: + auxiliary heads {row['aux_parameters']:,} parameters, in training only.")
        for quantity, figure in row["paper"].items():
            sources[f"{quantity.replace('macs', 'MACs')}: {figure['source']}"].append(row["name"])
    notes += [f"{source} — {', '.join(names)}." for source, names in sources.items()]
    return "\n".join([text_table(head, lines, right={1, 3, 5}), "", *map(paragraph, notes)])


def _images_of(rows: Sequence[dict[str, Any]]) -> str:
    """Return the note that says for which images and how many classes each model of the list is counted."""
    groups = defaultdict[str, list[str]](list)
    for row in rows:
        classes = f" and {row['num_classes']} classes" if row["num_classes"] else ""
        groups[f"{row['image_size']}²{classes}"].append(row["name"])
    *others, most = sorted(groups, key=lambda size: len(groups[size]))
    words = [f"{size} for {', '.join(groups[size])}" for size in others]
    return f"Pixels: {'; '.join([*words, f'{most} for the others' if others else most])}."


def prefixed(number: int) -> str:
    """Return "3.858 G" of 3,857,973,248."""
    return f"{number / 1e9:,.3f} G" if number >= 1e9 else f"{number / 1e6:,.2f} M"


def paragraph(words: str) -> str:
    """Return a paragraph of 80 columns."""
    return textwrap.fill(words, 80, subsequent_indent="  ")
