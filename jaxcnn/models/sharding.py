"""What layers ask of the mesh they are applied on, by the names of its axes; nothing where there is no mesh.

A trace has a mesh inside `jax.sharding.use_abstract_mesh` and inside `shard_map`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
from jax.sharding import AxisType, PartitionSpec, get_abstract_mesh

_statistics: ContextVar[str | None] = ContextVar("statistics", default=None)


@contextmanager
def statistics_over(axis: str | None) -> Iterator[None]:
    """Within it, BatchNorm's statistics are over `axis` of the surrounding `shard_map`, besides the rows of a shard."""
    token = _statistics.set(axis)
    try:
        yield
    finally:
        _statistics.reset(token)


def statistics_axis() -> str | None:
    """What `statistics_over` has set."""
    return _statistics.get()


def model_parallel(features: int) -> bool:
    """Whether a fully connected layer of so many features is cut over `model`."""
    size = get_abstract_mesh().shape.get("model", 1)
    return size > 1 and features % size == 0


def place(x: jax.Array, rows: tuple[str, ...], features: str | None = None) -> jax.Array:
    """`x` (N, …, C) with its rows and its features cut over these axes, those that a `shard_map` has cut left out."""
    mesh = get_abstract_mesh()
    free = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    spec = PartitionSpec(tuple(axis for axis in rows if axis in free), *[None] * (x.ndim - 2), features)
    return jax.lax.with_sharding_constraint(x, spec)
