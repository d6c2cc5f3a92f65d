"""The named mesh of devices, and batches on it; `jaxcnn.training.placement` says where the state lies."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxcnn import UserError

AXES = ("data", "model")


@runtime_checkable
class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """Let go of what it holds."""


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[Any] = ()) -> Mesh:
    """A mesh of data × model devices, -1 is the rest of those there are. One device is the same code.

    The devices of a row, those along `model`, are neighbours: of one process if it has as many.

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
    return Mesh(np.array(devices[: data * model]).reshape(data, model), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def over_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The rows of a batch, dimension `axis`, cut over all devices: convolutions are data parallel on both axes."""
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


def on_devices(batches: Iterator[dict[str, Any]], mesh: Mesh, ahead: int = 2) -> Generator[dict[str, Any]]:
    """Turn this process's batches into global arrays cut by rows, `ahead` of them on their way during a step.

    Arrays that are on the devices already stay as they are.
    """
    sharding = over_rows(mesh)
    queue: deque[dict[str, Any]] = deque()

    def place(value: Any) -> jax.Array:
        return value if isinstance(value, jax.Array) else _global(sharding, value)

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
    return _global(sharding, whole, whole.shape)


def _global(sharding: NamedSharding, value: np.ndarray, shape: tuple[int, ...] | None = None) -> jax.Array:
    """A global array of this process's part; it is put there on purpose, which JAX does not see of several processes.

    `jax.device_put` would have all processes meet to compare their values.
    """
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(sharding, value, shape)
