"""Preparing: from IDX files to TFDS's own data set, and what is said where that cannot be."""

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcnn import UserError
from jaxcnn.data import prepare as prepare_module
from jaxcnn.data.prepare import prepare
from jaxcnn.data.sources import make_source, split_sizes

COUNTS = {"train": 30, "t10k": 20}


@pytest.fixture(scope="module")
def arrays():
    """{stem: (images, labels)} of a miniature in Fashion-MNIST's form."""
    rng = np.random.default_rng(1)
    return {stem: (rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n) % 10) for stem, n in COUNTS.items()}


@pytest.fixture
def folder(tmp_path, arrays, write_idx):
    """The four files, gzipped."""
    return _write(tmp_path / "idx", arrays, write_idx, ".gz")


def _write(folder, arrays, write_idx, suffix):
    folder.mkdir()
    for stem, (images, labels) in arrays.items():
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory, arrays, write_idx):
    """A miniature built by the command line from unpacked files, in a process of its own that may import TensorFlow."""
    root = tmp_path_factory.mktemp("built")
    source = _write(root / "idx", arrays, write_idx, "")
    arguments = ["prepare", "tfds:fashion_mnist", "--from", str(source), "--data-dir", str(root / "tfds")]
    command = [sys.executable, "-m", "jaxcnn.cli", "data", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return root / "tfds", result


class TestBuild:
    def test_holds_the_very_bytes(self, built, arrays):
        data_dir = str(built[0])
        assert split_sizes("tfds:fashion_mnist", data_dir) == {"train": 30, "test": 20}
        for split, stem in (("train", "train"), ("test", "t10k")):
            source = make_source("tfds:fashion_mnist", split, data_dir=data_dir)
            images, labels = arrays[stem]
            read = {source[i]["image"].tobytes(): source[i]["label"] for i in range(len(source))}
            assert read == {image.tobytes(): label for image, label in zip(images, labels, strict=True)}

    def test_is_the_data_set_that_tfds_knows(self, built):
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder("fashion_mnist", data_dir=built[0])
        assert builder.is_prepared()
        assert builder.info.module_name == "tensorflow_datasets.image_classification.mnist"
        assert builder.info.features["label"].names[9] == "Ankle boot"
        assert [builder.info.splits[split].num_examples for split in ("train", "test")] == [30, 20]

    def test_output(self, built):
        data_dir, result = built
        assert result.stdout.splitlines() == [
            f"prepared {data_dir}/fashion_mnist/3.0.1",
            f"look at it with: jaxcnn data check tfds:fashion_mnist --data-dir {data_dir}",
        ]
        assert "Traceback" not in result.stderr

    def test_leaves_nothing_unfinished(self, built):
        assert os.listdir(built[0] / "fashion_mnist") == ["3.0.1"]

    def test_again_does_nothing(self, built, tmp_path):
        before = {p: p.stat().st_mtime_ns for p in built[0].rglob("*")}
        assert prepare("fashion_mnist", str(built[0]), tmp_path) == (built[0] / "fashion_mnist/3.0.1", False)
        assert {p: p.stat().st_mtime_ns for p in built[0].rglob("*")} == before

    @pytest.mark.slow
    def test_interrupted(self, folder, tmp_path):
        """Stopped halfway, by an error or for good, it leaves nothing that passes for a data set."""
        code = f"""
import os, sys
from jaxcnn.data import prepare
def stop(images, labels):
    yield 0, {{"image": images[0], "label": 0}}
    {{"error": lambda: 1 / 0, "kill": lambda: os.kill(os.getpid(), 9)}}[sys.argv[1]]()
prepare._examples = stop
prepare.prepare("fashion_mnist", {str(tmp_path / "tfds")!r}, {str(folder)!r})
"""
        for how in ("error", "kill"):
            result = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=False)
            assert result.returncode in (1, -9)
            assert not (tmp_path / "tfds/fashion_mnist/3.0.1").exists()
            with pytest.raises(UserError, match="not prepared"):
                make_source("tfds:fashion_mnist", data_dir=str(tmp_path / "tfds"))
        assert "ZeroDivisionError" in result.stderr or result.returncode == -9


class TestIdxErrors:
    """Found before TensorFlow is imported, and each names the file."""

    @pytest.fixture(autouse=True)
    def _nothing_is_built(self, tmp_path, monkeypatch):
        monkeypatch.setattr(prepare_module, "_build", lambda *_, **__: pytest.fail("must not be reached"))

    def fails(self, folder, tmp_path, words):
        with pytest.raises(UserError, match=words):
            prepare("fashion_mnist", str(tmp_path / "tfds"), folder)
        assert not (tmp_path / "tfds/fashion_mnist/3.0.1").exists()

    def test_missing(self, folder, tmp_path):
        (folder / "t10k-labels-idx1-ubyte.gz").unlink()
        self.fails(folder, tmp_path, f"{folder} has no file t10k-labels-idx1-ubyte.gz")
        self.fails(tmp_path / "none", tmp_path, "none has no file train-images-idx3-ubyte.gz")

    @pytest.mark.parametrize("damage", ["cut", "text"])
    def test_damaged_gzip(self, folder, tmp_path, damage):
        path = folder / "train-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:1000] if damage == "cut" else b"<html>not found</html>")
        self.fails(folder, tmp_path, f"{path} cannot be read .*: get the file again")

    def test_magic(self, folder, tmp_path, arrays, write_idx):
        path = folder / "train-labels-idx1-ubyte.gz"
        write_idx(path, arrays["train"][0])  # images under the name of labels
        self.fails(folder, tmp_path, f"{path} is no IDX file of 1 axes .magic number not 2049")

    @pytest.mark.parametrize("length", [0, 3, 11, 16, 15000])
    def test_cut(self, folder, tmp_path, arrays, write_idx, length):
        path = folder / "t10k-images-idx3-ubyte.gz"
        write_idx(path, arrays["t10k"][0], cut=length or -(10**9))
        self.fails(folder, tmp_path, f"{path} (is no IDX file|holds .* values where its header says)")

    def test_size(self, folder, tmp_path, write_idx):
        path = folder / "train-images-idx3-ubyte.gz"
        write_idx(path, np.zeros((30, 32, 32)))
        self.fails(folder, tmp_path, rf"{path} holds images of \(32, 32\) pixels")

    def test_counts(self, folder, tmp_path, write_idx):
        write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.zeros(19))
        self.fails(folder, tmp_path, r"t10k-images\S+ holds 20 images but \S+t10k-labels\S+ 19 labels")

    def test_labels(self, folder, tmp_path, write_idx):
        path = folder / "train-labels-idx1-ubyte.gz"
        write_idx(path, np.arange(30) % 11)
        self.fails(folder, tmp_path, f"{path}: label 10 at index 10 is not in 0 … 9")


class TestErrors:
    def test_only_idx_sets_come_from_files(self, folder, tmp_path):
        with pytest.raises(UserError, match="--from reads IDX files, of fashion_mnist, kmnist, mnist; 'cifar10' is"):
            prepare("cifar10", str(tmp_path), folder)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("fashion_mnits", "TFDS has no data set 'fashion_mnits': did you mean fashion_mnist"),
            ("qqqqqq", "TFDS has no data set 'qqqqqq': see https"),
            ("emnist/nothing", "TFDS cannot open 'emnist/nothing'"),
            ("mnist:9.9.9", "TFDS cannot open 'mnist:9.9.9'"),
        ],
    )
    def test_names(self, tmp_path, name, words):
        with pytest.raises(UserError, match=words) as caught:
            prepare(name, str(tmp_path))
        assert "\n" not in str(caught.value)

    def test_half_a_folder(self, tmp_path):
        folder = tmp_path / "mnist/3.0.1"
        folder.mkdir(parents=True)
        with pytest.raises(UserError, match=f"{folder} exists but holds no complete data set: delete it"):
            prepare("mnist", str(tmp_path))

    def test_prepared_in_another_format(self, write_tfds):
        import tensorflow_datasets as tfds

        label = tfds.features.ClassLabel(num_classes=10)
        features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": label}
        data_dir = write_tfds({"train": []}, features, "fashion_mnist/3.0.1", fileFormat="tfrecord")
        with pytest.raises(UserError, match="holds tfrecord files, but jaxcnn reads array_record: delete it"):
            prepare("fashion_mnist", data_dir)

    def test_without_tensorflow(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow", None)
        with pytest.raises(UserError, match=r"needs TensorFlow: pip install 'jaxcnn\[prepare\]'"):
            prepare("cifar10", str(tmp_path))

    @pytest.mark.parametrize(
        ("name", "ends"),
        [
            ("fashion_mnist", "check the network, or give its four IDX files with --from DIR"),
            ("cifar10", "the network"),
        ],
    )
    def test_without_network(self, tmp_path, monkeypatch, name, ends):
        import requests

        def fail(**_):
            raise requests.ConnectionError("Max retries exceeded\nwith url: http://x")

        builder = types.SimpleNamespace(data_dir=str(tmp_path / "none"), download_and_prepare=fail)
        monkeypatch.setattr(prepare_module, "_builder", lambda *_: builder)
        monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
        with pytest.raises(UserError) as caught:
            prepare(name, str(tmp_path))
        message = str(caught.value)
        assert message.startswith(f"cannot build '{name}' (ConnectionError: Max retries exceeded with url")
        assert message.endswith(ends)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs dataset-fashion-mnist")
def test_debians_files(tmp_path):
    """The real thing: sixty thousand and ten thousand examples, a tenth of each class."""
    command = [sys.executable, "-m", "jaxcnn.cli", "data", "prepare", "fashion_mnist", "--data-dir", str(tmp_path)]
    subprocess.run([*command, "--from", "/usr/share/datasets/fashion-mnist"], check=True, capture_output=True)
    for split, count in (("train", 60000), ("test", 10000)):
        source = make_source("tfds:fashion_mnist", split, data_dir=str(tmp_path))
        assert np.bincount([source[i]["label"] for i in range(len(source))]).tolist() == [count // 10] * 10
