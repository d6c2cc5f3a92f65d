"""`jaxcnn tables`: the papers' tables rebuilt from the code, the published value beside ours.

Parameters, sizes and multiply-accumulates (MACs) are counted from the networks' own programs.
"""

import argparse
import functools
import json
import sys
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
    "fcn-table1": "parameters and operations of three classifiers as fully convolutional networks",
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

    from jaxcnn.papers import rendering, structure

    if arguments.name == "precision":
        set_up_jax()
        report = functools.partial(print, file=sys.stderr, flush=True)
        tables: Any = [structure.precision(arguments.model, arguments.seed, report)]
    else:
        tables = map(structure.build, [arguments.name] if arguments.name else structure.TABLES)
    if arguments.format == "csv":
        rendering.write_csv(tables, sys.stdout)
    elif arguments.format == "json":
        for table in tables:
            print(json.dumps(rendering.as_json(table), ensure_ascii=False))
    else:
        for paragraph in rendering.as_markdown(tables):
            print(paragraph, flush=True)
    return 0
