"""`jaxcnn train --data` and `jaxcnn new`: one recipe, printed, kept in config.json, and written as a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from encode import png
from tiny import Tiny

from jaxcnn import cli, models
from jaxcnn.configfile import load_config, to_json


@pytest.fixture
def photos(tmp_path: Path) -> Iterator[str]:
    """Twenty images in two classes, without a val split; the network `tiny` is in the registry."""
    for label in range(2):
        folder = tmp_path / "photos" / "train" / "ab"[label]
        folder.mkdir(parents=True)
        for i in range(10):
            (folder / f"{i}.png").write_bytes(png(np.full((28, 28, 3), 100 * label + i, np.uint8)))
    with mock.patch.dict(models._REGISTRY, tiny=Tiny):
        yield f"folder:{tmp_path / 'photos'}"


def test_a_folder_is_trained_without_a_file_by_the_recipe_that_new_writes(photos, tmp_path, capsys):
    run = str(tmp_path / "run")
    argv = ["train", "--data", photos, "--model", "tiny", "--workdir", run, "--config.steps=4"]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert 'data.eval_split = "train[90%:]"' in err
    assert "held out" in err
    assert json.loads(out)["eval/examples"] == 2

    assert cli.main(["new", photos, "--model", "tiny"]) == 0
    (tmp_path / "my.py").write_text(capsys.readouterr().out)
    config = load_config(tmp_path / "my.py", [("steps", "4"), ("epochs", "0")])
    assert (tmp_path / "run" / "config.json").read_text() == to_json(config) + "\n"

    assert cli.main(argv) == 0  # the complete run has nothing left to do
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--model", "tiny", "--config", "a.py", "--workdir", "r"], "--model goes with --data"),
        (["train", "--data", "digits", "--config", "a.py", "--workdir", "r"], "not allowed with"),
        (["train", "--workdir", "r"], "--config --config-json --data is required"),
        (["train", "--data", "digits", "--workdir", "r", "--config.epoch=3"], "did you mean 'epochs'"),
        (["new", "digits", "--model", "resnet19"], "no model 'resnet19'"),
        (["new"], "SOURCE"),
    ],
)
def test_wrong_use_is_refused_in_words(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "r" / "config.json").exists()
