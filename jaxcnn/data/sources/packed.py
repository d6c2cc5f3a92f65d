"""Packed data sets: small JPEGs in ArrayRecord shards, as `jaxcnn data pack` writes them.

    OUT/{manifest.json, SPLIT-00000-of-00128.array_record, …}

A record is `HEADER`, the magic bytes and the label, then the JPEG file. The manifest is written last: a folder without
one is no data set. Whoever made it, nothing in it is trusted.
"""

import hashlib
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.images.decode import MAX_PIXELS
from jaxcnn.data.sources import KINDS, Source, is_plain, missing, path_of
from jaxcnn.safe_files import printable, read_json

FORMAT, VERSION, MANIFEST = "jaxcnn packed images", 1, KINDS["packed"].marker
HEADER, MAGIC = struct.Struct("<4si"), b"jcn\1"
_MOST = 2**31  # examples or classes; a manifest that claims more is damaged


class Shard(NamedTuple):
    """One file of a split: its name, number of records, size in bytes, and SHA-256 in hexadecimal."""

    file: str
    examples: int
    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """What a packed data set holds, checked.

    Attributes:
      shards: of each split, in the order of the examples.
      classes, image_shape, mean, std: as of `Source`.
    """

    shards: dict[str, tuple[Shard, ...]]
    classes: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `packed:DIR`.

    Raises:
      UserError: DIR holds no finished pack, or a damaged one, or has no such split; a shard is missing or incomplete.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    root, manifest = path_of(name), read_manifest(name)
    if split not in manifest.shards:
        raise UserError(f"{name} has no split '{split}': its splits are {', '.join(manifest.shards)}")
    shards = manifest.shards[split]
    for shard in shards:
        path = root / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes, not {shard.bytes}"
            raise UserError(f"{path} {found}: get this shard again, or pack the data set again")
    # Passing the record counts lets ArrayRecord open the files lazily.
    files: list[Any] = [_Instruction(str(root / s.file), s.examples, s.examples) for s in shards]
    about = manifest.classes, manifest.image_shape, manifest.mean, manifest.std
    return _Packed(name, split, sum(s.examples for s in shards), *about, shards, ArrayRecordDataSource(files))


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `read_manifest`."""
    return {split: sum(s.examples for s in shards) for split, shards in read_manifest(name).shards.items()}


def verify(name: str, progress: Callable[[int], None] = lambda _: None) -> list[str]:
    """Read every shard of `packed:DIR` against the manifest -> a line for each that is damaged, with its file's name.

    Args:
      progress: called after each shard with the number of bytes that have been read.
    """
    root, damaged, done = path_of(name), [], 0
    for shard in (shard for shards in read_manifest(name).shards.values() for shard in shards):
        try:
            digest, size = checksum(root / shard.file)
            if (digest, size) != (shard.sha256, shard.bytes):
                damaged.append(f"{shard.file} has another checksum than the manifest")
            elif (count := count_records(root / shard.file)) != shard.examples:
                damaged.append(f"{shard.file} holds {count} examples, not {shard.examples}")
        except OSError as error:
            damaged.append(f"{shard.file} cannot be read ({error.strerror})")
        done += shard.bytes
        progress(done)
    return damaged


def checksum(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file in hexadecimal, and its size in bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size


def count_records(path: Path) -> int:
    """Return the number of records in an ArrayRecord file."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


class _Instruction(NamedTuple):
    """What ArrayRecordDataSource must know of a file, under its names."""

    filename: str
    take: int
    examples_in_shard: int
    skip: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class _Packed(Source):
    shards: tuple[Shard, ...]
    records: Any  # ArrayRecordDataSource

    def where(self, index: int) -> str:
        ends = np.cumsum([shard.examples for shard in self.shards])
        return f"{super().where(index)} ({self.shards[int(ends.searchsorted(index, 'right'))].file})"

    @property
    def fix(self) -> str:
        return "get this shard again, or pack the data set again (jaxcnn data check finds all damaged shards)"

    def _read(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        magic, label = HEADER.unpack_from(record)
        if magic != MAGIC:
            raise ValueError("it is no record of a packed data set")
        return {"image": record[HEADER.size :], "label": label}


def read_manifest(name: str) -> Manifest:
    """Return the manifest of `packed:DIR`.

    Raises:
      UserError: there is none, because the pack was not finished or for another reason, or it is damaged.
    """
    path = path_of(name) / MANIFEST
    try:
        return _parse(read_json(path))
    except FileNotFoundError as error:
        raise UserError(
            f"{name} is no packed data set, or is not finished: there is no {path}{missing(name)}; {_PACK}"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {_PACK}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({f'{error}'[:200]}); {_PACK}") from error


_PACK = "`jaxcnn data pack` makes one"


def _parse(values: Any) -> Manifest:
    """Return the manifest of a value of JSON; a ValueError names the first thing that is wrong."""
    if _get(values, "format", str) != FORMAT or _get(values, "version", int) != VERSION:
        raise ValueError(f"it is not of the format '{FORMAT}', version {VERSION}")
    classes = tuple(_get(values, "classes", list))
    if not 0 < len(classes) < _MOST or not all(isinstance(name, str) for name in classes):
        raise ValueError("'classes' are no names")
    height, width, channels = _three(_get(values, "image_shape", list))
    mean, std = (tuple(_get(values, key, list)) for key in ("mean", "std"))
    if any(len(v) != channels or not all(type(x) is float and math.isfinite(x) for x in v) for v in (mean, std)):
        raise ValueError(f"'mean' and 'std' are not {channels} fractions each")
    splits = _get(values, "splits", dict)
    shards = {str(split): tuple(map(_shard, _get(about, "shards", list))) for split, about in splits.items()}
    for split, about in splits.items():
        if not 0 < sum(shard.examples for shard in shards[split]) == _get(about, "examples", int) < _MOST:
            raise ValueError(f"the shards of '{split}' do not add up to its examples")
    files = [shard.file for split in shards.values() for shard in split]
    if not files or len(set(files)) < len(files):
        raise ValueError("a shard is named twice" if files else "it has no splits")
    return Manifest(shards, tuple(map(printable, classes)), (height, width, channels), mean, std)


def _three(shape: Sequence[Any]) -> tuple[int | None, int | None, int]:
    known = [n for n in shape if n is not None]
    if len(shape) != 3 or shape[2] not in (1, 3) or not all(type(n) is int and n > 0 for n in known):
        raise ValueError("'image_shape' is not (H, W, C)")
    if math.prod(known[:-1]) > MAX_PIXELS:
        raise ValueError(f"'image_shape' has more than {MAX_PIXELS:,} pixels")
    return shape[0], shape[1], shape[2]


def _shard(values: Any) -> Shard:
    shard = Shard(*(_get(values, key, kind) for key, kind in Shard.__annotations__.items()))
    if not (shard.file and is_plain(shard.file) and shard.file.isprintable()):
        raise ValueError(f"{shard.file!r} is no plain name of a file")
    if not 0 <= shard.examples * HEADER.size <= shard.bytes:
        raise ValueError(f"{shard.file} cannot have {shard.examples} examples in {shard.bytes} bytes")
    return shard


def _get(values: Any, key: str, kind: type) -> Any:
    if not isinstance(values, dict) or type(values.get(key)) is not kind:
        raise ValueError(f"'{key}' is missing or no {kind.__name__}")
    return values[key]
