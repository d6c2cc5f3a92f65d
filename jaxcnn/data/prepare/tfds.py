"""Building TFDS data sets as ArrayRecord: the one place that needs TensorFlow.

What is built is TFDS's own data set (its name, version, features and splits), so that `tfds.builder` of anyone
opens it. TFDS builds in a folder `incomplete.…` beside the final one and renames it at the end: a build that was
interrupted is never taken for a data set.
"""

import contextlib
import difflib
import logging
import os
import re
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import UserError, compat
from jaxcnn.data.prepare import cifar, idx
from jaxcnn.data.sources.tfds import ARRAY_RECORD, check_format, data_root

# Archives that TFDS reads out of a folder and does not download; it goes without the test images, which have no labels.
ARCHIVES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}
_IDX = (idx.read_splits, "its four IDX files")
# Data sets that are built of their makers' files: what reads a folder of them, and what lies there.
OF_FILES = {
    "cifar10": (cifar.read_splits, "its binary or Python batches"),
    "fashion_mnist": _IDX, "kmnist": _IDX, "mnist": _IDX,
}  # fmt: skip
_REPORT = 60  # seconds between lines on what a build has written, where TFDS's bar cannot be drawn


def prepare(
    name: str, data_dir: str = "", source_dir: str | Path | None = None, manual_dir: str | Path | None = None
) -> tuple[Path, bool]:
    """Build the TFDS data set `name` as ArrayRecord, unless it is there.

    Args:
      name: TFDS name, as in `fashion_mnist` or `NAME/CONFIG`; a leading `tfds:` is dropped.
      data_dir: folder of TFDS data sets ('': TFDS_DATA_DIR, or ~/tensorflow_datasets).
      source_dir: folder with their makers' files, to build one of `OF_FILES` from; None: TFDS downloads.
      manual_dir: folder with the archives of a data set that TFDS cannot download, such as ImageNet's.

    Returns:
      The data set's folder, and whether it was built now (False: it was ready).

    Raises:
      UserError: the name is unknown, TensorFlow is missing, a file or an archive is missing or damaged, the
        download or the build fails, or the folder holds something else.
    """
    name = name.removeprefix("tfds:")
    base = re.split("[/:]", name)[0]
    if source_dir is not None and name not in OF_FILES:
        raise UserError(f"--from reads the files of {', '.join(OF_FILES)}; '{name}' is downloaded: drop --from")
    builder = _builder(name, data_root(data_dir))
    folder = Path(builder.data_dir)
    if folder.exists():
        _check_ready(builder, folder)
        return folder, False
    if manual_dir is not None or base in ARCHIVES:
        _check_archives(name, manual_dir, builder)
    if source_dir is not None:
        arrays = OF_FILES[name][0](Path(source_dir))
        # Keys and values are those of the standard generator, and so are the records and their order.
        ids = "id" in builder.info.features
        examples = {split: _examples(images, labels, split, ids) for split, (images, labels) in arrays.items()}
        compat.take_splits(builder, examples)
        if name == "cifar10":  # TFDS reads these names from a file beside the batches
            builder.info.features["label"].names = list(cifar.CLASSES)
    _build(name, builder, manual_dir, downloads=source_dir is None)
    return folder, True


def _examples(images: np.ndarray, labels: np.ndarray, split: str, ids: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        named = {"id": f"{split}_{i:05}"} if ids else {}
        yield i, {"image": image, "label": int(label)} | named


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
        hints += [f"give {OF_FILES[name][1]} with --from DIR"] if downloads and name in OF_FILES else []
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
