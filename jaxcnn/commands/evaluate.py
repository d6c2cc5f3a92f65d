"""`jaxcnn evaluate`: score every example of the evaluation set once. The last line of stdout is one JSON object."""

import argparse
import json
from pathlib import Path

from jaxcnn.commands.common import OVERRIDES, parse, set_up_jax


def main(argv: list[str]) -> int:
    """Evaluate as `argv` says."""
    parser = argparse.ArgumentParser("jaxcnn evaluate", description=__doc__, epilog=OVERRIDES)
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="folder of the run")
    parser.add_argument("--checkpoint", metavar="STEP|best|last", default="best", help="which one (default: best)")
    parser.add_argument("--save", metavar="PNG", type=Path, help="draw a grid of predictions")
    arguments, overrides = parse(parser, argv)

    from jaxcnn.commands.run import open_run
    from jaxcnn.training.evaluate import evaluate

    set_up_jax()
    run = open_run(arguments.workdir, arguments.checkpoint, overrides)
    scores = evaluate(
        run.program.eval_step, run.variables, run.data.eval_batches(),
        mesh=run.program.mesh, metrics=run.program.task.metrics, examples=run.data.eval_examples,
    )  # fmt: skip
    if arguments.save:
        from jaxcnn.analysis.plots import prediction_grid

        batch = next(run.data.eval_batches())
        images, labels = batch["image"][batch["mask"] > 0], batch["label"][batch["mask"] > 0]
        prediction_grid(images, labels, run.probabilities(images), run.data.class_names, arguments.save)
        print(f"predictions: {arguments.save}")
    about = {
        "workdir": str(arguments.workdir),
        "checkpoint": run.step,
        "model": run.config.model.name,
        "data": run.config.data.name,
    }
    print(json.dumps(about | scores))
    return 0
