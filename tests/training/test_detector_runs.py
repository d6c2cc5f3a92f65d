"""Faster R-CNN as runs train it: on one device and eight, stopped and resumed, until it knows eight images by heart."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from box_files import write_blocks
from tiny import assert_same, leaves

import jaxcnn
from jaxcnn.config import base_config
from jaxcnn.data.batches import on_devices
from jaxcnn.data.dataset import Dataset
from jaxcnn.models import create_model
from jaxcnn.tasks import create_task
from jaxcnn.training.program import build_program
from jaxcnn.training.sharding import make_mesh

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "vgg": ("faster_rcnn_vgg16", {"backbone": "vgg11", "width": 0.125, "anchor_scales": (1, 2)}),
    "pyramid": (
        "faster_rcnn_resnet50_fpn_tv",
        {"backbone": "resnet20", "frozen_norm": False, "fpn_channels": 16, "anchor_scales": (4, 8)},
    ),
}
FEW: dict[str, Any] = {
    "rpn_pre_nms": (60, 60), "rpn_post_nms": (20, 20), "rpn_samples": 32, "box_samples": 16, "head_features": 32,
    "detections": 20, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def blocks(tmp_path_factory) -> str:
    return write_blocks(tmp_path_factory.mktemp("blocks") / "data", {"train": 8, "val": 10})


def config_of(name: str, data: str, **values: Any) -> Any:
    network, overrides = FORMS[name]
    config = base_config("detection")
    config.model.name = network
    config.model.overrides.update(FEW | overrides)
    config.data.name, config.data.eval_split = data, "val"
    config.data.augment = "rescale(0.8,1.2),flip"
    config.steps, config.global_batch_size, config.dtype = 4, 8, "float32"
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule = "sgd", 0.01, "constant"
    config.task.max_boxes = 4
    for key, value in values.items():
        group, _, leaf = key.rpartition("__")
        setattr(config[group] if group else config, leaf, value)
    return config


def two_steps(config: Any, devices: int) -> tuple[Any, list[float]]:
    """Return the state after two steps on so many devices, and their losses."""
    data = Dataset(config, targets=create_task(config).targets)
    model = create_model(config.model.name, data.num_classes, np.float32, **config.model.overrides)
    mesh = make_mesh(devices)
    program = build_program(config, model, data, mesh)
    step, state, losses = program.compile_training(), program.init(), []
    for batch in data.train_batches(0, 2):
        placed = {name: jax.device_put(x, program.largest_batch[name].sharding) for name, x in batch.items()}
        state, loss = step(state, placed)
        losses.append(float(loss))
    return jax.device_get(state), losses


@pytest.mark.parametrize(
    ("name", "scope"), [("vgg", "shard"), pytest.param("pyramid", "global", marks=pytest.mark.slow)]
)
def test_eight_devices_train_as_one(name, scope, blocks):
    config = config_of(name, blocks, norm__scope=scope, task__loss_form="port")
    (one, first), (eight, second) = two_steps(config, 1), two_steps(config, 8)
    np.testing.assert_allclose(second, first, rtol=1e-5)
    for (path, x), y in zip(leaves(eight.params).items(), leaves(one.params).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 + 1e-4 * np.abs(y).max(), err_msg=path)


def test_samples_do_not_depend_on_micro_batches(blocks):
    config = config_of("vgg", blocks, task__loss_form="port")
    (one, first) = two_steps(config, 1)
    config.optimizer.accumulate = 2
    (parts, second) = two_steps(config, 1)
    np.testing.assert_allclose(second, first, rtol=1e-5)
    for x, y in zip(leaves(parts.params).values(), leaves(one.params).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 + 1e-4 * np.abs(y).max())


def test_a_run_that_was_stopped_goes_on_to_the_bit(blocks, tmp_path):
    config = config_of("vgg", blocks, checkpoint_every=2, eval_every=4)
    jaxcnn.train(config, tmp_path / "never")
    config.steps = 2
    jaxcnn.train(config, tmp_path / "stopped")
    config.steps = 4
    result = jaxcnn.train(config, tmp_path / "stopped")
    never, stopped = (jaxcnn.open_run(tmp_path / run).variables for run in ("never", "stopped"))
    assert_same(stopped, never)
    assert json.loads((tmp_path / "never/result.json").read_text())["eval/map50"] == result["eval/map50"]
    assert result["eval/examples"] == 10


def test_nothing_is_compiled_once_the_canvases_are_known(blocks):
    data = Dataset(config := config_of("vgg", blocks), targets=create_task(config).targets)
    model = create_model(config.model.name, data.num_classes, np.float32, **config.model.overrides)
    program = build_program(config, model, data, make_mesh(1))
    step, evaluate = program.compile_training(), program.compile_evaluation()
    state, compiled = program.init(), []
    jax.block_until_ready(state)

    def note(event: str, *_: Any, **__: Any) -> None:
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        for batch in on_devices(data.train_batches(0, 3), program.mesh):
            state, _ = step(state, batch)
        for batch in on_devices(data.eval_batches(), program.mesh):
            jax.block_until_ready(evaluate(state.variables, batch))
        assert not [event for event in compiled if "backend_compile" in event]
        jax.jit(lambda x: x + 1)(np.zeros(3))
        assert [event for event in compiled if "backend_compile" in event], "the events are those of compilations"
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.slow
def test_eight_images_are_learnt_by_heart(blocks, tmp_path):
    config = config_of("pyramid", blocks, steps=400, eval_every=400, checkpoint_every=400)
    config.data.eval_split, config.data.augment = "train", "none"
    config.model.overrides.update(detections=40, fpn_channels=32, rpn_post_nms=(40, 40), box_samples=32)
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule = "adam", 2e-3, "cosine"
    config.optimizer.warmup_steps = 20
    result = jaxcnn.train(config, tmp_path)
    assert result["eval/map50"] > 0.95
    assert result["eval/map"] > 0.7
