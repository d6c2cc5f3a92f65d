"""Ask the mesh that a layer is traced under, by the names of its axes; without a mesh nothing is sharded.

A trace has a mesh inside `jax.sharding.use_abstract_mesh` and inside `shard_map`.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec, get_abstract_mesh

# Paths of the parameters whose last dimension is sharded over `model`: fully connected layers, by their names.
CLASSIFIER = re.compile(r"(^|/)(fc\d*|head)/(kernel|bias)$")

_statistics: ContextVar[str | None] = ContextVar("statistics", default=None)


@contextmanager
def statistics_over(axis: str | None) -> Iterator[None]:
    """Take BatchNorm's statistics over `axis` of the surrounding `shard_map`, besides the rows of a shard."""
    token = _statistics.set(axis)
    try:
        yield
    finally:
        _statistics.reset(token)


def statistics_axis() -> str | None:
    """Return the axis that `statistics_over` has set."""
    return _statistics.get()


def platform() -> str:
    """Return the platform of the mesh's devices, such as "cpu", "gpu" or "tpu"; "" where there is no mesh."""
    device = get_abstract_mesh().abstract_device
    return device.platform if device else ""


def rows_of_a_device(x: jax.Array) -> int:
    """Return how many rows of `x` (N, …) a device has at least: those of its shard, or N where there is no mesh."""
    mesh = get_abstract_mesh()
    free = [
        mesh.shape[name] for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto
    ]
    return x.shape[0] // math.prod(free)


def model_parallel(features: int) -> bool:
    """Return whether a fully connected layer of so many features is sharded over `model`."""
    size = get_abstract_mesh().shape.get("model", 1)
    return size > 1 and features % size == 0


def place(x: jax.Array, rows: tuple[str, ...], features: str | None = None) -> jax.Array:
    """Constrain `x` (N, …, C) to be sharded over these axes; those that a `shard_map` has sharded are left out."""
    mesh = get_abstract_mesh()
    free = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    spec = PartitionSpec(tuple(axis for axis in rows if axis in free), *[None] * (x.ndim - 2), features)
    return jax.lax.with_sharding_constraint(x, spec)


def vary_as(x: jax.Array, tree: Any) -> Any:
    """Return the arrays of `tree`, marked as differing from shard to shard if `x` does; no value changes.

    In a `shard_map`, JAX tracks which arrays differ between shards, and the initial value of a loop must be marked as
    its result is. A choice between two equal arrays by an element of `x` marks them; XLA drops the choice.
    """
    element = x.ravel()[0]
    return jax.tree.map(lambda leaf: jnp.where(element == element, leaf, leaf), tree)
