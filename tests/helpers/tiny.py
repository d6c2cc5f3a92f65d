"""A network, data and configs small enough that a whole run takes a second."""

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import Config, base_config, validate
from jaxcnn.configfile import set_key
from jaxcnn.data.batches import on_devices
from jaxcnn.data.images import augment_device
from jaxcnn.data.images.augment_host import parse
from jaxcnn.distributed.interrupt import Cut
from jaxcnn.models.layers import Classifier, batch_norm, conv
from jaxcnn.training.loop import train
from jaxcnn.training.program import Program, build_program
from jaxcnn.training.sharding import make_mesh

CLASSES = 6
TIMING = ("train/images_per_sec", "train/data_wait_frac")


def ripple(_: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Weights that look random and cost nothing to compile."""
    return jnp.sin(jnp.arange(np.prod(shape), dtype=dtype) * 12.9898).reshape(shape)


class Tiny(nn.Module):
    """Convolution, BatchNorm, ReLU, mean, dropout, linear."""

    num_classes: int = CLASSES
    norm: bool = True
    dropout: float = 0.0
    dtype: Any = jnp.float32
    frozen: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x = conv(4, 3, dtype=self.dtype, use_bias=not self.norm, kernel_init=ripple, name="conv")(images)
        if self.norm:
            x = batch_norm(train, dtype=self.dtype, frozen=self.frozen, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x).mean((1, 2)))
        return {"logits": Classifier(self.num_classes, self.dtype, name="head", kernel_init=ripple)(x)}


@dataclasses.dataclass
class Blobs:
    """Noise brighter in the channel of its class; batch k is a function of k, and `damaged` ones make the loss NaN."""

    batch: int = 16
    steps_per_epoch: int = 5
    eval_examples: int = 37
    augment: str = "none"
    damaged: tuple[int, ...] = ()
    num_classes: int = CLASSES
    image_shape: tuple[int, int, int] = (5, 4, 3)
    input: dict[str, Any] = dataclasses.field(default_factory=lambda: {"image_shape": (5, 4, 3)})
    position: dict[str, Any] = dataclasses.field(default_factory=lambda: {"data": "blobs", "seed": 0, "examples": 80})

    def __post_init__(self) -> None:
        self.buckets: tuple[tuple[int, int], ...] = (self.image_shape[:2],)
        self.eval_buckets = self.buckets

    def rows(self, seed: int, count: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        label = rng.integers(0, CLASSES, count, dtype=np.int32)
        image = rng.integers(0, 128, (count, *self.image_shape), dtype=np.uint8)
        image[np.arange(count), :, :, label % 3] += np.where(label < 3, 60, 120)[:, None, None].astype(np.uint8)
        names = {"epoch": np.full(count, seed, np.int32), "example": np.arange(count, dtype=np.int32)}
        return {"image": image, "label": label, "mask": np.ones(count, np.float32), **names}

    @property
    def eval_broken(self) -> int:
        return 0

    def complaints(self, epoch: float) -> list[str]:
        return []

    def preprocess(self, batch: dict[str, Any], seed: jax.Array | None) -> dict[str, Any]:
        if seed is not None:
            draw = jax.vmap(lambda a, b: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), a), b))
            batch = augment_device.augment(parse(self.augment).device, 1, draw(batch["epoch"], batch["example"]), batch)
        return batch | {"image": augment_device.normalize(jnp.asarray(batch["image"]), (0.4,) * 3, (0.3,) * 3)}

    def train_batches(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for step in range(start, stop):
            batch = self.rows(1000 + step, self.batch)
            if step in self.damaged:
                batch["mask"][0] = np.nan
            yield batch

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        rows, n = self.rows(1, self.eval_examples), self.batch
        for begin in range(0, self.eval_examples, n):
            part = {k: v[begin : begin + n] for k, v in rows.items()}
            short = n - len(part["mask"])
            yield {k: np.concatenate([v, np.repeat(v[-1:] * (k != "mask"), short, 0)]) for k, v in part.items()}


def tiny_config(**values: Any) -> Config:
    """12 steps of 16 on one device, float32; dots in the keys of `values` are written `__`."""
    config = base_config(values.pop("task__name", "classification"))
    small = {"steps": 12, "global_batch_size": 16, "dtype": "float32", "log_every": 4, "mesh__data": 1}
    small |= {"optimizer__schedule": "constant", "optimizer__learning_rate": 0.01}
    for key, value in (small | values).items():
        set_key(config, key.replace("__", "."), value if isinstance(value, str) else repr(value))
    validate(config)
    return config


def build(config: Config, model: nn.Module | None = None, data: Blobs | None = None) -> Program:
    """The program of `config` over its `mesh.data` devices."""
    data = data or Blobs(config.global_batch_size)
    return build_program(config, model or Tiny(), data, make_mesh(config.mesh.data, config.mesh.model))


def steps(program: Program, count: int, data: Blobs | None = None, state: Any = None) -> tuple[Any, list[float]]:
    """The state after `count` more steps of a program, and their losses."""
    state = program.init() if state is None else state
    data = data or Blobs(program.largest_batch["mask"].shape[0])
    start, losses = int(state.step), []
    for batch in on_devices(data.train_batches(start, start + count), program.mesh):
        state, loss = program.train_step(state, batch)
        losses.append(float(loss))
    return state, losses


class Stop:
    """Stands in for `Interrupt`: asked before each step, it ends the run after `after` of them, or once it is `now`."""

    def __init__(self, after: int = 10**9):
        self.left, self.now, self.unsaved = after + 1, False, False

    @property
    def signal(self) -> signal.Signals | None:
        self.left -= 1
        return signal.SIGTERM if self.left <= 0 else None

    def next(self, items: Iterator[Any], *default: Any) -> Any:
        if self.now:
            self.left = 0
            raise Cut
        return next(items, *default)


def fit(
    config: Config, workdir: Path, data: Blobs | None = None, model: nn.Module | None = None, stop: Stop | None = None
) -> dict[str, Any]:
    """Train the tiny network in `workdir`, as the command does."""
    interrupt: Any = stop or Stop()
    return train(config, workdir, model or Tiny(), data or Blobs(config.global_batch_size), interrupt)


def lines(workdir: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    every = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in every]


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Every array of a tree under its path."""
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(a: Any, b: Any) -> None:
    """Both trees hold the same bits."""
    left, right = leaves(a), leaves(b)
    assert left.keys() == right.keys()
    different = [k for k in left if left[k].tobytes() != right[k].tobytes() or left[k].dtype != right[k].dtype]
    assert not different, different
