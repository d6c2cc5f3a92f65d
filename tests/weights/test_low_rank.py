"""Layers by the largest singular values: the best of their rank, exact at full rank; the command that makes them."""

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import filled

from jaxcnn import UserError, cli
from jaxcnn.config import base_config
from jaxcnn.configfile import to_json
from jaxcnn.models import create_model
from jaxcnn.papers.cost import PROPOSALS, layers
from jaxcnn.training.checkpoint import save_variables
from jaxcnn.training.trained import open_run
from jaxcnn.weights.low_rank import low_rank


@given(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_layer_of_low_rank_is_the_nearest_one_and_says_how_near(window, rank, seed):
    rng = np.random.default_rng(seed)
    layer = {"kernel": rng.standard_normal((*window, 6)).astype(np.float32), "bias": np.arange(6, dtype=np.float32)}
    rows = layer["kernel"].reshape(-1, 6)
    if rank > min(rows.shape):
        with pytest.raises(UserError, match=rf"fc6={rank}: .* {min(rows.shape)} singular values"):
            low_rank({"fc6": layer}, {"fc6": rank})
        return
    made, errors = low_rank({"fc6": layer, "head": {}}, {"fc6": rank})
    first, second = made["fc6"]["fc1"]["kernel"], made["fc6"]["fc2"]["kernel"]
    assert (first.shape, second.shape) == ((len(rows), rank), (rank, 6))
    np.testing.assert_array_equal(made["fc6"]["fc2"]["bias"], layer["bias"])
    left = np.linalg.norm(first @ second - rows)
    assert errors["fc6"] == pytest.approx(left / np.linalg.norm(rows), abs=1e-5)
    assert left**2 == pytest.approx(np.sum(np.linalg.svd(rows)[1][rank:] ** 2), abs=1e-3)  # Eckart and Young


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"fc8.*fc6, head"):
        low_rank({"fc6": {}, "head": {}}, {"fc8": 1})


def test_the_costs_are_those_of_two_thin_layers():
    wide, thin = (create_model("fast_rcnn_vgg16", 21, fc_ranks=ranks) for ranks in ((0, 0), (1024, 256)))
    costs = [{row.name: row.macs for row in layers(model, (320, 320, 3))} for model in (wide, thin)]
    assert costs[0]["fc6"] == PROPOSALS * 25088 * 4096
    assert costs[1]["fc6/fc1"] + costs[1]["fc6/fc2"] == PROPOSALS * 1024 * (25088 + 4096)
    assert costs[1]["fc7/fc1"] + costs[1]["fc7/fc2"] == PROPOSALS * 256 * (4096 + 4096)


@pytest.mark.slow
def test_svd_writes_a_folder_that_opens_and_predicts(tmp_path, capsys):
    config = base_config("detection")
    config.steps, config.data.name, config.dtype = 1, "voc:nowhere", "float32"
    config.model.name = "fast_rcnn_vgg16"
    config.model.overrides.update(backbone="vgg11", width=0.125, head_features=32, detections=5, score_threshold=0.0)
    config.task.max_proposals = 20
    model = create_model("fast_rcnn_vgg16", 3, jnp.float32, **config.model.overrides)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    values = filled(jax.eval_shape(model.init, jax.random.key(0), x))
    given: dict[str, Any] = {
        "image_shape": (64, 64, 3), "mean": (0.5,) * 3, "std": (0.5,) * 3, "class_names": ("background", "a", "b"),
        "min_size": 0, "max_size": 0, "canvas_multiple": 32,
    }  # fmt: skip
    (run := tmp_path / "run").mkdir()
    (run / "config.json").write_text(to_json(config))
    info = {"step": 0, "model": "fast_rcnn_vgg16", "num_classes": 3, "input": given}
    save_variables(run, {"batch_stats": {}} | values, info)
    arguments = ["weights", "svd", "--workdir", str(run), "--ranks", "fc6=32,fc7=8", "--out", str(tmp_path / "thin")]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"fc6: rank 32, error of the kernel 0\.00%", printed)
    assert re.search(r"fc7: rank 8, error of the kernel [1-9]", printed)
    assert re.search(r"MACs at \d+ pixels: [\d,]+ before, [\d,]+ after", printed)
    assert json.loads((tmp_path / "thin/config.json").read_text())["model.overrides.fc_ranks"] == [32, 8]
    thin, image = open_run(tmp_path / "thin"), np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    assert thin.predict(image).outputs["boxes"].shape == (5, 4)
    assert cli.main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    other = [*arguments[:-3], "head=2", "--out", str(tmp_path / "other")]
    assert cli.main(other) == 2
    assert "fc6 and fc7" in capsys.readouterr().err
