"""Time the training step on 1, 2, 4 … of the devices that are here, side by side."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.models import create_model
from jaxcnn.scaling.ahead_of_time import data_of
from jaxcnn.scaling.program_costs import flops_of
from jaxcnn.scaling.study import stand_in
from jaxcnn.training import profile, throughput
from jaxcnn.training.hlo import KINDS, Module, collectives
from jaxcnn.training.program import Data, Program, build_program
from jaxcnn.training.sharding import make_mesh

_PROFILED = 3  # steps
_MOST = 64  # devices that a CPU simulates: each has threads and buffers of its own
# What only a compiled row has is unknown of a measured one.
_UNKNOWN = ("bytes_per_image", "temp_bytes", "hbm_bytes", "fits", "predicted_images_per_sec_per_chip", "bound")
_SIMULATED = (
    "these devices are simulated on the cores of one CPU: the program is what so many devices run, its speed says "
    "nothing of them"
)


def simulate(devices: Sequence[int]) -> None:
    """Let a machine without accelerators simulate as many devices as are asked for; call it before JAX is used."""
    if devices and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", min(max(devices), _MOST))


def measured_rows(
    config: Config, name: str, devices: Sequence[int], batch_per_device: int | None, lengths: dict[str, int]
) -> list[dict[str, Any]]:
    """Return the rows of `measure` for the data and the network of a config, which the rows call `name`.

    Args:
      devices: empty for 1, 2, 4 … all.
      lengths: steps, warmup, repeats, where they are not the defaults.
    """
    throughput.check_one_shape(config)
    stand_in(config)
    numbers = dict.fromkeys(devices or [2**i for i in range(jax.device_count().bit_length())])
    classes = data_of(config).num_classes
    model = create_model(config.model.name, classes, jnp.dtype(config.dtype), **config.model.overrides)
    rows = measure(config, model, data_of, list(numbers), batch_per_device=batch_per_device, **lengths)
    return [dict.fromkeys(_UNKNOWN) | row | {"config": name, "variant": {}} for row in rows]


@dataclass
class _Case:
    """One number of devices: what runs there, and its images per second of each repeat."""

    config: Config
    program: Program
    executable: Any
    seconds: float
    state: Any
    call: throughput.Call
    rates: list[float] = field(default_factory=list)


def measure(
    config: Config, model: nn.Module, data_of: Callable[[Config], Data], devices: Sequence[int], *,
    batch_per_device: int | None = None, steps: int = 20, warmup: int = 5, repeats: int = 5,
) -> list[dict[str, Any]]:  # fmt: skip
    """Time the training step of `config` on the first n devices, for each n of `devices`.

    In each repeat the numbers of devices take turns, so that what else the machine does meets all. All of them lie on
    the devices at once, which the first device must have the memory for. Each runs on one batch that lies there, too.

    Args:
      data_of: the data of a config, whose `global_batch_size` is that of a number of devices.
      devices: each a multiple of config.mesh.model, or of .data where .model is the rest.
      batch_per_device: for all n, as in weak scaling; None keeps the config's global batch, as in strong scaling.
      steps, warmup: of a repeat, those that count and those before them.

    Returns:
      A measured row of `jaxcnn scaling` for each number, without "config" and "variant". Efficiency is images per
      second and device over those with the fewest devices, of the same repeat. "collective_seconds" and
      "collective_counts" are {} where the profiler does not tell; waiting for the slowest device is part of the time.

    Raises:
      UserError: there are not so many devices, a number of them does not make a mesh, or the batch does not spread.
    """
    programs = [_program(config, model, data_of, n, batch_per_device) for n in devices]
    cases = [_case(*program, steps) for program in programs]
    for _, case in itertools.product(range(repeats), cases):
        calls, size = itertools.repeat(case.call), case.config.global_batch_size
        case.state, _, lap = throughput.stepping(case.executable, case.state, calls, size, steps, warmup)
        case.rates.append(lap["train/images_per_sec"])
    fewest = min(cases, key=lambda case: case.program.mesh.size)
    return [_row(case, fewest) for case in cases]


def _program(
    config: Config, model: nn.Module, data_of: Callable[[Config], Data], devices: int, batch_per_device: int | None
) -> tuple[Config, Data, Program]:
    """Return the config on so many devices, its data and its program."""
    config, there = config.copy_and_resolve_references(), jax.devices()
    if not 1 <= devices <= len(there):
        raise UserError(f"{devices} devices to measure on: there are {len(there)} ({there[0].device_kind})")
    if config.mesh.model != -1:
        config.mesh.data = -1
    if batch_per_device:
        config.global_batch_size = batch_per_device * devices
    mesh = make_mesh(config.mesh.data, config.mesh.model, there[:devices])
    data = data_of(config)
    return config, data, build_program(config, model, data, mesh)


def _case(config: Config, data: Data, program: Program, steps: int) -> _Case:
    state, start = program.init(), time.monotonic()
    executable = program.compiled(program.lower(program.largest_batch))
    seconds = time.monotonic() - start
    return _Case(config, program, executable, seconds, state, throughput.one_call(config, data, program, steps))


def _row(case: _Case, fewest: _Case) -> dict[str, Any]:
    config, mesh = case.config, case.program.mesh
    device, n, images = mesh.devices.flat[0], mesh.size, config.global_batch_size
    each = [(a / n) / (b / fewest.program.mesh.size) for a, b in zip(case.rates, fewest.rates, strict=True)]
    module = Module(case.executable.as_text())
    flops = flops_of(module, (case.executable.cost_analysis() or {}).get("flops"))
    counted = {kind: {"count": k, "bytes": size} for kind, (k, size) in collectives(case.executable).items()}
    figures = {"flops_per_image": flops * n / images, "compile_seconds": case.seconds, "collectives": counted}
    timed = {
        "measured_images_per_sec": throughput.spread(case.rates),
        "measured_efficiency": throughput.spread(each),
        "measured_step_seconds": throughput.spread([images / rate for rate in case.rates]),
        **_collectives_profiled(case),
    }
    simulated, share = device.platform == "cpu", images / n
    return {
        "model": config.model.name, "dtype": config.dtype, "topology": f"{device.platform}:{n}", "simulated": simulated,
        "chip": device.device_kind, "chips": n, "mesh": dict(mesh.shape),
        "batch_per_chip": int(share) if share.is_integer() else share, "global_batch_size": images, **figures, **timed,
        "labels": dict.fromkeys(figures, "compiled") | dict.fromkeys(timed, "measured"),
        "notes": [_SIMULATED] if simulated else [],
    }  # fmt: skip


def _collectives_profiled(case: _Case) -> dict[str, dict[str, float]]:
    """Return seconds of a step in each kind of collective, and how many ran, means over devices; donate the state."""
    with tempfile.TemporaryDirectory(prefix="jaxcnn-") as folder:
        found = profile.record(Path(folder), case.executable, case.state, case.call, _PROFILED)
    rows = [row for row in found.get("kinds", ()) if row["kind"] in KINDS]
    return {
        "collective_seconds": {row["kind"]: row["seconds"] for row in rows},
        "collective_counts": {row["kind"]: row["count"] for row in rows},
    }
