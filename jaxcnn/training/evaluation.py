"""Evaluation: every example once, whatever the batch and the number of devices; and the papers' test protocols."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from jaxcnn import UserError
from jaxcnn.data.batches import on_devices
from jaxcnn.data.dataset import Dataset
from jaxcnn.models.resizing import resize
from jaxcnn.tasks.base import Batch, Rows, Sums, Table, Task
from jaxcnn.training.step import measured

_AHEAD = 2  # batches that the host may be ahead of the device


def means(prefix: str, sums: Sums) -> dict[str, float]:
    """Return {"prefix/name": sum / weight} as Python floats, of the scalar sums on the device whose weight is not 0."""
    pairs = {name: pair for name, pair in jax.device_get(sums).items() if np.ndim(pair[0]) == 0}
    return {f"{prefix}/{name}": float(total) / float(weight) for name, (total, weight) in pairs.items() if weight}


class Totals:
    """The sums and rows of an evaluation, added on the host: counts in int64, all else in float64."""

    def __init__(self) -> None:
        self.examples = 0
        self.sums: Sums = {}
        self.rows: list[Rows] = []

    def add(self, result: dict[str, Any]) -> None:
        """Add what an evaluation step gave, stacked over the batches of a call."""
        counted = jax.device_get({key: result[key] for key in ("examples", "sums")})
        self.examples += int(np.sum(counted["examples"], dtype=np.int64))
        new = jax.tree.map(lambda x: np.sum(x, axis=0, dtype=_wide(x.dtype)), counted["sums"])
        self.sums = jax.tree.map(np.add, self.sums, new) if self.sums else new
        if result["rows"]:
            rows = _on_host(result["rows"])
            flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in rows.items()}  # (batches, N, …) -> (rows, …)
            kept = flat.pop("mask") > 0
            self.rows.append({name: x[kept] for name, x in flat.items()})

    def ordered_rows(self) -> Rows:
        """Return the rows of all examples, in the order of the evaluation set."""
        if not self.rows:
            return {}
        joined = {name: np.concatenate([part[name] for part in self.rows]) for name in self.rows[0]}
        order = np.argsort(joined["example"], kind="stable")
        return {name: x[order] for name, x in joined.items()}


def _wide(dtype: Any) -> Any:
    return np.int64 if np.issubdtype(dtype, np.integer) else np.float64


def _on_host(rows: Any) -> Any:
    """Return all rows of sharded arrays in every process."""
    if jax.process_count() == 1:
        return jax.device_get(rows)
    with jax.transfer_guard("allow"):
        return process_allgather(rows, tiled=True)


def evaluate(*arguments: Any, **options: Any) -> dict[str, float]:
    """Return the scores alone of `evaluate_rows`, whose arguments it takes."""
    return evaluate_rows(*arguments, **options)[0]


def evaluate_rows(
    eval_step: Callable[[Any, Any], dict[str, Any]], variables: Any, batches: Iterator[dict[str, np.ndarray]], *,
    task: Task, mesh: Mesh, examples: int, broken: Callable[[], int] = int, take: Any = next,
) -> tuple[dict[str, float], Rows]:  # fmt: skip
    """Run `eval_step` over all batches -> {"eval/…": the task's scores, "eval/examples"}, and the rows of all examples.

    Args:
      broken: returns, once all is read, how many examples this process could not read; if any, "eval/broken" is
        their number in all processes.
      take: fetches the next batch; the loop passes a version of `next` that raises `Cut` on a signal.

    Raises:
      RuntimeError: not each of the `examples` that could be read was counted once.
    """
    totals, pending = Totals(), deque[Any]()
    with closing(on_devices(batches, mesh)) as feed:
        while (batch := take(feed, None)) is not None:
            pending.append(eval_step(variables, batch))
            if len(pending) > _AHEAD:
                totals.add(pending.popleft())
    for result in pending:
        totals.add(result)
    missing = broken() if jax.process_count() == 1 else int(process_allgather(np.int32(broken())).sum())
    if totals.examples + missing != examples:
        raise RuntimeError(f"evaluation counted {totals.examples} examples of {examples}, {missing} could not be read")
    rows = totals.ordered_rows()
    named = {f"eval/{name}": float(value) for name, value in task.scores(totals.sums, rows).items()}
    named |= {"eval/examples": totals.examples} | ({"eval/broken": missing} if missing else {})
    return named, rows


def check_scored(scores: Mapping[str, float], data: Any, name: str) -> None:
    """Raise a UserError where no example of the evaluation set could be read: nothing has no score."""
    if not scores["eval/examples"]:
        first = next(iter(data.complaints(0)), "it is empty")
        raise UserError(f"nothing of {name} was scored: {first}: replace the files")


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, and what can be said of its examples.

    Attributes:
      scores: as `TrainedModel.evaluate` returns them.
      rows: of `Task.collect` and `Task.per_example`, in the order of "example"; those that could not be read have none.
      task: what the rows mean.
      data: the data set, of which the evaluation split was read.
      names: of the classes.
    """

    scores: dict[str, Any]
    rows: Rows
    task: Task
    data: Dataset
    names: Sequence[str]

    def against(self, reference: "Evaluation") -> "Evaluation":
        """Return this evaluation with the scores of its images against those of another one, which is named."""
        scores = {f"eval/{name}": score for name, score in self.task.against(self.rows, reference.rows).items()}
        where = {"fid_reference": f"{reference.scores['eval/examples']:,} images of {reference.scores['split']}"}
        return replace(self, scores=self.scores | scores | where)

    def example_table(self) -> Table:
        """Return the columns of a row for each example: its index, its file if it has one, and what the task says."""
        examples = self.rows["example"].tolist()
        files = [self.data.eval.file(i) for i in examples]
        named = {"file": files} if any(files) else {}
        return {"example": examples, **named, **self.task.example_table(self.rows, self.names)}

    def class_table(self) -> Table:
        """Return the columns of a row for each class."""
        return self.task.class_table(self.rows, self.names)

    def results(self) -> list[dict[str, Any]]:
        """Return all detections in COCO's result format: the scores are of exactly these."""
        return self.task.results(self.rows)

    def draw_curves(self) -> Any:
        """Return a figure of the precision-recall curve of each class."""
        return self.task.draw_curves(self.rows)

    def draw_mistakes(self) -> Any:
        """Return a figure of which classes are taken for which, with the worst mistakes."""
        return self.task.draw_mistakes(self.rows, self.names, self._images)

    def draw_worst(self, count: int) -> Any:
        """Return a figure of `count` examples with what was predicted, the worst mistakes of all classes first."""
        return self.task.draw_worst(self.rows, self.names, self._images, count)

    def _images(self, examples: Sequence[int]) -> list[np.ndarray]:
        """Return images as the network is given them, uint8 (H, W, C), each of its bucket's size."""
        readers = self.data.eval_readers
        of = [next(r for r in readers if r.members is None or example in r.members) for example in examples]
        return [reader.eval(example)["image"] for reader, example in zip(of, examples, strict=True)]


def densely(model: nn.Module) -> nn.Module:
    """Return `model` for images larger than it was made for, with the same variables (VGG, section 3.2).

    Networks with fully connected layers over a map have a `dense` form. The others average their last map, and their
    head is linear: they give the average of the class scores as they are.
    """
    return model.clone(dense=True) if hasattr(model, "dense") else model


def make_crops_step(
    model: nn.Module,
    task: Task,
    preprocess: Callable[[jax.Array], jax.Array],
    pixels: int,
    mirrored: bool,
    per_example: bool = False,
) -> Callable[[Any, Batch], dict[str, Any]]:
    """Return (variables, batch) -> what `evaluate` adds up, images scored by what the task makes of all their crops.

    Args:
      preprocess: uint8 images -> what the model takes.
      pixels: of an ordinary global batch. Crops go through the network in parts that are no larger, or of one each.
      mirrored: count each crop a second time, mirrored left to right.
      per_example: add what `Task.per_example` gives to the rows.
    """

    def of_crops(variables: Any, crops: jax.Array) -> jax.Array:
        """uint8 (n, crops, H, W, C) -> float32 (crops, n, …)."""
        if mirrored:
            crops = jnp.concatenate([crops, crops[..., ::-1, :]], axis=1)
        n, count, *image = crops.shape
        fitting = [k for k in range(1, count + 1) if count % k == 0 and k * n * image[0] * image[1] <= pixels]
        together = max(fitting, default=1)
        parts = crops.reshape(n, count // together, together, *image).swapaxes(0, 1)

        def of_part(part: jax.Array) -> jax.Array:
            images = preprocess(part.reshape(n * together, *image))
            rngs = {"example": jax.random.split(jax.random.key(0), len(images))}
            found = task.of_crop(task.forward(model, variables, {"image": images}, rngs, False)[0])
            return found.reshape(n, together, *found.shape[1:]).swapaxes(0, 1)

        found = jax.lax.map(of_part, parts)
        return found.reshape(count, n, *found.shape[3:])

    def crops_step(variables: Any, batch: Batch) -> dict[str, Any]:
        names = sorted(name for name in batch if name.startswith("views"))
        crops = jnp.concatenate([of_crops(variables, batch[name]) for name in names])
        return measured(task, task.of_crops(crops), batch, per_example)

    return crops_step


def make_views_step(
    model: nn.Module,
    task: Task,
    preprocess: Callable[[Batch, None], Batch],
    scales: Sequence[float],
    flip: bool,
    per_example: bool = False,
) -> Callable[[Any, Batch], dict[str, Any]]:
    """Return (variables, batch) -> what `evaluate` adds up, each pixel by its mean softmax over views of its image.

    An image within its canvas is resized and mirrored as if it were alone, and the logits of a view are brought back to
    its own pixels; both bilinear with half-pixel centres, not antialiased. One view gives what ordinary evaluation
    gives.

    Args:
      preprocess: a batch with uint8 images, padded, and their "sizes" -> what the model takes.
      scales: factors on the sides of the images.
      flip: count each view a second time, mirrored left to right.
    """

    def logits_of(variables: Any, batch: Batch, scale: float, mirrored: bool) -> jax.Array:
        """Return the logits (N, H, W, classes) of one view, in pixels of the canvas."""
        images, sizes = batch["image"], batch["sizes"]
        canvas = images.shape[1], images.shape[2]
        seen = jnp.maximum(jnp.round(scale * sizes).astype(jnp.int32), 1)
        if scale != 1:
            larger = math.ceil(scale * canvas[0]), math.ceil(scale * canvas[1])
            images = resize(images, larger, aligned_corners=False, antialias=False, sizes=sizes, to=seen)
        if mirrored:
            images = _mirrored(images, seen)
        rngs = {"example": jax.random.split(jax.random.key(0), len(images))}
        logits = task.forward(model, variables, {"image": images, "sizes": seen}, rngs, False)[0]["logits"]
        if mirrored:
            logits = _mirrored(logits, seen)
        if scale != 1:
            logits = resize(logits, canvas, aligned_corners=False, antialias=False, sizes=seen, to=sizes)
        return logits

    def views_step(variables: Any, batch: Batch) -> dict[str, Any]:
        batch = preprocess(batch, None)
        views = [(scale, mirrored) for scale in scales for mirrored in (False, True)[: 1 + flip]]
        total: Any = -jnp.inf
        for scale, mirrored in views:  # in logarithms, so that no probability is lost to underflow
            total = jnp.logaddexp(total, jax.nn.log_softmax(logits_of(variables, batch, scale, mirrored)))
        return measured(task, {"logits": total - math.log(len(views))}, batch, per_example)

    return views_step


def _mirrored(x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Return maps (N, H, W, C) mirrored left to right, each within its own width, sizes[:, 1]."""
    columns, widths = jnp.arange(x.shape[2]), sizes[:, 1, None]
    places = jnp.where(columns < widths, widths - 1 - columns, columns)  # (N, W)
    return jnp.take_along_axis(x, places[:, None, :, None], axis=2)
