"""Step time predicted from three ceilings: arithmetic, memory and interconnect. Nothing here is a measurement.

Each part is what it would take alone at the chip's published peak (the roofline of Williams et al. 2009;
`scaling.chips`). A step takes the longest of them if they overlap fully, and their sum if they do not at all: hence
intervals. Memory has two figures, too: "bytes accessed" counts every kernel's operands wherever they lie, HBM traffic
leaves out what the compiler keeps on the chip. The quick end has the second, and the bound is what sets it: no overlap
can hide more.
"""

from collections.abc import Sequence
from typing import Any

from jaxcnn.scaling.chips import collective_seconds, sent_bytes
from jaxcnn.scaling.topology import Topology

PREDICTED = (
    *("compute_seconds", "memory_seconds", "hbm_seconds", "network_seconds", "latency_seconds"),
    "predicted_step_seconds",
    *("predicted_images_per_sec_per_chip", "bound", "predicted_efficiency", "wire_bytes"),
)


def predict(row: dict[str, Any], topology: Topology) -> dict[str, Any]:
    """The predicted part of a row, from its compiled part; all None for a program that does not fit the compiler."""
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


def efficiencies(rows: Sequence[dict[str, Any]]) -> None:
    """Set "predicted_efficiency" of one series, fewest chips first: images/s a chip against those of the first row.

    Each end compares like with like, of three cases: all overlapped, none, and arithmetic with HBM but not the network.
    """
    known = [row for row in rows if row["predicted_images_per_sec_per_chip"]]
    for row in known:
        ratios = [rate / of for rate, of in zip(_cases(row), _cases(known[0]), strict=True)]
        row["predicted_efficiency"] = [min(ratios), max(ratios)]


def _cases(row: dict[str, Any]) -> list[float]:
    """Images a second of a chip: none overlapped, all overlapped, all but the network."""
    exposed = max(row["compute_seconds"], row["hbm_seconds"]) + row["network_seconds"]
    return [*row["predicted_images_per_sec_per_chip"], row["batch_per_chip"] / exposed]
