"""Tables as data, whose cells know what the paper prints, and as text: Markdown, CSV, JSON, columns of a terminal."""

import csv
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

from jaxcnn.papers.published import RULE, Figure, agreement, papers

_LIST_NOTE = (
    "MACs: multiply-accumulates for one image. MB: activations, the outputs of the layers that `jaxcnn models NAME` "
    "lists, one image in bfloat16. CIFAR's networks take 32² pixels and tell 10 classes apart, the others 224² and "
    "1000. Error: top-1/top-5 in %, as the paper has it."
)
_ONE_NOTE = (
    "MB: a layer's output for the batch, 10⁶ bytes. The sum is what a training step would keep if it kept each of "
    "these once; outputs of ReLUs, sums and joins are left out. MMACs: 10⁶, of convolutions and products, one image. "
    "g2: two groups."
)


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


def scaled(number: float, unit: float, digits: int, published: Figure | None = None) -> Cell:
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
    for i, name in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        if not any(cell.figure for cell in cells):
            columns.append([name, *(cell.shown for cell in cells)])
        elif all(cell.figure is None or cell.ours == cell.figure.printed for cell in cells):
            columns.append([name, *(f"{cell.shown} {cell.mark}" if cell.figure else cell.shown for cell in cells)])
        else:
            columns.append([name, *(cell.shown for cell in cells)])
            columns.append(["paper", *map(_published, cells)])
    return columns


def _aligned(columns: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table; columns of numbers are set to the right."""
    lines: list[list[str]] = [[] for _ in range(len(columns[0]) + 1)]
    for column in columns:
        width = max(map(len, column))
        right = column[0] != "paper" and all(word.replace(",", "").replace(".", "").isdigit() for word in column[1:])
        padded = [word.rjust(width) if right else word.ljust(width) for word in column]
        rule = "-" * (width - 1) + (":" if right else "-")
        for line, word in zip(lines, [padded[0], rule, *padded[1:]], strict=True):
            line.append(word)
    return [" | ".join(line).rstrip() for line in lines]


def _published(cell: Cell) -> str:
    if cell.figure is None:
        return "–"
    printed = cell.figure.printed
    printed = f"{int(printed):,}" if printed.isdigit() and len(printed) > 4 else printed
    return " ".join(filter(None, (printed + cell.figure.suffix, cell.mark)))


def _unscaled(column: str) -> str:
    """Return the name of a column whose values are written in full."""
    return {"GMACs": "MACs", "MMACs": "MACs"}.get(column, column)


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

    names = [_unscaled(name) for name in table.columns]
    rows = [{name: value(cell) for name, cell in zip(names, row, strict=True)} for row in table.rows]
    return {
        "table": table.name, "title": table.title, "paper": source(table), "rows": rows, "notes": list(table.notes)
    }  # fmt: skip


def write_csv(tables: Iterable[Table], file: TextIO) -> None:
    """Write one line a value, so that tables of any shape make one file."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "row", "quantity", "ours", "paper", "unit", "agreement", "source", "confidence"])
    for table in tables:
        for row in table.rows:
            label = " ".join(cell.shown for cell in row[: table.labels])
            for name, cell in zip(table.columns[table.labels :], row[table.labels :], strict=True):
                figure = cell.figure
                published = (figure.printed, f"{figure.unit:g}" if figure.unit else "") if figure else ("", "")
                origin = (figure.source, figure.confidence) if figure else ("", "")
                if cell.ours != "":
                    writer.writerow([table.name, label, _unscaled(name), cell.ours, *published, cell.mark, *origin])


def listing(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of all models, and where the papers' figures stand."""

    def published(row: dict[str, Any], quantity: str) -> str:
        figure = row["paper"].get(quantity)
        return f"{figure['printed']} {figure['agreement'] or ''}".strip() if figure else "–"

    columns = [
        ["network", *(row["name"] for row in rows)],
        ["parameters", *(f"{row['parameters']:,}" for row in rows)],
        ["paper", *(published(row, "parameters") for row in rows)],
        ["MACs", *(_prefixed(row["macs"]) for row in rows)],
        ["paper", *(published(row, "macs") for row in rows)],
        ["MB", *(f"{row['activation_bytes'] / 1e6:,.1f}" for row in rows)],
        ["paper's error", *(published(row, "error") for row in rows)],
    ]
    notes = [_LIST_NOTE, f"Agreement: {RULE}."]
    notes += [
        f"{row['name']}: + auxiliary heads {row['aux_parameters']:,} parameters, in training only."
        for row in rows
        if row["aux_parameters"]
    ]
    sources: dict[str, list[str]] = {}
    for row in rows:
        for quantity, figure in row["paper"].items():
            sources.setdefault(f"{quantity.replace('macs', 'MACs')}: {figure['source']}", []).append(row["name"])
    notes += [f"{source} — {', '.join(names)}." for source, names in sources.items()]
    return "\n".join([*_terminal(columns, right={1, 3, 5}), "", *map(_note, notes)])


def layer_by_layer(row: dict[str, Any]) -> str:
    """Return one model of `cost.describe`: its sums, its layers, its endpoints."""
    size, layers = f"{row['image_size']}×{row['image_size']}×3", row["layers"]
    lines = [
        f"{row['name']}: images {size}, {row['num_classes']:,} classes, {row['dtype']}, batch {row['batch']:,}",
        f"{row['parameters']:,} parameters, {_prefixed(row['macs'])}MACs an image, "
        f"{row['activation_bytes'] / 1e6:,.1f} MB of activations",
    ]
    if row["aux_parameters"]:
        lines.append(f"+ auxiliary heads {row['aux_parameters']:,} parameters, in training only")
    for quantity, figure in row["paper"].items():
        what = f"the paper's {quantity.replace('macs', 'MACs')} ({figure['source']})"
        lines.append(textwrap.fill(f"{what}: {figure['printed']} {figure['agreement'] or '%'}", 80))
    columns = [
        ["layer", *(layer.name for layer in layers), "total"],
        ["kind", *(layer.kind for layer in layers), ""],
        ["output", *(extent(layer.shape) for layer in layers), ""],
        ["parameters", *(f"{layer.parameters:,}" for layer in layers), f"{sum(x.parameters for x in layers):,}"],
        ["MMACs", *(f"{layer.macs / 1e6:,.2f}" for layer in layers), f"{row['macs'] / 1e6:,.2f}"],
        ["MB", *(f"{x.activation_bytes / 1e6:,.2f}" for x in layers), f"{row['activation_bytes'] / 1e6:,.2f}"],
    ]
    ends = [
        f"endpoint {endpoint:<7} stride {stride:>2}  {channels:>5,} channels"
        for endpoint, (stride, channels) in row["endpoints"].items()
    ]
    return "\n".join([*lines, "", *_terminal(columns, right={3, 4, 5}), "", *ends, "", _note(_ONE_NOTE)])


def _prefixed(number: int) -> str:
    """Return "3.858 G" of 3,857,973,248."""
    return f"{number / 1e9:,.3f} G" if number >= 1e9 else f"{number / 1e6:,.2f} M"


def _terminal(columns: list[list[str]], right: set[int]) -> list[str]:
    """Return aligned lines; in a terminal the first column is shortened, in the middle, to what fits."""
    widths = [max(map(len, column)) for column in columns]
    room = shutil.get_terminal_size((10**6, 0)).columns - sum(widths[1:]) - 2 * len(widths[1:])
    widths[0] = max(min(widths[0], room), min(widths[0], 12))
    columns = [[shortened(word, widths[0]) for word in columns[0]], *columns[1:]]
    return [
        "  ".join(
            word.rjust(width) if i in right else word.ljust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in zip(*columns, strict=True)
    ]


def shortened(word: str, width: int) -> str:
    """Return a path whose longest parts have lost their middle, for it to fit: "incep…n3a/reduce3x3/conv"."""
    parts = word.split("/")
    heads = [len(part) for part in parts]  # letters kept at the front; a part cut short also keeps its last three
    lengths = list(heads)
    while sum(lengths) + len(parts) - 1 > width and max(lengths) > 5:
        longest = lengths.index(max(lengths))
        heads[longest] = lengths[longest] - 5
        lengths[longest] = heads[longest] + 4
    return "/".join(
        part if length == len(part) else f"{part[:head]}…{part[-3:]}"
        for part, head, length in zip(parts, heads, lengths, strict=True)
    )


def _note(words: str) -> str:
    return textwrap.fill(words, 80, subsequent_indent="  ")
