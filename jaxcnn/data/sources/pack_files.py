"""Writing the shards of a packed data set in several processes, and making the JPEGs that go into them."""

import contextlib
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from jaxcnn import UserError, safe_files
from jaxcnn.data.images import jpeg
from jaxcnn.data.images.decode import MAX_PIXELS, Box, crop_resize, decode, size_of
from jaxcnn.data.sources.base import BadExample, Source
from jaxcnn.data.sources.packed import HEADER, MAGIC, checksum, count_records
from jaxcnn.data.worker import follow_parent

UNFINISHED = ".packing"  # folder beside the shards, of what is known before there is a manifest


class Options(NamedTuple):
    """How images are packed.

    Attributes:
      max_side: pixels; an image whose longer side has more is shrunk to it. 0: none is.
      quality: of the JPEGs that are written anew, 1 … 100.
      shards: of each split; 0: as many as make files of `shard_size`.
      shard_size: megabytes.
      on_error: what a broken image does, "stop" or "skip".
    """

    max_side: int = 400
    quality: int = 95
    shards: int = 0
    shard_size: int = 256
    on_error: str = "stop"


class Task(NamedTuple):
    """One shard: the examples `start` … `stop` - 1 of a split, and where they go."""

    split: str
    start: int
    stop: int
    path: Path

    @property
    def note(self) -> Path:
        """What the manifest is to say of the shard; written after it."""
        return self.path.parent / UNFINISHED / f"{self.path.name}.json"

    @property
    def finished(self) -> bool:
        """Whether the shard need not be written again."""
        if not self.note.exists() or not self.path.exists():
            return False
        return self.path.stat().st_size == read_json(self.note)["shard"]["bytes"]


def run(
    tasks: list[Task], sources: dict[str, Source], options: Options, workers: int,
    progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Pack what is unfinished, in processes of their own; at an error, or Ctrl-C, all stop at their next image."""
    todo = [task for task in tasks if not task.finished]
    if not todo:
        return
    total = sum(task.stop - task.start for task in tasks)
    before = total - sum(task.stop - task.start for task in todo)
    context = multiprocessing.get_context("spawn")  # the libraries have threads: a fork could hang
    done, stop = context.Value("q", 0), context.Event()
    count = min(workers or os.cpu_count() or 1, len(todo))
    with ProcessPoolExecutor(count, context, _start, (sources, options, done, stop)) as pool:
        pending: set[Future[None]] = {pool.submit(_pack_shard, task) for task in todo}
        try:
            while pending:
                finished, pending = wait(pending, 0.2, FIRST_EXCEPTION)
                progress(before + done.value, total)
                for future in finished:
                    future.result()
        except BrokenProcessPool as error:
            raise UserError("a process that packs was killed (no memory left? fewer --workers need less)") from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


_here: tuple[dict[str, Source], Options, Any, Any]  # of a process that packs: sources, options, counter, stop event


def _start(sources: dict[str, Source], options: Options, done: Any, stop: Any) -> None:
    follow_parent()
    global _here
    _here = sources, options, done, stop


def _pack_shard(task: Task) -> None:
    """Write one shard, then what the manifest is to say of it: only then is it finished."""
    from array_record.python.array_record_module import ArrayRecordWriter

    sources, options, done, stop = _here
    part = task.note.with_suffix(f".{os.getpid()}.part")
    skipped = []
    try:
        writer = ArrayRecordWriter(str(part), "group_size:1,uncompressed")  # JPEGs cannot be made smaller
        for index in range(task.start, task.stop):
            if stop.is_set():
                return
            try:
                writer.write(record(sources[task.split], index, options))
            except BadExample as error:
                if options.on_error == "stop":
                    raise
                skipped.append({"index": index, "error": str(error)})
            with done.get_lock():
                done.value += 1
        writer.close()
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        examples = task.stop - task.start - len(skipped)
        if count_records(part) != examples:
            raise OSError("it does not hold what was written")
        sha256, size = checksum(part)
        part.replace(task.path)
        told = {"file": task.path.name, "examples": examples, "bytes": size, "sha256": sha256}
        write_json(task.note, {"shard": told, "skipped": skipped})
    except UserError:
        raise
    except Exception as error:  # ArrayRecord raises what it likes where the disk is full
        room = shutil.disk_usage(task.path.parent).free
        hint = "the disk is full" if room < 2**24 else " ".join(f"{error}".split())[:200] or type(error).__name__
        raise UserError(f"cannot write {task.path} ({hint}): run it again to go on, finished shards stay") from error
    finally:
        part.unlink(missing_ok=True)


def record(source: Source, index: int, options: Options) -> bytes:
    """The record of example `index`; BadExample where its image is broken."""
    image, label = source.record(index)
    try:
        return HEADER.pack(MAGIC, label) + shrink(image, source.image_shape[-1], options.max_side, options.quality)
    except ValueError as error:
        raise source.bad(index, error) from error


def shrink(image: bytes | np.ndarray, channels: int, max_side: int, quality: int) -> bytes:
    """An image file, or pixels, as an upright JPEG, grey or RGB, of sides of at most `max_side` (0: as they are).

    One that is so already, and whole, is returned as it is.

    Raises:
      ValueError: it is no image, is damaged, or has more than MAX_PIXELS.
    """
    size = size_of(image)
    fitted = fit(size, max_side)
    header = jpeg.read_header(image) if isinstance(image, bytes) else None
    upright = header and header.orientation == 1 and fitted == size and math.prod(size) <= MAX_PIXELS
    if isinstance(image, bytes) and header and upright:
        with contextlib.suppress(ValueError):  # what only Pillow can read is written anew
            jpeg.decode(image, header, channels, scale=8)  # reads all the data, for the least work
            return image
    if fitted == size:
        pixels = decode(image, channels)
    else:
        pixels = crop_resize(image, channels, Box(0, 0, *size), fitted, "antialias")
    if channels == 1 or (pixels == pixels[..., :1]).all():
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[..., :1]), quality, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")


def fit(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(height, width) with the longer side at most `max_side`."""
    longer = max(size)
    if not max_side or longer <= max_side:
        return size
    height, width = (max(1, round(side * max_side / longer)) for side in size)
    return height, width


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; UserError where it is damaged."""
    try:
        return dict(safe_files.read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete its folder and pack anew") from error


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all, even if the machine stops."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
