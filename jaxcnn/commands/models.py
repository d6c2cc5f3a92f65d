"""`jaxcnn models`: the networks, with what they cost and what their papers say; or one of them, layer by layer.

Everything is counted from the networks' own programs, and nothing is computed.
"""

import json
import re

from jaxcnn.commands.options import Parser, count


def main(argv: list[str]) -> int:
    """List the models, or one model's layers, as `argv` says."""
    parser = Parser("jaxcnn models", description=__doc__)
    parser.add_argument("name", metavar="NAME", nargs="?", help="one model, layer by layer")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    one = parser.add_argument_group("with NAME")
    one.add_argument("--batch", metavar="N", type=count, help="images in a batch, for the activations (default 1)")
    one.add_argument("--dtype", choices=("bfloat16", "float32"), help="compute type (default bfloat16)")
    one.add_argument("--image-size", metavar="PIXELS", type=count, help="side of the images (default: the paper's)")
    one.add_argument("--num-classes", metavar="N", type=count, help="outputs (default: ImageNet's or CIFAR-10's)")
    one.add_argument("--small-images", action="store_true", default=None, help="the form for 28 to 64 pixels")
    one.add_argument("--train", action="store_true", default=None, help="with GoogLeNet's auxiliary classifiers")
    arguments = parser.parse_args(argv)
    given = {key: value for key, value in vars(arguments).items() if key not in ("name", "json") and value is not None}
    if given and not arguments.name:
        parser.error(f"--{next(iter(given)).replace('_', '-')} goes with NAME")

    if not arguments.name:
        _list(arguments.json)
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


def _list(as_json: bool) -> None:
    """Print all models by name: as JSON, a line each as soon as it is counted, or as a table."""
    from jaxcnn.models import list_models
    from jaxcnn.papers.cost import describe
    from jaxcnn.papers.published import beside
    from jaxcnn.papers.rendering import listing

    # Numbers are compared as numbers, so that resnet18 comes before resnet101.
    names = sorted(
        list_models(), key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    rows = []
    for name in names:
        row = describe(name)
        del row["layers"]
        row["paper"] = beside(row)
        rows.append(row)
        if as_json:
            print(json.dumps(row))
    if not as_json:
        print(listing(rows))
