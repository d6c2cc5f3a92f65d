"""`jaxcnn train`: train a network from an experiment file; run again on the same folder, it resumes."""

import json
import sys
from pathlib import Path

from jaxcnn.commands.common import OVERRIDES, Parser, parse, set_up_jax


def main(argv: list[str]) -> int:
    """Train as `argv` says; 0 when done, 130 or 143 when stopped by Ctrl-C or SIGTERM after saving."""
    parser = Parser("jaxcnn train", description=__doc__, epilog=OVERRIDES)
    parser.add_argument("--config", metavar="FILE", required=True, help="experiment file; it is Python and is executed")
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="folder of the run")
    arguments, overrides = parse(parser, argv)

    from jaxcnn.configfile import check_resume, load_config

    config = load_config(arguments.config, overrides)
    workdir: Path = arguments.workdir

    from jaxcnn.training.guard import Interrupt, Interrupted, only_trainer

    with Interrupt() as interrupt, only_trainer(workdir):
        check_resume(config, workdir)
        set_up_jax()
        import jax
        import jax.numpy as jnp

        from jaxcnn.data.dataset import Dataset
        from jaxcnn.data.pipeline import Slice
        from jaxcnn.models import create_model
        from jaxcnn.training.loop import train

        data = Dataset(config, Slice(jax.process_index(), jax.process_count()))
        model = create_model(config.model.name, data.num_classes, jnp.dtype(config.dtype), **config.model.overrides)
        try:
            result = train(config, workdir, model, data, interrupt)
        except Interrupted as stop:
            print(f"jaxcnn: {stop}; run the same command again to go on", file=sys.stderr)
            return stop.code
    keys = (
        "step", "epoch", "train/loss", "eval/loss", "eval/top1", "eval/top5", "eval/examples",
        "images_per_sec", "wall_time_s",
    )  # fmt: skip
    print(json.dumps({key: result.get(key) for key in keys}))
    print(
        f"done: {workdir}/result.json; go on with `jaxcnn evaluate --workdir {workdir}` or `jaxcnn plot {workdir}`",
        file=sys.stderr,
    )
    return 0
