"""From a folder of JPEGs to rows: the same for everybody, and what becomes of broken images."""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from jaxcnn import UserError
from jaxcnn.config import base_config
from jaxcnn.configfile import set_key
from jaxcnn.data.batches import eval_batches, train_batches
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.images.augment_host import parse
from jaxcnn.data.images.decode import read_image
from jaxcnn.data.reader import Reader
from jaxcnn.data.sources import BadExample, make_source

COUNT = {"train": 12, "val": 5}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """DIR/{train,val}/{flower,temple}/N.jpg of different sizes."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for split, count in COUNT.items():
        for i in range(count):
            folder = root / split / ("temple", "flower")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            height, width = rng.integers(60, 140, 2)
            pixels = load_sample_images().images[i % 2][i : i + height, 2 * i : 2 * i + width]
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return root


@pytest.fixture
def damaged(photographs, tmp_path):
    """A copy with one image of each split cut short, and another that is no image."""
    root = tmp_path / "damaged"
    shutil.copytree(photographs, root)
    for split in COUNT:
        path = root / split / "flower" / "1.jpg"
        path.write_bytes(path.read_bytes()[:700])
    (root / "train" / "temple" / "4.jpg").write_text("no image")
    return root


def reader(root, split="train", augment="inception", **kwargs):
    return Reader(make_source(f"folder:{root}", split), (32, 32), 37, parse(augment), **kwargs)


def dataset(root, **values):
    config = base_config()
    settings = {"data.name": f"folder:{root}", "data.image_size": "32", "global_batch_size": "4", "data.augment": "vgg"}
    for key, value in (settings | values).items():
        set_key(config, key, value)
    return Dataset(config)


def test_a_row_is_a_function_of_seed_epoch_and_example(photographs):
    a, b = reader(photographs, augment="inception,randaugment(2,9),erase(0.5)"), reader(photographs, augment="none")
    rows = [a.train(1, i)["image"] for i in range(12)]
    for i in reversed(range(12)):
        np.testing.assert_array_equal(a.train(1, i)["image"], rows[i])
    assert sum((a.train(2, i)["image"] != rows[i]).any() for i in range(12)) == 12
    assert sum((replace(a, seed=1).train(1, i)["image"] != rows[i]).any() for i in range(12)) == 12
    np.testing.assert_array_equal(b.train(0, 3)["image"], b.train(7, 3)["image"])


def test_batches_do_not_depend_on_the_workers(photographs):
    def digest(workers):
        batches = train_batches([reader(photographs, augment="resnet,randaugment(2,9)")], 5, 0, 4, workers=workers)
        seen = hashlib.sha256()
        for batch in batches:
            seen.update(batch["image"].tobytes() + batch["example"].tobytes())
        getattr(batches, "close", int)()
        return seen.hexdigest()

    assert digest(0) == digest(2)


def test_evaluation_is_torchvisions_resize_and_centre_crop(photographs):
    plain = reader(photographs, "val")
    for i in range(COUNT["val"]):
        path = plain.source.where(i).rpartition("(")[2].rstrip(")")
        want = read_image(Path(path), shape=(32, 32, 3), resize=37)
        got = plain.eval(i)["image"].astype(int)
        assert np.abs(got - want).max() <= 1
        assert np.abs(got - want).mean() < 0.1  # Pillow rounds otherwise when it is given the part alone


def test_a_broken_image_stops_and_is_named_with_its_index(damaged):
    with pytest.raises(BadExample, match=r"train.*example 0 .*flower/1\.jpg.*cannot be read.*"):
        list(train_batches([reader(damaged)], 4, 0, 3))
    with pytest.raises(BadExample, match=r"val.*example 0 .*flower/1\.jpg"):
        list(eval_batches([reader(damaged, "val")], 4))


def test_skipping_replaces_by_a_neighbour_counts_and_reports(damaged, photographs):
    skipping, sound = reader(damaged, skip=True), reader(photographs)
    row = skipping.train(3, 0)
    assert row["broken"] == 0
    np.testing.assert_array_equal(row["image"], sound.train(3, 1)["image"])
    assert skipping.train(3, 1)["broken"] == -1

    data = dataset(damaged, **{"data.on_error": "skip"})
    batches = list(data.train_batches(0, 7))  # two epochs of 12, and a part of the third
    assert all("broken" not in batch for batch in batches)
    assert data.complaints(0.9) == []
    (first,) = data.complaints(1.2)
    assert first.startswith("epoch 1: 2 images of folder:")
    assert "1.jpg" in first
    assert "4.jpg" in first
    assert len(data.complaints(2.0)) == 1
    assert data.complaints(2.0) == []


def test_in_evaluation_a_broken_image_is_left_out_and_counted(damaged):
    data = dataset(damaged, **{"data.on_error": "skip"})
    batches = list(data.eval_batches())
    assert sum(batch["mask"].sum() for batch in batches) == 4
    assert data.eval_broken == 1
    assert batches[0]["mask"][0] == 0
    (words,) = data.complaints(0)
    assert words.startswith("evaluation: 1 image of folder:")
    assert "val/flower/1.jpg" in words
    list(data.eval_batches())
    assert data.complaints(0) == [], "it is said once"


def test_a_pipe_is_no_image(damaged):
    os.mkfifo(damaged / "train" / "flower" / "0.jpg")
    with pytest.raises(BadExample, match=r"0\.jpg.*no regular file"):
        make_source(f"folder:{damaged}", "train").read(0)


def test_a_set_of_broken_images_is_an_error_even_then(damaged):
    for path in (damaged / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="it is empty"):
        list(dataset(damaged, **{"data.on_error": "skip"}).train_batches(0, 1))


def test_resident_photographs_are_those_of_the_stream(damaged):
    data = dataset(damaged, **{"data.on_error": "skip", "data.augment": "flip", "data.resident": "true"})
    arrays, mask = data.resident(training=True)
    for batch in data.train_batches(0, 3):
        for name in ("image", "label"):
            np.testing.assert_array_equal(arrays[name][batch["example"]], batch[name])
    assert mask.all()
    assert data.resident(training=False)[1].sum() == 4


def test_moved_files_are_the_same_data(photographs, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(photographs, moved)
    assert dataset(photographs).position == dataset(moved).position
    shutil.rmtree(moved / "train" / "flower")
    shutil.rmtree(moved / "val" / "flower")
    assert dataset(photographs).position != dataset(moved).position


def test_the_resize_of_evaluation_can_be_set(photographs):
    assert dataset(photographs).input["resize"] == 37
    assert dataset(photographs, **{"data.resize": "40"}).input["resize"] == 40
