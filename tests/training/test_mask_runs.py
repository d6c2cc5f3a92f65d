"""Mask R-CNN as runs train it: on one device and eight, and until it knows eight images and their masks by heart."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import leaves
from tiny_masks import disc, rectangle, text_of, write_coco

import jaxcnn
from jaxcnn.config import base_config
from jaxcnn.data.dataset import Dataset
from jaxcnn.models import create_model
from jaxcnn.tasks import create_task
from jaxcnn.training.program import build_program
from jaxcnn.training.sharding import make_mesh

SIZE = (64, 80)
SMALL: dict[str, Any] = {
    "backbone": "resnet20", "frozen_norm": False, "fpn_channels": 16, "anchor_scales": (4, 8), "rpn_pre_nms": (60, 60),
    "rpn_post_nms": (20, 20), "rpn_samples": 32, "box_samples": 16, "head_features": 32, "detections": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> str:
    """Images with a disc and a square each, apart from one another, on noise."""
    rng, splits = np.random.default_rng(0), {}
    for split, count in {"train": 8, "val": 3}.items():
        splits[split] = []
        for _ in range(count):
            pixels = rng.integers(90, 150, (*SIZE, 3)).astype(np.uint8)
            radius, side = rng.integers(9, 15), int(rng.integers(18, 28))
            round_ = disc(SIZE, (float(rng.integers(16, 48)), float(rng.integers(16, 24))), radius)
            top, left = int(rng.integers(0, SIZE[0] - side)), int(rng.integers(42, SIZE[1] - side))
            pixels[round_] = (230, 40, 40)
            pixels[top : top + side, left : left + side] = (40, 40, 230)
            rows, columns = np.flatnonzero(round_.any(1)), np.flatnonzero(round_.any(0))
            box = np.array([columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1], float)
            square = (left, top, side, side)
            splits[split].append((pixels, [(1, box, text_of(round_)), (2, np.array(square), rectangle(*square))]))
    return write_coco(tmp_path_factory.mktemp("shapes") / "coco", splits, ("disc", "square"))


def config_of(data: str, **values: Any) -> Any:
    config = base_config("detection")
    config.model.name = "mask_rcnn_resnet50_fpn_tv"
    config.model.overrides.update(SMALL)
    config.data.name, config.data.eval_split, config.data.augment = data, "val", "rescale(0.8,1.2),flip"
    config.steps, config.global_batch_size, config.dtype = 4, 8, "float32"
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule = "sgd", 0.01, "constant"
    config.task.max_boxes, config.task.metric = 4, "coco"
    for key, value in values.items():
        config[key] = value
    return config


def two_steps(config: Any, devices: int) -> tuple[Any, list[float]]:
    """Return the state after two steps on so many devices, and their losses."""
    data = Dataset(config, targets=create_task(config).targets)
    model = create_model(config.model.name, data.num_classes, jnp.float32, **config.model.overrides)
    program = build_program(config, model, data, make_mesh(devices))
    step, state, losses = program.compile_training(), program.init(), []
    for batch in data.train_batches(0, 2):
        placed = {name: jax.device_put(x, program.largest_batch[name].sharding) for name, x in batch.items()}
        state, loss = step(state, placed)
        losses.append(float(loss))
    return jax.device_get(state), losses


@pytest.mark.slow
def test_eight_devices_train_as_one(shapes):
    config = config_of(shapes)
    config.norm.scope = "global"
    (one, first), (eight, second) = two_steps(config, 1), two_steps(config, 8)
    np.testing.assert_allclose(second, first, rtol=1e-5)
    for (path, x), y in zip(leaves(eight.params).items(), leaves(one.params).values(), strict=True):
        # A step changes them by about 1e-3; the batch statistics make more of the rounding than sums alone.
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 + 1e-4 * np.abs(y).max(), err_msg=path)


@pytest.mark.slow
def test_eight_images_and_their_masks_are_learnt_by_heart(shapes, tmp_path):
    config = config_of(shapes, steps=300, eval_every=300, checkpoint_every=300)
    config.data.eval_split, config.data.augment = "train", "none"
    config.model.overrides.update(detections=40, fpn_channels=32, rpn_post_nms=(40, 40), box_samples=32)
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule = "adam", 2e-3, "cosine"
    config.optimizer.warmup_steps = 20
    result = jaxcnn.train(config, tmp_path)
    assert result["eval/map50"] > 0.95
    assert result["eval/coco/mask_ap50"] > 0.95
    assert result["eval/mask_map"] > 0.7
