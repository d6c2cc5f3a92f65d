"""Building TFDS data sets as ArrayRecord: the one place that needs TensorFlow.

What is built is TFDS's own data set (its name, version, features and splits), so that `tfds.builder` of anyone
opens it. TFDS builds in a folder `incomplete.…` beside the final one and renames it at the end: a build that was
interrupted is never taken for a data set.
"""

import contextlib
import difflib
import gzip
import logging
import math
import os
import re
import struct
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import UserError, compat
from jaxcnn.data.sources.tfds import ARRAY_RECORD, check_format, data_root

# Archives that TFDS reads out of a folder and does not download; it goes without the test images, which have no labels.
ARCHIVES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}
IDX_SETS = ("fashion_mnist", "kmnist", "mnist")  # same files, same features but for the names of the classes
_IDX_SPLITS = {"train": "train", "test": "t10k"}  # split: how the names of its files begin
_REPORT = 60  # seconds between lines on what a build has written, where TFDS's bar cannot be drawn
_IDX_SIDE, _IDX_CLASSES = 28, 10
_IDX_MOST = 2**27  # bytes of a file, unpacked; the largest has 47 million


def prepare(
    name: str, data_dir: str = "", source_dir: str | Path | None = None, manual_dir: str | Path | None = None
) -> tuple[Path, bool]:
    """Build the TFDS data set `name` as ArrayRecord, unless it is there.

    Args:
      name: TFDS name, as in `fashion_mnist` or `NAME/CONFIG`; a leading `tfds:` is dropped.
      data_dir: folder of TFDS data sets ('': TFDS_DATA_DIR, or ~/tensorflow_datasets).
      source_dir: folder with the four IDX files, gzipped or not, to build one of `IDX_SETS` from; None: TFDS
        downloads.
      manual_dir: folder with the archives of a data set that TFDS cannot download, such as ImageNet's.

    Returns:
      The data set's folder, and whether it was built now (False: it was ready).

    Raises:
      UserError: the name is unknown, TensorFlow is missing, an IDX file or an archive is missing or damaged, the
        download or the build fails, or the folder holds something else.
    """
    name = name.removeprefix("tfds:")
    base = re.split("[/:]", name)[0]
    if source_dir is not None and name not in IDX_SETS:
        raise UserError(f"--from reads IDX files, of {', '.join(IDX_SETS)}; '{name}' is downloaded: drop --from")
    builder = _builder(name, data_root(data_dir))
    folder = Path(builder.data_dir)
    if folder.exists():
        _check_ready(builder, folder)
        return folder, False
    if manual_dir is not None or base in ARCHIVES:
        _check_archives(name, manual_dir, builder)
    if source_dir is not None:
        arrays = {split: read_idx(source_dir, stem) for split, stem in _IDX_SPLITS.items()}
        # Keys and values are those of the standard generator, and so are the records and their order.
        compat.take_splits(builder, {split: _examples(*pair) for split, pair in arrays.items()})
    _build(name, builder, manual_dir, downloads=source_dir is None)
    return folder, True


def read_idx(folder: str | Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 28, 28, 1) and labels uint8 (N,) of `folder`, from `STEM-images-idx3-ubyte[.gz]` and its like.

    Raises:
      UserError: a file is missing, truncated or of another kind, the two disagree, or a label is above 9.
    """
    images, images_path = _read_array(Path(folder), f"{stem}-images-idx3-ubyte", axes=3)
    labels, labels_path = _read_array(Path(folder), f"{stem}-labels-idx1-ubyte", axes=1)
    if images.shape[1:] != (_IDX_SIDE, _IDX_SIDE):
        raise UserError(f"{images_path} holds images of {images.shape[1:]} pixels, not (28, 28): get the file again")
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels: get both again"
        )
    if (bad := np.flatnonzero(labels >= _IDX_CLASSES)).size:
        raise UserError(f"{labels_path}: label {labels[bad[0]]} at index {bad[0]} is not in 0 … 9: get the file again")
    return images[..., None], labels


def _read_array(folder: Path, name: str, axes: int) -> tuple[np.ndarray, Path]:
    """One IDX file of unsigned bytes: a magic number that ends in the number of axes, their lengths, the values."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no file {name}.gz: --from wants the folder with the four IDX files")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read(_IDX_MOST + 1)  # a thousandth of it can unpack to all memory
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): get the file again") from error
    if len(data) > _IDX_MOST:
        raise UserError(f"{path} holds more than {_IDX_MOST:,} bytes: get the file again")
    magic, *shape = struct.unpack_from(f">{1 + axes}I", data.ljust(16, b"\0"))
    if magic != 0x800 + axes:
        raise UserError(f"{path} is no IDX file of {axes} axes (magic number not {0x800 + axes}): get the file again")
    values = np.frombuffer(data[4 * (1 + axes) :], np.uint8)
    if values.size != math.prod(shape) or not values.size:
        raise UserError(f"{path} holds {values.size} values where its header says {shape}: get the file again")
    return values.reshape(shape), path


def _examples(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from ((i, {"image": images[i], "label": int(labels[i])}) for i in range(len(labels)))


def _builder(name: str, root: Path) -> Any:
    """TFDS's own builder of `name`, without TensorFlow yet."""
    import tensorflow_datasets as tfds

    base = re.split("[/:]", name)[0]
    if base not in (known := tfds.list_builders(with_community_datasets=False)):
        near = difflib.get_close_matches(base, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see https://www.tensorflow.org/datasets/catalog"
        raise UserError(f"TFDS has no data set '{base}': {hint}")
    try:
        return tfds.builder(name, data_dir=root)
    except Exception as error:  # no such config or version: of several kinds
        raise UserError(f"TFDS cannot open '{name}': {_one_line(error)}") from error


def _check_archives(name: str, manual_dir: str | Path | None, builder: Any) -> None:
    files = ARCHIVES.get(builder.name, ())
    if not files and not getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None):
        raise UserError(f"--manual-dir is for data sets that cannot be downloaded; '{name}' can be: drop it")
    if manual_dir is None:
        raise UserError(f"'{name}' is not downloaded: give the folder of {' and '.join(files)} with --manual-dir DIR")
    if not Path(manual_dir).is_dir():
        raise UserError(f"--manual-dir {manual_dir}: there is no such folder")
    if missing := [file for file in files if not (Path(manual_dir) / file).is_file()]:
        raise UserError(f"{manual_dir} has no {' and no '.join(missing)}: image-net.org gives it to those who register")
    for path in (Path(manual_dir) / file for file in files):
        try:
            with tarfile.open(path, "r:") as archive:
                archive.getmembers()  # from header to header: an archive cut short is found now, and not hours later
        except Exception as error:  # tarfile meets damage with ValueError, OverflowError and others
            raise UserError(f"{path} is damaged ({_one_line(error)}): get it again") from error


def _check_ready(builder: Any, folder: Path) -> None:
    if not builder.is_prepared():
        raise UserError(f"{folder} exists but holds no complete data set: delete it and run this again")
    check_format(builder)


def _build(name: str, builder: Any, manual_dir: str | Path | None, downloads: bool) -> None:
    for variable, value in {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}.items():
        os.environ.setdefault(variable, value)  # or TensorFlow greets on stderr
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise UserError("preparing a data set needs TensorFlow: pip install 'jaxcnn[prepare]'") from error
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.util import DownloadError

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each of many retries; the error says it once
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    options = {}
    if manual_dir is not None:
        folder = Path(manual_dir).absolute()
        options = {"download_config": tfds.download.DownloadConfig(manual_dir=folder, try_download_gcs=False)}
    try:
        with contextlib.redirect_stdout(sys.stderr), _reports(name, Path(builder.data_dir)):  # TFDS prints its progress
            builder.download_and_prepare(file_format=ARRAY_RECORD, **options)
    except Exception as error:  # whatever the code of a data set and its tools raise
        hints = ["check the network"] if isinstance(error, requests.RequestException | DownloadError) else []
        hints += ["give its four IDX files with --from DIR"] if downloads and name in IDX_SETS else []
        raise UserError(
            f"cannot build '{name}' ({_one_line(error)}){': ' if hints else ''}{', or '.join(hints)}"
        ) from error


@contextlib.contextmanager
def _reports(name: str, folder: Path) -> Iterator[None]:
    """Off a terminal, a line now and then on how much has been written."""
    done = threading.Event()

    def report() -> None:
        start = time.monotonic()
        while not done.wait(_REPORT):
            with contextlib.suppress(OSError):  # files come and go
                size = sum(f.stat().st_size for f in folder.parent.glob(f"*incomplete*{folder.name}*/**/*"))
                print(
                    f"building {name}: {size / 1e9:.2f} GB, {(time.monotonic() - start) / 60:.0f} min", file=sys.stderr
                )

    thread = threading.Thread(target=report, daemon=True)
    if not sys.stderr.isatty():
        thread.start()
    try:
        yield
    finally:
        done.set()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
