"""The training step compiled for devices that are not there, and what the compiler says of it.

What a compiler gave is kept on the disk under the lowered program, so that it is asked once.
"""

import gzip
import hashlib
import json
import math
import os
import re
import time
import zlib
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxcnn import UserError
from jaxcnn.scaling import count
from jaxcnn.scaling.chips import target_config
from jaxcnn.scaling.topology import Topology
from jaxcnn.training.collectives import collectives_of
from jaxcnn.training.hlo import Module
from jaxcnn.training.program import Program

_OPTIONS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # variables that change what is compiled
_PACKAGES = ("jaxlib", "libtpu", "jax-cuda12-plugin")
_UNFIT = (  # what a TPU's compiler says at its end, and before it begins
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# GiB of HBM that libtpu 0.0.52 lets a program have on one device; asked with programs that are too big for any.
_TPU_LIMITS = {"v3": 15.48, "v4": 30.75, "v5e": 15.75, "v5p": 95.73, "v6e": 31.24}
_GPU_SHARE = 0.75  # what JAX takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise


def cache_folder() -> Path:
    """Where compiled programs are kept; JAXCNN_AOT_CACHE moves it."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("JAXCNN_AOT_CACHE") or home / "jaxcnn" / "aot")


def memory_limit(topology: Topology) -> int:
    """Bytes that a program may have on one device."""
    if topology.version in _TPU_LIMITS:
        return round(_TPU_LIMITS[topology.version] * 2**30)
    return int(topology.chip.memory.value * _GPU_SHARE)


def compile_step(program: Program, topology: Topology, folder: Path) -> dict[str, Any]:
    """What the compiler gives for the training step of `program`, whose mesh is of abstract devices.

    Returns:
      "seconds" of compilation, "memory" {bytes by kind}, "cost" {flops, bytes accessed}, empty on a GPU, and "text"; or
      "unfit", [bytes needed, bytes there are], of a program that the compiler refuses for its size. "cached" says
      whether it was on the disk.
    """
    lowered = program.train_step.lower(program.state, program.largest_batch)
    path = folder / f"{_key(lowered.as_text(), topology)}.json.gz"
    if kept := _read(path):
        return kept | {"cached": True}
    start = time.monotonic()
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not (sizes := unfit(str(error))):
            raise
        found: dict[str, Any] = {"unfit": sizes}
    else:
        memory, cost = executable.memory_analysis(), executable.cost_analysis() or {}
        names = ("argument", "output", "alias", "temp", "generated_code")
        found = {
            "memory": {name: getattr(memory, f"{name}_size_in_bytes") for name in names},
            "cost": {name: cost[name] for name in ("flops", "bytes accessed") if cost.get(name)},
            "text": executable.as_text(),
        }
    found["seconds"] = time.monotonic() - start
    _write(path, found)
    return found | {"cached": False}


def unfit(message: str) -> list[int]:
    """[bytes needed at least, bytes there are] of a compiler's refusal for size; [] of any other message."""
    for pattern in _UNFIT:
        if used := pattern.search(message):
            return [round(float(used[i]) * _UNITS[used[i + 1]]) for i in (1, 3)]
    return []


def _key(text: str, topology: Topology) -> str:
    versions = [f"{name} {_version(name)}" for name in _PACKAGES]
    options = [f"{name}={os.environ.get(name, '')}" for name in _OPTIONS]
    if topology.chip.platform == "gpu":
        versions += [f"{name} {_version(name)}" for name in ("jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")]
        options.append(target_config(topology.version))
    words = [topology.version, str(topology.shape), *versions, *options, text]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _read(path: Path) -> dict[str, Any] | None:
    """What is kept there; a damaged file is as good as none."""
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error):
        return None


def _write(path: Path, found: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(gzip.compress(json.dumps(found).encode(), 6))
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise UserError(f"{path.parent}: {error.strerror}: JAXCNN_AOT_CACHE moves the cache of compilations") from error


def facts(found: dict[str, Any], program: Program, topology: Topology) -> dict[str, Any]:
    """The compiled part of a row, from what `compile_step` returned; of one chip, or of one image."""
    row: dict[str, Any] = {"compile_seconds": found["seconds"], "cached": found["cached"], "notes": []}
    empty = ("flops_per_image", "bytes_per_image", "hbm_traffic_per_image", "intensity", "temp_bytes", "wire_bytes")
    if "unfit" in found:
        needed, there = found["unfit"]
        sizes = {"hbm_bytes": needed, "hbm_limit_bytes": there, "fits": False}
        row["notes"].append("Where the compiler refused a program for its size, the peak is what it said: at least")
        return row | dict.fromkeys(empty) | sizes | {"memory": {}, "collectives": {}, "collective_groups": []}
    module = Module(found["text"])
    devices, cores = program.mesh.size, topology.chip.devices
    images = program.largest_batch["mask"].shape[0] / devices
    flops, accessed = found["cost"].get("flops"), found["cost"].get("bytes accessed")
    if flops and accessed:  # a TPU's compiler counts the bodies of loops once
        flops += count.product_flops(module) - count.product_flops(module, once=True)
        accessed += count.bytes_accessed(module) - count.bytes_accessed(module, once=True)
    else:
        flops, accessed = count.product_flops(module), count.bytes_accessed(module)
        row["notes"].append(
            "A GPU's compiler gives no FLOPs and bytes: these are of convolutions and matrix products, and of the "
            "operands and results of all kernels, counted in its program"
        )
    memory = _memory(found["memory"], program, count.activations(module))
    total, limit = sum(memory.values()), memory_limit(topology)
    groups = _together(collectives_of(module, devices), _places(program, topology))
    return row | {
        "flops_per_image": flops / images,
        "bytes_per_image": accessed / images,
        "hbm_traffic_per_image": min(accessed, count.hbm_traffic(module)) / images,
        "intensity": flops / accessed,
        "memory": {name: size * cores for name, size in memory.items()},
        "temp_bytes": found["memory"]["temp"] * cores,
        "hbm_bytes": total * cores,
        "hbm_limit_bytes": limit * cores,
        "fits": total <= limit,
        "collectives": _by_kind(groups),
        "collective_groups": groups,
    }


def _memory(sizes: dict[str, int], program: Program, kept: int) -> dict[str, int]:
    """Bytes on one device by what they are for; their sum is the peak, of which the compiler gave the parts."""
    state = program.state
    parts = {
        "parameters": _held(state.params),
        "optimizer": _held((state.opt_state, state.ema)),
        "batch": _held(program.largest_batch),
    }
    held = sizes["argument"] + max(0, sizes["output"] - sizes["alias"]) + sizes["generated_code"]
    activations = min(kept, sizes["temp"])
    return parts | {
        "other": held - sum(parts.values()),  # statistics, metrics, the program itself, and the layouts' padding
        "activations": activations,
        "temporaries": sizes["temp"] - activations,
    }


def _held(tree: Any) -> int:
    """Bytes of a tree of shapes on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.size)


def _places(program: Program, topology: Topology) -> list[tuple[int, ...]]:
    """Of each device of the mesh where its chip is in the slice: coordinates, or (node, GPU)."""
    devices, per_node = program.mesh.devices.flat, topology.shape[-1]
    if topology.chip.platform == "gpu":
        return [divmod(place, per_node) for place in range(len(devices))]
    return [tuple(device.coords[: len(topology.shape)]) for device in devices]


def _together(found: list[Any], places: list[tuple[int, ...]]) -> list[dict[str, Any]]:
    """Collectives of one kind, size and group as one entry, in the order of their first."""
    entries: dict[tuple[Any, ...], int] = {}
    for kind, number, size, members, groups in found:
        if len(members) > 1:
            spans = tuple(len({places[member][axis] for member in members}) for axis in range(len(places[0])))
            key = kind, size, len(members), groups, spans
            entries[key] = entries.get(key, 0) + number
    return [
        {"kind": kind, "count": count, "bytes": size, "group_size": group, "groups": groups, "spans": list(spans)}
        for (kind, size, group, groups, spans), count in entries.items()
    ]


def _by_kind(groups: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for entry in groups:
        sums = found.setdefault(entry["kind"], {"count": 0, "bytes": 0})
        sums["count"] += entry["count"]
        sums["bytes"] += entry["count"] * entry["bytes"]
    return found
