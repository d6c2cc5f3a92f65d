"""Batches that are waited for with an eye on those who read them: workers die, and file systems hang."""

import contextlib
import multiprocessing
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from jaxcnn import UserError

TIMEOUT = 600.0  # seconds without a batch after which it is an error; a tenth of it, and a line says so
LEFT_BEHIND: list[threading.Thread] = []  # those that hang still: Python would wait for what they wait for
_LOOK = 0.1  # seconds between two looks at the workers, where there is no batch
_GRACE = 2.0  # seconds in which the error of a worker that has died may come
_CLOSING = 5.0  # seconds that the readers have to end by themselves, and again once their processes are killed


class ReadingFault(UserError):
    """What reads the data is dead or hangs: a fault of the machine, and the run can go on from its last checkpoint."""

    code = 1


def attended(batches: Iterator[Any], timeout: float) -> Iterator[Any]:
    """The same batches, taken by a thread of its own, so that the caller's wait has an end and signals can break it.

    Args:
      batches: closed at the end, in that thread; the worker processes that its first item starts are killed if they do
        not end then.
      timeout: seconds.

    Raises:
      ReadingFault: no batch came in time, or a worker process died.
    """
    ready, wanted, ended = queue.SimpleQueue[Any](), threading.Semaphore(2), threading.Event()
    before, other = multiprocessing.active_children(), _unborn()
    reader = threading.Thread(target=_read, args=(batches, ready, wanted, ended), name="jaxcnn-data", daemon=True)
    reader.start()
    workers = set[BaseProcess]()  # one that has died is no active child any more
    try:
        while (item := _wait(ready, timeout, before, workers, other)) is not None:
            if isinstance(item, BaseException):
                raise _named(item, workers)
            wanted.release()
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


def _since(before: list[BaseProcess]) -> list[BaseProcess]:
    return [process for process in multiprocessing.active_children() if process not in before]


def _read(batches: Any, ready: Any, wanted: threading.Semaphore, ended: threading.Event) -> None:
    """Put each batch, then None or the error; one is ready while the next is on its way."""
    try:
        while wanted.acquire() and not ended.is_set():
            ready.put(next(batches, None))
    except BaseException as error:
        ready.put(error)
    finally:
        batches.close()


def _wait(ready: Any, timeout: float, before: list[BaseProcess], workers: set[BaseProcess], other: Any) -> Any:
    """The next item; after a tenth of the time a line says what is waited for.

    Args:
      workers: those seen so far, to which new ones are added.
      other: what `_unborn` said before there were any.
    """
    began, said, grace = time.monotonic(), False, 0.0
    while True:
        workers.update(_since(before))
        with contextlib.suppress(queue.Empty):
            return ready.get(timeout=min(_LOOK, timeout / 10))
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
    """Number and exit code of a child that is dead and that nobody has asked about.

    `multiprocessing` does not know a process yet that dies before it has read what to do, and waits for it for ever.
    """
    with contextlib.suppress(ChildProcessError, AttributeError):  # no children; a system without `waitid`
        if info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return info.si_pid, info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
    return None


def _named(error: BaseException, workers: set[BaseProcess]) -> BaseException:
    """`error`, or what it means where it is Grain's of a worker that died."""
    told = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    if not isinstance(error, RuntimeError) or not told:
        return error
    dead = [worker for worker in workers if worker.exitcode]
    who = f"process {dead[0].pid}, one of {len(workers)} that read" if dead else "a process that reads"
    return _died(int(told[1]), f"{who} the data,")


def _died(code: int, who: str) -> ReadingFault:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    memory = ", as a system short of memory does (fewer config.data.workers need less)" if code == -9 else ""
    return ReadingFault(f"{who} {how}{memory}; run the same command again to go on")
