"""Evaluation: every example once, whatever the batch and the number of devices."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from jaxcnn.tasks.classification import Sums
from jaxcnn.training.sharding import on_all, on_devices
from jaxcnn.training.state import zero_metrics


def means(prefix: str, sums: Sums) -> dict[str, float]:
    """{name: (sum, weight)} on the device -> {"prefix/name": sum / weight} as Python floats."""
    return {f"{prefix}/{name}": float(s) / max(float(w), 1.0) for name, (s, w) in jax.device_get(sums).items()}


def evaluate(
    eval_step: Callable[[Any, Sums, Any], Sums], variables: Any, batches: Iterator[dict[str, np.ndarray]], *,
    mesh: Mesh, metrics: Iterable[str], examples: int, broken: Callable[[], int] = int, take: Any = next,
) -> dict[str, float]:  # fmt: skip
    """Run a jitted `eval_step` over all batches -> {"eval/loss", "eval/top1", …, "eval/examples"}, as fractions.

    Args:
      broken: tells afterwards how many examples this process could not read; if any, they are "eval/broken" together.
      take: the built-in `next`, or what raises where evaluation is to end early.

    Raises:
      RuntimeError: not each of the `examples` that could be read was counted once.
    """
    sums = jax.tree.map(partial(on_all, mesh), zero_metrics(metrics))
    with closing(on_devices(batches, mesh)) as feed:
        while (batch := take(feed, None)) is not None:
            sums = eval_step(variables, sums, batch)
    counted = int(jax.device_get(sums["loss"][1]))
    missing = broken() if jax.process_count() == 1 else int(process_allgather(np.int32(broken())).sum())
    if counted + missing != examples:
        raise RuntimeError(f"evaluation counted {counted} examples of {examples}, {missing} could not be read")
    scores: dict[str, float] = {**means("eval", sums), "eval/examples": counted}
    return scores | {"eval/broken": missing} if missing else scores
