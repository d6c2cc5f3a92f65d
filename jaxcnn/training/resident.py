"""A data set that stays in device memory: many steps a call, in which no host takes part.

The batches are those of the streamed data set, to the last bit: what a call is given is which examples its steps take,
a few kilobytes of numbers. Where a call takes many steps, it is another program, whose arithmetic may round otherwise.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.training.sharding import on_all, over_rows, replicated

Feed = dict[str, Any]
_STEPS = 50  # a call: enough to hide the host, few enough to stop soon
_SHARE = 0.5  # of a device's memory that data may take


def feed_shapes(mesh: Mesh, steps: int, global_batch_size: int, examples: int, one: Feed) -> Feed:
    """Return shapes, types and shardings of what `train_feed` gives; `one` has those of one example's arrays."""
    everywhere, columns = replicated(mesh), over_rows(mesh, axis=1)
    table = jax.ShapeDtypeStruct((steps, global_batch_size), np.int32, sharding=columns)
    return {
        "examples": {
            name: jax.ShapeDtypeStruct((examples, *x.shape), x.dtype, sharding=everywhere) for name, x in one.items()
        },
        "epoch": table,
        "example": table,
        "count": jax.ShapeDtypeStruct((), np.int32, sharding=everywhere),
    }


def eval_shapes(mesh: Mesh, batches: int, global_batch_size: int, examples: int, one: Feed) -> Feed:
    """Return shapes, types and shardings of what `eval_feeds` gives."""
    feed = feed_shapes(mesh, batches, global_batch_size, examples, one)
    mask = jax.ShapeDtypeStruct(feed["example"].shape, np.float32, sharding=feed["example"].sharding)
    return {key: feed[key] for key in ("examples", "example")} | {"mask": mask}


def rows_of_tables(config: Config, mesh: Mesh, total_steps: int, eval_examples: int) -> tuple[int, int]:
    """Return the batches that one call trains on at most, and that one call evaluates.

    On a CPU one each, unless the config asks for more: XLA runs a convolution in a loop many times slower there.
    """
    if mesh.devices.flat[0].platform == "cpu" and not config.data.steps_per_call:
        return 1, 1
    return min(config.data.steps_per_call or _STEPS, total_steps), -(-eval_examples // config.global_batch_size)


def load(data: Any, mesh: Mesh, training: bool) -> tuple[Feed, np.ndarray]:
    """Return all examples on the devices, {"examples": {"image", targets …}}, and their mask (N,) on the host.

    Raises:
      UserError: those of training and evaluation take more than half of a device's or the host's memory.
    """
    needed = math.prod(data.image_shape) * (data.position["examples"] + data.eval_examples)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    there = min(host, (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit", host))
    if needed > _SHARE * there:
        raise UserError(
            f"config.data.resident: {needed / 1e9:.1f} GB of images are more than half of the {there / 1e9:.1f} GB of "
            "memory there are: set it to False"
        )
    began = time.monotonic()
    arrays, mask = data.resident(training)
    if jax.process_index() == 0:
        seconds = time.monotonic() - began
        size = arrays["image"].nbytes / 1e6
        print(f"resident   {len(mask):,} images, {size:.3g} MB, read in {seconds:.1f} s", file=sys.stderr)
    return {"examples": {name: on_all(mesh, x) for name, x in arrays.items()}}, mask


def train_feed(
    data: Any, mesh: Mesh, examples: Feed, start: int, stop: int, steps: int, next_stop: Callable[[int], int]
) -> Generator[tuple[int, Feed]]:
    """Yield (number of steps, arguments) of the calls from step `start` to `stop`, at most `steps` each.

    Args:
      examples: what `load` gives.
      next_stop: (step) -> the next one after which the host has something to do.
    """
    while start < stop:
        count = min(stop, next_stop(start), start + steps) - start
        # One size of table, whatever the number of steps: one program.
        table = [np.pad(x, ((0, steps - count), (0, 0))) for x in data.places(start, start + count)]
        epoch, example = (on_all(mesh, x, over_rows(mesh, axis=1).spec) for x in table)
        yield count, examples | {"epoch": epoch, "example": example, "count": on_all(mesh, np.asarray(count, np.int32))}
        start += count


def eval_feeds(data: Any, mesh: Mesh, rows: int, global_batch_size: int) -> list[Feed]:
    """Return the arguments of the calls, of `rows` batches each, that evaluate all examples, each once.

    They stay on the devices for the next evaluation.
    """
    examples, mask = load(data, mesh, training=False)
    batches = -(-len(mask) // global_batch_size)
    places = np.arange(batches * global_batch_size, dtype=np.int32).reshape(batches, global_batch_size)
    example = np.minimum(places, len(mask) - 1)
    counted = np.where(places < len(mask), mask[example], 0).astype(np.float32)
    columns = over_rows(mesh, axis=1).spec  # a table (batches, rows of a batch) is sharded by its second axis
    tables = {"example": example, "mask": counted}
    return [
        examples | {name: on_all(mesh, table[i : i + rows], columns) for name, table in tables.items()}
        for i in range(0, batches, rows)
    ]


def many_steps(train_step: Callable[[Any, Any], tuple[Any, jax.Array]], mesh: Mesh) -> Callable[[Any, Feed], Any]:
    """Return (state, feed) -> (state, loss of the last step), which takes `train_step` for each batch of the feed."""

    def steps(state: Any, feed: Feed) -> tuple[Any, jax.Array]:
        def body(i: jax.Array | int, carry: Any) -> tuple[Any, jax.Array]:
            batch = _pick(feed, i, mesh, ("epoch", "example"))
            return train_step(carry[0], batch | {"mask": jnp.ones(batch["example"].shape)})

        start = state, jnp.zeros(())
        return body(0, start) if len(feed["example"]) == 1 else jax.lax.fori_loop(0, feed["count"], body, start)

    return steps


def all_batches(eval_step: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Feed], Any]:
    """Return (variables, feed) -> what `eval_step` gives of one batch, stacked over all batches of the feed."""

    def batches(variables: Any, feed: Feed) -> Any:
        def one(i: jax.Array | int) -> Any:
            return eval_step(variables, _pick(feed, i, mesh, ("example", "mask")))

        rows = len(feed["example"])
        if rows == 1:
            return one(0)
        stacked = jax.lax.map(one, jnp.arange(rows))  # (rows, 1, …)
        return jax.tree.map(lambda x: x[:, 0], stacked)

    return batches


def _pick(feed: Feed, i: jax.Array | int, mesh: Mesh, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Return the batch of row `i` of the tables, its rows sharded over the devices."""
    example = feed["example"][i]
    batch = {name: x[example] for name, x in feed["examples"].items()} | {name: feed[name][i] for name in names}
    return jax.lax.with_sharding_constraint(batch, over_rows(mesh))
