"""What is executed and what is not, which files may be named by others, and that nothing listens."""

import contextlib
import json
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import seeds
from linear import Linear

from jaxcnn import UserError, cli, models
from jaxcnn.config import base_config
from jaxcnn.configfile import from_json, to_json
from jaxcnn.data.sources import make_source
from jaxcnn.training import checksums
from jaxcnn.training.trained import open_run


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    with mock.patch.dict(models._REGISTRY, linear=Linear):
        yield


@pytest.fixture
def config(tmp_path: Path) -> Path:
    config = base_config()
    config.model.name, config.dtype, config.steps, config.global_batch_size = "linear", "float32", 3, 80
    return seeds.write(tmp_path / "config.json", to_json(config).encode())


def processes(pid: int) -> list[int]:
    """The process and those it has started, and theirs."""
    text = ""
    with contextlib.suppress(OSError):
        text = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [pid, *(below for child in text.split() for below in processes(int(child)))]


def listening() -> set[str]:
    """Local addresses, in hexadecimal as /proc has them, on which this process or one that it started listens."""
    mine = set()
    for pid in processes(os.getpid()):
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                mine.add(os.readlink(file).removeprefix("socket:[").removesuffix("]"))
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and row[9] in mine}


class Watch(threading.Thread):
    """Looks for listening sockets until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = listening()  # of other tests in this process
        self.seen, self.looks, self.over = set[str](), 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.seen |= listening() - self.before
            self.looks += 1


def test_the_watch_sees_a_socket():
    import socket

    before = listening()
    with socket.create_server(("127.0.0.1", 0)):
        assert len(listening() - before) == 1
    assert listening() <= before


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_training_from_json_with_tensorboard_listens_nowhere(config, tmp_path, workers):
    watch = Watch()
    watch.start()
    for command in (
        ["train", "--config-json", str(config), "--workdir", str(tmp_path / "run"), "--config.data.workers", workers],
        ["evaluate", "--workdir", str(tmp_path / "run")],
        ["data", "show", "--config-json", str(config), "--out", str(tmp_path / "seen.png"), "--examples", "2"],
    ):
        assert cli.main(command) == 0
    watch.over.set()
    watch.join()
    assert watch.looks > 5
    assert watch.seen == set()
    assert list((tmp_path / "run/tensorboard").iterdir())


@pytest.mark.parametrize("command", [["train", "--workdir", "run"], ["bench"], ["data", "show"]], ids=lambda c: c[0])
class TestConfigJson:
    def test_a_python_file_is_not_executed(self, command, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        seeds.write(tmp_path / "config.json", b"open('executed', 'w')")
        assert cli.main([*command, "--config-json", "config.json"]) == 2
        assert "config.json is not a config in JSON" in capsys.readouterr().err
        assert not (tmp_path / "executed").exists()
        assert not (tmp_path / "run").exists()

    def test_one_of_the_two_is_due(self, command, config, capsys):
        assert cli.main(command) == 2
        assert "is required" in capsys.readouterr().err
        python = [] if command[0] == "data" else ["--config"]
        assert cli.main([*command, *python, "x.py", "--config-json", str(config)]) == 2
        assert "not allowed with" in capsys.readouterr().err

    def test_a_missing_file_and_overrides_are_told_as_ever(self, command, config, tmp_path, capsys):
        assert cli.main([*command, "--config-json", str(tmp_path / "none.json")]) == 2
        assert "none.json does not exist" in capsys.readouterr().err
        assert cli.main([*command, "--config-json", str(config), "--config.epoch=1"]) == 2
        assert "no key 'epoch': did you mean 'epochs'?" in capsys.readouterr().err


def test_help_says_which_of_the_two_is_executed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--config FILE[:ARG] experiment file; it is Python and is executed" in words
    assert "nothing in it is executed" in words


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 1, "optimizer": {"nmae": "sgd"}}, "no key 'optimizer.nmae': did you mean 'optimizer.name'?"),
        ({"steps": 1, "a": {"b": {"c": {}}}}, "no key is that deep"),
        ({"steps": "1"}, "config.steps='1' is of type str"),
        ({"steps": 10**30}, "64 bits"),
        ({"steps": 1, "data": {"mean": [10**400]}}, "a list of numbers"),
        ({"steps": 1, "model.overrides.x": {"y": {"z": 1}}}, "no key is that deep"),
        ({"steps": 1, "x" * 9000: 1}, "no key 'xxx"),
    ],
)
def test_a_wrong_value_is_one_short_line(tmp_path, values, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")) as refused:
        from_json(seeds.write(tmp_path / "config.json", json.dumps(values).encode()))
    assert len(str(refused.value)) < 1000


def test_keys_may_be_dotted_or_nested(tmp_path):
    nested = {"steps": 1, "optimizer": {"name": "sgd"}, "model": {"overrides": {"dropout": 0.5}}, "data.mean": [0.5]}
    config = from_json(seeds.write(tmp_path / "config.json", json.dumps(nested).encode()))
    assert (config.optimizer.name, config.model.overrides.dropout, config.data.mean) == ("sgd", 0.5, (0.5,))


KINDS = "tensorflow_datasets.core.features"
IMAGE = f"{KINDS}.image_feature.Image"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class TestTfds:
    """TFDS imports the classes that features.json names, and opens files where dataset_info.json says."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "evil/1.0.0"
        folder.mkdir(parents=True)
        split = {"name": "train", "filepathTemplate": TEMPLATE, "shardLengths": ["1"]}
        about = {"name": "evil", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
        image = {"image": {"dtype": "uint8", "shape": {"dimensions": ["8", "8", "1"]}}, "pythonClassName": IMAGE}
        label = {"classLabel": {"numClasses": "2"}, "pythonClassName": f"{KINDS}.class_label_feature.ClassLabel"}
        kind = f"{KINDS}.features_dict.FeaturesDict"
        features = {"featuresDict": {"features": {"image": image, "label": label}}, "pythonClassName": kind}
        seeds.write(folder / "dataset_info.json", json.dumps(about).encode())
        seeds.write(folder / "features.json", json.dumps(features).encode())
        return folder

    def refusal(self, folder: Path, file: str, old: str, new: str) -> str:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))
        with pytest.raises(UserError) as refused:
            make_source("tfds:evil", "train", data_dir=str(folder.parent.parent))
        return str(refused.value)

    def test_as_it_is_it_is_opened(self, folder):
        assert make_source("tfds:evil", "train", data_dir=str(folder.parent.parent)).num_classes == 2

    @pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "pythonClassNam\\u0065"])
    def test_no_code_is_imported(self, folder, tmp_path, monkeypatch, key):
        (tmp_path / "evil_code.py").write_text("print('executed')")
        monkeypatch.syspath_prepend(str(tmp_path))
        text = (folder / "features.json").read_text().replace('"pythonClassName"', f'"{key}"')
        (folder / "features.json").write_text(text)
        words = self.refusal(folder, "features.json", IMAGE, "evil_code.Image")
        assert "'evil_code.Image', which is none of TFDS's" in words
        assert "evil_code" not in sys.modules

    def test_the_old_form_of_features_is_refused(self, folder):
        seeds.write(folder / "features.json", json.dumps({"type": "evil_code.X", "content": {}}).encode())
        assert "before version 4.6" in self.refusal(folder, "features.json", "evil_code", "evil_code")

    @pytest.mark.parametrize("template", ["../../{DATASET}-{SPLIT}", "/etc/{DATASET}", "..\\\\{DATASET}"])
    def test_no_file_outside_is_opened(self, folder, template):
        words = self.refusal(folder, "dataset_info.json", TEMPLATE, template)
        assert "outside of the folder" in words

    @pytest.mark.parametrize(("old", "new"), [('"train"', '"../train"'), ('"evil"', '"../evil"')])
    def test_no_name_leaves_the_folder(self, folder, old, new):
        assert "outside of the folder" in self.refusal(folder, "dataset_info.json", old, new)

    @pytest.mark.parametrize("key", ["../label", "/label", "a/../../label", "a//label"])
    def test_no_feature_leaves_the_folder(self, folder, key):
        assert "outside of the folder" in self.refusal(folder, "features.json", '"label"', f'"{key}"')


class TestCheckpoint:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        from jaxcnn.training.checkpoint import save_variables
        from jaxcnn.training.state import init_variables

        config = base_config()
        config.model.name, config.dtype, config.steps = "linear", "float32", 1
        seeds.write(tmp_path / "config.json", to_json(config).encode())
        given = {"image_shape": (4, 4, 3), "mean": [0.5] * 3, "std": [0.2] * 3, "class_names": ["a", "\x1b[2Jb"]}
        save_variables(
            tmp_path, init_variables(Linear(), 0, (4, 4, 3)),
            {"step": 0, "model": "linear", "num_classes": 2, "input": given},
        )  # fmt: skip
        return tmp_path

    def test_names_of_classes_write_no_escapes(self, run):
        assert open_run(run, "last", []).input["class_names"] == ["a", "?[2Jb"]

    @pytest.mark.parametrize("name", ["../../../outside", "{}/outside"])
    def test_its_list_of_checksums_names_no_file_outside(self, run, name):
        outside = seeds.write(run.parent / "outside", b"x")
        folder = run / "checkpoints/0"
        manifest = json.loads((folder / "checksums.json").read_text())
        manifest[name.format(run.parent)] = [1, zlib.crc32(b"x")]
        (folder / "checksums.json").write_text(json.dumps(manifest))
        assert checksums.fault(folder) == "checksums.json names a file outside of the folder"
        assert outside.exists()

    def test_nothing_in_it_is_unpickled(self, run, monkeypatch):
        import pickle

        def refuse(*_: object) -> None:
            raise AssertionError("unpickled")

        monkeypatch.setattr(pickle, "load", refuse)
        monkeypatch.setattr(pickle, "loads", refuse)
        monkeypatch.setattr(pickle, "Unpickler", refuse)
        assert np.isfinite(open_run(run, "last", []).variables["params"]["head"]["kernel"]).all()
