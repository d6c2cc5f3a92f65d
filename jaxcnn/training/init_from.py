"""The weights that `config.init_from` starts a run from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxcnn import UserError
from jaxcnn.training.checkpoint import Checkpoints, Tree
from jaxcnn.training.state import path_name, shapes_of


def load_variables(
    path: Path, fresh: Tree, metric: str, image_shape: Sequence[int] = (), reset_head: bool = False
) -> tuple[Tree, str]:
    """The weights to start from: of a run's folder (its best checkpoint) or of one checkpoint, RUN/checkpoints/STEP.

    Args:
      fresh: {"params", "batch_stats"} of step 0, on the devices that the result is to be on.
      image_shape: (H, W, C) of this run's images, for the error.
      reset_head: whether heads, auxiliary ones too, stay fresh where the number of classes differs.

    Returns:
      The weights, and what the log is to say of them ("" for nothing).

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
    checkpoints = Checkpoints(run, metric)
    step = checkpoints.resolve(which)
    saved, now = checkpoints.variable_shapes(step), shapes_of(fresh)
    heads = [key for key in now if _differs_in_classes(key, saved.get(key, ()), now[key])]
    if not heads or saved | {key: now[key] for key in heads} != now:
        try:
            return checkpoints.restore_variables(step, fresh), ""
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

    loaded = checkpoints.restore_variables(step, jax.tree_util.tree_map_with_path(like, fresh))
    merged = jax.tree.map(lambda old, new: old if old.shape == new.shape else new, loaded, fresh)
    return merged, f"the head starts afresh: {there} classes in {path}, {here} here"


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
