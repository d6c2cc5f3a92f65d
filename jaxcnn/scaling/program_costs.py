"""Count what a compiled step costs: FLOPs, memory traffic, memory by what it is for, and collectives.

XLA reports no FLOPs or bytes for GPUs, and counts a loop body once on TPUs. This module computes both from the HLO
text. Bytes are the operands and results of all kernels, which XLA's own "bytes accessed" counts, too.
"""

import math
import re
from typing import Any

import jax

from jaxcnn.scaling.chips import Topology
from jaxcnn.training.hlo import KINDS, Array, Instruction, Module, collectives_of
from jaxcnn.training.program import Program

# GiB of HBM that libtpu 0.0.52 lets a program have on one device; found by compiling programs that are too big for any.
_TPU_LIMITS = {"v3": 15.48, "v4": 30.75, "v5e": 15.75, "v5p": 95.73, "v6e": 31.24}
_GPU_SHARE = 0.75  # what JAX takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "while", "conditional", "call"}
_COUNTED = (
    "A GPU's compiler gives no FLOPs and bytes: these are of convolutions and matrix products, and of the operands and "
    "results of all kernels, counted in its program"
)
_ALIASES = {"bitcast", "opt-barrier", "copy-start", "copy-done", "slice-start", "slice-done", "async-done"}


def bytes_accessed(module: Module, once: bool = False, hbm: bool = False) -> int:
    """Return the bytes that all kernels of a step read and write, each array counted where it is used.

    Args:
      once: the bodies of loops count once, as XLA has it.
      hbm: leave out what lies in a TPU's own memory; a copy between the two counts once.
    """

    def size(arrays: tuple[Array, ...]) -> int:
        return sum(array.padded for array in arrays if not (hbm and array.on_chip))

    total = 0
    for name in _kernels_of(module):
        sizes: dict[str, int] = {}
        for instruction in module.computations[name]:
            sizes[instruction.name] = result = size(instruction.arrays)
            if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
                continue
            if "ConcatBitcast" in instruction.rest:  # on a TPU: slices that lie side by side already
                continue
            if instruction.opcode in ("copy-start", "slice-start"):
                source, target = instruction.arrays[:2]
                ends = [array for array in (source, target) if not (hbm and array.on_chip)]
                result, operands = len(ends) * min(source.padded, target.padded), ()
            else:
                operands = instruction.operands
            total += (1 if once else module.runs[name]) * (result + sum(sizes.get(operand, 0) for operand in operands))
    return total


def _kernels_of(module: Module) -> list[str]:
    """Return the computations whose instructions are kernels: the entry, and the bodies of loops and branches in it."""
    names, queue = [], [module.entry]
    while queue:
        names.append(name := queue.pop())
        for instruction in module.computations[name]:
            if instruction.opcode in ("while", "conditional", "call"):
                queue += module.called(instruction)
    return names


def product_flops(module: Module, once: bool = False) -> float:
    """Return the FLOPs of convolutions and matrix products; as XLA counts them, products with padding are none.

    Args:
      once: the bodies of loops count once.
    """
    total = 0.0
    for name, body in module.computations.items():
        shapes = {i.name: i.arrays for i in body} if module.runs.get(name) else {}
        for instruction in body if shapes else ():
            operands = [shapes[o][0] for o in instruction.operands if shapes.get(o)]
            total += (1 if once else module.runs[name]) * _flops(instruction, operands)
    return total


def flops_of(module: Module, reported: float | None) -> float:
    """Return the FLOPs of a step: what XLA reported, which has loop bodies once, or our own count where it has none."""
    counted = product_flops(module)
    return reported + counted - product_flops(module, once=True) if reported else counted


def product_kind(instruction: Instruction) -> str:
    """Return "convolution", "dot", or "" for all else; a GPU has them as calls of its libraries."""
    if instruction.opcode in ("convolution", "dot"):
        return instruction.opcode
    target = instruction.attribute("custom_call_target") if instruction.opcode == "custom-call" else ""
    return "convolution" if "__cudnn$conv" in target else "dot" if "__cublas" in target else ""


def _flops(instruction: Instruction, operands: list[Array]) -> float:
    kind = product_kind(instruction)
    if not kind or len(operands) < 2:
        return 0.0
    left, right, result = operands[0], operands[1], instruction.arrays[0]
    if kind == "dot":
        return 2.0 * math.prod(result.shape) * _contracted(instruction, left)
    target = instruction.attribute("custom_call_target")
    if "BackwardInput" in target:  # the window is that of the forward convolution
        left, result = result, left
    elif "BackwardFilter" in target:
        right, result = result, right
    return _convolution_flops(instruction, left, right, result)


def _contracted(instruction: Instruction, left: Array) -> int:
    """Return how many products are summed into each result; a call of cuBLAS has its axes in JSON."""
    found = re.search(r"lhs_contracting_dim(?:s=\{|ensions\":\[)([\d,\"]+)", instruction.rest)
    axes = [int(axis.strip('"')) for axis in found[1].split(",")] if found else [len(left.shape) - 1]
    return math.prod(left.shape[axis] for axis in axes)


def _convolution_flops(instruction: Instruction, image: Array, kernel: Array, result: Array) -> float:
    """Count multiplications and additions: for each output pixel the window positions over a pixel of the image."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if not labels:
        return 0.0
    pairs = zip(labels.groups(), (image, kernel, result), strict=True)
    sizes = [dict(zip(label, x.shape, strict=True)) for label, x in pairs]
    inside = re.search(r"window=\{(.*?)\}", instruction.rest)
    window = {key: value.split("x") for key, value in re.findall(r"(\w+)=([\dx_-]+)", inside[1] if inside else "")}
    taps_on_pixels = 1
    for i in range(sum(label.isdigit() for label in labels[1])):
        taps = int(window["size"][i]) if window else 1
        keys = ("stride", "lhs_dilate", "rhs_dilate")
        stride, dilation, gaps = (int(window[key][i]) if key in window else 1 for key in keys)
        low = int(window["pad"][i].split("_")[0]) if "pad" in window else 0
        reach = (sizes[0][str(i)] - 1) * dilation  # of the last pixel of the image, gaps counted
        places = (o * stride + t * gaps - low for o in range(sizes[2][str(i)]) for t in range(taps))
        taps_on_pixels *= sum(0 <= place <= reach and place % dilation == 0 for place in places)
    return 2.0 * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"] * taps_on_pixels


def activations(module: Module) -> int:
    """Return the bytes that the forward pass computes and the backward pass reads: kept from the one to the other.

    An estimate: JAX's names say which pass an instruction belongs to. Those of the forward pass are within "jvp(…)",
    those of the backward pass within "transpose(jvp(…))", or the optimizer's where the two are fused. In a loop it is
    what one round keeps.
    """
    return sum(_kept(module.computations[name]) for name in _kernels_of(module))


def _kept(body: list[Instruction]) -> int:
    by_name = {i.name: i for i in body}
    kept: dict[tuple[str, str], int] = {}
    for instruction in body:
        after = "op_name=" in instruction.rest and not _forward(instruction)
        for operand in instruction.operands if after else ():
            for source, which in _origins(operand, by_name):
                if _forward(source):
                    arrays = source.arrays if not which else source.arrays[int(which) : int(which) + 1]
                    kept[source.name, which] = sum(array.padded for array in arrays)
    return sum(kept.values())


def _forward(instruction: Instruction) -> bool:
    return "jvp(" in instruction.rest and "transpose(" not in instruction.rest


def _origins(name: str, by_name: dict[str, Instruction], which: str = "") -> list[tuple[Instruction, str]]:
    """Return (the instruction that computed what `name` stands for, which of its results, "" for all)."""
    if (instruction := by_name.get(name)) is None or instruction.opcode == "parameter":
        return []
    if instruction.opcode == "get-tuple-element":
        return _origins(instruction.operands[0], by_name, instruction.attribute("index"))
    if instruction.opcode == "tuple" and which:
        return _origins(instruction.operands[int(which)], by_name)
    if "ConcatBitcast" in instruction.rest:  # of a TPU: slices of one array, fetched one by one
        return [found for operand in instruction.operands for found in _origins(operand, by_name)]
    if instruction.opcode in _ALIASES and instruction.operands:
        return _origins(instruction.operands[0], by_name, which if instruction.opcode == "opt-barrier" else "")
    return [(instruction, which)]


def memory_limit(topology: Topology) -> int:
    """Return the bytes that a program may have on one device."""
    limit = _TPU_LIMITS.get(topology.version)
    return round(limit * 2**30) if limit else int(topology.chip.memory.value * _GPU_SHARE)


def compiled_part(found: dict[str, Any], program: Program, topology: Topology) -> dict[str, Any]:
    """Return the compiled part of a row, from what `compile_step` gave; figures are of one chip, or of one image."""
    notes: list[str] = []
    row: dict[str, Any] = {"compile_seconds": found["seconds"], "cached": found["cached"], "notes": notes}
    empty = ("flops_per_image", "bytes_per_image", "hbm_traffic_per_image", "intensity", "temp_bytes", "wire_bytes")
    if "unfit" in found:
        needed, there = found["unfit"]
        sizes = {"hbm_bytes": needed, "hbm_limit_bytes": there, "fits": False}
        notes.append("Where the compiler refused a program for its size, the peak is what it said: at least")
        return row | dict.fromkeys(empty) | sizes | {"memory": {}, "collectives": {}, "collective_groups": []}
    module = Module(found["text"])
    devices, cores = program.mesh.size, topology.chip.devices
    images = program.largest_batch["mask"].shape[0] / devices
    reported = found["cost"]
    flops, accessed = flops_of(module, reported.get("flops")), bytes_accessed(module)
    if "bytes accessed" in reported:  # loop bodies count once there
        accessed = reported["bytes accessed"] + accessed - bytes_accessed(module, once=True)
    notes += [] if reported else [_COUNTED]
    memory = _memory(found["memory"], program, activations(module))
    total, limit = sum(memory.values()), memory_limit(topology)
    groups = _together(collectives_of(module, devices), _places(program, topology))
    groups += _between_slices(module, topology)
    return row | {
        "flops_per_image": flops / images, "bytes_per_image": accessed / images,
        "hbm_traffic_per_image": min(accessed, bytes_accessed(module, hbm=True)) / images,
        "intensity": flops / accessed, "memory": {name: size * cores for name, size in memory.items()},
        "temp_bytes": found["memory"]["temp"] * cores,
        "hbm_bytes": total * cores, "hbm_limit_bytes": limit * cores, "fits": total <= limit,
        "collectives": _by_kind(groups), "collective_groups": groups,
    }  # fmt: skip


def _memory(sizes: dict[str, int], program: Program, kept: int) -> dict[str, int]:
    """Return bytes on one device by what they are for; their sum is the peak, of which the compiler gave the parts."""
    state = program.state
    parts = {"parameters": _held(state.params), "optimizer": _held((state.opt_state, state.ema))}
    parts["batch"] = _held(program.largest_batch)
    held = sizes["argument"] + max(0, sizes["output"] - sizes["alias"]) + sizes["generated_code"]
    activations = min(kept, sizes["temp"])
    return parts | {
        "other": held - sum(parts.values()),  # statistics, metrics, the program itself, and the layouts' padding
        "activations": activations,
        "temporaries": sizes["temp"] - activations,
    }


def _held(tree: Any) -> int:
    """Return the bytes of a tree of shapes on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.size)


def _places(program: Program, topology: Topology) -> list[tuple[int, ...]]:
    """Return where the chip of each device of the mesh is in the slice: coordinates, or (node, GPU)."""
    devices, per_node = program.mesh.devices.flat, topology.shape[-1]
    if topology.chip.platform == "gpu":
        return [divmod(place, per_node) for place in range(len(devices))]
    return [tuple(device.coords[: len(topology.shape)]) for device in devices]


def _together(found: list[Any], places: list[tuple[int, ...]]) -> list[dict[str, Any]]:
    """Join collectives of one kind, size and group into one entry, in the order of their first."""
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


def _between_slices(module: Module, topology: Topology) -> list[dict[str, Any]]:
    """Return the collectives over the network between slices, which a TPU's program hands to its host and gets back."""
    entries: dict[tuple[str, int], int] = {}
    for name in _kernels_of(module):
        sizes = {i.name: i.bytes for i in module.computations[name]}
        for instruction in module.computations[name]:
            transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
            if instruction.opcode == "send" and transfer:
                kind, size = transfer[1].lower().replace("_", "-"), sizes[instruction.operands[0]]
                if kind in ("all-gather", "reduce-scatter"):  # The size is of the result: see `collective_seconds`.
                    size = size * topology.slices if kind == "all-gather" else size // topology.slices
                key = kind if kind in KINDS else "collective-permute", size
                entries[key] = entries.get(key, 0) + module.runs[name]
    chips, slices = topology.chips // topology.slices, topology.slices
    common = {"group_size": slices, "groups": chips, "spans": [slices], "between_slices": True}
    return [{"kind": kind, "count": count, "bytes": size} | common for (kind, size), count in entries.items()]


def _by_kind(groups: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for entry in groups:
        sums = found.setdefault(entry["kind"], {"count": 0, "bytes": 0})
        sums["count"] += entry["count"]
        sums["bytes"] += entry["count"] * entry["bytes"]
    return found
