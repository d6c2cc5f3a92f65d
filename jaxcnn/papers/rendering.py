"""Tables as data, whose cells know what the paper prints, and as text: Markdown, CSV, JSON, lines of a terminal."""

import csv
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TextIO

from jaxcnn.papers.cost import Layer, total
from jaxcnn.papers.listing import paragraph, prefixed
from jaxcnn.papers.published import RULE, Figure, agreement, papers
from jaxcnn.text_table import text_table

_ONE_NOTE = (
    "MB: a layer's output for the batch, 10⁶ bytes. The sum is what a training step would keep if it kept each of "
    "these once; outputs of ReLUs, sums and joins are left out. MMACs: 10⁶, of convolutions and products, one image. "
    "g2: two groups."
)


_IN_FULL = {"GMACs": "MACs", "MMACs": "MACs"}  # columns whose values JSON and CSV have without the unit


class Cell(NamedTuple):
    """A value of ours, how it is shown, and what the paper prints for it."""

    ours: Any
    shown: str
    figure: Figure | None = None

    @property
    def mark(self) -> str:
        """The agreement of the two, as `published.RULE` explains."""
        return agreement(self.ours, self.figure)


class Table(NamedTuple):
    """A table. The first `labels` columns name a row; a row is a `Cell` for each column."""

    name: str
    title: str
    labels: int
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    notes: tuple[str, ...] = ()


def text(words: str, published: Figure | None = None) -> Cell:
    """Return a cell of words."""
    return Cell(words, words, published)


def integer(number: int, published: Figure | None = None) -> Cell:
    """Return a cell with a number in full."""
    return Cell(number, f"{number:,}", published)


def in_unit(number: float, unit: float, digits: int, published: Figure | None = None) -> Cell:
    """Return a cell with a number shown in `unit`, such as 1e6 in a column of millions."""
    return Cell(number, f"{number / unit:,.{digits}f}", published)


def extent(shape: Iterable[int]) -> str:
    """Return "55×55×96" for (55, 55, 96)."""
    return "×".join(map(str, shape))


def source(table: Table) -> str:
    """Return the paper that a table is of, or ""."""
    return papers().get(table.name.split("-")[0], {}).get("paper", "")


def as_markdown(tables: Iterable[Table]) -> Iterator[str]:
    """Yield paragraphs as the tables are built; the last says how agreement is marked."""
    compared = False
    for table in tables:
        yield "\n".join([f"### {table.title}\n", *_wrapped(source(table)), *_aligned(_columns(table)), ""])
        for note in table.notes:
            yield "\n".join(_wrapped(note))
        compared |= any(cell.figure for row in table.rows for cell in row)
    if compared:
        yield "\n".join(_wrapped(f"Agreement: {RULE}.")[:-1])


def _wrapped(words: str) -> list[str]:
    """Return a paragraph of at most 80 columns and an empty line after it; nothing of no words."""
    return [*textwrap.wrap(words, 80, break_long_words=False), ""] if words else []


def _columns(table: Table) -> list[list[str]]:
    """Return the columns; published values get one of their own unless each is, as text, what ours is."""
    columns = []
    for name, *cells in zip(table.columns, *table.rows, strict=True):
        same = all(cell.figure is None or cell.ours == cell.figure.printed for cell in cells)
        marks = [f" {cell.mark}" if cell.figure and same else "" for cell in cells]
        columns.append([name, *(cell.shown + mark for cell, mark in zip(cells, marks, strict=True))])
        if not same:
            columns.append(["paper", *map(_published, cells)])
    return columns


def _aligned(columns: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table; columns of numbers are set to the right."""
    padded = []
    for head, *words in columns:
        width = max(map(len, [head, *words]))
        right = head != "paper" and all(word.replace(",", "").replace(".", "").isdigit() for word in words)
        rule = "-" * (width - 1) + (":" if right else "-")
        padded.append([word.rjust(width) if right else word.ljust(width) for word in (head, rule, *words)])
    return [" | ".join(line).rstrip() for line in zip(*padded, strict=True)]


def _published(cell: Cell) -> str:
    if cell.figure is None:
        return "–"
    printed = cell.figure.printed
    printed = f"{int(printed):,}" if printed.isdigit() and len(printed) > 4 else printed
    return " ".join(filter(None, (printed + cell.figure.suffix, cell.mark)))


def as_json(table: Table) -> dict[str, Any]:
    """Return a table as a JSON object; values that are printed in units are in full."""

    def value(cell: Cell) -> Any:
        if cell.figure is None:
            return cell.ours
        figure = cell.figure
        number = float(figure.printed) * figure.unit if figure.unit else figure.printed
        return {
            "ours": cell.ours, "paper": number, "printed": figure.printed + figure.suffix, "agreement": cell.mark,
            "source": figure.source, "confidence": figure.confidence,
        }  # fmt: skip

    names = [_IN_FULL.get(name, name) for name in table.columns]
    rows = [dict(zip(names, map(value, row), strict=True)) for row in table.rows]
    head = {"table": table.name, "title": table.title, "paper": source(table)}
    return head | {"rows": rows, "notes": list(table.notes)}


def write_csv(tables: Iterable[Table], file: TextIO) -> None:
    """Write one line a value, so that tables of any shape make one file."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "row", "quantity", "ours", "paper", "unit", "agreement", "source", "confidence"])
    for table in tables:
        for row in table.rows:
            label = " ".join(cell.shown for cell in row[: table.labels])
            for name, cell in zip(table.columns[table.labels :], row[table.labels :], strict=True):
                printed, unit, _, origin, confidence = cell.figure or ("", 0, "", "", "")
                figures = cell.ours, printed, f"{unit:g}" if unit else "", cell.mark, origin, confidence
                if cell.ours != "":
                    writer.writerow([table.name, label, _IN_FULL.get(name, name), *figures])


def layer_by_layer(row: dict[str, Any]) -> str:
    """Return one model of `cost.describe`: its sums, its layers, its endpoints."""
    size, layers = f"{row['image_size']}×{row['image_size']}×{row['channels']}", row["layers"]
    lines = [
        f"{row['name']}: images {size}, {row['num_classes']:,} classes, {row['dtype']}, batch {row['batch']:,}",
        f"{row['parameters']:,} parameters, {prefixed(row['macs'])}MACs an image, "
        f"{row['activation_bytes'] / 1e6:,.1f} MB of activations",
    ]
    if row["aux_parameters"]:
        lines.append(f"+ auxiliary heads {row['aux_parameters']:,} parameters, in training only")
    for quantity, figure in row["paper"].items():
        what = f"the paper's {quantity.replace('macs', 'MACs')} ({figure['source']})"
        lines.append(textwrap.fill(f"{what}: {figure['printed']} {figure['agreement'] or '%'}", 80))
    whole = Layer("total", "", (), total(layers, "parameters"), row["macs"], row["activation_bytes"])
    cells = []
    for x in [*layers, whole]:
        costs = f"{x.parameters:,}", f"{x.macs / 1e6:,.2f}", f"{x.activation_bytes / 1e6:,.2f}"
        cells.append([x.name, x.kind, extent(x.shape), *costs])
    ends = [[name, str(stride), f"{channels:,}"] for name, (stride, channels) in row["endpoints"].items()]
    tables = [text_table(["layer", "kind", "output", "parameters", "MMACs", "MB"], cells, right={3, 4, 5})]
    tables += [text_table(["endpoint", "stride", "channels"], ends, right={1, 2})] if ends else []
    return "\n\n".join(["\n".join(lines), *tables, paragraph(_ONE_NOTE)])
