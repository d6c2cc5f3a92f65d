"""Packing a data set: the shards, the processes that write them, the JPEGs in them, and the manifest.

Until the manifest is there, the list of shards and what is known of each finished one lie in OUT/.packing; an
interrupted pack goes on from there.
"""

import contextlib
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from jaxcnn import UserError, safe_files
from jaxcnn.data import follow_parent
from jaxcnn.data.images.decode import Box, crop_resize, decode, decode_jpeg, read_header, size_of
from jaxcnn.data.sources import BadExample, Source, labelled_splits, make_source, one_line
from jaxcnn.data.sources.packed import FORMAT, HEADER, MAGIC, MANIFEST, VERSION, checksum, count_records

UNFINISHED = ".packing"  # folder beside the shards, of what is known before there is a manifest
_SAMPLE = 48  # images from which the size of all is judged
_SHARDS, _FEW = 16, 64  # at least so many shards, for as many processes, unless they hold fewer images than that


class Options(NamedTuple):
    """How images are packed.

    Attributes:
      max_side: pixels; an image whose longer side has more is shrunk to it. 0: none is.
      quality: of the JPEGs that are re-encoded, 1 … 100.
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
        """Return the file of what the manifest is to say of the shard; it is written after the shard."""
        return self.path.parent / UNFINISHED / f"{self.path.name}.json"

    @property
    def finished(self) -> bool:
        """Return whether the shard need not be written again."""
        if not self.note.exists() or not self.path.exists():
            return False
        return self.path.stat().st_size == read_json(self.note)["shard"]["bytes"]


def pack(
    name: str, out: Path, options: Options, splits: Sequence[str] = (), data_dir: str = "",
    workers: int = 0, progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """Write the data set `name` to the folder `out`, or go on where an interrupted call with these arguments stopped.

    An image of at most `options.max_side` that is a grey or RGB JPEG, upright and undamaged, keeps its very bytes.

    Args:
      splits: those wanted; none: all that have labels.
      workers: processes; 0: as many as there are processors.
      progress: called several times a second with the number of examples done and their total.

    Returns:
      The manifest, and whether anything was written (False: `out` was ready).

    Raises:
      UserError: as of `make_source`; `out` holds something else; an image is broken; the disk is full.
    """
    if not f"{out}".isprintable():
        raise UserError(f"cannot write to {f'{out}'!a}: its name is not text, which ArrayRecord needs; name another")
    sources = {
        split: make_source(name, split, data_dir=data_dir) for split in splits or labelled_splits(name, data_dir)
    }
    if bare := [source for source in sources.values() if "label" not in source.targets]:
        raise UserError(f"{name} has {', '.join(bare[0].targets) or 'images alone'}, no labels: pack what has labels")
    wanted = _about(name, sources, options)
    if (out / MANIFEST).exists():
        manifest = read_json(out / MANIFEST)
        if {key: manifest.get(key) for key in wanted} != wanted:
            raise UserError(f"{out} holds another packed data set, or one of other options: take another folder")
        return manifest, False
    tasks = _make_tasks(out, wanted, sources, options)
    _run(tasks, sources, options, workers, progress)
    return _finish(out, wanted, tasks), True


def _about(name: str, sources: dict[str, Source], options: Options) -> dict[str, Any]:
    """Return what the manifest says before anything is packed; a pack goes on only with the same."""
    first = next(iter(sources.values()))
    height, width, channels = first.image_shape
    if channels not in (1, 3):
        raise UserError(f"images of {name} have {channels} channels: JPEGs, which are packed, have 1 or 3")
    if height and width:
        height, width = fit((height, width), options.max_side)
    known = height if width else None, width if height else None
    return {
        "format": FORMAT, "version": VERSION, "source": name, "options": options._asdict(),
        "source_examples": {split: len(source) for split, source in sources.items()},
        "classes": list(first.class_names), "image_shape": [*known, channels],
        "mean": [float(v) for v in first.mean], "std": [float(v) for v in first.std],
    }  # fmt: skip


def _make_tasks(out: Path, wanted: dict[str, Any], sources: dict[str, Source], options: Options) -> list[Task]:
    """Return the shards, as they were chosen when the pack was begun."""
    path = out / UNFINISHED / "plan.json"
    if path.exists():
        begun = read_json(path)
        if begun.get("wanted") != wanted:
            raise UserError(f"{out} holds half of another pack, or of one with other options: delete it first")
        counts = begun.get("shards")
        if not isinstance(counts, dict) or any(type(n := counts.get(s)) is not int or n < 1 for s in sources):
            raise UserError(f"{path} is damaged: delete {out} and pack again")
        for part in path.parent.glob("*.part"):  # of a process that was killed
            part.unlink()
    else:
        if out.exists() and (not out.is_dir() or any(f.name != UNFINISHED for f in out.iterdir())):
            raise UserError(f"{out} exists and is no pack: name a new folder")
        counts = {split: _shard_count(source, options) for split, source in sources.items()}
        begun = {"wanted": wanted, "shards": counts}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, begun)
    tasks = []
    for split, source in sources.items():
        count = begun["shards"][split]
        starts = [len(source) * n // count for n in range(count + 1)]
        files = [out / f"{split}-{n:05}-of-{count:05}.array_record" for n in range(count)]
        tasks += [Task(split, starts[n], starts[n + 1], file) for n, file in enumerate(files)]
    return tasks


def _shard_count(source: Source, options: Options) -> int:
    """Return how many files a split goes into; how large its images become is judged from a sample."""
    if options.shards:
        return min(options.shards, len(source))
    sizes = []
    for index in np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(int):
        with contextlib.suppress(BadExample):  # reported, or left out, in its turn
            sizes.append(len(record(source, int(index), options)))
    total = float(np.mean(sizes or [0])) * len(source)
    return max(1, min(_SHARDS, len(source) // _FEW), math.ceil(total / (options.shard_size * 1e6)))


def _finish(out: Path, wanted: dict[str, Any], tasks: list[Task]) -> dict[str, Any]:
    """Write the manifest out of what is known of the shards."""
    splits: dict[str, Any] = {task.split: {"examples": 0, "shards": [], "skipped": []} for task in tasks}
    for task in tasks:
        note, split = read_json(task.note), splits[task.split]
        split["examples"] += note["shard"]["examples"]
        split["shards"].append(note["shard"])
        split["skipped"] += note["skipped"]
    for name, split in splits.items():
        if not split["examples"]:
            raise UserError(f"no image of '{name}' can be read: {split['skipped'][0]['error']}")
    manifest = wanted | {"splits": splits}
    write_json(out / MANIFEST, manifest)
    shutil.rmtree(out / UNFINISHED)
    return manifest


def _run(
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
        about = {"file": task.path.name, "examples": examples, "bytes": size, "sha256": sha256}
        write_json(task.note, {"shard": about, "skipped": skipped})
    except UserError:
        raise
    except Exception as error:  # ArrayRecord raises what it likes where the disk is full
        room = shutil.disk_usage(task.path.parent).free
        hint = "the disk is full" if room < 2**24 else one_line(error)
        raise UserError(f"cannot write {task.path} ({hint}): run it again to go on, finished shards stay") from error
    finally:
        part.unlink(missing_ok=True)


def record(source: Source, index: int, options: Options) -> bytes:
    """Return the record of example `index`; BadExample where its image is broken."""
    example = source.read(index)
    with source.naming(index, ValueError):
        jpeg = shrink(example["image"], source.image_shape[-1], options.max_side, options.quality)
    return HEADER.pack(MAGIC, example["label"]) + jpeg


def shrink(image: bytes | np.ndarray, channels: int, max_side: int, quality: int) -> bytes:
    """Return an image file, or pixels, as an upright JPEG, grey or RGB, with sides up to `max_side` (0: as they are).

    One that is so already, and undamaged, is returned as it is.

    Raises:
      ValueError: it is no image, is damaged, or has more than MAX_PIXELS.
    """
    size = size_of(image)
    fitted = fit(size, max_side)
    header = read_header(image) if isinstance(image, bytes) else None
    if isinstance(image, bytes) and header and header.orientation == 1 and fitted == size:
        with contextlib.suppress(ValueError):  # what only Pillow can read is re-encoded
            decode_jpeg(image, header, channels, scale=8)  # reads all the data, for the least work
            return image
    if fitted == size:
        pixels = decode(image, channels)
    else:
        pixels = crop_resize(image, channels, Box(0, 0, *size), fitted, "antialias")
    if channels == 1 or (pixels == pixels[..., :1]).all():
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[..., :1]), quality, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")


def fit(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Return (height, width) with the longer side at most `max_side`."""
    longer = max(size)
    if not max_side or longer <= max_side:
        return size
    height, width = (max(1, round(side * max_side / longer)) for side in size)
    return height, width


def read_json(path: Path) -> dict[str, Any]:
    """Return what `write_json` wrote; UserError where it is damaged."""
    try:
        return dict(safe_files.read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete its folder and pack again") from error


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file completely or not at all, even if the machine stops."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
