"""R-CNN from fine-tuning to boxes on a tiny folder: the pipeline's run, a kill between its stages, and its errors."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from box_files import write_blocks

import jaxcnn
from jaxcnn import UserError, cli, open_run
from jaxcnn.config import Config, base_config
from jaxcnn.configfile import to_json
from jaxcnn.data.proposals import Proposals, name_of
from jaxcnn.data.sources import make_source
from jaxcnn.models import create_model
from jaxcnn.rcnn import pipeline
from jaxcnn.rcnn.pipeline import run
from jaxcnn.training.checkpoint import save_variables
from jaxcnn.training.state import init_variables

SIDE, CONTEXT = 32, 4
NETWORK = {"width": 0.1, "small_images": True}
LARGE = 10**9


def quiet(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def write_proposals(name: str, file: Path) -> None:
    """Write boxes of each image: its objects moved a little, and others anywhere."""
    rng, names, boxes = np.random.default_rng(0), [], []
    for split in ("train", "test"):
        source: Any = make_source(name, split)
        for i in range(len(source)):
            truth = source.truth(i)["boxes"]
            moved = np.repeat(truth, 3, 0) + rng.integers(-3, 4, (3 * len(truth), 4))
            corners = rng.integers(0, 50, (12, 2))
            others = np.concatenate([corners, corners + rng.integers(8, 30, (12, 2))], 1)
            names.append(name_of(source, i))
            boxes.append(np.concatenate([moved, others]).clip(0, [80, 64, 80, 64]))
    Proposals(names, np.array([len(rows) for rows in boxes], np.int32), np.concatenate(boxes)).write(file)


def config_of(folder: Path, task: str = "detection") -> Config:
    config = base_config(task)
    config.data.name, config.data.eval_split = f"voc:{folder / 'VOC'}", "test"
    config.data.workers, config.dtype, config.steps = 0, "float32", 1
    return config


def classifier_config(folder: Path) -> Config:
    """The config of a classifier's fine-tuning on windows."""
    config = config_of(folder, "classification")
    config.data.windows, config.data.context, config.data.image_size = str(folder / "boxes.npz"), CONTEXT, SIDE
    config.model.name, config.global_batch_size = "alexnet", 32
    config.model.overrides.update(NETWORK)
    return config


def write_classifier(folder: Path) -> None:
    """Write a classifier's run with weights at random: their features tell colours apart."""
    config, rng = classifier_config(folder), np.random.default_rng(0)
    model = create_model("alexnet", 3, jnp.float32, **NETWORK)
    shapes = jax.eval_shape(lambda: init_variables(model, 0, (SIDE, SIDE, 3)))

    def drawn(x: Any) -> jax.Array:
        deviation = np.sqrt(2 / np.prod(x.shape[:-1])) if len(x.shape) > 1 else 0.0
        return jnp.asarray(rng.normal(0, deviation, x.shape), jnp.float32)

    names = ["background", "red", "blue"]
    about: dict[str, Any] = {"image_shape": [SIDE, SIDE, 3], "mean": [0.5] * 3, "std": [0.25] * 3, "class_names": names}
    about["context"] = CONTEXT
    info = {"step": 0, "model": "alexnet", "num_classes": 3, "input": about}
    save_variables(folder / "tuned", jax.tree.map(drawn, shapes), info)
    (folder / "tuned/config.json").write_text(to_json(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with VOC/, boxes.npz, a classifier's run tuned/ and the detector's config.json."""
    folder = tmp_path_factory.mktemp("rcnn")
    write_proposals(write_blocks(folder / "VOC", {"train": 14, "test": 6}), folder / "boxes.npz")
    write_classifier(folder)
    (folder / "config.json").write_text(to_json(detector(folder)))
    return folder


def detector(folder: Path) -> Config:
    config = config_of(folder)
    config.init_from, config.task.proposals = str(folder / "tuned"), str(folder / "boxes.npz")
    config.task.max_boxes, config.task.max_proposals, config.task.svm_c = 4, 24, 0.1
    config.model.name = "rcnn_alexnet"
    config.model.overrides.update(NETWORK | {"window": SIDE, "context": CONTEXT, "chunk": 16, "detections": 20})
    return config


@pytest.fixture(scope="module")
def detected(folder):
    """The folder of a finished pipeline."""
    words = ["rcnn", "--config-json", str(folder / "config.json"), "--workdir", str(folder / "detected")]
    assert cli.main(words) == 0
    return folder / "detected"


def variables_of(run: Path, checkpoint: str) -> dict[str, Any]:
    return open_run(run, checkpoint).variables["params"]


def test_the_run_opens_as_that_of_any_detector_and_regressions_move_its_boxes(detected, capsys):
    assert cli.main(["evaluate", "--workdir", str(detected), "--checkpoint", "1,2"]) == 0
    alone, moved = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert [row["checkpoint"] for row in (alone, moved)] == [1, 2]
    assert min(row["eval/map50"] for row in (alone, moved)) > 0.5
    assert alone["eval/map"] != moved["eval/map"]


def test_what_it_took_is_written(detected):
    facts = json.loads((detected / "rcnn.json").read_text())
    assert facts["images"] == 14
    assert facts["features"]["bytes"] == sum(path.stat().st_size for path in (detected / "features").iterdir())
    assert facts["features"]["seconds_an_image"] > 0
    assert facts["seconds"].keys() == {"norms", "svm", "boxes"}
    assert facts["positives"]["red"] + facts["positives"]["blue"] > 10
    assert facts["positives"]["background"] == 0


class Killed(BaseException):
    """What ends a pipeline in the middle."""


def kill(*_: Any) -> Any:
    raise Killed


STAGES = ("_norms", "_svm", "_boxes", "_write")


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=[pytest.mark.slow] * (stage != "_boxes")) for stage in STAGES]
)
def test_a_pipeline_that_is_killed_goes_on_to_the_same_result(folder, detected, tmp_path, monkeypatch, stage):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline._Pipeline, stage, kill)
        with pytest.raises(Killed):
            run(detector(folder), tmp_path, LARGE, quiet)
    if stage != STAGES[0]:
        done = json.loads((tmp_path / "rcnn.json").read_text())["seconds"]
        assert [*done] == [name.lstrip("_") for name in STAGES[: STAGES.index(stage)]]
    with monkeypatch.context() as patch:
        patch.setattr("jaxcnn.rcnn.features.Extractor._computed", kill)  # All features are there.
        for earlier in STAGES[: STAGES.index(stage)]:
            patch.setattr(pipeline._Pipeline, earlier, kill)  # So is the result of every stage before.
        run(detector(folder), tmp_path, LARGE, quiet)
    for name in ("head", "boxes"):
        one, other = (variables_of(path, "2")[name] for path in (detected, tmp_path))
        for a, b in zip(_leaves(one), _leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_features_are_computed_again_where_there_is_no_room_to_the_same_result(folder, detected, tmp_path, capsys):
    facts = run(detector(folder), tmp_path, 50_000, quiet)
    assert facts["features"]["not_kept"] > 0
    assert facts["features"]["bytes"] <= 50_000
    np.testing.assert_array_equal(*(variables_of(path, "2")["head"]["kernel"] for path in (detected, tmp_path)))


def test_another_setting_is_another_stage_on_the_same_features(folder, detected, tmp_path, monkeypatch):
    shutil.copytree(detected, tmp_path / "run")
    config = detector(folder)
    config.task.ridge = 10.0
    monkeypatch.setattr("jaxcnn.rcnn.features.Extractor._computed", kill)
    monkeypatch.setattr(pipeline._Pipeline, "_svm", kill)
    run(config, tmp_path / "run", LARGE, quiet)
    one, other = (variables_of(path, "2") for path in (detected, tmp_path / "run"))
    np.testing.assert_array_equal(one["head"]["kernel"], other["head"]["kernel"])
    assert not np.array_equal(one["boxes"]["head"]["kernel"], other["boxes"]["head"]["kernel"])


def test_a_network_whose_features_are_all_0_is_refused(folder, detected, tmp_path, monkeypatch):
    shutil.copytree(detected, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/stages")
    monkeypatch.setattr(pipeline._Pipeline, "_norms", lambda self: {"norms": np.array([0.0, 1.0])})
    with pytest.raises(UserError, match=r"all features of config\.init_from=.* are 0"):
        run(detector(folder), tmp_path / "run", LARGE, quiet)


def test_another_normalisation_gives_other_features(folder, detected, tmp_path, monkeypatch):
    shutil.copytree(detected, tmp_path / "run")
    config = detector(folder)
    config.data.mean = (0.4, 0.5, 0.5)
    monkeypatch.setattr("jaxcnn.rcnn.features.Extractor._computed", kill)
    with pytest.raises(Killed):
        run(config, tmp_path / "run", LARGE, quiet)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("init_from", "", "config.init_from is empty"),
        ("task.proposals", "", "config.task.proposals is empty"),
        ("model.overrides.window", "40", "config.model.overrides.window"),
        ("model.overrides.context", "5", "config.model.overrides.context"),
        ("model.overrides.width", "0.3", "config.model.overrides.backbone"),
        ("model.overrides.features", "fc8", "model.overrides.features='fc8'"),
        ("init_from", "nowhere", "nowhere"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_key(folder, tmp_path, capsys, key, value, words):
    config = ["--config-json", str(folder / "config.json"), f"--config.{key}={value}"]
    assert cli.main(["rcnn", *config, "--workdir", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_a_classification_config_is_none_of_r_cnn(folder, tmp_path):
    with pytest.raises(UserError, match=r"task\.name=classification"):
        run(config_of(folder, "classification"), tmp_path, LARGE, quiet)


def test_another_detector_is_no_r_cnn(folder, tmp_path):
    config = detector(folder)
    config.model.name = "fast_rcnn_alexnet"
    config.model.overrides = {"width": 0.1}
    with pytest.raises(UserError, match=r"model\.name=fast_rcnn_alexnet is no R-CNN"):
        run(config, tmp_path, LARGE, quiet)


@pytest.mark.slow
def test_fine_tuning_on_windows_learns_and_goes_on_where_it_was(folder, tmp_path):
    config = classifier_config(folder)
    config.model.name, config.model.overrides.width = "vgg11_bn", 0.03
    config.steps = 40
    result = jaxcnn.train(config, tmp_path / "whole")
    assert result["eval/top1"] > 0.8
    config.steps = 20
    jaxcnn.train(config, tmp_path / "parts")
    config.steps = 40
    assert jaxcnn.train(config, tmp_path / "parts")["eval/examples"] == result["eval/examples"]


def _leaves(tree: Any) -> list[Any]:
    return [x for value in tree.values() for x in (_leaves(value) if hasattr(value, "values") else [value])]
