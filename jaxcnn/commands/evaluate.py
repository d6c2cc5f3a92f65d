"""`jaxcnn evaluate`: score every example of the evaluation set once. The last line of stdout is one JSON object."""

import json
from pathlib import Path

from jaxcnn import UserError
from jaxcnn.commands.common import OVERRIDES, Parser, parse, set_up_jax

_DRAWN = 36  # images in a picture


def main(argv: list[str]) -> int:
    """Evaluate as `argv` says."""
    parser = Parser("jaxcnn evaluate", description=__doc__, epilog=OVERRIDES)
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="folder of the run")
    parser.add_argument("--checkpoint", metavar="STEP|best|last", default="last", help="which one (default: last)")
    parser.add_argument("--save", metavar="PNG", type=Path, help="draw a grid of predictions")
    arguments, overrides = parse(parser, argv)

    set_up_jax()
    import jax
    import numpy as np

    from jaxcnn.commands.run import classifier, open_run
    from jaxcnn.data.dataset import Dataset
    from jaxcnn.data.pipeline import Slice
    from jaxcnn.training.checkpoint import shapes_of
    from jaxcnn.training.evaluate import evaluate
    from jaxcnn.training.program import build_program

    run = open_run(arguments.workdir, arguments.checkpoint, overrides)
    # Evaluation pads and masks: any batch will do, once it spreads over the devices.
    devices = run.mesh.shape["data"]
    run.config.global_batch_size += -run.config.global_batch_size % devices
    data = Dataset(run.config, Slice(jax.process_index(), jax.process_count()))
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
    scores = evaluate(
        program.eval_step, run.variables, data.eval_batches(),
        mesh=run.mesh, metrics=program.task.metrics, examples=data.eval_examples,
    )  # fmt: skip
    if arguments.save:
        from jaxcnn.analysis.plots import prediction_grid

        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        batch = next(data.eval_batches())
        images, labels = (batch[key][batch["mask"] > 0][:_DRAWN] for key in ("image", "label"))
        probabilities = np.asarray(classifier(run.model, run.input)(run.variables, images))
        prediction_grid(images, labels.tolist(), probabilities, data.class_names, arguments.save)
        print(f"predictions: {arguments.save}")
    about = {
        "workdir": str(arguments.workdir), "checkpoint": run.step,
        "model": run.config.model.name, "data": run.config.data.name, "split": data.eval.split,
    }  # fmt: skip
    print(json.dumps(about | scores))
    return 0
