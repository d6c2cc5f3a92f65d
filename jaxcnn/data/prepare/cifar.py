"""CIFAR-10's own files, the binary and the Python version (Krizhevsky 2009; www.cs.toronto.edu/~kriz/cifar.html)."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import UserError
from jaxcnn.safe_files import read_bytes
from jaxcnn.safe_pickle import DROPPED, Dropped, Global, Interpreter, RefusedError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")  # as the archives unpack
_SHAPE = (3, 32, 32)  # of an image in a file: all of red, then green, then blue
_BYTES = 3 * 32 * 32
_MOST = 2**26  # bytes of a file; a batch has 31 million


def read_splits(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {split: (images uint8 (N, 32, 32, 3), labels uint8 (N,))} in the order of the files.

    Args:
      folder: of the six batches, or the one that has their folder as the archive has it.

    Raises:
      UserError: a batch is missing, damaged or of another kind, or a label is above 9.
    """
    folders = [folder, *(folder / name for name in _FOLDERS)]
    for ending, read in ((".bin", _read_binary), ("", _read_python)):
        for place in folders:
            if any((place / f"{name}{ending}").is_file() for names in _BATCHES.values() for name in names):
                return {
                    split: _joined([place / f"{name}{ending}" for name in names], read)
                    for split, names in _BATCHES.items()
                }
    raise UserError(
        f"{folder} has no file data_batch_1.bin or data_batch_1: --from wants the folder with CIFAR-10's six batches, "
        "unpacked"
    )


def _joined(paths: list[Path], read: Callable[[Path], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the batches, (n, 3072) and (n,) each, as images (N, 32, 32, 3) and labels (N,)."""
    batches = [read(path) for path in paths]
    most = max(len(labels) for _, labels in batches)
    for path, (_, labels) in zip(paths, batches, strict=True):
        if len(labels) < most:  # cut between two rows, it would be missed nowhere
            raise UserError(f"{path} has {len(labels):,} images, another batch {most:,}: get the file again")
    pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return pixels.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1), labels


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels and labels of a file of rows: a byte of label, 3,072 of pixels."""
    data = _read(path)
    if not data or len(data) % (1 + _BYTES):
        raise UserError(f"{path} has {len(data):,} bytes, no multiple of {1 + _BYTES:,}: get the file again")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _BYTES)
    return rows[:, 1:], _checked(path, rows[:, 0])


def _read_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels and labels of a pickle, {"data": uint8 (n, 3072), "labels": [int, …], …}."""
    try:
        batch = _Batch().load(io.BytesIO(_read(path)))
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels, labels = batch["data"].pixels(), batch["labels"]
        if type(labels) is not list or not labels or any(type(label) is not int for label in labels):
            raise RefusedError("has no list of labels")
        labels = np.array(labels, np.int64)
    except RefusedError as error:
        raise UserError(f"{path} {error}: get the file again") from error
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is no batch of CIFAR-10: get the file again") from error
    if pixels.shape != (len(labels), _BYTES):
        raise UserError(f"{path} holds {pixels.shape} pixels, not ({len(labels)}, {_BYTES}): get the file again")
    return pixels, _checked(path, labels)


def _checked(path: Path, labels: np.ndarray) -> np.ndarray:
    if (bad := np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))).size:
        raise UserError(f"{path}: label {labels[bad[0]]} at index {bad[0]} is not in 0 … 9: get the file again")
    return labels.astype(np.uint8)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, _MOST)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no file {path.name}: --from wants all six batches of CIFAR-10") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): get the file again") from error


class _Pixels:
    """A NumPy array of bytes, as the pickle describes it."""

    state: Any = None

    def pixels(self) -> np.ndarray:
        """Return the array."""
        match self.state:
            # Python 2 has the bytes as text, of which each letter is one.
            case (int(), (int(), int()) as shape, Dropped(), bool(columns_first), str() | bytes() as data):
                data = data.encode("latin-1") if isinstance(data, str) else data
                return np.frombuffer(data, np.uint8).reshape(shape, order="F" if columns_first else "C")
        raise RefusedError("holds no array of bytes")


class _Batch(Interpreter):
    """A dict of plain values and of one NumPy array of bytes."""

    only = "only a batch of CIFAR-10 is read, and nothing is executed"
    most = _MOST
    keys = (str, int, bytes)

    def find(self, name: str) -> Global:
        arrays = [f"{module}.multiarray._reconstruct" for module in ("numpy.core", "numpy._core")]
        if name in (*arrays, "numpy.ndarray", "numpy.dtype", "_codecs.encode"):
            return Global(name)
        return super().find(name)

    def call(self, function: Any, arguments: Any) -> Any:
        match function, arguments:
            case Global("numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct"), _:
                return _Pixels()
            case Global("numpy.dtype"), ("u1" | "uint8", *_):
                return DROPPED
            case Global("_codecs.encode"), (str(text), "latin1"):  # Python 3's bytes in Python 2's pickles
                return text.encode("latin-1")
        return super().call(function, arguments)

    def build(self, target: Any, state: Any) -> Any:
        if isinstance(target, _Pixels):
            target.state = state
        elif target is not DROPPED:
            return super().build(target, state)
        return target
