"""Preparing: from IDX files and archives to TFDS's own data set, and what is said where that cannot be."""

import io
import os
import queue
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcnn import UserError
from jaxcnn.data.prepare import tfds as prepare_module
from jaxcnn.data.prepare.idx import read_splits
from jaxcnn.data.prepare.tfds import prepare
from jaxcnn.data.sources import eval_split, imagenet, make_source, split_sizes

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
from jaxcnn.data.prepare import tfds
def stop(images, *_):
    yield 0, {{"image": images[0], "label": 0}}
    {{"error": lambda: 1 / 0, "kill": lambda: os.kill(os.getpid(), 9)}}[sys.argv[1]]()
tfds._examples = stop
tfds.prepare("fashion_mnist", {str(tmp_path / "tfds")!r}, {str(folder)!r})
"""
        for how in ("error", "kill"):
            result = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=False)
            assert result.returncode in (1, -9)
            assert not (tmp_path / "tfds/fashion_mnist/3.0.1").exists()
            with pytest.raises(UserError, match="not prepared"):
                make_source("tfds:fashion_mnist", data_dir=str(tmp_path / "tfds"))
        assert "ZeroDivisionError" in result.stderr or result.returncode == -9


def _tar(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def _image(colour, mode="RGB", kind="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", (9, 7), colour).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """A folder of ImageNet's archives with seven images; CMYK and PNG are under the names that they have there."""
    classes = {
        "n01440764": {"n01440764_1.JPEG": _image("red"), "n01440764_2.JPEG": _image("grey", "L")},
        "n01739381": {"n01739381_1309.JPEG": _image("lime", "CMYK")},
        "n02105855": {"n02105855_2933.JPEG": _image("blue", kind="PNG")},
    }
    folder = tmp_path_factory.mktemp("archives")
    (folder / "ILSVRC2012_img_train.tar").write_bytes(_tar({f"{c}.tar": _tar(files) for c, files in classes.items()}))
    colours = {f"ILSVRC2012_val_0000000{n}.JPEG": _image((n * 80, 0, 0)) for n in (3, 1, 2)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(_tar(colours))
    return folder


class TestImageNet:
    def test_is_built_from_its_archives(self, archives, tmp_path):
        arguments = ["prepare", "imagenet2012", "--manual-dir", str(archives), "--data-dir", str(tmp_path)]
        command = [sys.executable, "-m", "jaxcnn.cli", "data", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert split_sizes("tfds:imagenet2012", str(tmp_path)) == {"train": 4, "validation": 3}
        assert eval_split("tfds:imagenet2012", str(tmp_path)) == "validation"
        train = make_source("tfds:imagenet2012", data_dir=str(tmp_path))
        assert (train.num_classes, train.class_names, train.mean) == (1000, imagenet.class_names(), imagenet.MEAN)
        read = {}
        for i in range(4):
            assert train.read(i)["image"][:2] == b"\xff\xd8"  # the PNG too has become a JPEG
            read.setdefault(train.class_names[train[i]["label"]], []).append(train[i]["image"].mean((0, 1)).round())
        assert sorted(map(tuple, read["tench"])) == [
            pytest.approx((128, 128, 128), abs=2),
            pytest.approx((254, 0, 0), abs=2),
        ]
        assert read[imagenet.words_of_ids()["n01739381"]][0] == pytest.approx((0, 255, 0), abs=25)
        assert read[imagenet.words_of_ids()["n02105855"]][0] == pytest.approx((0, 0, 254), abs=3)
        # TFDS keeps the labels in the order of the files' names, which is not that of the archive.
        validation = make_source("tfds:imagenet2012", "validation", data_dir=str(tmp_path))
        found = {round(float(validation[i]["image"][0, 0, 0]) / 80): validation[i]["label"] for i in range(3)}
        assert found == {1: 65, 2: 970, 3: 230}

    @pytest.mark.parametrize(
        ("name", "files", "words"),
        [
            ("imagenet2012", None, "'imagenet2012' is not downloaded: give the folder of ILSVRC2012_img_train.tar and"),
            ("imagenet2012", [], "has no ILSVRC2012_img_train.tar and no ILSVRC2012_img_val.tar: image-net.org gives"),
            ("imagenet2012:5.*.*", ["ILSVRC2012_img_train.tar"], "has no ILSVRC2012_img_val.tar: image-net.org"),
            ("cifar10", [], "--manual-dir is for data sets that cannot be downloaded; 'cifar10' can be: drop it"),
        ],
    )
    def test_archives_wanted(self, tmp_path, name, files, words):
        for file in files or []:
            (tmp_path / file).touch()
        with pytest.raises(UserError) as caught:
            prepare(name, str(tmp_path / "tfds"), manual_dir=None if files is None else tmp_path)
        assert words in str(caught.value)
        assert files is None or name == "cifar10" or str(tmp_path) in str(caught.value)

    def test_a_long_build_tells_what_it_has_written(self, tmp_path, monkeypatch):
        said = queue.SimpleQueue[str]()
        monkeypatch.setattr(prepare_module, "print", lambda words, file: said.put(words), raising=False)
        monkeypatch.setattr(prepare_module, "_REPORT", 0.01)
        folder = tmp_path / "imagenet2012/incomplete.ABC_5.1.0"
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(bytes(10**7))
        with prepare_module._reports("imagenet2012", tmp_path / "imagenet2012/5.1.0"):
            assert "0.01 GB" in said.get(timeout=60)


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

    def test_names_with_a_dot_are_read(self, folder):
        for path in list(folder.iterdir()):
            path.rename(folder / path.name.replace("-idx", ".idx"))
        assert {split: len(labels) for split, (_, labels) in read_splits(folder).items()} == {"train": 30, "test": 20}

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
    def test_only_known_sets_come_from_files(self, folder, tmp_path):
        with pytest.raises(UserError, match=r"--from reads the files of .*; 'cifar100' is"):
            prepare("cifar100", str(tmp_path), folder)

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
            ("cifar10", "check the network, or give its binary or Python batches with --from DIR"),
            ("cifar100", "the network"),
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
