"""`jaxcnn models`: the networks there are, with their parameters, counted from the code."""

import argparse
import json
import re


def main(argv: list[str]) -> int:
    """List the models as `argv` says."""
    parser = argparse.ArgumentParser("jaxcnn models", description=__doc__)
    parser.add_argument("name", metavar="NAME", nargs="?", help="one model: its endpoints too")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args(argv)

    from jaxcnn.analysis.cost import describe
    from jaxcnn.models import list_models

    # resnet18 before resnet101: numbers are compared as numbers.
    names = sorted(
        list_models(), key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    rows = [describe(name) for name in ([arguments.name] if arguments.name else names)]
    for row in rows:
        if arguments.json:
            print(json.dumps(row))
            continue
        print(
            f"{row['name']:<14} {row['parameters']:>12,} parameters  {row['image_size']}² {row['num_classes']} classes"
        )
        if arguments.name:
            for endpoint, (stride, channels) in row["endpoints"].items():
                print(f"  {endpoint:<12} stride {stride:>2}  {channels:>5} channels")
    return 0
