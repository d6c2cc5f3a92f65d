"""Packing a data set: what goes where, going on where an interrupted pack stopped, and the manifest.

Until the manifest is there, the plan and what is known of each finished shard lie in OUT/.packing.
"""

import contextlib
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.sources import labelled_splits, make_source, pack_files
from jaxcnn.data.sources.base import BadExample, Source
from jaxcnn.data.sources.pack_files import UNFINISHED, Options, Task, read_json, write_json
from jaxcnn.data.sources.packed import FORMAT, MANIFEST, VERSION

_SAMPLE = 48  # images from which the size of all is judged
_SHARDS, _FEW = 16, 64  # at least so many shards, for as many processes, unless they hold fewer images than that


def pack(
    name: str, out: Path, options: Options, splits: Sequence[str] = (), data_dir: str = "",
    workers: int = 0, progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """Write the data set `name` to the folder `out`, or go on where an interrupted call with these arguments stopped.

    An image of at most `options.max_side` that is a grey or RGB JPEG, upright and whole, keeps its very bytes.

    Args:
      splits: those wanted; none: all that have labels.
      workers: processes; 0: as many as there are processors.
      progress: told several times a second how many examples are done, of how many.

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
    wanted = _describe(name, sources, options)
    if (out / MANIFEST).exists():
        manifest = read_json(out / MANIFEST)
        if {key: manifest.get(key) for key in wanted} != wanted:
            raise UserError(f"{out} holds another packed data set, or one of other options: take another folder")
        return manifest, False
    tasks = _plan(out, wanted, sources, options)
    pack_files.run(tasks, sources, options, workers, progress)
    return _finish(out, wanted, tasks), True


def _describe(name: str, sources: dict[str, Source], options: Options) -> dict[str, Any]:
    """What the manifest says before anything is packed; a pack goes on only with the same."""
    first = next(iter(sources.values()))
    height, width, channels = first.image_shape
    if channels not in (1, 3):
        raise UserError(f"images of {name} have {channels} channels: JPEGs, which are packed, have 1 or 3")
    if height and width:
        height, width = pack_files.fit((height, width), options.max_side)
    known = height if width else None, width if height else None
    return {
        "format": FORMAT, "version": VERSION, "source": name, "options": options._asdict(),
        "source_examples": {split: len(source) for split, source in sources.items()},
        "classes": list(first.class_names), "image_shape": [*known, channels],
        "mean": [float(v) for v in first.mean], "std": [float(v) for v in first.std],
    }  # fmt: skip


def _plan(out: Path, wanted: dict[str, Any], sources: dict[str, Source], options: Options) -> list[Task]:
    """The shards, as they were cut when the pack was begun."""
    plan = out / UNFINISHED / "plan.json"
    if plan.exists():
        begun = read_json(plan)
        if begun.get("wanted") != wanted:
            raise UserError(f"{out} holds half of another pack, or of one with other options: delete it first")
        counts = begun.get("shards")
        if not isinstance(counts, dict) or any(type(n := counts.get(s)) is not int or n < 1 for s in sources):
            raise UserError(f"{plan} is damaged: delete {out} and pack anew")
        for part in plan.parent.glob("*.part"):  # of a process that was killed
            part.unlink()
    else:
        if out.exists() and (not out.is_dir() or any(f.name != UNFINISHED for f in out.iterdir())):
            raise UserError(f"{out} exists and is no pack: name a new folder")
        begun = {"wanted": wanted, "shards": {split: _shards(source, options) for split, source in sources.items()}}
        plan.parent.mkdir(parents=True, exist_ok=True)
        write_json(plan, begun)
    tasks = []
    for split, source in sources.items():
        count = begun["shards"][split]
        cuts = [len(source) * n // count for n in range(count + 1)]
        files = [out / f"{split}-{n:05}-of-{count:05}.array_record" for n in range(count)]
        tasks += [Task(split, cuts[n], cuts[n + 1], file) for n, file in enumerate(files)]
    return tasks


def _shards(source: Source, options: Options) -> int:
    """Into how many files a split goes; a sample tells how large its images become."""
    if options.shards:
        return min(options.shards, len(source))
    sizes = []
    for index in np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(int):
        with contextlib.suppress(BadExample):  # reported, or left out, in its turn
            sizes.append(len(pack_files.record(source, int(index), options)))
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
