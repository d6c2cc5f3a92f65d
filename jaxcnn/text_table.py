"""Lay out tables for people: aligned columns, in a terminal as wide as it is, and no value cut short anywhere."""

import io
import shutil
import sys
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxcnn.safe_files import printable

_UNBOUNDED = 10_000  # columns where there is no terminal: a line for each row, which a program can read


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return the lines of a table; in a narrow terminal the widest columns are folded.

    Args:
      right: the columns that are set to the right, by number.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, name in enumerate(head):
        table.add_column(Text(name), justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # a `Text` keeps brackets, which rich reads as markup in a string
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNBOUNDED
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first row is its head, with the columns aligned in the text, too."""
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
    rule = " | ".join("-" * width for width in widths)
    return "".join(f"| {line} |\n" for line in [lines[0], rule, *lines[1:]])
