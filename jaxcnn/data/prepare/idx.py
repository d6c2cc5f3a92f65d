"""IDX files, the format of MNIST and of the sets made in its likeness (yann.lecun.com/exdb/mnist)."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from jaxcnn import UserError

_SPLITS = {"train": "train", "test": "t10k"}  # split: how the names of its files begin
_SIDE, _CLASSES = 28, 10
_MOST = 2**27  # bytes of a file, unpacked; the largest has 47 million


def read_splits(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {split: (images, labels)} of the four files in `folder`, gzipped or not; see `read_idx`."""
    return {split: read_idx(folder, stem) for split, stem in _SPLITS.items()}


def read_idx(folder: str | Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (N, 28, 28, 1) and labels uint8 (N,) of `folder`, of `STEM-images-idx3-ubyte[.gz]` and so on.

    Raises:
      UserError: a file is missing, truncated or of another kind, the two disagree, or a label is above 9.
    """
    images, images_path = _read_array(Path(folder), f"{stem}-images-idx3-ubyte", axes=3)
    labels, labels_path = _read_array(Path(folder), f"{stem}-labels-idx1-ubyte", axes=1)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise UserError(f"{images_path} holds images of {images.shape[1:]} pixels, not (28, 28): get the file again")
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels: get both again"
        )
    if (bad := np.flatnonzero(labels >= _CLASSES)).size:
        raise UserError(f"{labels_path}: label {labels[bad[0]]} at index {bad[0]} is not in 0 … 9: get the file again")
    return images[..., None], labels


def _read_array(folder: Path, name: str, axes: int) -> tuple[np.ndarray, Path]:
    """One IDX file of unsigned bytes: a magic number that ends in the number of axes, their lengths, the values."""
    names = [name, name.replace("-idx", ".idx")]  # some unpackers and mirrors write the second
    path = next((p for each in names for p in (folder / f"{each}.gz", folder / each) if p.is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no file {name}.gz: --from wants the folder with the four IDX files")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read(_MOST + 1)  # a thousandth of it can unpack to all memory
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): get the file again") from error
    if len(data) > _MOST:
        raise UserError(f"{path} holds more than {_MOST:,} bytes: get the file again")
    magic, *shape = struct.unpack_from(f">{1 + axes}I", data.ljust(16, b"\0"))
    if magic != 0x800 + axes:
        raise UserError(f"{path} is no IDX file of {axes} axes (magic number not {0x800 + axes}): get the file again")
    values = np.frombuffer(data[4 * (1 + axes) :], np.uint8)
    if values.size != math.prod(shape) or not values.size:
        raise UserError(f"{path} holds {values.size} values where its header says {shape}: get the file again")
    return values.reshape(shape), path
