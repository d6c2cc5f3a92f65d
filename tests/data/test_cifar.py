"""CIFAR-10's binary and Python batches, written here in their official layout, become TFDS's own data set."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcnn import UserError
from jaxcnn.data.prepare.cifar import CLASSES, read_splits
from jaxcnn.data.sources import make_source

ROWS = 20
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture(scope="module")
def batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    """{file: (pixels uint8 (ROWS, 3072), labels)}."""
    rng = np.random.default_rng(0)
    return {n: (rng.integers(0, 256, (ROWS, 3072), np.uint8), rng.integers(0, 10, ROWS).tolist()) for n in NAMES}


def python2(pixels: np.ndarray, labels: list[int], columns_first: bool = False) -> bytes:
    """The pickle that Python 2 and the NumPy of 2009 wrote, instruction by instruction."""

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value
        )

    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85U\x01b\x87Rq\x08"
    dtype = b"cnumpy\ndtype\nq\x09U\x02u1K\x00K\x01\x87Rq\x0a(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"M" + len(pixels).to_bytes(2, "little") + b"M" + (3072).to_bytes(2, "little") + b"\x86"
    order, data = (b"\x88", pixels.tobytes("F")) if columns_first else (b"\x89", pixels.tobytes())
    array += b"(K\x01" + shape + dtype + order + text(data) + b"tb"
    items = text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5") + text(b"labels") + b"q\x03]q\x04("
    items += b"".join(b"K" + bytes([label]) for label in labels) + b"e" + text(b"data") + b"q\x05" + array
    items += (
        text(b"filenames") + b"]q\x0b(" + b"".join(text(b"leptodactylus_s_%06d.png" % i) for i in range(len(labels)))
    )
    return b"\x80\x02}q\x01(" + items + b"eu."


def test_the_test_writes_what_python_reads_as_the_official_files(batches):
    pixels, labels = batches["test_batch"]
    for columns_first in (False, True):
        read = pickle.loads(python2(pixels, labels, columns_first), encoding="bytes")
        assert read.keys() == {b"batch_label", b"labels", b"data", b"filenames"}
        assert np.array_equal(read[b"data"], pixels)
        assert read[b"labels"] == labels


FORMS = {
    "binary": lambda pixels, labels: np.concatenate([np.array(labels, np.uint8)[:, None], pixels], 1).tobytes(),
    "python2": python2,
    "python2 by columns": lambda pixels, labels: python2(pixels, labels, True),
    **{
        f"python3 protocol {protocol}": lambda pixels, labels, protocol=protocol: pickle.dumps(
            {b"data": pixels, b"labels": labels}, protocol
        )
        for protocol in (2, 3, 4)
    },
}


def write(folder: Path, batches: dict[str, Any], form: str) -> Path:
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches.items():
        (folder / f"{name}{'.bin' * (form == 'binary')}").write_bytes(FORMS[form](pixels, labels))
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inside", [True, False])
def test_every_form_holds_the_same(batches, tmp_path, form, inside):
    kind = "cifar-10-batches-bin" if form == "binary" else "cifar-10-batches-py"
    folder = write(tmp_path / kind, batches, form)
    splits = read_splits(tmp_path if inside else folder)
    for split, names in (("train", NAMES[:5]), ("test", NAMES[5:])):
        images, labels = splits[split]
        assert images.shape == (ROWS * len(names), 32, 32, 3)
        assert images.dtype == labels.dtype == np.uint8
        assert labels.tolist() == [label for name in names for label in batches[name][1]]
        flat = np.concatenate([batches[name][0] for name in names])
        for row, image in zip(flat, images, strict=True):  # red, green, blue, each row after row
            assert np.array_equal(row.reshape(3, 32, 32)[:, 5, 7], image[5, 7])


def test_a_prepared_set_is_the_one_that_tfds_knows(batches, tmp_path):
    folder, data_dir = write(tmp_path / "cifar-10-batches-py", batches, "python2"), tmp_path / "tfds"
    command = [sys.executable, "-m", "jaxcnn.cli", "data", "prepare", "cifar10", "--from", folder]
    subprocess.run([*command, "--data-dir", data_dir], check=True, capture_output=True)
    source = make_source("tfds:cifar10", "test", data_dir=str(data_dir))
    assert source.class_names == CLASSES
    pixels, labels = batches["test_batch"]
    wanted = {p.reshape(3, 32, 32).transpose(1, 2, 0).tobytes(): label for p, label in zip(pixels, labels, strict=True)}
    assert {source[i]["image"].tobytes(): source[i]["label"] for i in range(len(source))} == wanted
    records: Any = source
    assert sorted(records.records[i]["id"] for i in range(ROWS)) == [f"test_{i:05}".encode() for i in range(ROWS)]


class TestErrors:
    """Each names the file, and nothing is executed."""

    def fails(self, folder: Path, words: str) -> None:
        with pytest.raises(UserError) as caught:
            read_splits(folder)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing(self, batches, tmp_path):
        self.fails(tmp_path, "data_batch_1")
        folder = write(tmp_path / "py", batches, "python2")
        (folder / "data_batch_3").unlink()
        self.fails(folder, "data_batch_3")

    @pytest.mark.parametrize("form", ["binary", "python2"])
    @pytest.mark.parametrize("keep", [0, 1, 1000, -1])
    def test_cut(self, batches, tmp_path, form, keep):
        folder = write(tmp_path / "x", batches, form)
        path = folder / f"data_batch_2{'.bin' * (form == 'binary')}"
        path.write_bytes(path.read_bytes()[:keep])
        self.fails(folder, str(path))

    @pytest.mark.parametrize("form", ["binary", "python3 protocol 4"])
    def test_labels(self, batches, tmp_path, form):
        pixels, labels = batches["data_batch_1"]
        folder = write(tmp_path / "x", batches | {"data_batch_1": (pixels, [10, *labels[1:]])}, form)
        self.fails(folder, "label 10 at index 0")

    @pytest.mark.parametrize(
        "held",
        [
            {"data": np.zeros((2, 3072), np.uint8)},
            {"data": np.zeros((2, 3072), np.uint8), "labels": [1]},
            {"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]},
            {"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]},
            {"data": b"x", "labels": [1]},
            {"data": np.zeros((2, 3072), np.uint8), "labels": "12"},
            {"data": np.zeros((2, 3072), np.uint8), "labels": [1, None]},
            ["data"],
        ],
    )
    def test_other_pickles(self, tmp_path, held):
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(held, 4))
        self.fails(tmp_path, "data_batch_1")

    def test_nothing_is_executed(self, tmp_path):
        class Attack:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "canary"),)

        (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": Attack(), "labels": [1]}, 2))
        self.fails(tmp_path, "asks for posix.mkdir")
        assert not (tmp_path / "canary").exists()


def test_a_batch_that_is_cut_between_two_images_is_refused(batches, tmp_path):
    folder = write(tmp_path / "cifar", batches, "binary")
    cut = folder / "data_batch_3.bin"
    cut.write_bytes(cut.read_bytes()[: 3073 * 7])
    with pytest.raises(UserError, match=r"data_batch_3\.bin has 7 images, another batch 20"):
        read_splits(folder)
