"""The named mesh of devices, and how arrays lie on it: the rows of a batch, and the state leaf by leaf."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxcnn import UserError
from jaxcnn.models.sharding import CLASSIFIER
from jaxcnn.training.state import TrainState, path_name

AXES = ("data", "model")
Tree = Any
SMALLEST = 2**12  # elements of what is sharded over `data`: gathering less costs more than it saves


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[Any] = ()) -> Mesh:
    """Return a mesh of data × model devices, -1: all remaining. One device is the same code.

    The devices of a row, those along `model`, are neighbours: of one process if it has as many. Over several TPU slices
    or GPU nodes the mesh is hybrid: the slow network between them carries `data` alone, where `data` divides by them.

    Args:
      devices: to take instead of those of this machine; they need not exist where a step is only compiled.

    Raises:
      UserError: more devices asked for than there are, or -1 for what does not come out even.
    """
    devices = devices or jax.devices()
    asked = f"config.mesh asks for {data} × {model} devices, there are {len(devices)} ({devices[0].device_kind})"
    if -1 in (data, model):
        fixed = -data * model
        if len(devices) % fixed:
            key = "model" if data == -1 else "data"
            raise UserError(f"{asked}: config.mesh.{key} must divide their number")
        data, model = (len(devices) // fixed if n == -1 else n for n in (data, model))
    if data * model > len(devices) or min(data, model) < 1:
        raise UserError(f"{asked}: set config.mesh.data=-1 to take all")
    if jax.process_count() > 1 and data * model != len(devices):
        raise UserError(f"{asked}: several processes use all of them, let data × model be {len(devices)}")
    sizes = Counter(getattr(device, "slice_index", 0) for device in devices)  # of each TPU slice or GPU node
    slices = len(sizes)
    if slices > 1 and data * model == len(devices) and data % slices == 0 and len(set(sizes.values())) == 1:
        grid = mesh_utils.create_hybrid_device_mesh((data // slices, model), (slices, 1), devices)
    else:
        grid = np.array(devices[: data * model]).reshape(data, model)
    return Mesh(grid, AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def over_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of rows, dimension `axis`, over all devices: convolutions are data parallel on both axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


def check_batch(mesh: Mesh | AbstractMesh, global_batch_size: int, accumulate: int = 1) -> None:
    """Raise a UserError unless each micro-batch spreads evenly over the devices."""
    parts = mesh.size * accumulate
    if global_batch_size % parts:
        nearest = max(1, round(global_batch_size / parts)) * parts
        raise UserError(
            f"config.global_batch_size={global_batch_size} does not divide by {parts}, {mesh.size} devices "
            f"times optimizer.accumulate={accumulate}: the nearest that does is {nearest}"
        )


def on_all(mesh: Mesh, value: np.ndarray | int, spec: PartitionSpec | None = None) -> jax.Array:
    """Return a global array of a value that every process has all of; `spec` shards it, else it is replicated."""
    array = np.asarray(value)
    # Not `jax.device_put`, for which all processes would meet to compare their values; and on purpose, which JAX does
    # not see of several processes.
    with jax.transfer_guard_host_to_device("allow"):
        sharding = NamedSharding(mesh, spec or PartitionSpec())
        return jax.make_array_from_process_local_data(sharding, array, array.shape)


class Layout(NamedTuple):
    """Shardings of a TrainState, leaf by leaf, and of the gradients, which lie as the optimizer's state does."""

    state: TrainState
    gradients: Tree


def layout(state: TrainState, mesh: Mesh, placement: str) -> Layout:
    """Return the layout of a state of these shapes.

    Args:
      placement: `config.mesh.placement`, "replicated", "zero1" or "fsdp".
    """

    def place(tree: Tree, over_data: bool) -> Tree:
        def sharding(path: Any, x: Any) -> NamedSharding:
            return NamedSharding(mesh, spec(path_name(path), x.shape, mesh, over_data))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    sharded = placement in ("zero1", "fsdp")
    placed = jax.tree.map(lambda _: replicated(mesh), state).replace(
        params=place(state.params, placement == "fsdp"),
        opt_state=place(state.opt_state, sharded),
        ema=place(state.ema, sharded),
    )
    return Layout(placed, place(state.params, sharded))


def spec(path: str, shape: tuple[int, ...], mesh: Mesh, over_data: bool) -> PartitionSpec:
    """Return the axes that the dimensions of one array are sharded over.

    Over `data` it is the largest dimension that divides and is free, of equal ones the last.

    Args:
      path: the array's names joined by "/".
    """
    axes: list[str | None] = [None] * len(shape)
    if CLASSIFIER.search(path) and mesh.shape["model"] > 1 and shape[-1] % mesh.shape["model"] == 0:
        axes[-1] = "model"
    parts = mesh.shape["data"]
    fits = [(n, i) for i, n in enumerate(shape) if axes[i] is None and n % parts == 0]
    if over_data and parts > 1 and fits and math.prod(shape) >= SMALLEST:
        axes[max(fits)[1]] = "data"
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()


def describe(state: TrainState) -> list[str]:
    """Return lines that say how each part of a placed state lies, and what each device holds of it in bytes."""
    lines = []
    for part in ("params", "opt_state", "ema"):
        by_spec: dict[str, list[tuple[str, Any]]] = {}
        for path, x in jax.tree_util.tree_leaves_with_path(getattr(state, part)):
            by_spec.setdefault(_words(x.sharding.spec), []).append((path_name(path), x))
        for words, arrays in by_spec.items():
            total = sum(x.size * x.dtype.itemsize for _, x in arrays)
            held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for _, x in arrays)
            names = ", ".join(name for name, _ in arrays[:2]) + (", …" if len(arrays) > 2 else "")
            lines.append(f"{part:<9}  {words:<22} {held / 1e6:9.3f} of {total / 1e6:.3f} MB: {len(arrays)}, {names}")
    return lines


def _words(spec: PartitionSpec) -> str:
    """Return "data × -" for ("data", None), "whole" for ()."""
    return " × ".join(axis or "-" for axis in spec) or "whole"
