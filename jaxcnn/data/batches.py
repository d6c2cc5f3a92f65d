"""From examples to batches on the devices: which ones a step takes, their rows, and reading them ahead.

The order is a function of (seed, step) and the number of examples alone, without a table of it in memory. Batches are
dicts of NumPy arrays, the slice of this process out of the global batch: "image" uint8 (n, H, W, C), the targets,
"mask" float32 (n,), 1 for an example and 0 for padding, "epoch" and "example" int32 (n,), which name the example, and
"broken" int32 (n,): -1, or the example that could not be read and has another in its place. A batch has images of one
size, a bucket's; for each bucket there is a `Reader`.

One thread takes the batches from Grain, whose threads or worker processes make them, with a timeout and a look at
workers that may have died. Closing begins at `on_devices`, whose `close`, also after an error, ends all of it.
"""

import contextlib
import gc
import math
import multiprocessing
import os
import queue
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from itertools import pairwise
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import grain
import grain.experimental
import jax
import numpy as np
from absl import flags
from grain.experimental import index_shuffle
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn import UserError, compat
from jaxcnn.data import follow_parent, usable_cores

Batch = dict[str, np.ndarray]
Reader = Any  # `data.reader.Reader`

TIMEOUT = 600.0  # seconds without a batch after which it is an error; a tenth of it, and a line says so
LEFT_BEHIND: list[threading.Thread] = []  # readers that still hang: Python would wait for them at exit
_SHARED = "shared memory, /dev/shm, is too small (docker run --shm-size=2g; or fewer config.data.workers, 0 needs none)"
_POLL = 0.1  # seconds between two looks at the workers, where there is no batch
_GRACE = 2.0  # seconds in which the error of a worker that has died may come
_CLOSING = 5.0  # seconds that the readers have to end by themselves, and again once their processes are killed


class Slice(NamedTuple):
    """The part of every global batch that one process reads."""

    process: int = 0
    processes: int = 1

    def rows(self, global_batch_size: int) -> range:
        """Return the rows of this process; the processes' rows follow one another in the global batch."""
        if global_batch_size % self.processes:
            raise UserError(
                f"config.global_batch_size={global_batch_size} does not divide by {self.processes} processes: "
                "take a multiple of their number"
            )
        local = global_batch_size // self.processes
        return range(self.process * local, (self.process + 1) * local)


WHOLE = Slice()


class Schedule:
    """Which bucket each step takes: as often as it has examples, in a shuffled order.

    By the end of epoch e, bucket b has had floor((e + 1)·n_b / B) batches, so that no bucket gains on another however
    long the run is.

    Args:
      sizes: examples of each bucket.
    """

    def __init__(self, sizes: Sequence[int], global_batch_size: int, seed: int):
        self.sizes, self.batch, self.seed = tuple(sizes), global_batch_size, seed

    def __getitem__(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step, and how many earlier steps took it."""
        if len(self.sizes) == 1:
            return 0, step
        epoch = step * self.batch // sum(self.sizes)  # or a later one: the floors leave batches over
        while sum(self._before(epoch + 1)) <= step:
            epoch += 1
        before = self._before(epoch)
        turns = _turns(tuple(b - a for a, b in zip(before, self._before(epoch + 1), strict=True)), self.seed, epoch)
        place = step - sum(before)
        bucket = int(turns[place])
        return bucket, before[bucket] + int(np.count_nonzero(turns[:place] == bucket))

    def _before(self, epoch: int) -> list[int]:
        """Return the number of batches of each bucket in the epochs before `epoch`."""
        return [epoch * size // self.batch for size in self.sizes]


@lru_cache(maxsize=8)
def _turns(counts: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    """Return the buckets of an epoch's steps, int (steps,): each as often as `counts` says, shuffled."""
    buckets, total = np.repeat(np.arange(len(counts)), counts), sum(counts)
    key = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    return buckets[[_shuffled(i, total, key) for i in range(total)]]


def _shuffled(place: int, count: int, seed: int) -> int:
    return index_shuffle(place, max_index=count - 1, seed=seed % 2**32, rounds=4)


class Layout:
    """Which rows of a batch belong to which stratum, spread evenly, so that every part of a batch has its share.

    Args:
      shares: of the strata; none: all rows are of one.

    Attributes:
      stratum, rank: of each row, its stratum and its place among the rows of that.
      counts: rows of each stratum.

    Raises:
      UserError: a stratum has no row.
    """

    def __init__(self, shares: Sequence[Fraction], batch: int):
        self.stratum, self.rank, self.counts = list[int](), list[int](), [0] * max(1, len(shares))
        for row in range(batch):
            # The first stratum that is behind its share of the rows up to this one; the last one takes what is over.
            behind = (k for k, share in enumerate(shares) if self.counts[k] < (row + 1) * share // 1)
            stratum = next(behind, len(self.counts) - 1)
            self.stratum.append(stratum)
            self.rank.append(self.counts[stratum])
            self.counts[stratum] += 1
        if not all(self.counts):
            least = max(math.ceil(1 / share) for share in shares)
            raise UserError(
                f"config.global_batch_size={batch} has no row for a kind of example that is 1 in {least}: set it to "
                f"{least} or more"
            )


class Places:
    """The places of each step's examples: in each bucket one shuffled epoch after another, with no gap between them.

    A bucket's batch number k is places k·B … (k+1)·B - 1 of an endless stream, whose place p is example `p % examples`
    of the shuffled epoch `p // examples`. So each epoch has every example once, also where it is no whole number of
    batches.

    Where the source has strata, each has such a stream of its own, and its share of the rows of every batch, rounded
    down but for the last one's. The "epoch" of such an example counts the passes over its stratum; an epoch of the run
    still is as many examples as the source has.

    Raises:
      UserError: the batch is too small for a row of each stratum.
    """

    def __init__(self, readers: Sequence[Reader], global_batch_size: int):
        self.readers, self.batch = readers, global_batch_size
        self.schedule = Schedule([len(reader) for reader in readers], global_batch_size, readers[0].seed)
        self.strata = [reader.source.strata if reader.members is None else () for reader in readers]
        self.layouts = [Layout([share for share, _ in strata], global_batch_size) for strata in self.strata]
        # Epochs are seeded by seed + e: neighbouring seeds would share orders, hence the hash.
        streams = [len(layout.counts) for layout in self.layouts]
        states = np.random.SeedSequence(readers[0].seed).generate_state(sum(streams))
        self.seeds = [part.tolist() for part in np.split(states, np.cumsum(streams)[:-1])]

    def names(self, step: int, rows: range) -> tuple[Reader, list[tuple[int, int]]]:
        """Return the reader of a step's bucket, and (epoch, example) of these rows of its global batch."""
        bucket, number = self.schedule[step]
        reader, strata, layout, names = self.readers[bucket], self.strata[bucket], self.layouts[bucket], []
        for row in rows:
            stratum, rank = layout.stratum[row], layout.rank[row]
            members = strata[stratum][1] if strata else range(len(reader))
            epoch, position = divmod(number * layout.counts[stratum] + rank, len(members))
            place = members[_shuffled(position, len(members), self.seeds[bucket][stratum] + epoch)]
            names.append((epoch, reader.example(int(place))))
        return reader, names


def nearest_bucket(sizes: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the bucket whose aspect is nearest to that of each image, in the logarithm: int (N,).

    Equal on every machine: it compares products of whole numbers, and takes no logarithm.

    Args:
      sizes: (N, 2), heights and widths.
      buckets: (height, width) of each.
    """
    rising = sorted(range(len(buckets)), key=lambda b: Fraction(*buckets[b]))
    heights, widths = np.asarray(sizes, np.float64).T ** 2  # exact below 2^26 pixels, and else rounded alike
    bounds = [
        heights * (buckets[low][1] * buckets[high][1]) > widths * (buckets[low][0] * buckets[high][0])
        for low, high in pairwise(rising)
    ]
    return np.array(rising)[np.sum(bounds, axis=0, dtype=int) if bounds else np.zeros(len(sizes), int)]


def steps_per_epoch(examples: int, global_batch_size: int) -> Fraction:
    """Return the batches in one pass over the data: a fraction, for one epoch follows another without a gap."""
    if global_batch_size > examples:
        raise UserError(
            f"config.global_batch_size={global_batch_size} is more than the {examples} training examples there are: "
            f"set it to {examples} or less"
        )
    return Fraction(examples, global_batch_size)


def train_batches(
    readers: Sequence[Reader], global_batch_size: int, start: int, stop: int, *, part: Slice = WHOLE, **ahead: Any
) -> Iterator[Batch]:
    """Return the batches of steps `start` … `stop` - 1, all full.

    The global batch of step k is a function of (seed, k) and the readers, whatever the number of processes and
    restarts.

    Args:
      part: what this process reads.
      ahead: options of `read_ahead`.
    """
    make = partial(_train_batch, Places(readers, global_batch_size), part.rows(global_batch_size))
    return read_ahead(grain.MapDataset.range(start, stop).map(make), **ahead)


def eval_batches(
    readers: Sequence[Reader], global_batch_size: int, *, part: Slice = WHOLE, **ahead: Any
) -> Iterator[Batch]:
    """Return every example exactly once, in order, one bucket after another.

    A bucket's last global batch is filled with black rows of mask 0. All processes yield the same number of batches, so
    none waits for another's collective. The arguments are those of `train_batches`.
    """
    starts = [(reader, i) for reader in readers for i in range(0, len(reader), global_batch_size)]
    make = partial(_eval_batch, starts, part.rows(global_batch_size))
    return read_ahead(grain.MapDataset.range(len(starts)).map(make), **ahead)


def _train_batch(places: Places, rows: range, step: int) -> Batch:
    """Return these rows of the global batch of `step`."""
    reader, names = places.names(step, rows)
    return _batch(reader, names, (reader.train(*name) for name in names)) | {"mask": np.ones(len(rows), np.float32)}


def _eval_batch(starts: list[tuple[Reader, int]], rows: range, number: int) -> Batch:
    """Return these rows of the global batch that begins at place `starts[number]` of a bucket."""
    reader, start = starts[number]
    names = [(0, reader.example(start + row)) for row in rows]
    batch = _batch(reader, names, (reader.eval(example) for _, example in names))
    there = np.array(rows) + start < len(reader)
    return batch | {"mask": (there & (batch["broken"] < 0)).astype(np.float32)}


def _batch(reader: Reader, names: list[tuple[int, int]], rows: Iterable[dict[str, Any]]) -> Batch:
    """Put each row in its place as it comes, while the processor has it in its cache."""
    count = len(names)  # n; images (n, H, W, C), targets (n, …)
    targets = {name: np.empty((count, *shape), dtype) for name, (shape, dtype) in reader.targets.items()}
    images = aligned((count, *reader.size, reader.source.image_shape[-1]))
    batch = {"image": images, **targets, "broken": np.empty(count, np.int32)}
    for i, row in enumerate(rows):
        for name, value in row.items():
            batch[name][i] = value
    epochs, examples = np.array(names, np.int32).T  # (n, 2) -> (n,) each
    return batch | {"epoch": epochs, "example": examples}


class ReadingFault(UserError):
    """Raised when a process that reads the data is dead or hangs; the run can resume from its last checkpoint."""

    code = 1


def read_ahead(
    batches: Any, workers: int = 0, prefetch: int = 8, timeout: float = TIMEOUT,
    note: Callable[[Batch], None] = lambda batch: None,
) -> Iterator[Batch]:  # fmt: skip
    """Iterate over a Grain data set, `prefetch` batches ahead, in threads or in worker processes.

    Args:
      workers: processes; 0: threads of this one.
      timeout: seconds.
      note: called with each batch before it is given out.

    Raises:
      ReadingFault: a worker process died, or no batch came for `timeout` seconds.
    """
    threads = min(prefetch, usable_cores())
    ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))
    if not workers:
        return watched(partial(iter, ahead), timeout, note)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which jaxcnn's command line does not use
    # After a run that ends at once, Python's tracker tidies up and warns of it, which is no news to the user.
    quiet = "ignore:resource_tracker"
    if quiet not in (warnings := os.environ.get("PYTHONWARNINGS", "")):
        os.environ["PYTHONWARNINGS"] = f"{warnings},{quiet}".lstrip(",")
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, prefetch // workers))
    # Shared memory is for images: what is small goes through the queue, and cannot be left over.
    sharing = grain.experimental.DatasetOptions(min_shm_size=2**16)
    shared = grain.experimental.WithOptionsIterDataset(ahead, sharing).mp_prefetch(processes, follow_parent)
    return watched(partial(iter, shared), timeout, note, shared=True)


def watched(
    make: Callable[[], Any], timeout: float, note: Callable[[Any], None] = lambda batch: None, shared: bool = False
) -> Iterator[Any]:
    """Iterate over what `make` returns, in a thread: the caller's wait has an end, and signals can break it.

    Args:
      make: returns an iterator, which that thread closes at the end. Worker processes that its first item starts are
        killed if they do not end then.
      timeout, note: as of `read_ahead`.
      shared: whether batches are in memory shared with workers. They are copied, so that it is free at once and not
        only when JAX lets go of it.

    Raises:
      ReadingFault: no batch came in time, or a worker process died.
    """
    ready, wanted, ended = queue.SimpleQueue[Any](), threading.Semaphore(2), threading.Event()
    before, other = multiprocessing.active_children(), _unborn()
    arguments = make, shared, ready, wanted, ended
    reader = threading.Thread(target=_read, args=arguments, name="jaxcnn-data", daemon=True)
    reader.start()
    workers = set[BaseProcess]()  # one that has died is no active child any more
    try:
        while (item := _wait(ready, timeout, before, workers, other)) is not None:
            if isinstance(item, BaseException):
                raise _named(item, workers)
            wanted.release()
            note(item)
            yield item
    finally:
        ended.set()
        wanted.release()
        reader.join(_CLOSING)
        if reader.is_alive() and (stuck := _since(before)):
            for worker in stuck:
                worker.kill()
            reader.join(_CLOSING)
        if reader.is_alive():
            LEFT_BEHIND.append(reader)


def _read(make: Any, shared: bool, ready: Any, wanted: threading.Semaphore, ended: threading.Event) -> None:
    """Put each batch, then None or the error; one is ready while the next is on its way."""
    batches: Any = None
    batch: Any = None
    try:
        batches = make()
        while wanted.acquire() and not ended.is_set():
            batch = next(batches, None)
            ready.put({key: _copy(value) for key, value in batch.items()} if shared and batch else batch)
    except BaseException as error:
        ready.put(error)
    finally:
        if batches is not None:
            batches.close()
        if shared:
            batch = batches = None
            gc.collect()  # Grain frees what is still in its buffers once they are collected.
            compat.wait_for_freed_memory()


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Return an empty uint8 array at a multiple of 64 bytes: JAX takes it without a copy where the device is a CPU."""
    size = math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)


def _copy(value: np.ndarray) -> np.ndarray:
    if value.dtype != np.uint8:
        return np.array(value)
    copy = aligned(value.shape)
    np.copyto(copy, value)
    return copy


def _since(before: list[BaseProcess]) -> list[BaseProcess]:
    return [process for process in multiprocessing.active_children() if process not in before]


def _wait(ready: Any, timeout: float, before: list[BaseProcess], workers: set[BaseProcess], other: Any) -> Any:
    """Return the next item; after a tenth of the time a line says what is waited for.

    Args:
      workers: those seen so far, to which new ones are added.
      other: what `_unborn` said before there were any.
    """
    began, said, grace = time.monotonic(), False, 0.0
    while True:
        workers.update(_since(before))
        with contextlib.suppress(queue.Empty):
            return ready.get(timeout=min(_POLL, timeout / 10))
        waited = time.monotonic() - began
        dead = [(worker.pid, worker.exitcode) for worker in workers if worker.exitcode]
        if (unborn := _unborn()) and unborn != other:
            dead.append(unborn)
        grace = (grace or waited + _GRACE) if dead else 0.0  # its error may be on its way
        if dead and waited > grace:
            raise _died(dead[0][1], f"process {dead[0][0]}, one of those that read the data,")
        numbers = ", ".join(str(worker.pid) for worker in _since(before))
        of = f" of worker processes {numbers}" if numbers else ""
        if waited > timeout:
            raise ReadingFault(
                f"no batch{of} for {timeout:,.3g} s, which is config.data.timeout: the files, or what reads them, "
                "hang; run the same command again to go on"
            )
        if waited > timeout / 10 and not said:
            print(f"waiting    no batch{of} for {timeout / 10:,.3g} s", file=sys.stderr, flush=True)
            said = True


def _unborn() -> tuple[int, int] | None:
    """Return number and exit code of a child that is dead and that nobody has asked about.

    `multiprocessing` does not know a process yet that dies before it has read what to do, and waits for it for ever.
    """
    with contextlib.suppress(ChildProcessError, AttributeError):  # no children; a system without `waitid`
        if info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return info.si_pid, info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
    return None


def _named(error: BaseException, workers: set[BaseProcess]) -> BaseException:
    """Return `error`, or what it means where it is Grain's of a worker that died."""
    if "No space left" in str(error) and workers:
        return ReadingFault(f"a process that reads the data found no space: {_SHARED}; run the same command again")
    found = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    if not isinstance(error, RuntimeError) or not found:
        return error
    dead = [worker for worker in workers if worker.exitcode]
    who = f"process {dead[0].pid}, one of {len(workers)} that read" if dead else "a process that reads"
    return _died(int(found[1]), f"{who} the data,")


def _died(code: int, who: str) -> ReadingFault:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    memory = ", as a system short of memory does (fewer config.data.workers need less)" if code == -9 else ""
    if code == -signal.SIGBUS:
        memory = f": {_SHARED}"
    return ReadingFault(f"{who} {how}{memory}; run the same command again to go on")


def on_devices(batches: Iterator[Batch], mesh: Mesh, ahead: int = 2) -> Generator[dict[str, jax.Array]]:
    """Turn this process's batches into global arrays, (n, …) -> (global batch, …), their rows sharded over all devices.

    `ahead` of them are on their way during a step; arrays that are on the devices already stay as they are. However
    the iteration ends, `batches` is closed, and with it the threads and processes that read.
    """
    over_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    placed = deque[dict[str, jax.Array]]()

    def place(value: Any) -> jax.Array:
        # Not `jax.device_put`, for which all processes would meet to compare their values.
        on_device = isinstance(value, jax.Array)
        return value if on_device else jax.make_array_from_process_local_data(over_rows, value)

    try:
        for batch in batches:
            with jax.transfer_guard_host_to_device("allow"):  # on purpose, which JAX does not see of several processes
                placed.append(jax.tree.map(place, batch))
            if len(placed) > ahead:
                yield placed.popleft()
        yield from placed
    finally:
        if close := getattr(batches, "close", None):  # an iterator of the user's need not have it
            close()
