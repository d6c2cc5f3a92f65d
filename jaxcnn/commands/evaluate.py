"""`jaxcnn evaluate`: score every example of the evaluation set once. The last line of stdout is one JSON object."""

import argparse
import json
import sys
from pathlib import Path

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, add_hosts, parse, save, set_up_jax, team_of

_PROTOCOLS = ("1crop", "10crop", "144crop", "dense")  # of data.images.test_crops, which a help need not load
_LARGEST = 4096  # scale in pixels, as of config.data.image_size
_DRAWN = 36  # images in a picture


def main(argv: list[str]) -> int:
    """Evaluate as `argv` says."""
    parser = Parser("jaxcnn evaluate", description=__doc__, epilog=OVERRIDES)
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="folder of the run")
    parser.add_argument("--checkpoint", metavar="STEP|best|last", default="last", help="which one (default: last)")
    words = "a paper's test: the mean softmax of 1, 10 or 144 crops, or of whole images at several scales (dense)"
    parser.add_argument("--protocol", choices=_PROTOCOLS, help=f"{words}; default: as the run itself evaluates")
    words = "dense: pixels of the shorter side (default: 256,384,512 for networks of 224)"
    parser.add_argument("--scales", metavar="Q,…", type=_scales, help=words)
    parser.add_argument("--save", metavar="PNG", type=Path, help="draw a grid of predictions")
    add_hosts(parser)
    arguments, overrides = parse(parser, argv)
    if arguments.scales and arguments.protocol != "dense":
        raise UserError("--scales goes with --protocol dense: the other protocols have their papers' scales")
    with team_of(arguments) as team:
        if arguments.save and team.processes > 1:
            raise UserError("--save draws in one process: leave it out here, or evaluate without the others")
        set_up_jax()
        from jaxcnn.training.trained import open_run

        run = open_run(arguments.workdir, arguments.checkpoint, overrides)
        scores = run.evaluate(protocol=arguments.protocol or "", scales=arguments.scales or ())
        if team.process == 0:
            print(json.dumps(scores), flush=True)  # before a picture, which may fail
        if arguments.save:
            examples = run.examples(_DRAWN)
            images = examples["image"]
            save(run.task.draw(images, run.outputs(images), run.input["class_names"], targets=examples), arguments.save)
            print(f"predictions: {arguments.save}", file=sys.stderr)
    return 0


def _scales(text: str) -> list[int]:
    """Return numbers of pixels, different ones, joined by commas."""
    numbers = [int(word) if word.isascii() and word.isdecimal() else 0 for word in text.split(",")]
    if min(numbers) < 1 or max(numbers) > _LARGEST or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write whole numbers of pixels, each once, 1 to {_LARGEST}, such as 256,384,512"
        )
    return numbers
