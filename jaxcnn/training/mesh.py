"""The one place where placement is decided: a named mesh, the batch over `data`, everything else replicated."""

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn import UserError

AXES = ("data", "model")


@runtime_checkable
class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """Let go of what it holds."""


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A mesh of data × model devices; -1 along `data` takes all there are. One device is the same code.

    Raises:
      UserError: more devices asked for than there are.
    """
    devices = jax.devices()
    data = len(devices) // model if data == -1 else data
    if data * model > len(devices) or data < 1:
        raise UserError(
            f"config.mesh asks for {data} × {model} devices, there are {len(devices)} ({devices[0].device_kind}): "
            "set config.mesh.data=-1 to take all"
        )
    if jax.process_count() > 1 and data * model != len(devices):
        raise UserError(f"config.mesh.data={data}: several processes use all {len(devices)} devices, leave it at -1")
    return Mesh(np.array(devices[: data * model]).reshape(data, model), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """The leading dimension cut over the `data` axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(mesh: Mesh, global_batch_size: int, accumulate: int = 1) -> None:
    """Raise a UserError unless each micro-batch spreads evenly over the `data` axis."""
    parts = mesh.shape["data"] * accumulate
    if global_batch_size % parts:
        nearest = max(1, round(global_batch_size / parts)) * parts
        raise UserError(
            f"config.global_batch_size={global_batch_size} does not divide by {parts}, mesh.data={mesh.shape['data']} "
            f"times optimizer.accumulate={accumulate}: the nearest that does is {nearest}"
        )


def on_devices(batches: Iterator[dict[str, Any]], mesh: Mesh, ahead: int = 2) -> Generator[dict[str, Any]]:
    """Turn this process's batches into global arrays over `data`, `ahead` of them on their way during a step.

    Arrays that are on the devices already stay as they are.
    """
    sharding = over_data(mesh)
    queue: deque[dict[str, Any]] = deque()

    def place(value: Any) -> jax.Array:
        return value if isinstance(value, jax.Array) else jax.make_array_from_process_local_data(sharding, value)

    try:
        for batch in batches:
            queue.append({key: place(value) for key, value in batch.items()})
            if len(queue) > ahead:
                yield queue.popleft()
        yield from queue
    finally:
        if isinstance(batches, Closable):
            batches.close()  # ends the reader's threads or processes


def on_all(mesh: Mesh, value: np.ndarray | int, spec: PartitionSpec | None = None) -> jax.Array:
    """A global array of a value that every process has whole; `spec` cuts it, else each device has all of it."""
    sharding = NamedSharding(mesh, spec or PartitionSpec())
    whole = np.asarray(value)
    return jax.make_array_from_process_local_data(sharding, whole, whole.shape)
