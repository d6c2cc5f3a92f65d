"""Fast R-CNN as runs train it, on proposals from a file: trained, resumed, evaluated, and asked about a photograph."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from box_files import write_blocks

import jaxcnn
from jaxcnn import UserError
from jaxcnn.config import base_config
from jaxcnn.configfile import load_config
from jaxcnn.data.proposals import Proposals
from jaxcnn.data.sources import make_source
from jaxcnn.models import create_model
from jaxcnn.tasks import create_task
from jaxcnn.training import predicting
from jaxcnn.training.optimizer import groups

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory) -> tuple[str, Path]:
    """Return a data set, and a file with the objects of its images and random boxes, both splits in one."""
    folder = tmp_path_factory.mktemp("blocks")
    name, rng = write_blocks(folder / "data", {"train": 8, "val": 6}), np.random.default_rng(0)
    names, boxes = [], []
    for split in ("train", "val"):
        source: Any = make_source(name, split)
        for i in range(len(source)):
            corner = rng.uniform(0, 40, (6, 2))
            others = np.concatenate([corner, corner + rng.uniform(12, 24, (6, 2))], 1)
            names.append(Path(source.file(i)).stem)
            boxes.append(np.concatenate([source.truth(i)["boxes"] + 1, others]).astype(np.float32))
    counts = np.array([len(part) for part in boxes], np.int32)
    Proposals(names, counts, np.concatenate(boxes)).write(folder / "p.npz")
    return name, folder / "p.npz"


def config_of(data: str, proposals: Any, **values: Any) -> Any:
    config = base_config("detection")
    config.model.name = "fast_rcnn_vgg16"
    config.model.overrides.update(
        backbone="vgg11", width=0.125, head_features=32, box_samples=8, detections=10, dropout=0.0
    )
    config.data.name, config.data.eval_split, config.data.augment = data, "val", "flip"
    config.steps, config.global_batch_size, config.dtype = 4, 4, "float32"
    config.mesh.data = 1
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule = "sgd", 0.01, "constant"
    config.task.max_boxes, config.task.max_proposals, config.task.proposals = 4, 10, str(proposals)
    config.task.loss_form = "fast_rcnn"
    for key, value in values.items():
        group, _, leaf = key.rpartition("__")
        setattr(config[group] if group else config, leaf, value)
    return config


@pytest.mark.slow
def test_a_run_trains_and_resumes_on_the_same_proposals_only_and_predicts_on_any_photograph(blocks, tmp_path):
    data, file = blocks
    result = jaxcnn.train(config_of(data, file, steps=2), tmp_path / "run")
    assert np.isfinite(result["train/loss"])
    assert "train/box" in result
    assert "train/rpn_box" not in result
    content = np.load(file)
    other = Proposals(content["names"].tolist(), content["counts"], content["boxes"] * np.float32(0.9))
    other.write(tmp_path / "other.npz")
    with pytest.raises(UserError, match="proposals"):
        jaxcnn.train(config_of(data, tmp_path / "other.npz"), tmp_path / "run")
    recorded = json.loads((tmp_path / "run/result.json").read_text())
    assert recorded["proposals"] == result["proposals"]
    run = jaxcnn.open_run(tmp_path / "run")
    scores = run.evaluate()
    assert scores["eval/map50"] == result["eval/map50"]
    assert scores["proposals"] == result["proposals"]
    found = run.predict(np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8))
    assert found.outputs["boxes"].shape == (10, 4)
    assert (found.outputs["boxes"] <= [56, 40, 56, 40]).all()
    assert found.outputs["valid"].any(), "a random network is sure of nothing, so it gives boxes"


def test_a_network_without_proposals_of_its_own_asks_for_a_file(blocks, tmp_path):
    with pytest.raises(UserError, match=r"fast_rcnn_vgg16 has no proposals.*config\.task\.proposals"):
        jaxcnn.train(config_of(blocks[0], ""), tmp_path)


class Asked(NamedTuple):
    """A stand-in for a trained network, which keeps what it is given."""

    given: list[Any]
    input: Any
    config: Any = SimpleNamespace(task=SimpleNamespace(max_proposals=5))
    model: Any = None
    task: Any = SimpleNamespace(takes_proposals=lambda model: True, on_image=lambda values, crop: values)

    def outputs(self, images: Any, sizes: Any, proposals: Any) -> dict[str, np.ndarray]:
        self.given.append((images, sizes, proposals))
        return {"scores": np.zeros((1, 3))}


def test_a_photograph_is_searched_as_the_runs_own_and_its_proposals_are_brought_to_its_canvas(monkeypatch):
    image, searched = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8), []

    def search(image: np.ndarray, *settings: int) -> np.ndarray:
        assert settings == (320, 8)
        searched.append(image)
        return np.array([[0, 0, 40, 30], [5, 6, 20, 10], [7, 7, 7, 9]], np.float32)

    monkeypatch.setattr(predicting, "selective_search", search)
    network = Asked([], {"min_size": 60, "image_shape": (64, 64, 3), "search": (320, 8)})
    assert [found.error for found in predicting.predict_padded(network, [image])] == [""]
    np.testing.assert_array_equal(searched, [image])
    ((images, sizes, proposals),) = network.given
    assert sizes.tolist() == [[60, 80]]
    assert images.shape[1] >= 60
    assert proposals.tolist() == [[[0, 0, 80, 60], [10, 12, 40, 20], *[[0] * 4] * 3]]


@pytest.mark.parametrize(
    ("recipe", "trained"),
    [("stage_wise", {"boxes"}), ("multi_task", {"trunk", "fc6", "fc7", "head", "boxes"})],
)
def test_a_recipe_trains_the_layers_of_its_stage(recipe, trained):
    config = load_config(ROOT / f"experiments/voc2007/fast_rcnn.py:{recipe}")
    model = create_model(config.model.name, 21, **config.model.overrides)
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))["params"]
    found = groups(config, params, create_task(config))
    assert {path.split("/")[0] for path, group in found.items() if not group.frozen} == trained
    tuned = {path.split("/")[1][:6] for path, group in found.items() if path.startswith("trunk") and not group.frozen}
    assert tuned == ({"stage3", "stage4", "stage5"} if "trunk" in trained else set())
    assert found["boxes/head/bias"].multiplier == 2
    assert found["boxes/head/bias"].decay


@pytest.mark.slow
def test_eight_images_are_learnt_by_heart(blocks, tmp_path):
    data, file = blocks
    values = {"steps": 60, "eval_every": 60, "global_batch_size": 8, "data__eval_split": "train"}
    config = config_of(data, file, **values, data__augment="none")
    config.model.overrides.update(width=0.25, head_features=64, detections=20, box_samples=16)
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule = "adam", 1e-3, "cosine"
    # From an IoU of a tenth on, an image without objects would not be trained at all: 0.92 is what is reached then.
    config.model.overrides.background = (0.0, 0.5)
    assert jaxcnn.train(config, tmp_path)["eval/map50"] > 0.95
