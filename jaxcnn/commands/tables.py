"""`jaxcnn tables`: the papers' tables rebuilt from the code, the published value beside ours.

Parameters, sizes and multiply-accumulates (MACs) are counted from the networks' own programs.
"""

import argparse
import csv
import functools
import json
import sys
import textwrap
from typing import Any

from jaxcnn.commands.options import Parser, set_up_jax

NAMES = {
    "alexnet-abstract": "parameters and neurons of the whole network",
    "alexnet-figure2": "sizes of the layers, neurons, parameters",
    "vgg-table1": "configurations A to E, stage by stage",
    "vgg-table2": "parameters of the configurations",
    "googlenet-table1": "sizes, parameters and operations of the modules",
    "resnet-table1": "sizes and FLOPs of 18 to 152 layers",
    "resnet-table6": "parameters of 20 to 1202 layers, CIFAR-10",
    "stacks": "one 5×5, 7×7 or 9×9 filter against stacks of 3×3",
    "precision": "bfloat16 against float32, every network (takes minutes; only when named)",
}


def main(argv: list[str]) -> int:
    """Print the tables that `argv` asks for."""
    epilog = "tables:\n" + "\n".join(f"  {name:<17} {words}" for name, words in NAMES.items())
    parser = Parser(
        "jaxcnn tables", description=__doc__, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="one table (default: all but precision)")
    parser.add_argument("--format", choices=("md", "csv", "json"), default="md", help="default: md; json: one a line")
    parser.add_argument("--model", metavar="NAME", action="append", help="precision: only this network (repeatable)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="precision: of weights and images (default 0)")
    arguments = parser.parse_args(argv)
    if arguments.model and arguments.name != "precision":
        parser.error("--model goes with the table precision")

    from jaxcnn.papers.structure import TABLES, build

    if arguments.name == "precision":
        from jaxcnn.papers.precision import precision

        set_up_jax()
        report = functools.partial(print, file=sys.stderr, flush=True)
        tables: Any = [precision(arguments.model, arguments.seed, report)]
    else:
        tables = (build(name) for name in ([arguments.name] if arguments.name else TABLES))
    if arguments.format == "csv":
        _print_csv(tables)
        return 0
    if arguments.format == "json":
        for table in tables:
            print(json.dumps(_as_json(table), ensure_ascii=False))
        return 0
    _print_markdown(tables)
    return 0


def _print_markdown(tables: Any) -> None:
    """Legible as it stands, and a document as a whole; how agreement is marked is said once, at its end."""
    from jaxcnn.papers.published import RULE
    from jaxcnn.papers.tabular import source

    compared = False
    for table in tables:
        print(f"### {table.title}\n", *_wrapped(source(table)), *_aligned(_columns(table)), "", sep="\n", flush=True)
        for note in table.notes:
            print(*_wrapped(note), sep="\n")
        compared |= any(cell.figure for row in table.rows for cell in row)
    if compared:
        print(*_wrapped(f"Agreement: {RULE}."), sep="\n", end="")


def _wrapped(words: str) -> list[str]:
    """A paragraph of at most 80 columns, and an empty line after it; nothing of no words."""
    return [*textwrap.wrap(words, 80, break_long_words=False), ""] if words else []


def _columns(table: Any) -> list[list[str]]:
    """The columns as shown; published values get a column of their own unless each is, as text, what ours is."""
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
    """The lines of a Markdown table; columns of numbers are set to the right."""
    lines: list[list[str]] = [[] for _ in range(len(columns[0]) + 1)]
    for column in columns:
        width = max(map(len, column))
        right = column[0] != "paper" and all(word.replace(",", "").replace(".", "").isdigit() for word in column[1:])
        padded = [word.rjust(width) if right else word.ljust(width) for word in column]
        rule = "-" * (width - 1) + (":" if right else "-")
        for line, word in zip(lines, [padded[0], rule, *padded[1:]], strict=True):
            line.append(word)
    return [" | ".join(line).rstrip() for line in lines]


def _published(cell: Any) -> str:
    if cell.figure is None:
        return "–"
    printed = cell.figure.printed
    printed = f"{int(printed):,}" if printed.isdigit() and len(printed) > 4 else printed
    return " ".join(filter(None, (printed + cell.figure.suffix, cell.mark)))


def _unscaled(column: str) -> str:
    """The name of a column whose values are printed in full."""
    return {"GMACs": "MACs", "MMACs": "MACs"}.get(column, column)


def _as_json(table: Any) -> dict[str, Any]:
    from jaxcnn.papers.tabular import source

    def value(cell: Any) -> Any:
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


def _print_csv(tables: Any) -> None:
    """One line a value, so that tables of any shape make one file."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
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
