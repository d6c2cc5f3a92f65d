"""Predict step time from three ceilings: arithmetic, memory and interconnect. Nothing here is a measurement.

Each part is what it would take alone at the chip's published peak (the roofline of Williams et al. 2009;
`scaling.chips`). A step takes the longest of them if they overlap fully, and their sum if they do not at all: hence
intervals. Memory has two figures, too: "bytes accessed" counts every kernel's operands wherever they lie, HBM traffic
leaves out what the compiler keeps on the chip. The quick end has the second, and the bound is what sets it: no overlap
can hide more. A collective has links at their full rate, no contention, and the least latency published.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxcnn.scaling.chips import Chip, Topology

PREDICTED = (
    *("compute_seconds", "memory_seconds", "hbm_seconds", "network_seconds", "latency_seconds"),
    "predicted_step_seconds",
    *("predicted_images_per_sec_per_chip", "bound", "predicted_efficiency", "wire_bytes"),
)


def estimate(row: dict[str, Any], topology: Topology) -> dict[str, Any]:
    """Return the predicted part of a row, from its compiled part; all None where the compiler refused the program."""
    if row["flops_per_image"] is None:
        return dict.fromkeys(PREDICTED)
    chip, images = topology.chip, row["batch_per_chip"]
    compute = images * row["flops_per_image"] / chip.flops[row["dtype"]].value
    memory, least = (
        images * row[key] / chip.memory_bandwidth.value for key in ("bytes_per_image", "hbm_traffic_per_image")
    )
    network = latency = wire = 0.0
    for entry in row["collective_groups"]:
        what, spans = (entry["kind"], entry["bytes"]), entry["spans"]
        cost = collective_seconds(chip, topology.shape, *what, entry["group_size"], spans)
        network += entry["count"] * (cost.bandwidth + cost.latency)
        latency += entry["count"] * cost.latency
        wire += entry["count"] * sent_bytes(*what, entry["group_size"], spans)
    floors = {"compute": compute, "memory": least, "network": network}
    seconds = [max(floors.values()), compute + memory + network]
    return {
        "compute_seconds": compute,
        "memory_seconds": memory,
        "hbm_seconds": least,
        "network_seconds": network,
        "latency_seconds": latency,
        "predicted_step_seconds": seconds,
        "predicted_images_per_sec_per_chip": [images / seconds[1], images / seconds[0]],
        "predicted_efficiency": None,
        "bound": max(floors, key=lambda name: floors[name]),
        "wire_bytes": wire,
    }


def set_efficiencies(rows: Sequence[dict[str, Any]]) -> None:
    """Set "predicted_efficiency" of one series, fewest chips first: images/s a chip against those of the first row.

    Each end compares like with like, of three cases: all overlapped, none, and arithmetic with HBM but not the network.
    """
    known = [row for row in rows if row["predicted_images_per_sec_per_chip"]]
    for row in known:
        ratios = [rate / of for rate, of in zip(_cases(row), _cases(known[0]), strict=True)]
        row["predicted_efficiency"] = [min(ratios), max(ratios)]


def _cases(row: dict[str, Any]) -> list[float]:
    """Return images/s of a chip: with no overlap, with full overlap, and with all but the network overlapped."""
    exposed = max(row["compute_seconds"], row["hbm_seconds"]) + row["network_seconds"]
    return [*row["predicted_images_per_sec_per_chip"], row["batch_per_chip"] / exposed]


class Cost(NamedTuple):
    """Seconds of a collective: of its bytes at the links' rate, and of its steps."""

    bandwidth: float
    latency: float


def wire_bytes(kind: str, nbytes: float, group: int) -> float:
    """Return the bytes that each of `group` devices sends by rings in a collective with a result of `nbytes` on each.

    Raises a ValueError for a kind that there is not.
    """
    match kind:
        case "all-reduce":
            return 2 * (group - 1) / group * nbytes
        case "all-gather" | "all-to-all":
            return (group - 1) / group * nbytes
        case "reduce-scatter":
            return (group - 1) * nbytes
        case "collective-permute":
            return nbytes if group > 1 else 0
    raise ValueError(f"no collective is called {kind!r}")


def sent_bytes(kind: str, nbytes: float, group: int, spans: Sequence[int]) -> float:
    """Return the bytes that a chip sends to others, of a group that spans so many chips along each axis."""
    chips = math.prod(spans)
    return wire_bytes(kind, nbytes if kind in ("all-reduce", "all-gather") else nbytes * group / chips, chips)


def collective_seconds(
    chip: Chip, shape: Sequence[int], kind: str, nbytes: float, group: int, spans: Sequence[int] = ()
) -> Cost:
    """Return what one collective takes on a slice whose links it has for itself, by rings in two passes.

    Args:
      shape: of the slice: a TPU's torus in chips, such as (16, 16) or (8, 8, 16), or (nodes, GPUs a node).
      kind: one of `training.hlo.KINDS`.
      nbytes: of the result on one device: of an all-reduce the array, of an all-gather the gathered array, of a
        reduce-scatter one shard, else what a device gets.
      group: the devices that take part together.
      spans: how far they reach along each axis of `shape`; (): they lie along its axes from the last on.

    Raises:
      ValueError: no such kind, or a group that does not divide the slice.
    """
    if kind != "collective-permute" and math.prod(shape) * chip.devices % group:
        raise ValueError(f"groups of {group} devices do not divide a slice of {tuple(shape)} {chip.name}")
    if not wire_bytes(kind, nbytes, group):
        return Cost(0.0, 0.0)
    if not spans:
        spans, rest = [1] * len(shape), group // math.gcd(group, chip.devices)
        for axis in reversed(range(len(shape))):
            spans[axis] = math.gcd(rest, shape[axis])
            rest //= spans[axis]
    return (_on_torus if chip.platform == "tpu" else _on_nodes)(chip, shape, kind, nbytes, group, spans)


def _on_torus(chip: Chip, shape: Sequence[int], kind: str, nbytes: float, group: int, spans: Sequence[int]) -> Cost:
    """Cost rings both ways round along each axis, all at once; what the cores of one chip exchange is free."""
    wrap, chips, rate = int(chip.wrap.value), math.prod(spans), chip.link.value
    cubes = chip.torus.value == 3 and all(length % wrap == 0 for length in shape)
    closed = [cubes if chip.torus.value == 3 else length == wrap for length in shape]
    # (length, ways) of each axis: two ways round where all of it takes part and it is closed, else one
    axes = [(n, 2 if n == shape[i] and closed[i] else 1) for i, n in enumerate(spans) if n > 1]
    if not axes:
        return Cost(0.0, 0.0)
    hops = sum(length // 2 if ways == 2 else length - 1 for length, ways in axes)
    match kind:
        case "collective-permute":  # to a neighbour
            return Cost(nbytes * group / chips / rate, chip.launch.value + chip.hop.value)
        case "all-to-all":  # length² // 4 chunks of an axis cross its middle, or their hops in a ring add to that
            seconds = max(length**2 // 4 / length * nbytes * group / chips / ways / rate for length, ways in axes)
        case _:
            seconds = sent_bytes(kind, nbytes, group, spans) / (sum(ways for _, ways in axes) * rate)
    return Cost(seconds, chip.launch.value + (2 if kind == "all-reduce" else 1) * hops * chip.hop.value)


def _on_nodes(chip: Chip, _: Sequence[int], kind: str, nbytes: float, group: int, spans: Sequence[int]) -> Cost:
    """Cost NVLink within a node; between nodes each GPU carries its share, a ring in bytes and a tree in steps."""
    nodes, inside = spans
    if kind in ("all-to-all", "collective-permute"):  # straight to where it belongs, both networks at once
        near, far = (
            ((inside - 1) / group, (group - inside) / group) if kind == "all-to-all" else (nodes == 1, nodes > 1)
        )
        latency = chip.launch.value + (chip.nic_hop if nodes > 1 else chip.hop).value
        return Cost(max(near * nbytes / chip.link.value, far * nbytes / chip.nic.value), latency)
    whole = nbytes * group if kind == "reduce-scatter" else nbytes
    passes = 2 if kind == "all-reduce" else 1
    seconds = wire_bytes("all-gather", whole, inside) / chip.link.value
    seconds += wire_bytes("all-gather", whole / inside, nodes) / chip.nic.value
    steps = (inside - 1) * chip.hop.value + math.ceil(math.log2(nodes)) * chip.nic_hop.value
    return Cost(passes * seconds, chip.launch.value + passes * steps)
