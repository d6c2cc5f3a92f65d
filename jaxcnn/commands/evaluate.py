"""`jaxcnn evaluate`: score every example of the evaluation set once. The last line of stdout is one JSON object."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, parse, set_up_jax
from jaxcnn.commands.several import add_hosts, team_of

_PROTOCOLS = (
    "1crop",
    "10crop",
    "144crop",
    "dense",
)  # those of jaxcnn.data.images.test_crops, which a help need not load
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
        about = _evaluate(arguments, overrides)
    if team.process == 0:
        print(json.dumps(about))
    return 0


def _evaluate(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> dict[str, Any]:
    """What is printed at the end, the scores among it."""
    run, data, program = _open(arguments, overrides)
    # Weights that were made for the centre of an image are scored on it, though the data set would give the whole.
    protocol = arguments.protocol or ("1crop" if "resize" in run.input and "resize" not in data.input else None)
    about = {
        "workdir": str(arguments.workdir), "checkpoint": run.step,
        "model": run.config.model.name, "data": run.config.data.name, "split": data.eval.split,
    }  # fmt: skip
    if protocol:
        about |= _score_views(run, data, program, protocol, arguments.scales or [])
    else:
        about |= _score(run, data, program, program.eval_step, data.eval_batches())
    for words in data.complaints(0):
        print(words, file=sys.stderr)
    if arguments.save:
        _draw(run, data, arguments.save)
    return about


def _scales(text: str) -> list[int]:
    """Numbers of pixels, different ones, joined by commas."""
    numbers = [int(word) if word.isascii() and word.isdecimal() else 0 for word in text.split(",")]
    if min(numbers) < 1 or max(numbers) > _LARGEST or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write whole numbers of pixels, each once, 1 to {_LARGEST}, such as 256,384,512"
        )
    return numbers


def _open(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> tuple[Any, Any, Any]:
    """The run, its data set and its program; the classes and the images of both must agree."""
    import jax

    from jaxcnn.data.batches import Slice
    from jaxcnn.data.dataset import Dataset
    from jaxcnn.training.checkpoint import shapes_of
    from jaxcnn.training.program import build_program
    from jaxcnn.training.trained import open_run

    run = open_run(arguments.workdir, arguments.checkpoint, overrides)
    # Evaluation pads and masks: any batch will do, once it spreads over the devices.
    run.config.global_batch_size += -run.config.global_batch_size % run.mesh.size
    run.config.data.resident = False  # what is read once need not stay on the devices
    data = Dataset(run.config, Slice(jax.process_index(), jax.process_count()), training=False)
    classes = run.variables["params"]["head"]["bias"].shape[-1]
    if data.num_classes != classes:
        raise UserError(
            f"{arguments.workdir} has {classes} classes, {run.config.data.name} {data.num_classes}: "
            "set config.data.name to a data set of its classes"
        )
    program = build_program(run.config, run.model, data, run.mesh)
    if shapes_of(program.variables) != shapes_of(run.variables):
        theirs, ours = ("×".join(map(str, shape)) for shape in (run.input["image_shape"], data.image_shape))
        raise UserError(f"{arguments.workdir} takes images of {theirs}, those of {run.config.data.name} are {ours}")
    return run, data, program


def _score(run: Any, data: Any, program: Any, step: Any, batches: Any) -> dict[str, Any]:
    """Every example once, in the batches that `step` takes."""
    from jaxcnn.training.evaluation import evaluate

    return evaluate(
        step, run.variables, batches, task=program.task, mesh=run.mesh, examples=data.eval_examples,
        broken=lambda: data.eval_broken,
    )  # fmt: skip


def _score_views(run: Any, data: Any, program: Any, protocol: str, scales: list[int]) -> dict[str, Any]:
    """Every example once, by the views of a protocol; a broken one is an error whatever config.data.on_error says."""
    from functools import partial

    import jax

    from jaxcnn.data.images.augment_device import normalize
    from jaxcnn.data.images.test_crops import make_views, plan, view_batches
    from jaxcnn.training.evaluation import densely, make_crops_step
    from jaxcnn.training.sharding import replicated

    size, batch = data.eval_image_shape[:2], run.config.global_batch_size
    trained = round(run.input.get("resize", 0) * max(size) / max(run.input["image_shape"][:2]))
    resize = data.input.get("resize", trained)
    views = make_views(protocol, data.eval_image_shape, scales, resize)
    batches = plan(data.eval, views, batch, run.mesh.size)
    shapes = len({rows.aspect for rows in batches})
    compiled = f", {shapes} shape{'s' * (shapes > 1)} of images to compile for" if protocol == "dense" else ""
    print(f"{protocol}: {views.count} view{'s' * (views.count > 1)} an image{compiled}", file=sys.stderr)
    step = make_crops_step(
        densely(run.model) if protocol == "dense" else run.model, program.task,
        partial(normalize, mean=data.mean, std=data.std), batch * math.prod(size), views.mirrored,
    )  # fmt: skip
    scores = _score(
        run, data, program, jax.jit(step, out_shardings=replicated(run.mesh)),
        view_batches(data.eval, views, batches, part=data.part, workers=run.config.data.workers),
    )  # fmt: skip
    return {"protocol": protocol, "views": views.count, "scales": views.scales} | scores


def _draw(run: Any, data: Any, out: Path) -> None:
    """Write a grid of the first images with their predictions, by the run's own evaluation."""
    import numpy as np

    from jaxcnn.figures.overlays import prediction_grid
    from jaxcnn.training.trained import classifier

    out.parent.mkdir(parents=True, exist_ok=True)
    batch = next(data.eval_batches())
    images, labels = (batch[key][batch["mask"] > 0][:_DRAWN] for key in ("image", "label"))
    probabilities = np.asarray(classifier(run.model, run.input)(run.variables, images))
    prediction_grid(images, labels.tolist(), probabilities, data.class_names, out)
    print(f"predictions: {out}")
