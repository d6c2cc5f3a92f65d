"""A task that lives in the tests: one class, one line of the registry and its keys' rows; nothing else knows it.

It regresses a value an example from the pixels, with two terms of different weights, a score of which smaller is
better, an array among its sums, rows for a score that does not add up, and draws in evaluation.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tiny import CLASSES, Blobs, Tiny

from jaxcnn import config, tasks
from jaxcnn.config import Rule
from jaxcnn.tasks.base import Batch, Group, Headline, Rows, Sums, Task, Terms


class Toy(Task):
    """Squared error of a value, and cross-entropy of a class that not every example has."""

    best = ("error", "min")
    headline = (Headline("error", "error {:.3f}", "mean squared error"),)

    def __init__(self, settings: Any):
        self.share = settings.task.share

    def targets(self, data: Any) -> dict[str, jax.ShapeDtypeStruct]:
        vector = jax.ShapeDtypeStruct((2,), np.float32)
        return {
            "label": jax.ShapeDtypeStruct((), np.int32),
            "value": vector,
            "known": jax.ShapeDtypeStruct((), np.float32),
        }

    def forward(self, model: Any, variables: Any, batch: Batch, rngs: Any, train: bool) -> tuple[Any, Any]:
        outputs, updates = super().forward(model, variables, batch, rngs, train)
        if not train:
            draw = jax.vmap(jax.random.uniform)(rngs["example"])
            return outputs | {"draw": draw}, updates
        return outputs, updates

    def loss(self, outputs: Any, batch: Batch) -> tuple[Terms, Sums]:
        logits, mask = outputs["logits"], batch["mask"]
        known = mask * batch["known"]  # weights that differ from row to row, and from term to term
        error = jnp.square(logits[:, :2] - batch["value"]).sum(-1)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], -1)[:, 0]
        terms: Terms = {
            "error": (jnp.sum(error * mask), mask.sum()),
            "class": (-self.share * jnp.sum(log_p * known), known.sum()),
        }
        return terms, {"error": (jnp.sum(error * mask), mask.sum())}

    def measure(self, outputs: Any, batch: Batch) -> Sums:
        counted = (batch["mask"] > 0).astype(jnp.int32)
        guess = outputs["logits"].argmax(-1)
        confusion = jnp.zeros((CLASSES, CLASSES), jnp.int32).at[batch["label"], guess].add(counted)
        large = counted.sum() * (2**25 + 1)  # float32 would round it
        return self.loss(outputs, batch)[1] | {"confusion": (confusion, counted.sum()), "large": (large, counted.sum())}

    def collect(self, outputs: Any, batch: Batch) -> dict[str, jax.Array] | None:
        return {"guess": outputs["logits"].argmax(-1), "draw": outputs["draw"]}

    def scores(self, sums: Sums, rows: Rows) -> dict[str, float]:
        self.seen = sums, rows  # for the tests to look at
        return {"error": sums["error"][0] / sums["error"][1], "median": float(np.median(rows["draw"]))}

    def predict(self, outputs: Any) -> dict[str, jax.Array]:
        return {"value": outputs["logits"][:, :2]}


class Frozen(Toy):
    """The same with a layer that the task freezes and one that learns at twice the rate."""

    def parameters(self, path: str) -> Group:
        return Group(frozen=path.startswith("conv/"), multiplier=2.0 if path == "head/bias" else 1.0)


class Late(Toy):
    """A weight that is known after the forward pass only; declared where `share` is 2."""

    def loss(self, outputs: Any, batch: Batch) -> tuple[Terms, Sums]:
        terms, sums = super().loss(outputs, batch)
        return terms | {"class": (terms["class"][0], jnp.sum(outputs["logits"][:, 0] > 0))}, sums

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return {"class": 3 * batch["mask"].sum()} if self.share == 2 else {}


class Undivided(Toy):
    """The sum of squared errors, as a released recipe may have it."""

    def loss(self, outputs: Any, batch: Batch) -> tuple[Terms, Sums]:
        terms, sums = super().loss(outputs, batch)
        return {"error": (terms["error"][0], None), "class": terms["class"]}, sums


class Two(nn.Module):
    """Two players: what one makes of the image, the other one judges."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        made = nn.Dense(2, name="maker")(images.mean((1, 2)))
        return {"made": made, "logits": nn.Dense(1, name="judge")(made)[:, 0]}


class Players(Toy):
    """A judge that wants its logits high and a maker that wants them low, one after the other in each step."""

    best = ("gap", "max")
    players = ("judge", "maker")
    constants: Any = {"offset": np.arange(7, dtype=np.float32)}  # noqa: RUF012

    def averaged(self, path: str) -> bool:
        return path.startswith("params/maker")

    def make_step(self, parts: Any) -> Any:
        def objective_of(sign: float) -> Any:
            def objective(variables: Any, batch: Batch, rngs: Any) -> Any:
                outputs: Any = Two().apply({"params": variables["params"]}, batch["image"])
                logits, mask = outputs["logits"], batch["mask"]
                offset = variables["constants"]["offset"].sum()  # 21, an argument of the step
                total = sign * jnp.sum(logits * mask) + 0 * offset
                return {"logits": (total, mask.sum())}, {f"sum{sign:+.0f}": (total, mask.sum())}, {}

            return objective

        judge, maker = (parts.gradients(objective_of(s), p) for s, p in ((-1.0, "judge"), (1.0, "maker")))

        def step(state: Any, batch: Batch) -> Any:
            first = judge(state, batch)
            state = parts.update("judge", state, first)
            second = maker(state, batch)
            return parts.update("maker", state, second), first.loss + second.loss

        return step

    def measure(self, outputs: Any, batch: Batch) -> Sums:
        return {"gap": (-jnp.sum((1 + jnp.square(outputs["logits"])) * batch["mask"]), batch["mask"].sum())}

    def collect(self, outputs: Any, batch: Batch) -> None:
        return None

    def scores(self, sums: Sums, rows: Rows) -> dict[str, float]:
        return {"gap": sums["gap"][0] / sums["gap"][1]}  # negative always


class Values(Blobs):
    """Blobs with the toy's targets, rows masked unequally in training."""

    def rows(self, seed: int, count: int) -> dict[str, np.ndarray]:
        rows, rng = super().rows(seed, count), np.random.default_rng(seed + 1)
        rows |= {"value": rng.normal(0, 1, (count, 2)).astype(np.float32)}
        rows |= {"known": rng.integers(0, 3, count).astype(np.float32)}
        if seed >= 1000:  # training: some devices and micro-batches have many masked rows, some none
            rows["mask"] *= (np.arange(count) % 16 > 4) | (np.arange(count) % 3 == 0)
        return rows


TOYS: dict[str, type[Task]] = {
    "toy": Toy, "frozen": Frozen, "late": Late, "undivided": Undivided, "players": Players
}  # fmt: skip
MODEL = Tiny(norm=False)


def register(set_item: Any = dict.__setitem__) -> None:
    """Do all that a new task is besides its file: its line in the registry and its keys' rows."""
    rows = {"task.share": (0.5, Rule(lambda v: v >= 0, "0 or more"), "weight of the second term")}
    for name, task in TOYS.items():
        set_item(tasks.TASKS, name, task)
        set_item(config.TASK_KEYS, name, rows)
