"""`jaxcnn models`: the networks, with what they cost and what their papers say; or one of them, layer by layer.

Everything is counted from the networks' own programs, and nothing is computed.
"""

import argparse
import json
from fnmatch import fnmatchcase

from jaxcnn import UserError
from jaxcnn.commands.options import Parser, count

_SORTS = {"name": "", "parameters": "parameters", "macs": "macs", "activations": "activation_bytes"}  # key of a row


def main(argv: list[str]) -> int:
    """List the models, or one model's layers, as `argv` says."""
    parser = Parser("jaxcnn models", description=__doc__)
    words = "one model, layer by layer; or a pattern in quotes, such as 'resnet*', for the list of those that match"
    parser.add_argument("name", metavar="NAME", nargs="?", default="*", help=words)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--sort", choices=_SORTS, help="order of the list, the smallest first (default: name)")
    one = parser.add_argument_group("with NAME")
    one.add_argument("--batch", metavar="N", type=count, help="images in a batch, for the activations (default 1)")
    one.add_argument("--dtype", choices=("bfloat16", "float32"), help="compute type (default bfloat16)")
    one.add_argument("--image-size", metavar="PIXELS", type=count, help="side of the images (default: the paper's)")
    one.add_argument("--num-classes", metavar="N", type=count, help="outputs (default: ImageNet's or CIFAR-10's)")
    one.add_argument("--small-images", action="store_true", default=None, help="the form for 28 to 64 pixels")
    one.add_argument("--train", action="store_true", default=None, help="with GoogLeNet's auxiliary classifiers")
    arguments = parser.parse_args(argv)
    ours = ("name", "json", "sort")
    given = {key: value for key, value in vars(arguments).items() if key not in ours and value is not None}
    many = bool(set("*?[") & set(arguments.name))
    if given and many:
        parser.error(f"--{next(iter(given)).replace('_', '-')} goes with NAME")
    if arguments.sort and not many:
        parser.error("--sort goes with the list: leave NAME out, or give a pattern such as 'resnet*'")
    if many:
        _list(arguments)
        return 0
    from jaxcnn.papers.cost import describe
    from jaxcnn.papers.published import beside
    from jaxcnn.papers.rendering import layer_by_layer

    row = describe(arguments.name, **given)
    row["paper"] = beside(row) if given.keys() <= {"batch", "dtype"} else {}
    if arguments.json:
        print(json.dumps(row | {"layers": [layer._asdict() for layer in row["layers"]]}))
    else:
        print(layer_by_layer(row))
    return 0


def _list(arguments: argparse.Namespace) -> None:
    """Print the models that match the pattern, as JSON, a line each, or as a table."""
    from jaxcnn.papers.counted import counted
    from jaxcnn.papers.listing import listing
    from jaxcnn.papers.published import beside

    rows = [row for name, row in counted().items() if fnmatchcase(name, arguments.name.lower())]
    if not rows:
        raise UserError(f"there is no model '{arguments.name}': `jaxcnn models` lists all")
    if key := _SORTS[arguments.sort or "name"]:
        rows.sort(key=lambda row: row[key])
    for row in rows:
        row["paper"] = beside(row)
    print("\n".join(map(json.dumps, rows)) if arguments.json else listing(rows))
