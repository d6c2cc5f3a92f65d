"""From a source to batches: what each process reads, in an order that depends on nothing but (seed, epoch).

Batches are dicts of NumPy arrays, the slice of this process out of the global batch:
"image" uint8 (n, H, W, C), "label" int32 (n,), "mask" float32 (n,), 1 for an example and 0 for padding,
"epoch" and "example" int32 (n,), which name the example, and "broken" int32 (n,): -1, or the example that could not be
read and has another in its place.
"""

import gc
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import grain
import grain.experimental
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from jaxcnn import UserError
from jaxcnn.data.order import Order
from jaxcnn.data.reader import Reader, Row
from jaxcnn.data.watchdog import TIMEOUT, attended
from jaxcnn.data.worker import follow_parent

Batch = dict[str, np.ndarray]


class Slice(NamedTuple):
    """The part of every global batch that one process reads."""

    process: int = 0
    processes: int = 1

    def local_batch(self, global_batch_size: int) -> int:
        """Rows of this process; the processes' rows follow one another in the global batch."""
        if global_batch_size % self.processes:
            raise UserError(
                f"config.global_batch_size={global_batch_size} does not divide by {self.processes} processes: "
                "take a multiple of their number"
            )
        return global_batch_size // self.processes


WHOLE = Slice()


def steps_per_epoch(examples: int, global_batch_size: int) -> Fraction:
    """Batches in one pass over the data: a fraction, for one epoch follows another without a gap."""
    if global_batch_size > examples:
        raise UserError(
            f"config.global_batch_size={global_batch_size} is more than the {examples} training examples there are: "
            f"set it to {examples} or less"
        )
    return Fraction(examples, global_batch_size)


def train_batches(
    reader: Reader, global_batch_size: int, start: int, stop: int, *,
    part: Slice = WHOLE, workers: int = 0, prefetch: int = 8, timeout: float = TIMEOUT,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of steps `start` … `stop` - 1, all full.

    Args:
      part: what this process reads.
      workers, prefetch, timeout: as in `read_ahead`.

    The global batch of step k is a function of (seed, k) alone, whatever the number of processes and restarts. Nothing
    is kept of the order, so memory does not grow with the data set.
    """
    local = part.local_batch(global_batch_size)
    order = Order(len(reader.source), reader.seed)
    make = partial(_train_batch, reader, order, global_batch_size, local, part.process * local)
    return read_ahead(grain.MapDataset.range(start, stop).map(make), workers, prefetch, timeout)


def eval_batches(
    reader: Reader, global_batch_size: int, *,
    part: Slice = WHOLE, workers: int = 0, prefetch: int = 8, timeout: float = TIMEOUT,
) -> Iterator[Batch]:  # fmt: skip
    """Every example exactly once, in order; the last global batch is filled with black rows of mask 0.

    All processes yield the same number of batches, so none waits for another's collective.
    """
    local = part.local_batch(global_batch_size)
    batches = math.ceil(len(reader.source) / global_batch_size)
    make = partial(_eval_batch, reader, global_batch_size, local, part.process * local)
    return read_ahead(grain.MapDataset.range(batches).map(make), workers, prefetch, timeout)


def _train_batch(reader: Reader, order: Order, size: int, local: int, first: int, step: int) -> Batch:
    """Rows `first` … `first + local - 1` of the global batch of `step`."""
    names = [order[step * size + first + i] for i in range(local)]
    return _batch(reader, names, reader.train) | {"mask": np.ones(local, np.float32)}


def _eval_batch(reader: Reader, size: int, local: int, first: int, number: int) -> Batch:
    """Rows `first` … of global batch `number`."""
    places = np.arange(local) + (number * size + first)
    batch = _batch(reader, [(0, int(place)) for place in places], lambda _, place: reader.eval(place))
    return batch | {"mask": ((places < len(reader.source)) & (batch["broken"] < 0)).astype(np.float32)}


def _batch(reader: Reader, names: list[tuple[int, int]], read: Callable[[int, int], Row]) -> Batch:
    """The rows that `read` makes of (epoch, example), each put in its place while the processor has it in its cache."""
    images = _aligned((len(names), *reader.size, reader.source.image_shape[-1]))
    labels, broken = np.empty((2, len(names)), np.int32)
    for i, name in enumerate(names):
        images[i], labels[i], broken[i] = read(*name)
    epochs, examples = np.array(names, np.int32).T
    return {"image": images, "label": labels, "epoch": epochs, "example": examples, "broken": broken}


def usable_cores() -> int:
    """Cores that this process may run on: in a container or a job, often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty uint8 array at a multiple of 64 bytes: where the device is a CPU, JAX then takes it without a copy."""
    size = math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)


def read_ahead(batches: Any, workers: int, prefetch: int, timeout: float = TIMEOUT) -> Iterator[Batch]:
    """Iterate over a Grain data set, `prefetch` batches ahead, in threads or in worker processes.

    Raises:
      ReadingFault: a worker process died, or no batch came for `timeout` seconds.
    """
    threads = min(prefetch, usable_cores())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    if not workers:
        return attended(iter(batches.to_iter_dataset(options)), timeout)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which jaxcnn's command line does not use
    # After a run that ends at once, Python's tracker tidies up; what it would say of that is not the last word to have.
    quiet = "ignore:resource_tracker"
    if quiet not in (warnings := os.environ.get("PYTHONWARNINGS", "")):
        os.environ["PYTHONWARNINGS"] = f"{warnings},{quiet}".lstrip(",")
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, prefetch // workers))
    # Shared memory is for images: what is small goes through the queue, and cannot be left over.
    sharing = grain.experimental.DatasetOptions(min_shm_size=2**16)
    shared = grain.experimental.WithOptionsIterDataset(batches.to_iter_dataset(options), sharing)
    return attended(_copied(iter(shared.mp_prefetch(processes, _start_worker))), timeout)


def _copied(batches: Any) -> Iterator[Batch]:
    """Copies out of the workers' shared memory, which is then free at once and not only when JAX lets go of it."""
    batch: Any = None
    try:
        for batch in batches:
            yield {key: _copy(value) for key, value in batch.items()}
    finally:
        batches.close()
        # What is still in its buffers is let go of when they are collected, in a thread of Grain's: at exit, what is
        # not done yet would be called leaked.
        batch = batches = None
        gc.collect()
        if deleting := SharedMemoryArray._del_thread_pool:
            deleting.apply(int)


def _copy(value: np.ndarray) -> np.ndarray:
    if value.dtype != np.uint8:
        return np.array(value)
    copy = _aligned(value.shape)
    np.copyto(copy, value)
    return copy


def _start_worker(index: int, count: int) -> None:
    follow_parent()
