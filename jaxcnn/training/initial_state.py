"""Where a run starts: from the newest checkpoint of its folder, from other weights, or fresh."""

import sys
from pathlib import Path
from typing import Any

import jax

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.init_from import load_variables
from jaxcnn.training.program import Data, Program
from jaxcnn.training.state import TrainState


def restore_or_init(
    config: Config, program: Program, data: Data, checkpoints: Checkpoints
) -> tuple[int, TrainState, dict[str, float]]:
    """The step to go on from, the state on the mesh, and the time spent before: of the newest checkpoint, or fresh."""
    if checkpoints.steps:
        start = checkpoints.resolve("last")
        info = checkpoints.info(start)
        if "position" not in info:
            folder = checkpoints.folder.parent
            raise UserError(f"{folder} holds imported weights: give a new --workdir and --config.init_from={folder}")
        check_position(info["position"], data.position)
        state = checkpoints.restore(start, program.state)  # arrays of another model are the better reason, so first
        check_norm(info, config, program)
        return start, state, info["spent"]
    state = program.init()
    if config.init_from:
        fresh = {"params": state.params, "batch_stats": state.batch_stats}
        metric, reset = f"eval/{program.task.best}", config.reset_head
        loaded, words = load_variables(Path(config.init_from), fresh, metric, data.image_shape, reset)
        if words and jax.process_index() == 0:
            print(words, file=sys.stderr, flush=True)
        state = state.replace(**loaded, ema=program.average_of(loaded))
    return 0, state, {}


def check_position(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a UserError unless the checkpoint's position is one in the data of this run."""
    for key, value in now.items():
        if saved.get(key) != value:
            raise UserError(
                f"the checkpoint was trained with {key} {saved.get(key)!r}, this run has {value!r}: "
                "its place in the data cannot be found again; take another --workdir"
            )


def check_norm(saved: dict[str, Any], config: Config, program: Program) -> None:
    """Raise a UserError if BatchNorm was over other numbers of images: per shard the devices are part of the model."""
    before, now = saved.get("normalised", program.normalised), program.normalised
    if before != now:
        raise UserError(
            f"the checkpoint was trained with BatchNorm over {before} images, config.norm.scope={config.norm.scope} "
            f"makes that {now} on these devices: train on as many as before, or in another --workdir"
        )
