"""Files of named arrays: safetensors both ways, torch's two .pth formats in.

Nothing in a file is executed (see `pickled`). Sizes are held against the file's own before anything of such a size is
made, so that a small file cannot take a large memory.
"""

import io
import math
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from jaxcnn import UserError
from jaxcnn.weights.pickled import DTYPES_READ, STORAGES, RefusedError, Storage, Tensor, shown, unpickle

_NAMES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")  # safetensors', as in STORAGES
_DTYPES = dict(zip(_NAMES, STORAGES.values(), strict=True))
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_REPEAT = 16  # tied weights and expanded ones repeat a storage: up to this many times the file's size in all
# What the parsers say of bytes that are not of their format.
_DAMAGE = (ValueError, TypeError, LookupError, struct.error, zipfile.BadZipFile, EOFError, safetensors.SafetensorError)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The named arrays of a .safetensors, .pth or .pt file, recognised by its content; nothing in it is executed.

    A checkpoint {"state_dict" or "model": state dict, …} is unwrapped, and "module." is taken off if every key has it.
    The arrays are contiguous, writable and share nothing.

    Raises:
      UserError: the file is missing, damaged, of another kind, or holds other things than tensors of a dtype read.
    """
    try:
        if not path.is_file():
            raise RefusedError("not a file" if path.exists() else "no such file")
        # pickletools warns of backslashes in names
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning), path.open("rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except RefusedError as error:
        raise UserError(f"cannot read the weights {path}: {error}") from error
    except _DAMAGE as error:
        raise UserError(f"cannot read the weights {path}: truncated or damaged; fetch the file again") from error
    except MemoryError as error:
        raise UserError(f"cannot read the weights {path}: larger than the memory that is free") from error
    except (OSError, RuntimeError) as error:  # zipfile's RuntimeError: an encrypted entry, an unknown version
        raise UserError(f"cannot read the weights {path}: {shown(str(error))}") from error


def write_safetensors(path: Path, state_dict: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays by name, with optional strings about them. The file appears whole or not at all.

    Raises:
      UserError: a dtype that `read_state_dict` would not read, or a path that cannot be written.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in state_dict.items()}
    for name, array in arrays.items():
        if array.dtype not in _DTYPES.values():
            raise UserError(f"cannot write {path}: {name} is of {array.dtype}; {DTYPES_READ}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(safetensors.numpy.save(arrays, dict(metadata) if metadata else None))
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    head = file.read(9)
    file.seek(0)
    if head[8:] == b"{":  # first, for the eight bytes before it are a length and may look like anything
        return _read_safetensors(file)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file, size)
    if head.startswith(b"\x80"):
        return _read_legacy(file.read())
    raise RefusedError("neither safetensors nor torch's .pth" if size else "the file is empty")


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    arrays = {}
    for name, entry in safetensors.deserialize(file.read()):
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise RefusedError(f"{shown(name)} is of dtype {entry['dtype']}; {DTYPES_READ}")
        words = np.frombuffer(entry["data"], f"<u{dtype.itemsize}").reshape(entry["shape"])
        arrays[name] = _native(words, dtype)
    return arrays


def _read_zip(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """Torch 1.6 and later: ROOT/data.pkl, ROOT/data/KEY for each storage, ROOT/byteorder from 2.0 on."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise RefusedError("compressed entries, as torch.save has none; load it and torch.save its state_dict()")
        stored = sum(max(entry.file_size, entry.compress_size) for entry in entries)
        if stored > size or len(names) < len(entries):  # entries that overlap make a bomb of plain ones too
            raise RefusedError("entries that overlap, as torch.save has none; the file is refused")
        roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise RefusedError("a zip file, but not one of torch.save's")
        order = archive.read(f"{roots[0]}byteorder") if f"{roots[0]}byteorder" in names else b"little"
        loaded = unpickle(io.BytesIO(archive.read(f"{roots[0]}data.pkl")), {})
        read = cache(lambda key: archive.read(f"{roots[0]}data/{key}"))
        return _arrays(loaded, read, {b"little": "<", b"big": ">"}[order], size)


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Before torch 1.6: pickles of magic, protocol, the system, the object and its storages' keys; then the storages.

    A storage is its count of elements (int64) and the elements, little-endian on every machine.
    """
    file = io.BytesIO(data)
    if unpickle(file, {}) != _MAGIC or unpickle(file, {}) != _PROTOCOL:
        raise RefusedError("a pickle, but not one of torch.save's")
    unpickle(file, {})  # the system's byte order and sizes: of no influence on what follows
    known: dict[str, Storage] = {}
    loaded = unpickle(file, known)
    keys = unpickle(file, {})
    storages, start = {}, file.tell()
    for key in keys:
        if not isinstance(key, str):  # a tuple's hash recurses as deep as the file likes
            raise TypeError
        (count,) = struct.unpack_from("<q", data, start)
        stop = start + 8 + count * known[key].dtype.itemsize
        if not start + 8 <= stop <= len(data):
            raise EOFError
        storages[key] = memoryview(data)[start + 8 : stop]
        start = stop
    return _arrays(loaded, storages.__getitem__, "<", len(data))


def _unwrap(loaded: Any) -> dict[str, Tensor]:
    """The state dict within what was saved, its keys without DistributedDataParallel's prefix."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise RefusedError("holds no dict of tensors; save model.state_dict()")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise RefusedError(f"its entry {shown(str(key))} is no tensor; save model.state_dict() alone")
        key.encode()  # a ValueError where it is no text that could be written again
    prefix = "module." if all(key.startswith("module.") for key in loaded) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in loaded.items()}


def _arrays(loaded: Any, read: Callable[[str], Any], order: str, size: int) -> dict[str, np.ndarray]:
    tensors = _unwrap(loaded)
    total = sum(math.prod(tensor.size) * tensor.storage.dtype.itemsize for tensor in tensors.values())
    if total > _MAX_REPEAT * size:
        raise RefusedError(f"its tensors claim more than {_MAX_REPEAT} times the file's size; the file is refused")
    return {key: _array(key, tensor, read, order) for key, tensor in tensors.items()}


def _array(key: str, tensor: Tensor, read: Callable[[str], Any], order: str) -> np.ndarray:
    storage = tensor.storage
    data = read(storage.key)
    if len(data) != storage.numel * storage.dtype.itemsize:
        raise EOFError
    words = np.dtype(f"{order}u{storage.dtype.itemsize}")
    if 0 in tensor.size:
        return np.empty(tensor.size, storage.dtype)
    strides = [stride if n > 1 else 0 for n, stride in zip(tensor.size, tensor.stride, strict=True)]
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.size, strides, strict=True))
    if last >= storage.numel:
        raise RefusedError(f"{shown(key)} reaches outside of its storage; the file is refused")
    offset, strides = tensor.offset * words.itemsize, [stride * words.itemsize for stride in strides]
    return _native(np.ndarray(tensor.size, words, data, offset, strides), storage.dtype)  # which checks bounds, too


def _native(words: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A contiguous copy of the words, any byte order, as what they stand for."""
    copy = words.astype(f"u{dtype.itemsize}", order="C")
    if dtype == np.bool_:
        np.minimum(copy, 1, out=copy)  # another byte than 0 and 1 would be no bool to NumPy
    return copy.view(dtype)
