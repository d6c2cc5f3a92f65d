"""Iterate over batches ahead of who takes them, with a timeout, and detect dead or hung reader processes.

One thread takes the batches from Grain, whose threads or worker processes make them; it alone closes that iterator.
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
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import grain
import grain.experimental
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from jaxcnn import UserError
from jaxcnn.data import follow_parent, usable_cores

Batch = dict[str, np.ndarray]

TIMEOUT = 600.0  # seconds without a batch after which it is an error; a tenth of it, and a line says so
LEFT_BEHIND: list[threading.Thread] = []  # those that hang still: Python would wait for what they wait for
_POLL = 0.1  # seconds between two looks at the workers, where there is no batch
_GRACE = 2.0  # seconds in which the error of a worker that has died may come
_CLOSING = 5.0  # seconds that the readers have to end by themselves, and again once their processes are killed


class ReadingFault(UserError):
    """What reads the data is dead or hangs: a fault of the machine, and the run can go on from its last checkpoint."""

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
    shared = grain.experimental.WithOptionsIterDataset(ahead, sharing).mp_prefetch(processes, _start_worker)
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
            # Grain lets go of what is still in its buffers when they are collected, in a thread of its own: at exit,
            # what is not done yet would be reported as leaked.
            batch = batches = None
            gc.collect()
            if deleting := SharedMemoryArray._del_thread_pool:
                deleting.apply(int)


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


def _start_worker(index: int, count: int) -> None:
    follow_parent()


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
    found = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    if not isinstance(error, RuntimeError) or not found:
        return error
    dead = [worker for worker in workers if worker.exitcode]
    who = f"process {dead[0].pid}, one of {len(workers)} that read" if dead else "a process that reads"
    return _died(int(found[1]), f"{who} the data,")


def _died(code: int, who: str) -> ReadingFault:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    memory = ", as a system short of memory does (fewer config.data.workers need less)" if code == -9 else ""
    return ReadingFault(f"{who} {how}{memory}; run the same command again to go on")
