"""The default recipe: what it chooses for which data, that it is a legal config, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encode import png

from jaxcnn import UserError
from jaxcnn.config import validate
from jaxcnn.configfile import load_config, to_json
from jaxcnn.training import recipe
from jaxcnn.training.recipe import default_recipe


@pytest.fixture
def photos(tmp_path: Path) -> Any:
    """`photos(side, *splits)`: a folder of two classes, twelve images a class and split."""

    def write(side: int, *splits: str) -> str:
        for split in splits:
            for label in "ab":
                folder = tmp_path / "photos" / split / label
                folder.mkdir(parents=True)
                for i in range(12):
                    (folder / f"{i}.png").write_bytes(png(np.zeros((side, side + 5, 3), np.uint8)))
        return f"folder:{tmp_path / 'photos'}"

    return write


def test_a_folder_without_val_holds_a_tenth_out(photos):
    config = default_recipe(photos(100, "train")).config()
    validate(config)
    assert (config.data.train_split, config.data.eval_split) == ("train[:90%]", "train[90%:]")
    assert config.global_batch_size <= 22


def test_a_folder_with_val_is_taken_as_it_is(photos):
    config = default_recipe(photos(100, "train", "val")).config()
    assert (config.data.train_split, config.data.eval_split) == ("train", "")


@pytest.mark.parametrize(
    ("side", "model", "size", "small"),
    [(300, "resnet18", 224, None), (100, "vgg16", 224, None), (32, "resnet18", 32, True), (32, "resnet20", 32, None),
     (20, "vgg11_bn", 28, True)],
)  # fmt: skip
def test_the_size_is_that_of_the_network_or_about_that_of_small_images(side, model, size, small, photos):
    config = default_recipe(photos(side, "train"), model).config()
    validate(config)
    assert config.data.image_size == size
    assert config.model.overrides.get("small_images") is small


@pytest.mark.parametrize(
    ("data", "task"),
    [("digits", "classification"), ("synthetic_masks", "segmentation"), ("synthetic_boxes", "detection")],
)
def test_the_data_imply_the_task(data, task):
    config = default_recipe(data).config()
    validate(config)
    assert config.task.name == task


def test_a_large_data_set_has_the_recipe_of_imagenet(photos, monkeypatch):
    monkeypatch.setattr(recipe, "_LARGE", 10)
    config = default_recipe(photos(100, "train")).config()
    assert (config.optimizer.name, config.optimizer.base_batch_size, config.epochs) == ("sgd", 256, 100)


def test_networks_without_batchnorm_have_a_lower_rate():
    rates = {model: default_recipe("digits", model).config().optimizer.learning_rate for model in ("vgg11", "vgg11_bn")}
    assert rates["vgg11"] < rates["vgg11_bn"]


@pytest.mark.parametrize("data", ["digits", "synthetic_masks", "synthetic_boxes"])
def test_the_experiment_gives_the_same_config_and_explains_every_key(data, tmp_path):
    made = default_recipe(data)
    file = tmp_path / "my.py"
    file.write_text(text := made.experiment())
    assert to_json(load_config(file)) == to_json(made.config())
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("    config.") and not line.startswith("    config = "):
            assert lines[number - 1].startswith("    # ")
    assert max(map(len, lines)) <= 120


def test_a_path_with_quotes_is_written_as_python(photos, tmp_path):
    name = photos(40, "train")
    odd = tmp_path / 'it\'s "odd" ü'
    Path(name.removeprefix("folder:")).rename(odd)
    made = default_recipe(f"folder:{odd}")
    (tmp_path / "my.py").write_text(made.experiment())
    assert load_config(tmp_path / "my.py").data.name == f"folder:{odd}"


@pytest.mark.parametrize(
    ("data", "model", "words"),
    [
        ("digits", "fcn8s", "model fcn8s is for segmentation"),
        ("digits", "resnet19", "there is no model"),
        ("folder:/nowhere", "", "there is no folder"),
        ("nonsense", "", "no data set"),
    ],
)
def test_what_does_not_fit_is_refused(data, model, words):
    with pytest.raises(UserError, match=words):
        default_recipe(data, model)


def test_data_without_labels_have_no_recipe(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((20, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match="no labels"):
        default_recipe(f"arrays:{tmp_path / 'x.npy'}")
