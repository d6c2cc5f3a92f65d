"""The state a run starts from: the newest checkpoint of its folder, other weights, or fresh ones."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxcnn import UserError
from jaxcnn.config import RESUMABLE, Config
from jaxcnn.configfile import from_json, to_json
from jaxcnn.data.sources import path_kind
from jaxcnn.locations import location
from jaxcnn.models.layers import match_norms
from jaxcnn.training.checkpoint import Checkpoints, Tree
from jaxcnn.training.program import Data, Program
from jaxcnn.training.state import TrainState, path_name, shapes_of


def check_resume(config: Config, workdir: Path) -> None:
    """Raise a UserError that names every key in which `config` differs from the run begun in `workdir` and may not."""
    path = workdir / "config.json"
    if not path.exists() or not any((workdir / "checkpoints").glob("[0-9]*")):
        return
    before, now = (json.loads(to_json(c)) for c in (from_json(path), config))  # as JSON has it: tuples are lists
    if (kind := path_kind(before["data.name"])) and kind == path_kind(now["data.name"]):
        before["data.name"] = now["data.name"]  # files may have moved: their checkpoint knows their classes and number
    changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k) and k not in RESUMABLE]
    if changed:
        words = "; ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in changed)
        raise UserError(
            f"--workdir {workdir} holds a run of another config ({words}): take another folder, or set these back"
        )


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
        state = state.replace(constants=program.constants())
        check_norm(info, config, program)
        return start, state, info["spent"]
    state = program.init()
    if config.init_from:
        fresh = {"params": state.params, "batch_stats": state.batch_stats}
        best, reset = program.task.best, config.reset_head
        loaded, words = load_variables(
            location(config.init_from, "config.init_from"), fresh, best, data.image_shape, reset
        )
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


def load_variables(
    path: Path, fresh: Tree, best: tuple[str, str], image_shape: Sequence[int] = (), reset_head: bool = False
) -> tuple[Tree, str]:
    """The weights to start from: of a run's folder (its best checkpoint) or of one checkpoint, RUN/checkpoints/STEP.

    Args:
      fresh: {"params", "batch_stats"} of step 0, on the devices that the result is to be on.
      image_shape: (H, W, C) of this run's images, for the error.
      reset_head: whether heads, auxiliary ones too, stay fresh where the number of classes differs.

    Returns:
      The weights, and what the log is to say of them ("" for nothing). The norms of either network may be frozen.

    Raises:
      UserError: there is no checkpoint; or it is of another model, of images that other weights go with, or, without
        `reset_head`, of another number of classes.
    """
    if path.is_file():
        raise UserError(
            f"config.init_from={path} is a file: make a folder of it first, "
            f"`jaxcnn weights import --model NAME {path} OUT`, and start from OUT"
        )
    run, which = (path.parent.parent, path.name) if path.parent.name == "checkpoints" else (path, "best")
    checkpoints = Checkpoints(run, best)
    step = checkpoints.resolve(which)
    checkpoints.info(step)  # refuses another format
    saved = checkpoints.variable_shapes(step)
    asked = match_norms(fresh, saved)  # frozen norms keep their affine in another collection than ordinary ones
    now = shapes_of(asked)
    heads = [key for key in now if _differs_in_classes(key, saved.get(key, ()), now[key])]
    if not heads or saved | {key: now[key] for key in heads} != now:
        try:
            return match_norms(checkpoints.restore_variables(step, asked), fresh), ""
        except UserError as error:
            raise UserError(f"{error}{_other_images(checkpoints.info(step), image_shape)}") from error
    there, here = saved[heads[0]][-1], now[heads[0]][-1]
    if not reset_head:
        raise UserError(
            f"config.init_from={path} has {there} classes, this run {here}: config.reset_head=True takes the other "
            "weights and gives the head fresh ones"
        )

    def like(keys: Any, x: Any) -> Any:
        shape = saved[path_name(keys)]  # a head of other classes need not divide; it is not kept
        cut = shape != x.shape and isinstance(x.sharding, NamedSharding)
        sharding = NamedSharding(x.sharding.mesh, PartitionSpec()) if cut else x.sharding
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

    loaded = checkpoints.restore_variables(step, jax.tree_util.tree_map_with_path(like, asked))
    merged = jax.tree.map(lambda old, new: old if old.shape == new.shape else new, loaded, asked)
    return match_norms(merged, fresh), f"the head starts afresh: {there} classes in {path}, {here} here"


def _differs_in_classes(key: str, saved: tuple[int, ...], now: tuple[int, ...]) -> bool:
    in_head = key.split("/")[-2] == "head"
    return in_head and saved != now and len(saved) == len(now) and saved[:-1] == now[:-1]


def _other_images(info: dict[str, Any], image_shape: Sequence[int]) -> str:
    """Words that say why weights may differ in shape, where the images do."""
    saved = info.get("input", {}).get("image_shape", image_shape)
    if list(saved) == list(image_shape):
        return ""
    there, here = ("×".join(map(str, shape)) for shape in (saved, image_shape))
    return f". Its images are {there}, this run's {here} (config.data.image_size)"
