"""How fast the parts of a run are, alone and together: reading, the step, and the loop that joins them."""

import itertools
import statistics
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import jax

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.training import resident
from jaxcnn.training.loop import AHEAD, streamed
from jaxcnn.training.program import Data, Program
from jaxcnn.training.run_log import Clock

_ENDLESS = 2**31 - 1  # steps: at the end of a measurement the readers are as busy as within a run
Call = tuple[int, Any]  # of the train step: its number of steps, and its batch
Calls = Generator[Call]
Rates = dict[str, list[float]]


def check_one_shape(config: Config) -> None:
    """Raise a UserError where batches have several shapes: what is timed is one compiled step."""
    if config.data.buckets:
        raise UserError("a step is timed on images of one shape: set config.data.buckets=() and config.data.image_size")


def measure(
    config: Config, data: Data, program: Program, state: Any, train_step: Any, *, steps: int, warmup: int, repeats: int
) -> Rates:
    """Images per second of reading, of the step and of both, in turn, so that what else the machine does meets all.

    Args:
      state: may be donated, and is not used again by the caller.
      train_step: (state, batch) -> (state, loss), compiled.
      steps, warmup: of each measurement, those that count and those before them.

    Returns:
      Of each repeat: "data_only" (empty with `config.data.resident`, where nothing is read), "device_only",
      "end_to_end", and "data_wait_frac", the share of the end-to-end time in which the device waited for data, an upper
      bound.
    """
    rates: Rates = {name: [] for name in ("data_only", "device_only", "end_to_end", "data_wait_frac")}
    size = config.global_batch_size
    resident_calls = _resident(data, program, steps, warmup) if config.data.resident else None
    for _ in range(repeats):
        if not config.data.resident:
            rates["data_only"].append(size * steps / _reading(data, steps, warmup))
        calls = resident_calls or streamed(data, program.mesh, 0, _ENDLESS)
        state, call, lap = stepping(train_step, state, calls, size, steps, warmup)
        rates["end_to_end"].append(lap["train/images_per_sec"])
        rates["data_wait_frac"].append(lap["train/data_wait_frac"])
        if not config.data.resident:
            calls.close()  # the readers have the cores no more
        # What is on the devices is not donated: the last call serves again.
        state, _, lap = stepping(train_step, state, itertools.repeat(call), size, steps, warmup)
        rates["device_only"].append(lap["train/images_per_sec"])
    return rates


def summary(rates: Rates, shared: bool) -> dict[str, Any]:
    """Medians, extremes and all values of each rate, and of end-to-end as a share of what its parts allow.

    Args:
      shared: reading and the step take turns on the same cores, as they do on a CPU: then "of_shared" is the share of
        1 / (1 / data_only + 1 / device_only), of which no machine without idle cores can have more.
    """
    parts = {name: values for name, values in rates.items() if values}
    both = list(zip(*(parts[name] for name in ("data_only", "device_only") if name in parts), strict=True))
    limits = {"ratio": [min(pair) for pair in both]}
    if shared and "data_only" in parts:
        limits["of_shared"] = [1 / sum(1 / rate for rate in pair) for pair in both]
    for name, limit in limits.items():
        parts[name] = [rate / most for rate, most in zip(rates["end_to_end"], limit, strict=True)]
    return {name: spread(values) for name, values in parts.items()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and all of the repeats of a measurement."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": list(values)}


def one_call(config: Config, data: Data, program: Program, steps: int) -> Call:
    """A call of the train step to take over and over, as what is on the devices is not donated.

    It takes one step; with `config.data.resident` up to `steps` of them.
    """
    resident_calls = _resident(data, program, steps, steps) if config.data.resident else None
    with closing(resident_calls or streamed(data, program.mesh, 0, 1)) as calls:
        return next(calls)


def _resident(data: Data, program: Program, steps: int, warmup: int) -> Calls:
    """Calls that end where a warm-up or a measurement does."""
    period, most = warmup + steps, program.largest_batch["example"].shape[0]

    def next_stop(step: int) -> int:
        return step - step % period + (warmup if step % period < warmup else period)

    examples, _ = resident.load(data, program.mesh, training=True)
    return resident.train_feed(data, program.mesh, examples, 0, _ENDLESS, most, next_stop)


def _reading(data: Data, steps: int, warmup: int) -> float:
    """Seconds that `steps` batches take to come to the host."""
    reading: Any = data.train_batches(0, _ENDLESS)
    with closing(reading) as batches:
        for _ in itertools.islice(batches, warmup):
            pass
        start = time.monotonic()
        for _ in itertools.islice(batches, steps):
            pass
        return time.monotonic() - start


def stepping(
    train_step: Any, state: Any, calls: Iterator[Call], size: int, steps: int, warmup: int
) -> tuple[Any, Call, dict[str, float]]:
    """Take steps as the loop does, and wait for their end.

    Args:
      train_step, state: as those of `measure`.
      size: images of a step.
      steps, warmup: that count and that come before them; more where the last call takes more than one.

    Returns:
      The state, the last call, and what the loop's clock says of the steps that count, such as "train/images_per_sec".
    """
    call: Call = 0, None
    for goal in (warmup, steps):
        clock, taken, flying = Clock({}, time.monotonic()), 0, deque[Any]()
        while taken < goal:
            with clock.waiting_for_data(flying):
                call = count, batch = next(calls)
            state, loss = train_step(state, batch)
            taken += count
            flying.append(loss)
            if len(flying) > AHEAD:
                jax.device_get(flying.popleft())
        clock.stop(state)
    return state, call, clock.lap(taken * size)
