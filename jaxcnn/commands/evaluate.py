"""`jaxcnn evaluate`: score every example of the evaluation set once. The last line of stdout is one JSON object."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, add_hosts, parse, picture, save, set_up_jax, team_of
from jaxcnn.locations import location, place
from jaxcnn.safe_files import csv_text, make_writable, write_atomically

_PROTOCOLS = ("1crop", "10crop", "144crop", "dense")  # of data.images.test_crops, which a help need not load
_LARGEST = 4096  # scale in pixels, as of config.data.image_size
_LARGEST_FACTOR = 8
_DRAWN = 36  # images in a picture
_TABLES = {"predictions": "example_table", "per_class": "class_table"}  # option -> method of `Evaluation`
# Options that take one run at one checkpoint, and the verb of their error.
_OF_ONE = {"save": "draws", "confusion": "draws", "curves": "draws", "detections": "writes"}
_WRITTEN = (*_TABLES, *_OF_ONE)  # options that name a file
_SEVERAL = 'Several runs or checkpoints print a line each before that one, which is then {"runs": [all of them]}.'


def main(argv: list[str]) -> int:
    """Evaluate as `argv` says."""
    parser = _parser()
    arguments, overrides = parse(parser, argv)
    if arguments.scales and arguments.protocol not in (None, "dense"):
        raise UserError("--scales goes with --protocol dense: the other protocols have their papers' scales")
    if arguments.scales:
        _check_scales(arguments.scales, arguments.protocol)
    models = _models(arguments)
    for name, does in _OF_ONE.items():
        if getattr(arguments, name) and len(models) > 1:
            raise UserError(f"--{name} {does} one run at one checkpoint: give one --workdir and --checkpoint")
    with team_of(arguments) as team:
        if arguments.save and team.processes > 1:
            raise UserError("--save draws in one process: leave it out here, or evaluate without the others")
        if team.process == 0:
            _check_files(arguments)
        set_up_jax()
        wanted = [name for name in _TABLES if getattr(arguments, name)]
        options: dict[str, Any] = {"protocol": arguments.protocol or "", "scales": arguments.scales or ()}
        options["flip"] = arguments.flip
        options["per_example"] = bool(wanted or arguments.confusion)
        found, rows = [], {name: [] for name in wanted}
        for run in _opened(models, overrides):
            for name in ("detections", "curves"):
                if getattr(arguments, name) and not run.task.detects:
                    raise UserError(f"--{name} needs a detector, and {run.source} detects no boxes: leave it out")
            if arguments.confusion and not run.task.draws_mistakes:
                raise UserError(f"--confusion draws classes of images, and {run.source} gives none: leave it out")
            if arguments.reference and not run.task.features:
                raise UserError(f"{run.source} has no features to compare: set --config.task.features=DIR, of a GAN")
            evaluation = run.evaluation(**options)
            if arguments.reference:
                images = {"data.eval_split": arguments.reference}
                evaluation = evaluation.against(run.evaluation(images, per_example=False))
            found.append(evaluation.scores)
            if team.process == 0:
                print(json.dumps(evaluation.scores), flush=True)  # before a picture, which may fail
                for name in wanted:
                    rows[name] += _rows(evaluation, name)
                _draw(arguments, run, evaluation)
        if team.process == 0 and len(models) > 1:
            print(json.dumps({"runs": found}), flush=True)
        if team.process == 0:
            _write(arguments, rows)
    return 0


def _parser() -> Parser:
    parser = Parser("jaxcnn evaluate", description=f"{__doc__} {_SEVERAL}", epilog=OVERRIDES)
    add = parser.add_argument
    words = "folder of the run, or of several"
    add("--workdir", metavar="DIR", type=place, nargs="+", action="extend", required=True, help=words)
    words = "which one (default: last); several, joined by commas or each with its --checkpoint"
    add("--checkpoint", metavar="STEP|best|last", action="append", default=[], help=words)
    words = (
        "score the mean of the weights of these checkpoints. BatchNorm's statistics are averaged too; computing them "
    )
    words += "again over training images would be better"
    add("--average", action="store_true", help=words)
    words = "a paper's test: the mean softmax of 1, 10 or 144 crops, or of whole images at several scales (dense)"
    add("--protocol", choices=_PROTOCOLS, help=f"{words}; default: as the run itself evaluates")
    words = "dense: pixels of the shorter side (default: 256,384,512 for networks of 224); of segmentation: factors on "
    words += "the sides, such as 0.5,1,1.5, over which the softmax of each pixel is averaged"
    add("--scales", metavar="Q,…", type=_scales, help=words)
    add("--flip", action="store_true", help="segmentation: average over mirrored images, too")
    words = "GAN: the FID against the images of this split, such as train, and as its floor the evaluation set's own"
    add("--reference", metavar="SPLIT", help=words)
    add("--predictions", metavar="CSV", type=location, help="write a row for each example that can be read")
    add("--per-class", metavar="CSV", type=location, help="write a row for each class: examples, correct, accuracy …")
    words = "draw which classes are taken for which, and the worst mistakes"
    add("--confusion", metavar="PNG", type=picture, help=words)
    add("--save", metavar="PNG", type=picture, help="draw a grid of predictions, beside the truth")
    words = "detection: write all boxes in COCO's result format, by the data set's own numbers of images and classes"
    add("--detections", metavar="JSON", type=location, help=words)
    add("--curves", metavar="PNG", type=picture, help="detection: draw the precision-recall curve of each class")
    add_hosts(parser)
    return parser


def _models(arguments: argparse.Namespace) -> list[tuple[Path, Any]]:
    """Return the folder of each run with each checkpoint that is asked for, or with the list of those to average."""
    which = [name for text in arguments.checkpoint or ["last"] for name in text.split(",")]
    if arguments.average and len(which) < 2:
        raise UserError("--average takes several checkpoints of a run: give them as --checkpoint STEP,STEP,…")
    choices: Sequence[Any] = [which] if arguments.average else which
    return [(workdir, choice) for workdir in arguments.workdir for choice in choices]


def _check_files(arguments: argparse.Namespace) -> None:
    """Raise a UserError, before anything is scored, where a file that is asked for cannot be written."""
    for name in _WRITTEN:
        if out := getattr(arguments, name):
            option = f"--{name.replace('_', '-')}"
            if out.is_dir():
                raise UserError(f"{option} {out} is a folder: name a file")
            make_writable(out.parent, f"the folder of {option}")


def _opened(models: Sequence[tuple[Path, Any]], overrides: list[tuple[str, str]]) -> Iterator[Any]:
    """Yield the networks one after another; one that was named twice, such as "best" and its step, comes once."""
    from jaxcnn import stores
    from jaxcnn.configfile import from_json
    from jaxcnn.tasks import create_task
    from jaxcnn.training.checkpoint import Checkpoints
    from jaxcnn.training.trained import open_run

    for workdir, choice in models:  # What is no run, or no checkpoint of it, is refused before the first one is scored.
        with stores.opened(workdir) as folder:
            checkpoints = Checkpoints(folder, create_task(from_json(folder / "config.json")).best)
            for which in [choice] if isinstance(choice, str) else choice:
                checkpoints.resolve(which)
    seen = set()
    for workdir, checkpoint in models:
        run = open_run(workdir, checkpoint, overrides)
        if (key := (workdir.resolve(), run.step, run.averaged)) not in seen:
            seen.add(key)
            yield run


def _rows(evaluation: Any, name: str) -> list[dict[str, Any]]:
    """Return a table as rows that begin with the run and the checkpoint."""
    table = getattr(evaluation, _TABLES[name])()
    of = {key: evaluation.scores[key] for key in ("workdir", "checkpoint")}
    return [of | dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _draw(arguments: argparse.Namespace, run: Any, evaluation: Any) -> None:
    if arguments.detections:
        write_atomically(arguments.detections, json.dumps(evaluation.results()))
        print(f"detections: {arguments.detections}", file=sys.stderr)
    for name, draw in (("confusion", evaluation.draw_mistakes), ("curves", evaluation.draw_curves)):
        if out := getattr(arguments, name):
            save(draw(), out)
            print(f"{name}: {out}", file=sys.stderr)
    if arguments.save:
        examples = run.examples(_DRAWN)
        images, given = examples["image"], (examples.get(name) for name in ("sizes", "proposals"))
        outputs = run.outputs(images, *given)
        save(run.task.draw(images, outputs, run.input["class_names"], targets=examples), arguments.save)
        print(f"predictions: {arguments.save}", file=sys.stderr)


def _write(arguments: argparse.Namespace, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    for name, lines in rows.items():
        out = getattr(arguments, name)
        write_atomically(out, csv_text(lines))
        print(f"{name.replace('_', ' ')}: {out}", file=sys.stderr)


def _scales(text: str) -> list[float]:
    """Return positive numbers, different ones, joined by commas; whole ones are integers."""
    numbers: list[float] = []
    for word in text.split(","):
        with suppress(ValueError):
            numbers.append(int(word) if word.isascii() and word.isdecimal() else float(word))
    if len(set(numbers)) < text.count(",") + 1 or not all(0 < number < math.inf for number in numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write positive numbers, each once, such as 256,384,512 or 0.5,1,1.5"
        )
    return numbers


def _check_scales(scales: Sequence[float], protocol: str | None) -> None:
    """Refuse numbers that are no pixels of `dense`, or no factors where there is no protocol."""
    if protocol and not all(isinstance(scale, int) and scale <= _LARGEST for scale in scales):
        raise UserError(f"--scales of --protocol dense: write whole numbers of pixels, 1 to {_LARGEST}")
    if not protocol and max(scales) > _LARGEST_FACTOR:
        raise UserError(f"--scales {max(scales):g}: of segmentation they are factors, {_LARGEST_FACTOR} at most")
