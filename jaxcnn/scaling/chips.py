"""Accelerators that need not be there: published peaks with their sources, slices by name, step times predicted.

A slice is written PLATFORM:CHIP:SHAPE, such as "tpu:v5e:4x4" or "gpu:h100:64"; several TPU slices, which the data
centre's network joins, have their number after that, "tpu:v5e:4x4:2". Nothing here is a measurement. Each part
of a predicted step is what it would take alone at the published peak (the roofline of Williams et al. 2009). A step
takes the longest of them if they overlap fully, and their sum if they do not at all: hence intervals. Memory has two
figures: "bytes accessed" counts every kernel's operands wherever they lie, HBM traffic leaves out what the compiler
keeps on the chip. The quick end has the second, and the bound is what sets it: no overlap can hide more. A collective
has links at their full rate, no contention, and the least latency published.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxcnn import UserError


class Sourced(NamedTuple):
    """A figure and where it stands; a source says so where the figure is derived from others, or was not checked."""

    value: float
    source: str


NONE = Sourced(0, "the platform has none")


class Chip(NamedTuple):
    """One accelerator; sizes are bytes, rates bytes or FLOPs a second, latencies seconds, all of one chip."""

    name: str  # as people call it
    platform: str  # "tpu" or "gpu"
    kind: str  # JAX's `device_kind`
    devices: int  # JAX devices of a chip: two of a TPU v3, whose cores are devices of their own
    # The peak of matrix products by the arrays' dtype. "float32" is what JAX does by default with float32 arrays: one
    # pass in bfloat16 on a TPU, TF32 on these GPUs. Full float32 precision is several times slower.
    flops: dict[str, Sourced]
    memory: Sourced  # capacity of the HBM
    memory_bandwidth: Sourced  # of the HBM
    link: Sourced  # one way; of one ICI link of a TPU, of all NVLinks of a GPU together
    hop: Sourced  # latency of one ICI link, or of one step of a ring over NVLink
    launch: Sourced  # latency of a collective before its first step
    torus: Sourced = NONE  # dimensions of a TPU's torus
    wrap: Sourced = NONE  # a 2D axis of just this length is a closed ring; a 3D slice is closed where all are multiples
    nic: Sourced = NONE  # one way; what a chip has of its host's network, which joins nodes, or a TPU's slices
    nic_hop: Sourced = NONE  # latency of one step between nodes; none is published for slices

    def figures(self) -> dict[str, Sourced]:
        """Label with its unit -> figure, in a table's order, without those that this platform does not have."""
        link, hop = ("ICI link", "ICI hop") if self.platform == "tpu" else ("NVLink", "NVLink step")
        rows = {f"{dtype} peak, FLOP/s": figure for dtype, figure in self.flops.items()}
        rows |= {"HBM, bytes": self.memory, "HBM, bytes/s": self.memory_bandwidth, f"{link}, bytes/s": self.link}
        rows |= {f"{hop}, s": self.hop, "collective launch, s": self.launch}
        rows |= {"torus dimensions": self.torus, "axis closed at": self.wrap}
        rows |= {"NIC, bytes/s": self.nic, "step between nodes, s": self.nic_hop}
        return {label: figure for label, figure in rows.items() if figure is not NONE}


CLOUD = "Cloud TPU docs, TPU {0}, https://docs.cloud.google.com/tpu/docs/{0}"
BOOK = "How to Scale Your Model, TPUs, https://jax-ml.github.io/scaling-book/tpus/"
BOOK_GPUS = "How to Scale Your Model, GPUs, https://jax-ml.github.io/scaling-book/gpus/"
PRECISION = "JAX docs, matmul precision, https://docs.jax.dev/en/latest/201/precision.html"
NCCL = "NCCL's tuning model, protocol LL, https://github.com/NVIDIA/nccl src/graph/tuning.cc"
XLA = "XLA's target config of the {} SXM, https://github.com/openxla/xla xla/backends/gpu/target_config/specs"
DATASHEET = "NVIDIA's {0} datasheet, dense, as quoted at https://glennklockwood.com/garden/processors, page {0}"


def _tpu(
    version: str,
    kind: str,
    peak: float,
    hbm: tuple[int, float],
    link: Sourced,
    axes: int,
    wrap: Sourced,
    nic: Sourced = NONE,
) -> Chip:
    page = CLOUD.format(version)
    by_default = Sourced(peak, f"derived: the bfloat16 peak, of which the default precision is one pass; {PRECISION}")
    return Chip(
        f"TPU {version}", "tpu", kind, 2 if version == "v3" else 1,
        {"bfloat16": Sourced(peak, page), "float32": by_default},
        memory=Sourced(hbm[0] * 2**30, f"{page} (GB there are taken as GiB)"), memory_bandwidth=Sourced(hbm[1], page),
        link=link, hop=Sourced(1e-6, f"{BOOK} (question 5: of v5e; taken for all)"),
        launch=Sourced(0, f"none published; measured where three hops make 3 µs: 8 µs, {BOOK}, ch. 3"),
        torus=Sourced(axes, page), wrap=wrap, nic=nic,
    )  # fmt: skip


def _gpu(name: str, kind: str, peaks: tuple[float, float], hbm: tuple[int, float], link: float, nic: Sourced) -> Chip:
    sheet, xla = DATASHEET.format(name), XLA.format(name.lower())
    return Chip(
        name, "gpu", kind, 1,
        {"bfloat16": Sourced(peaks[0], sheet), "float32": Sourced(peaks[1], f"{sheet}: TF32, see {PRECISION}")},
        memory=Sourced(hbm[0], xla), memory_bandwidth=Sourced(hbm[1], xla),
        link=Sourced(link, f"{BOOK_GPUS}; half of NVIDIA's figure, which counts both ways"),
        hop=Sourced(0.6e-6, f"{NCCL}, hwLat, NVLink, ring"), launch=Sourced(6.6e-6, f"{NCCL}, baseLat, ring"),
        nic=nic, nic_hop=Sourced(5e-6, f"{NCCL}, hwLat, NET, tree"),
    )  # fmt: skip


WRAP_16 = Sourced(16, f"{BOOK} (only a whole axis of 16)")
WRAP_4 = Sourced(4, f"{BOOK} (whole cubes of 4x4x4, by optical switches)")
WRAP_32 = Sourced(32, f"derived: only a whole axis of the 32x32 pod of {BOOK}")
LINK_V3 = Sourced(83e9, f"derived: all-reduce 340 TB/s a pod, by 1024·4 links, {CLOUD.format('v3')}; the book: 100e9")
LINK_V4 = Sourced(45e9, f"{BOOK} (Google's page: all-reduce 1.1 PB/s a pod, by 4096 chips and 6 links also 45e9)")
LINK_V5E = Sourced(45e9, f"{BOOK} (Google's page: 400 GB/s both ways over 4 links, 50e9)")
LINK_V5P = Sourced(90e9, f"{BOOK} (Google's page: 1200 GB/s both ways over 6 links, 100e9)")
LINK_V6E = Sourced(90e9, f"{BOOK} (Google's page: 800 GB/s both ways over 4 links, 100e9)")
NIC_TPU = Sourced(6.25e9, f"{BOOK}, DCN egress")
NIC_V5E = Sourced(3.125e9, f"{BOOK}, DCN egress; Google's page of v6e: 2 NICs of 100 Gb/s for 8 chips, the same")
NIC_V6E = Sourced(12.5e9, f"{BOOK}, DCN egress; Google's page: 4 NICs of 200 Gb/s for 8 chips, the same")
NIC_A100 = Sourced(25e9, "DGX A100 datasheet, eight ConnectX-6 of 200 Gb/s; not checked against NVIDIA's page")
NIC_H100 = Sourced(50e9, f"{BOOK_GPUS}, eight ConnectX-7 of 400 Gb/s; NVIDIA, DGX BasePOD, core components, the same")
CHIPS = {
    "v3": _tpu("v3", "TPU v3", 123e12, (32, 900e9), LINK_V3, 2, WRAP_32),
    "v4": _tpu("v4", "TPU v4", 275e12, (32, 1200e9), LINK_V4, 3, WRAP_4, NIC_TPU),
    "v5e": _tpu("v5e", "TPU v5 lite", 197e12, (16, 819e9), LINK_V5E, 2, WRAP_16, NIC_V5E),
    "v5p": _tpu("v5p", "TPU v5", 459e12, (95, 2765e9), LINK_V5P, 3, WRAP_4, NIC_TPU),
    "v6e": _tpu("v6e", "TPU v6 lite", 918e12, (32, 1638e9), LINK_V6E, 2, WRAP_16, NIC_V6E),
    "a100": _gpu("A100", "NVIDIA A100-SXM4-80GB", (312e12, 156e12), (85100068864, 2039.04e9), 300e9, NIC_A100),
    "h100": _gpu("H100", "NVIDIA H100 80GB HBM3", (989.4e12, 494.7e12), (84942979072, 3352.32e9), 450e9, NIC_H100),
}

PER_NODE = 8  # GPUs of a DGX, joined by NVLink
LARGEST = {"v3": 1024, "v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256}  # chips of a pod, joined by ICI


class Topology(NamedTuple):
    """A slice of a pod, several equal ones, or a cluster's nodes."""

    name: str  # as it was written
    version: str  # a key of `CHIPS`
    shape: tuple[int, ...]  # of a TPU's torus in chips, or (nodes, GPUs a node)
    slices: int = 1  # of a TPU, each of this shape

    @property
    def chip(self) -> Chip:
        """The figures of its chips."""
        return CHIPS[self.version]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.shape) * self.slices


def parse_topology(name: str) -> Topology:
    """Return the slice called PLATFORM:CHIP:SHAPE, or PLATFORM:CHIP:CHIPS for the most compact shape of so many chips.

    PLATFORM:CHIP:SHAPE:SLICES are so many slices of a TPU.

    Raises:
      UserError: no such platform, chip or shape.
    """
    platform, _, rest = name.partition(":")
    version, _, size = rest.partition(":")
    size, _, several = size.partition(":")
    if not (known := [key for key, chip in CHIPS.items() if chip.platform == platform]):
        raise UserError(f"--topology {name}: '{platform}' is neither tpu nor gpu: write tpu:v5e:4x4 or gpu:h100:8")
    if version not in known:
        raise UserError(f"--topology {name}: there is no {platform} '{version}', but {', '.join(known)}")
    lengths, slices = size.split("x"), several or "1"
    if not all(n.isascii() and n.isdecimal() and 0 < int(n) < 10**5 for n in [*lengths, slices]):
        raise UserError(f"--topology {name}: '{size}' is no number of chips and no shape: write {_example(platform)}")
    shape = tuple(map(int, lengths))
    if several and (platform == "gpu" or CHIPS[version].nic is NONE):
        what = "GPUs come in nodes" if platform == "gpu" else f"no network between slices of {version} is published"
        raise UserError(f"--topology {name}: {what}, leave ':{several}' out")
    if platform == "gpu":
        return Topology(name, version, _nodes(name, shape))
    axes = int(CHIPS[version].torus.value)
    shape = _compact(name, shape[0], axes) if len(shape) == 1 else shape
    if len(shape) != axes:
        raise UserError(f"--topology {name}: a slice of {version} has {axes} dimensions, such as {_example(platform)}")
    if math.prod(shape) > LARGEST[version]:
        raise UserError(f"--topology {name}: a pod of {version} has {LARGEST[version]:,} chips")
    if math.prod(shape) >= 4 and (shape[0] % 2 or shape[1] % 2):
        raise UserError(f"--topology {name}: hosts have 2×2 chips, so the first two dimensions of a slice are even")
    return Topology(name, version, shape, int(slices))


def _example(platform: str) -> str:
    if platform == "gpu":
        return "gpu:h100:8 or gpu:h100:64"
    return "tpu:v5e:4x4, tpu:v4:4x4x8, tpu:v5e:16 or, of two slices, tpu:v5e:4x4:2"


def _nodes(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) == 2 and shape[1] <= PER_NODE:
        return shape[0], shape[1]
    count = shape[0]
    if len(shape) > 1 or (count > PER_NODE and count % PER_NODE):
        raise UserError(f"--topology {name}: GPUs come in nodes of {PER_NODE}: write up to {PER_NODE}, or a multiple")
    return max(1, count // PER_NODE), min(count, PER_NODE)


def _compact(name: str, chips: int, axes: int) -> tuple[int, ...]:
    """Return the shape of so many chips whose sides are powers of two and about equal, the last the longest: 4x4x8."""
    power = chips.bit_length() - 1
    if chips != 2**power or power == 1:
        raise UserError(f"--topology {name}: {chips} chips are no standard slice: 1, 4, 8, 16, 32 … or give its shape")
    if chips == 4:
        return (2, 2, 1)[:axes]
    return tuple(2 ** ((power + i) // axes) for i in range(axes))


PREDICTED = (
    "compute_seconds", "memory_seconds", "hbm_seconds", "network_seconds", "latency_seconds", "predicted_step_seconds",
    "predicted_images_per_sec_per_chip", "bound", "predicted_efficiency", "wire_bytes",
)  # fmt: skip


def estimate(row: dict[str, Any], topology: Topology) -> dict[str, Any]:
    """Return the predicted part of a row, from its compiled part; all None where the compiler refused the program."""
    if row["flops_per_image"] is None:
        return dict.fromkeys(PREDICTED)
    chip, images = topology.chip, row["batch_per_chip"]
    compute = images * row["flops_per_image"] / chip.flops[row["dtype"]].value
    memory = images * row["bytes_per_image"] / chip.memory_bandwidth.value
    least = images * row["hbm_traffic_per_image"] / chip.memory_bandwidth.value
    network = latency = wire = 0.0
    for entry in row["collective_groups"]:
        what, spans = (entry["kind"], entry["bytes"]), entry["spans"]
        sent = sent_bytes(*what, entry["group_size"], spans)
        if entry.get("between_slices"):
            cost = Cost(sent / chip.nic.value, chip.nic_hop.value)
        else:
            cost = collective_seconds(chip, topology.shape, *what, entry["group_size"], spans)
        network += entry["count"] * (cost.bandwidth + cost.latency)
        latency += entry["count"] * cost.latency
        wire += entry["count"] * sent
    floors = {"compute": compute, "memory": least, "network": network}
    seconds = [max(floors.values()), compute + memory + network]
    return {
        "compute_seconds": compute, "memory_seconds": memory, "hbm_seconds": least, "network_seconds": network,
        "latency_seconds": latency, "predicted_step_seconds": seconds,
        "predicted_images_per_sec_per_chip": [images / seconds[1], images / seconds[0]], "predicted_efficiency": None,
        "bound": max(floors, key=lambda name: floors[name]), "wire_bytes": wire,
    }  # fmt: skip


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
    """Cost rings both ways round along each axis, all at once."""
    wrap, chips, rate = int(chip.wrap.value), math.prod(spans), chip.link.value
    cubes = chip.torus.value == 3 and all(length % wrap == 0 for length in shape)
    closed = [cubes if chip.torus.value == 3 else length == wrap for length in shape]
    # (length, ways) of each axis: two ways round where all of it takes part and it is closed, else one
    axes = [(n, 2 if n == shape[i] and closed[i] else 1) for i, n in enumerate(spans) if n > 1]
    if not axes:  # one chip: its cores exchange for free
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
        parts = ((inside - 1) / group, (group - inside) / group)
        near, far = parts if kind == "all-to-all" else (nodes == 1, nodes > 1)
        latency = chip.launch.value + (chip.nic_hop if nodes > 1 else chip.hop).value
        return Cost(max(near * nbytes / chip.link.value, far * nbytes / chip.nic.value), latency)
    whole = nbytes * group if kind == "reduce-scatter" else nbytes
    passes = 2 if kind == "all-reduce" else 1
    seconds = wire_bytes("all-gather", whole, inside) / chip.link.value
    seconds += wire_bytes("all-gather", whole / inside, nodes) / chip.nic.value
    steps = (inside - 1) * chip.hop.value + math.ceil(math.log2(nodes)) * chip.nic_hop.value
    return Cost(passes * seconds, chip.launch.value + passes * steps)
