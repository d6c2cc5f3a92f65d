"""`jaxcnn models`: the networks, with what they cost and what their papers say; or one of them, layer by layer.

Everything is counted from the networks' own programs, and nothing is computed.
"""

import json
import re
import shutil
import textwrap
from typing import Any

from jaxcnn.commands.options import Parser

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


def main(argv: list[str]) -> int:
    """List the models, or one model's layers, as `argv` says."""
    parser = Parser("jaxcnn models", description=__doc__)
    parser.add_argument("name", metavar="NAME", nargs="?", help="one model, layer by layer")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    one = parser.add_argument_group("with NAME")
    one.add_argument("--batch", metavar="N", type=int, help="images in a batch, for the activations (default 1)")
    one.add_argument("--dtype", choices=("bfloat16", "float32"), help="compute type (default bfloat16)")
    one.add_argument("--image-size", metavar="PIXELS", type=int, help="side of the images (default: the paper's)")
    one.add_argument("--num-classes", metavar="N", type=int, help="outputs (default: ImageNet's or CIFAR-10's)")
    one.add_argument("--small-images", action="store_true", default=None, help="the form for 28 to 64 pixels")
    one.add_argument("--train", action="store_true", default=None, help="with GoogLeNet's auxiliary classifiers")
    arguments = parser.parse_args(argv)
    given = {key: value for key, value in vars(arguments).items() if key not in ("name", "json") and value is not None}
    if given and not arguments.name:
        parser.error(f"--{next(iter(given)).replace('_', '-')} goes with NAME")
    for key, value in given.items():
        if value is not True and isinstance(value, int) and value < 1:
            parser.error(f"--{key.replace('_', '-')} {value}: it must be 1 or more")

    if not arguments.name:
        _list(arguments.json)
        return 0
    from jaxcnn.papers.cost import describe

    row = describe(arguments.name, **given)
    row["paper"] = _paper(row) if given.keys() <= {"batch", "dtype"} else {}
    if arguments.json:
        print(json.dumps(row | {"layers": [layer._asdict() for layer in row["layers"]]}))
    else:
        _show(row)
    return 0


def _list(as_json: bool) -> None:
    """All models, by name: a line each as soon as it is counted, or a table."""
    from jaxcnn.models import list_models
    from jaxcnn.papers.cost import describe

    # resnet18 before resnet101: numbers are compared as numbers.
    names = sorted(
        list_models(), key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    rows = []
    for name in names:
        row = describe(name)
        del row["layers"]
        row["paper"] = _paper(row)
        rows.append(row)
        if as_json:
            print(json.dumps(row))
    if not as_json:
        _show_list(rows)


def _paper(row: dict[str, Any]) -> dict[str, Any]:
    """What the paper prints of this model: {quantity: {"printed", "source", "confidence", "agreement"}}."""
    from jaxcnn.papers.published import agreement, of_model

    return {
        quantity: {
            "printed": figure.printed + figure.suffix,
            "source": figure.source,
            "confidence": figure.confidence,
            "agreement": agreement(row[quantity], figure) if quantity in row else None,
        }
        for quantity, figure in of_model(row["name"]).items()
    }


def _show_list(rows: list[dict[str, Any]]) -> None:
    """The table of all models, and where the papers' figures stand."""
    from jaxcnn.papers.published import RULE

    def published(row: dict[str, Any], quantity: str) -> str:
        figure = row["paper"].get(quantity)
        return f"{figure['printed']} {figure['agreement'] or ''}".strip() if figure else "–"

    columns = [
        ["network", *(row["name"] for row in rows)],
        ["parameters", *(f"{row['parameters']:,}" for row in rows)],
        ["paper", *(published(row, "parameters") for row in rows)],
        ["MACs", *(_scaled(row["macs"]) for row in rows)],
        ["paper", *(published(row, "macs") for row in rows)],
        ["MB", *(f"{row['activation_bytes'] / 1e6:,.1f}" for row in rows)],
        ["paper's error", *(published(row, "error") for row in rows)],
    ]
    _print_columns(columns, right={1, 3, 5})
    print()
    _print_note(_LIST_NOTE)
    _print_note(f"Agreement: {RULE}.")
    for row in rows:
        if row["aux_parameters"]:
            _print_note(f"{row['name']}: + auxiliary heads {row['aux_parameters']:,} parameters, in training only.")
    sources: dict[str, list[str]] = {}
    for row in rows:
        for quantity, figure in row["paper"].items():
            sources.setdefault(f"{quantity.replace('macs', 'MACs')}: {figure['source']}", []).append(row["name"])
    for source, names in sources.items():
        _print_note(f"{source} — {', '.join(names)}.")


def _show(row: dict[str, Any]) -> None:
    """One model: its sums, its layers, its endpoints."""
    size = f"{row['image_size']}×{row['image_size']}×3"
    print(f"{row['name']}: images {size}, {row['num_classes']:,} classes, {row['dtype']}, batch {row['batch']:,}")
    print(
        f"{row['parameters']:,} parameters, {_scaled(row['macs'])}MACs an image, "
        f"{row['activation_bytes'] / 1e6:,.1f} MB of activations"
    )
    if row["aux_parameters"]:
        print(f"+ auxiliary heads {row['aux_parameters']:,} parameters, in training only")
    for quantity, figure in row["paper"].items():
        what = f"the paper's {quantity.replace('macs', 'MACs')} ({figure['source']})"
        words = f"{what}: {figure['printed']} {figure['agreement'] or '%'}"
        print(*textwrap.wrap(words, 80), sep="\n")
    print()
    layers = row["layers"]
    columns = [
        ["layer", *(layer.name for layer in layers), "total"],
        ["kind", *(layer.kind for layer in layers), ""],
        ["output", *("×".join(map(str, layer.shape)) for layer in layers), ""],
        ["parameters", *(f"{layer.parameters:,}" for layer in layers), f"{sum(x.parameters for x in layers):,}"],
        ["MMACs", *(f"{layer.macs / 1e6:,.2f}" for layer in layers), f"{row['macs'] / 1e6:,.2f}"],
        ["MB", *(f"{x.activation_bytes / 1e6:,.2f}" for x in layers), f"{row['activation_bytes'] / 1e6:,.2f}"],
    ]
    _print_columns(columns, right={3, 4, 5})
    print()
    for endpoint, (stride, channels) in row["endpoints"].items():
        print(f"endpoint {endpoint:<7} stride {stride:>2}  {channels:>5,} channels")
    print()
    _print_note(_ONE_NOTE)


def _scaled(number: int) -> str:
    """3,857,973,248 -> "3.858 G"."""
    return f"{number / 1e9:,.3f} G" if number >= 1e9 else f"{number / 1e6:,.2f} M"


def _print_columns(columns: list[list[str]], right: set[int]) -> None:
    """Print aligned; in a terminal the first column is shortened, in the middle, to what fits."""
    widths = [max(map(len, column)) for column in columns]
    room = shutil.get_terminal_size((10**6, 0)).columns - sum(widths[1:]) - 2 * len(widths[1:])
    widths[0] = max(min(widths[0], room), min(widths[0], 12))
    columns = [[_shortened(word, widths[0]) for word in columns[0]], *columns[1:]]
    for line in zip(*columns, strict=True):
        words = [
            word.rjust(width) if i in right else word.ljust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(words).rstrip())


def _shortened(word: str, width: int) -> str:
    """A path whose longest parts have lost their middle, for it to fit: "incep…n3a/reduce3x3/conv"."""
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


def _print_note(words: str) -> None:
    print(*textwrap.wrap(words, 80, subsequent_indent="  "), sep="\n")
