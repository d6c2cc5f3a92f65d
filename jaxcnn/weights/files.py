"""Files of weights: named arrays in and out, held against a network's variables, and the images that they expect.

safetensors both ways, torch's two .pth formats in; our own names are paths such as "params/head/kernel". Nothing in a
file is executed (see `pickled`). Sizes are held against the file's own before anything of such a size is made, so that
a small file cannot take a large memory.
"""

import io
import math
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn import UserError
from jaxcnn.safe_files import MAX_JSON, looks_like, parse_json, printable, read_bytes, write_atomically
from jaxcnn.safe_pickle import RefusedError, shown
from jaxcnn.weights.pickled import DTYPES_READ, STORAGES, Storage, Tensor, unpickle

Shape = tuple[int, ...]
_NAMES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")  # safetensors', as in STORAGES
_DTYPES = dict(zip(_NAMES, STORAGES.values(), strict=True))
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_REPEAT = 16  # tied weights and expanded ones repeat a storage: up to this many times the file's size in all
# Where trainers keep a network within a checkpoint.
_NESTING = (
    *("state_dict", "model_state_dict", "model", "net", "network", "ema", "model_ema", "state_dict_ema", "module"),
    *("ema_state_dict", "model_state", "weights", "params_ema", "params"),
)
# What the parsers say of bytes that are not of their format.
_DAMAGE = (ValueError, TypeError, LookupError, struct.error, zipfile.BadZipFile, EOFError, safetensors.SafetensorError)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Return the named arrays of a .safetensors, .pth or .pt file, recognised by its content.

    A state dict within a trainer's checkpoint is found; its names are as they are, those of wrappers included. The
    arrays are contiguous, writable and share nothing.

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
    """Write arrays by name, with optional strings about them; the file appears complete or not at all.

    Raises:
      UserError: a dtype that `read_state_dict` would not read, or a path that cannot be written.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in state_dict.items()}
    for name, array in arrays.items():
        if array.dtype not in _DTYPES.values():
            raise UserError(f"cannot write {path}: {name} is of {array.dtype}; {DTYPES_READ}")
    write_atomically(path, safetensors.numpy.save(arrays, dict(metadata) if metadata else None))


def _read(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    head = file.read(9)
    file.seek(0)
    if head[8:] == b"{":  # first, for the eight bytes before it are a length and may look like anything
        return _read_safetensors(file)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file, size)
    if head.startswith(b"\x80"):
        return _read_legacy(file.read())
    if not size:
        raise RefusedError("the file is empty")
    known = looks_like(file.read(512))
    raise RefusedError("neither safetensors nor torch's .pth" + (f", but {known}" if known else ""))


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
    """Read torch 1.6 and later: ROOT/data.pkl, ROOT/data/KEY for each storage, ROOT/byteorder from 2.0 on."""
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
    """Read torch before 1.6: pickles of magic, protocol, system, the object and its storages' keys; then the storages.

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


def _find(loaded: Any, depth: int = 4) -> dict[str, Any] | None:
    """Return the first dict within `loaded` that has tensors, looked for under the names that trainers use.

    One that has scalars alone is a last resort: a counter may stand beside the dict that is wanted.
    """
    if not isinstance(loaded, dict):
        return None
    tensors = [value for value in loaded.values() if isinstance(value, Tensor)]
    if any(tensor.size for tensor in tensors):
        return loaded
    inside = (_find(loaded.get(key), depth - 1) for key in _NESTING) if depth else ()
    return next((found for found in inside if found), loaded if tensors else None)


def _unwrap(loaded: Any) -> dict[str, Tensor]:
    """Return the state dict within what was saved, without numbers beside its tensors."""
    found = _find(loaded)
    if not found:
        raise RefusedError("holds no dict of tensors; save model.state_dict()")
    tensors = {}
    for key, value in found.items():
        if value is None or isinstance(value, bool | int | float | str):
            continue
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise RefusedError(f"its entry {shown(str(key))} is no tensor; save model.state_dict() alone")
        key.encode()  # a ValueError where it is no text that could be written again
        tensors[key] = value
    return tensors


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
    """Return a contiguous copy of the words, any byte order, as what they stand for."""
    copy = words.astype(f"u{dtype.itemsize}", order="C")
    if dtype == np.bool_:
        np.minimum(copy, 1, out=copy)  # another byte than 0 and 1 would be no bool to NumPy
    return copy.view(dtype)


def fit(
    what: str, arrays: Mapping[str, Any], wanted: Mapping[str, Shape], counts: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Return the `arrays` that `wanted` names, in its order, as float32: not copied where they are that already.

    Args:
      what: what has these shapes, for the error.
      counts: names that may be there besides, of shape (), and are dropped.

    Raises:
      UserError: one message that says how many entries are missing, extra, of another shape or of no floating-point
        type, and names the first.
    """
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    shapes = {key: array.shape for key, array in arrays.items()}
    due = dict.fromkeys(counts, ()) | dict(wanted)
    # JAX's issubdtype knows bfloat16.
    others = [key for key in wanted if key in arrays and not jnp.issubdtype(arrays[key].dtype, np.floating)]
    faults = {
        "missing": [key for key in wanted if key not in shapes],
        "extra": [key for key in shapes if key not in due],
        "mis-shaped": [f"{k} {shapes[k]} where {due[k]} is due" for k in due if shapes.get(k, due[k]) != due[k]],
        "not floating-point": [f"{key} ({arrays[key].dtype})" for key in others],
    }
    if any(faults.values()):
        words = "; ".join(f"{kind} ({len(keys)}): {some(keys)}" for kind, keys in faults.items() if keys)
        raise UserError(f"the weights do not fit {what}: {words}")
    with np.errstate(over="ignore", invalid="ignore"):  # of float64: what becomes infinite is for `check_finite`
        return {key: arrays[key].astype(np.float32, copy=False) for key in wanted}


def some(keys: Sequence[str]) -> str:
    """Return the first keys, for a line."""
    return ", ".join(map(shown, keys[:3])) + (", …" if len(keys) > 3 else "")


def check_finite(variables: Mapping[str, Any]) -> None:
    """Raise a UserError that names the first variables with a NaN or an infinity in them."""
    bad = [path for path, value in to_paths(variables).items() if not np.isfinite(value).all()]
    if bad:
        raise UserError(f"weights that are not finite ({len(bad)}): {some(bad)}; fetch or train them again")


def from_paths(wanted: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables {"params", "batch_stats"} from arrays by path; the inverse of `to_paths`.

    Args:
      wanted: variables of these shapes.

    Raises:
      UserError: as `fit`.
    """
    flat: Any = flatten_dict(dict(wanted), sep="/")
    fitted = fit("the network", arrays, {path: leaf.shape for path, leaf in flat.items()})
    return {"params": {}, "batch_stats": {}} | unflatten_dict(fitted, sep="/")


def to_paths(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the variables by path, {"params/head/kernel": …}."""
    flat: Any = flatten_dict(dict(variables), sep="/")
    return {path: np.asarray(value) for path, value in flat.items()}


def checked_input(given: Any, num_classes: Any) -> dict[str, Any]:
    """Return the "input" that a checkpoint or a file of weights keeps, as `torchvision.input_of` gives it.

    Escapes in the names are removed.

    Raises:
      ValueError: it is none for a network of `num_classes`; which part is wrong.
    """
    if not isinstance(given, dict):
        raise ValueError("there is no 'input'")
    shape, mean, std, names = (given.get(key, ()) for key in ("image_shape", "mean", "std", "class_names"))
    if not _numbers(shape, 3, int) or not all(0 < n < 2**16 for n in shape):
        raise ValueError("'image_shape' is not (H, W, C)")
    if not all(_numbers(values, shape[2], int | float) for values in (mean, std)) or min(std) <= 0:
        raise ValueError(f"'mean' and 'std' are not {shape[2]} numbers each")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("'class_names' are no names")
    if type(num_classes) is not int or not 0 < len(names) == num_classes:
        raise ValueError(f"'class_names' has {len(names)} entries, which is not the number of classes")
    if "resize" in given and not (_numbers([given["resize"]], 1, int) and 0 < given["resize"] < 2**16):
        raise ValueError("'resize' is no number of pixels")
    for key, least in (("min_size", 0), ("max_size", 0), ("canvas_multiple", 1)):
        if key in given and not (_numbers([given[key]], 1, int) and least <= given[key] < 2**16):
            raise ValueError(f"'{key}' is no number of pixels")
    if "search" in given and not (_numbers(given["search"], 2, int) and all(0 <= n < 2**16 for n in given["search"])):
        raise ValueError("'search' is not a width and a shortest side in pixels")
    if not _numbers(given.get("class_frequencies", [0] * num_classes), num_classes, int | float):
        raise ValueError(f"'class_frequencies' are not {num_classes} numbers")
    return given | {"class_names": [printable(name) for name in names]}


def network_of_file(file: Path, name: str | None) -> str:
    """Return the name of the network whose weights a file holds: the one in its metadata, else `name`.

    Raises:
      UserError: the file is another network's, or nothing says whose it is. A module that the file alone names is not
        imported: that would execute it.
    """
    _, about = _exported(file)
    theirs = about.get("model.name")
    if not theirs:
        if not name:
            raise UserError(f"{file} does not say whose weights it has: give --model NAME, such as resnet50_tv")
        return name
    # A module that Python was given is recorded by its class alone.
    if name and theirs not in (name, name.rpartition(":")[2]):
        raise UserError(f"{file} says that it holds {shown(theirs)}, not {name}: give --model {shown(theirs)}, or none")
    if not name and ":" in theirs:
        raise UserError(f"{file} is of the module {shown(theirs)}, which is executed only if you name it: give --model")
    return name or theirs


def exported(file: Path, classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config and the "input" that `jaxcnn weights export` wrote into `file`; ({}, {}) of any other file.

    Args:
      classes: how many the network has.

    Raises:
      UserError: what was written into it is damaged.
    """
    given, config = _exported(file)
    if not config:
        return {}, {}
    try:
        return config, checked_input(given, classes)
    except (ValueError, TypeError) as error:
        raise _damaged(file) from error


def _exported(file: Path) -> tuple[Any, dict[str, Any]]:
    """Return the "input" and the config, unchecked, that a file's metadata holds; (None, {}) of any other file."""
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            about = opened.metadata() or {}
    except safetensors.SafetensorError:  # torch's
        return None, {}
    if not {"config", "input"} <= about.keys():
        return None, {}
    try:
        given, config = parse_json(about["input"]), parse_json(about["config"])
        if not isinstance(config["model.name"], str):
            raise ValueError
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(file) from error
    return given, config


def _damaged(file: Path) -> UserError:
    return UserError(f"cannot read the weights {file}: its metadata is damaged; export them again")


def read_names(path: Path, classes: int) -> tuple[str, ...]:
    """Return the names of the classes in `path`, one a line.

    Raises:
      UserError: there are not as many as `classes`, or the file cannot be read.
    """
    try:
        names = read_bytes(path, MAX_JSON).decode("utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        reason = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        raise UserError(f"cannot read the names {path}: {reason}") from error
    if len(names) != classes:
        raise UserError(f"{path} has {len(names)} lines, but the network {classes} classes: give one name a line")
    return tuple(printable(name.strip()) for name in names)


def _numbers(values: Any, count: int, kind: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(v, kind) and not isinstance(v, bool) and abs(v) < 2**53 and math.isfinite(v) for v in values)
    )
