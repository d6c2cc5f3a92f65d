"""Selective search on all images of a split, by several processes; interrupted, it goes on where it was.

Finished chunks of images lie in .OUT.parts beside the file, each a file of proposals, until all of them are there.
"""

import multiprocessing
import shutil
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn import UserError
from jaxcnn.data import follow_parent, usable_cores
from jaxcnn.data.proposals import (
    MIN_SIDE,
    WIDTH,
    Proposals,
    joined,
    method_of,
    name_of,
    read_proposals,
    selective_search,
)
from jaxcnn.data.sources import Source, make_source

_CHUNK = 8  # images; a process that is stopped loses no more than these


class Result(NamedTuple):
    """The proposals; the number of images that this call has searched; and the seconds that one process would take."""

    proposals: Proposals
    searched: int
    seconds: float


def propose(
    name: str, split: str, out: Path, *, width: int = WIDTH, min_side: int = MIN_SIDE, data_dir: str = "",
    workers: int = 0, progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:  # fmt: skip
    """Write the proposals of a split to the file `out`, or go on where an interrupted call stopped.

    Args:
      width, min_side: of `selective_search`.
      workers: processes; 0: one for each core that this process may use.
      progress: called with the number of images done and their total.

    Raises:
      UserError: as of `make_source`; images share a name or are broken; `out` has other proposals.
    """
    source, method = make_source(name, split, data_dir=data_dir), method_of(width, min_side)
    names = [name_of(source, i) for i in range(len(source))]
    if len({*names} - {""}) < len(names):
        raise UserError(f"{name}, split '{split}', has images of one name or of none: give them files of their own")
    if out.exists():
        done = read_proposals(out)
        if (list(done.names), done.method) != (names, method):
            raise UserError(f"{out} has other proposals, of other images or of another method: name another file")
        return Result(done, 0, 0.0)
    folder = out.with_name(f".{out.name}.parts")
    chunks = [range(start, min(start + _CHUNK, len(names))) for start in range(0, len(names), _CHUNK)]
    files = {chunk: folder / f"{chunk.start:08}.npz" for chunk in chunks}

    def finished(chunk: range) -> bool:
        try:
            part = read_proposals(files[chunk])
        except UserError:  # It is not there, or was half written.
            return False
        return (list(part.names), part.method) == (names[chunk.start : chunk.stop], method)

    todo = [chunk for chunk in chunks if not finished(chunk)]
    seconds = _search(source, todo, files, (width, min_side), workers or usable_cores(), progress)
    proposals = joined([read_proposals(file) for file in files.values()])
    proposals.write(out)
    shutil.rmtree(folder)
    return Result(proposals, sum(map(len, todo)), seconds)


def _search(
    source: Source, todo: list[range], files: dict[range, Path], settings: tuple[int, int], workers: int,
    progress: Callable[[int, int], None],
) -> float:  # fmt: skip
    """Write the file of each chunk of examples; return the seconds that this took, added over the processes."""
    total, seconds = len(source), 0.0
    done = total - sum(map(len, todo))
    progress(done, total)
    if not todo:
        return seconds
    context = multiprocessing.get_context("spawn")  # The libraries have threads: a fork could hang.
    stop = context.Event()
    with ProcessPoolExecutor(min(workers, len(todo)), context, _start, (source, settings, stop)) as pool:
        pending = {pool.submit(_search_chunk, chunk, files[chunk]): chunk for chunk in todo}
        try:
            while pending:
                for future in wait(pending, 0.2, FIRST_EXCEPTION).done:
                    seconds += future.result()
                    done += len(pending.pop(future))
                    progress(done, total)
        except BrokenProcessPool as error:
            raise UserError("a process was killed (no memory left? fewer --workers need less): run it again") from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return seconds


_here: tuple[Source, tuple[int, int], Any]  # A searching process has its source, settings and stop event here.


def _start(source: Source, settings: tuple[int, int], stop: Any) -> None:
    follow_parent()
    global _here
    _here = source, settings, stop


def _search_chunk(chunk: range, file: Path) -> float:
    """Write the proposals of these examples, but not where all is to stop; return the seconds that it took."""
    source, (width, min_side), stop = _here
    began, found = time.monotonic(), []
    for index in chunk:
        if stop.is_set():
            return 0.0
        image = source[index]["image"]
        image = np.repeat(image, 3, 2) if image.shape[2] == 1 else image
        with source.naming(index, Exception):  # OpenCV raises its own error
            found.append(selective_search(image, width, min_side))
    counts = np.array([len(boxes) for boxes in found], np.int32)
    names = [name_of(source, index) for index in chunk]
    Proposals(names, counts, np.concatenate(found), None, method_of(width, min_side)).write(file)
    return time.monotonic() - began
