"""Sources: what they hold, that they never change, and what is said where one cannot be read."""

import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encode import png

from jaxcnn import UserError
from jaxcnn.config import base_config
from jaxcnn.configfile import to_json
from jaxcnn.data import sources
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.sources import describe_sources, eval_split, make_source, split_sizes
from jaxcnn.training.initial_state import check_resume


def stacked(source):
    examples = [source[i] for i in range(len(source))]
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


class TestDigits:
    def test_examples(self):
        source = make_source("digits")
        images, labels = stacked(source)
        assert images.dtype == np.uint8
        assert images.shape == (1442, *source.image_shape) == (1442, 8, 8, 1)
        assert (images.min(), images.max()) == (0, 255)
        assert set(labels) == set(range(10))
        assert source.class_names == tuple("0123456789")

    def test_every_fifth_of_each_class_is_for_the_test(self):
        from sklearn.datasets import load_digits

        whole = np.bincount(load_digits(return_X_y=True)[1])
        test = np.bincount(stacked(make_source("digits", "test"))[1])
        assert test.tolist() == (whole // 5).tolist()
        assert np.bincount(stacked(make_source("digits"))[1]).tolist() == (whole - test).tolist()

    def test_statistics_are_those_of_the_training_split(self):
        images = stacked(make_source("digits"))[0] / 255
        for split in ("train", "test"):
            source = make_source("digits", split)
            assert source.mean == pytest.approx([images.mean()])
            assert source.std == pytest.approx([images.std()])

    def test_shared_arrays_cannot_be_written(self):
        with pytest.raises(ValueError, match="read-only"):
            make_source("digits")[0]["image"][:] = 0


class TestSynthetic:
    def test_sizes(self):
        assert split_sizes("synthetic") == {"train": 4096, "test": 1024}
        assert split_sizes("synthetic:7:3") == {"train": 3, "test": 1}
        source = make_source("synthetic:7")
        assert (source.num_classes, source.image_shape, len(source)) == (7, (32, 32, 3), 4096)

    def test_an_image_is_a_function_of_split_and_index(self):
        train, larger = make_source("synthetic:10:100"), make_source("synthetic:10:200")
        test = make_source("synthetic:10:200", "test")
        for index in (0, 7, 49):
            np.testing.assert_array_equal(train[index]["image"], larger[index]["image"])
            assert (train[index]["image"] != test[index]["image"]).any()
        assert (train[0]["image"] != train[10]["image"]).any()  # of one class

    def test_pinned(self):
        """Recorded runs and benchmarks rely on the very bytes."""
        image = make_source("synthetic")[11]["image"]
        assert image[:2, 0].tolist() == [[181, 94, 153], [171, 28, 141]]

    def test_labels_cycle(self):
        assert stacked(make_source("synthetic:5:12"))[1].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]

    def test_statistics(self):
        source = make_source("synthetic:50:1000")
        images = stacked(source)[0] / 255
        assert images.mean((0, 1, 2)) == pytest.approx(source.mean, abs=0.005)
        assert images.std((0, 1, 2)) == pytest.approx(source.std, abs=0.005)

    def test_the_classes_can_be_told_apart(self):
        images, labels = stacked(make_source("synthetic:200:1000"))
        means = np.stack([images[labels == c].mean(0) for c in range(200)])
        test_images, test_labels = stacked(make_source("synthetic:200:1000", "test"))
        distance = ((test_images[:, None, ::4, ::4] - means[None, :, ::4, ::4]) ** 2).sum((2, 3, 4))
        assert (distance.argmin(1) == test_labels).mean() > 0.9

    def test_label_maps_have_two_halves_in_the_gratings_of_their_classes(self):
        source, plain = make_source("synthetic_masks:3:9"), make_source("synthetic:3:9")
        assert (source.targets, source.num_classes, len(source)) == (("label_map",), 3, 9)
        example = source[2]
        assert (example["label_map"][:16] == 2).all()
        assert (example["label_map"][16:] == 0).all()
        np.testing.assert_array_equal(example["image"][:16], plain[2]["image"][:16])
        with pytest.raises(UserError, match="300 classes: a label map has 255 at most"):
            make_source("synthetic_masks:300")

    def test_boxes_hold_the_gratings_of_their_classes(self):
        source: Any = make_source("synthetic_boxes:3:9")
        assert (source.num_classes, len(source), source.most) == (4, 9, 3)
        example = source[2]
        assert source.sizes()[2].tolist() == [96, 128] == list(example["image"].shape[:2])
        inside = np.zeros((96, 128), bool)
        for x1, y1, x2, y2 in example["boxes"].astype(int):
            assert 0 <= x1 < x2 <= 128
            assert 0 <= y1 < y2 <= 96
            inside[y1:y2, x1:x2] = True
            assert np.ptp(example["image"][y1:y2, x1:x2]) > 150
        assert np.ptp(example["image"][~inside]) < 64
        assert (make_source("synthetic_boxes:3:9", "test")[1]["boxes"] != source[1]["boxes"]).any()

    @pytest.mark.parametrize("name", ["synthetic:", "synthetic:0", "synthetic:10:", "synthetic:1:2:3", "synthetic:ten"])
    def test_malformed_names(self, name):
        with pytest.raises(UserError, match=r"write synthetic\[:CLASSES\[:EXAMPLES\]\]"):
            make_source(name)


class TestStored:
    def test_examples(self, write_tfds, images):
        data_dir = write_tfds({"train": [(png(x), i % 5) for i, x in enumerate(images)], "test": [(png(images[3]), 4)]})
        source = make_source("tfds:mini", data_dir=data_dir)
        read, labels = stacked(source)
        np.testing.assert_array_equal(read, images)
        assert read.dtype == np.uint8
        assert labels.tolist() == [i % 5 for i in range(40)]
        assert (source.class_names, source.image_shape) == (tuple("abcde"), (6, 5, 1))
        assert (source.mean, source.std) == ((0.5,), (0.25,))
        assert split_sizes("tfds:mini", data_dir) == {"train": 40, "test": 1}

    def test_slices(self, write_tfds, images):
        data_dir = write_tfds({"train": [(png(x), 0) for x in images]})
        source = make_source("tfds:mini", "train[90%:]", data_dir=data_dir)
        np.testing.assert_array_equal(stacked(source)[0], images[36:])

    def test_statistics_of_known_sets(self, write_tfds, images):
        data_dir = write_tfds({"train": [(png(images[0]), 0)]}, folder="fashion_mnist/3.0.1")
        source = make_source("tfds:fashion_mnist", data_dir=data_dir)
        assert (source.mean, source.std) == ((0.2860,), (0.3530,))

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1"])
    def test_every_encoding_becomes_what_is_declared(self, write_tfds, mode):
        import io

        import tensorflow_datasets as tfds
        from PIL import Image

        file = io.BytesIO()
        Image.new("RGB", (7, 4), "white").convert(mode).save(file, "TIFF")
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        data_dir = write_tfds({"train": [(file.getvalue(), 1)]}, features)
        source = make_source("tfds:mini", data_dir=data_dir)
        assert source.image_shape == (None, None, 3)
        assert source[0]["image"].tolist() == np.full((4, 7, 3), 255).tolist()

    @pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 1), (np.bool_, 255)])
    @pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1)])
    def test_arrays(self, write_tfds, images, dtype, white, shape):
        import tensorflow_datasets as tfds

        features = {
            "image": tfds.features.Tensor(shape=shape, dtype=dtype),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        binary = images[0] > 127
        source = make_source("tfds:mini", data_dir=write_tfds({"train": [(binary, 1)]}, features))
        assert source[0]["image"].dtype == np.uint8
        np.testing.assert_array_equal(source[0]["image"], np.where(binary, white, 0))

    def test_newest_version_unless_named(self, write_tfds, images):
        for version, image in (("1.9.0", images[0]), ("1.10.0", images[1])):
            data_dir = write_tfds({"train": [(png(image), 0)]}, folder=f"mini/{version}")
        for name, image in (("mini", images[1]), ("mini:1.9.0", images[0]), ("mini:1.*.*", images[1])):
            np.testing.assert_array_equal(make_source(f"tfds:{name}", data_dir=data_dir)[0]["image"], image)
        with pytest.raises(UserError, match=r"no version 2\.0\.0: take one of 1\.9\.0, 1\.10\.0"):
            make_source("tfds:mini:2.0.0", data_dir=data_dir)

    def test_configs(self, write_tfds, images):
        data_dir = write_tfds({"train": [(png(images[0]), 0)]}, folder="mini/small/1.0.0")
        assert len(make_source("tfds:mini", data_dir=data_dir)) == 1  # the only one
        write_tfds({"train": [(png(x), 0) for x in images]}, folder="mini/large/1.0.0")
        assert len(make_source("tfds:mini/large:1.0.0", data_dir=data_dir)) == 40
        with pytest.raises(UserError, match="several configs: write tfds:mini/CONFIG, of large, small"):
            make_source("tfds:mini", data_dir=data_dir)

    def test_environment_names_the_folder(self, write_tfds, images, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", write_tfds({"train": [(png(images[0]), 0)]}))
        assert len(make_source("tfds:mini")) == 1

    def test_neither_tensorflow_nor_jax_is_imported(self, write_tfds, images, tmp_path):
        """In a fresh process, as Grain's workers are: what was opened here is read there."""
        data_dir = write_tfds({"train": [(png(x), 0) for x in images]})
        (tmp_path / "pickle").write_bytes(pickle.dumps(make_source("tfds:mini", data_dir=data_dir)))
        code = f"""
import pickle, sys
from pathlib import Path
from typing import Any
from jaxcnn.data.sources import describe_sources, make_source
names = {{"digits", "synthetic", "synthetic_masks", "synthetic_boxes", "tfds:mini:1.0.0"}}
assert names <= {{row["name"] for row in describe_sources({data_dir!r}) if row["status"] == "ready"}}
made = make_source("tfds:mini", data_dir={data_dir!r})
sent = pickle.loads(Path({str(tmp_path / "pickle")!r}).read_bytes())
assert all((made[i]["image"] == sent[i]["image"]).all() for i in range(40))
print(made[39]["image"].tolist(), [name for name in ("tensorflow", "jax") if name in sys.modules])
"""
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
        )
        assert result.stdout == f"{images[39].tolist()} []\n", result.stderr
        assert result.stderr == ""


@pytest.mark.parametrize("name", ["digits", "synthetic:3:9", "tfds:mini"])
class TestEverySource:
    @pytest.fixture
    def source(self, name, write_tfds, images):
        return make_source(name, data_dir=write_tfds({"train": [(png(x), i % 5) for i, x in enumerate(images)]}))

    def test_reads_the_same_again_and_after_pickling(self, source):
        copy = pickle.loads(pickle.dumps(source))
        assert (repr(copy), len(copy), copy.mean) == (repr(source), len(source), source.mean)
        for index in (0, len(source) - 1, 3, 3):
            example = source[index]
            assert type(example["label"]) is int
            np.testing.assert_array_equal(example["image"], copy[np.int64(index)]["image"])
            assert example["label"] == copy[index]["label"]

    def test_has_no_example_outside(self, source):
        for index in (-1, len(source)):
            with pytest.raises(IndexError, match=f"has no example {index}"):
                source[index]
        assert len(stacked(source)[1]) == len(source)


class TestEvalSplit:
    def test_built_in(self):
        assert eval_split("digits") == eval_split("synthetic:3") == "test"

    @pytest.mark.parametrize(
        ("name", "splits", "expected"),
        [
            ("mini", ["train", "validation", "test"], "test"),
            ("mini", ["train", "validation"], "validation"),
            ("imagenet2012", ["train", "validation", "test"], "validation"),  # its test labels are all -1
        ],
    )
    def test_stored(self, write_tfds, images, name, splits, expected):
        data_dir = write_tfds({split: [(png(images[0]), 0)] for split in splits}, folder=f"{name}/1.0.0")
        assert eval_split(f"tfds:{name}", data_dir) == expected

    def test_none(self, write_tfds, images):
        data_dir = write_tfds({"train": [(png(images[0]), 0)]})
        with pytest.raises(UserError, match=r"config\.data\.eval_split"):
            eval_split("tfds:mini", data_dir)


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("digit", "did you mean digits"),
            ("fashion_mnist", "did you mean tfds:fashion_mnist"),
            ("zzz", r"there are digits, synthetic\[:CLASSES\[:EXAMPLES\]\], .*tfds:NAME, folder:DIR, .*masks:DIR"),
            ("", "no data set '': there are digits"),
            ("foler:/x:y", "did you mean folder:/x:y"),
            ("/none/such", "no data set '/none/such': there are digits"),
            ("digits:3", "no data set 'digits:3'"),
            ("tfds:", r"write tfds:NAME\[/CONFIG\]\[:VERSION\]"),
            ("tfds:../x", r"write tfds:NAME\[/CONFIG\]\[:VERSION\]"),
        ],
    )
    def test_names(self, name, words):
        with pytest.raises(UserError, match=words):
            make_source(name)

    def test_a_bare_folder(self, tmp_path, monkeypatch):
        with pytest.raises(UserError, match=f"it is a folder, write folder:{tmp_path}"):
            make_source(str(tmp_path))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mnist").mkdir()
        with pytest.raises(UserError, match="did you mean tfds:mnist"):
            make_source("mnist")

    def test_not_prepared(self, tmp_path):
        with pytest.raises(UserError) as caught:
            make_source("tfds:cifar10", data_dir=str(tmp_path))
        assert f"not prepared in {tmp_path}/cifar10" in str(caught.value)
        assert f"jaxcnn data prepare cifar10 --data-dir {tmp_path}" in str(caught.value)

    def test_a_build_in_progress_is_not_a_data_set(self, write_tfds, images):
        data_dir = write_tfds({"train": [(png(images[0]), 0)]})
        Path(data_dir, "mini/1.0.0").rename(Path(data_dir, "mini/incomplete.ABC123_1.0.0"))
        with pytest.raises(UserError, match="not prepared"):
            make_source("tfds:mini", data_dir=data_dir)

    def test_other_format(self, write_tfds, images):
        data_dir = write_tfds({"train": [(png(images[0]), 0)]}, fileFormat="tfrecord")
        with pytest.raises(UserError, match="tfrecord"):
            make_source("tfds:mini", data_dir=data_dir)

    @pytest.mark.parametrize("split", ["valid", "train[:0%]", "train[9", ""])
    def test_split(self, write_tfds, images, split):
        data_dir = write_tfds({"train": [(png(images[0]), 0)], "extra": [(png(images[0]), 0)]})
        with pytest.raises(UserError, match="take one of train, extra, or a slice"):
            make_source("tfds:mini", split, data_dir=data_dir)
        with pytest.raises(UserError, match="its splits are train, test"):
            make_source("digits", split)

    def test_features(self, write_tfds, images):
        import tensorflow_datasets as tfds

        image, label = tfds.features.Image(shape=(6, 5, 1)), tfds.features.ClassLabel(num_classes=3)
        real = tfds.features.Tensor(shape=(6, 5), dtype=np.float32)
        deep = tfds.features.Image(shape=(6, 5, 1), dtype=np.uint16, encoding_format="png")
        wrong = {
            "features label, picture, not 'image' and 'label'": {"picture": image, "label": label},
            "the label of tfds:mini is Scalar, no class": {"image": image, "label": tfds.features.Scalar(np.int64)},
            r"images of tfds:mini are uint16 \(6, 5, 1\)": {"image": deep, "label": label},
            r"images of tfds:mini are float32 \(6, 5\)": {"image": real, "label": label},
        }
        for number, (words, features) in enumerate(wrong.items()):
            data_dir = write_tfds({"train": []}, dict(features), folder=f"mini/{number}.0.0")
            with pytest.raises(UserError, match=words):
                make_source("tfds:mini", data_dir=data_dir)

    @pytest.mark.parametrize("label", [-1, 5])
    def test_label(self, write_tfds, images, label):
        data_dir = write_tfds({"train": [(png(images[0]), 0), (png(images[1]), label)]})
        source = make_source("tfds:mini", data_dir=data_dir)
        assert source[0]["label"] == 0
        with pytest.raises(UserError, match=f"tfds:mini, split 'train', example 1 .*label {label}"):
            source[1]

    @pytest.mark.parametrize("damage", ["no image", "cut", "size"])
    def test_damaged_image(self, write_tfds, images, damage):
        image = png(images[1])
        image = {"no image": b"text", "cut": image[: len(image) // 2], "size": png(images[1][:3])}[damage]
        source = make_source("tfds:mini", data_dir=write_tfds({"train": [(png(images[0]), 0), (image, 1)]}))
        assert source[0]["label"] == 0
        with pytest.raises(UserError, match="tfds:mini, split 'train', example 1 cannot be read"):
            source[1]

    @pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
    def test_damaged_file(self, write_tfds, images, damage):
        data_dir = write_tfds({"train": [(png(x), 0) for x in images]})
        (path,) = Path(data_dir).rglob("*array_record-*")
        data = bytearray(path.read_bytes())
        where = data.find(b"IDAT", data.find(b"IDAT") + 1)
        data[where] ^= 255
        path.unlink() if damage == "gone" else path.write_bytes(data if damage == "flipped" else data[:70000])
        source = make_source("tfds:mini", data_dir=data_dir)
        with pytest.raises(UserError, match=r"tfds:mini, split 'train', example \d+ "):
            stacked(source)

    def test_damaged_description(self, write_tfds, images):
        data_dir = write_tfds({"train": [(png(images[0]), 0)]})
        Path(data_dir, "mini/1.0.0/features.json").write_text("{")
        with pytest.raises(UserError, match=r"mini/1\.0\.0 is damaged"):
            make_source("tfds:mini", data_dir=data_dir)


class TestDescribe:
    def test_rows(self, write_tfds, images):
        data_dir = write_tfds({"train": [(png(x), 0) for x in images]})
        write_tfds({"train": [(png(x), 0) for x in images]}, folder="old/2.0.0", fileFormat="tfrecord")
        rows = {row["name"]: row for row in describe_sources(data_dir)}
        built_in = ["digits", "synthetic", "synthetic_masks", "synthetic_boxes"]
        assert list(rows) == [*built_in, "tfds:mini:1.0.0", "tfds:old:2.0.0", "tfds:fashion_mnist"]
        mini = rows["tfds:mini:1.0.0"]
        assert (mini["splits"], mini["image_shape"], mini["num_classes"]) == ({"train": 40}, (6, 5, 1), 5)
        assert [row["status"] for row in list(rows.values())[:3]] == ["ready"] * 3
        assert "tfrecord" in rows["tfds:old:2.0.0"]["status"]
        assert "jaxcnn data prepare fashion_mnist" in rows["tfds:fashion_mnist"]["status"]


def test_a_storage_format_is_one_module_and_one_line(monkeypatch, tmp_path):
    class Letters(sources.Source):
        def _read(self, index):
            return {"image": np.full((4, 4, 1), index, np.uint8), "label": index}

    module = types.ModuleType("letters")
    module.open_split = lambda name, split, data_dir: Letters(  # type: ignore[attr-defined]
        name, split, 2, ("a", "b"), (4, 4, 1), (0.5,), (0.5,)
    )
    module.split_sizes = lambda name, data_dir: {"train": 2, "val": 2}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jaxcnn.data.sources.letters", module)
    monkeypatch.setitem(sources.KINDS, "letters", sources.Kind("letters", "letters:DIR", is_path=True))
    assert [make_source("letters:/x")[i]["label"] for i in range(2)] == [0, 1]
    assert eval_split("letters:/x") == "val"
    config = base_config()
    config.data.name, config.global_batch_size, config.steps = "letters:/x", 2, 1
    assert "/x" not in str(Dataset(config).position), "files may be moved"
    with pytest.raises(UserError, match="letters:DIR"):
        make_source("zzz")
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    config.data.name = "letters:/y"
    check_resume(config, tmp_path)
    config.data.name = "folder:/x"
    with pytest.raises(UserError, match=r"data\.name"):
        check_resume(config, tmp_path)
