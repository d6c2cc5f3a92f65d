"""Accelerators: the published ceilings of each, with their sources, and what a collective costs at these ceilings.

A collective's time has links at their full rate, no contention, and the least latency published.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Sourced(NamedTuple):
    """A figure and where it stands; a source says so where the figure is derived from others, or was not checked."""

    value: float
    source: str


class Chip(NamedTuple):
    """One accelerator; sizes are bytes, rates bytes or FLOPs a second, latencies seconds, all of one chip.

    Attributes:
      name: as people call it.
      platform: "tpu" or "gpu".
      kind: JAX's `device_kind`.
      devices: JAX devices of a chip: two of a TPU v3, whose cores are devices of their own.
      flops: dtype of the arrays -> peak of matrix products. "float32" is what JAX does by default with float32 arrays:
        one pass in bfloat16 on a TPU, TF32 on these GPUs. Full float32 precision is several times slower.
      memory: capacity of the HBM.
      memory_bandwidth: of the HBM.
      link: one way; of one ICI link of a TPU, of all NVLinks of a GPU together.
      hop: latency of one ICI link, or of one step of a ring over NVLink.
      launch: latency of a collective before its first step.
      torus: dimensions of a TPU's torus.
      wrap: a 2D axis of just this length is closed to a ring; a 3D slice is closed if each dimension is a multiple.
      nic: one way; what a GPU has of its node's network.
      nic_hop: latency of one step between nodes.
    """

    name: str
    platform: str
    kind: str
    devices: int
    flops: dict[str, Sourced]
    memory: Sourced
    memory_bandwidth: Sourced
    link: Sourced
    hop: Sourced
    launch: Sourced
    torus: Sourced
    wrap: Sourced
    nic: Sourced
    nic_hop: Sourced

    def figures(self) -> dict[str, Sourced]:
        """Label with its unit -> figure, in a table's order, without those that this platform does not have."""
        link, hop = ("ICI link", "ICI hop") if self.platform == "tpu" else ("NVLink", "NVLink step")
        rows = {f"{dtype} peak, FLOP/s": figure for dtype, figure in self.flops.items()}
        rows |= {"HBM, bytes": self.memory, "HBM, bytes/s": self.memory_bandwidth, f"{link}, bytes/s": self.link}
        rows |= {f"{hop}, s": self.hop, "collective launch, s": self.launch}
        rows |= {"torus dimensions": self.torus, "axis closed at": self.wrap}
        rows |= {"NIC, bytes/s": self.nic, "step between nodes, s": self.nic_hop}
        return {label: figure for label, figure in rows.items() if figure is not NONE}


class Cost(NamedTuple):
    """Seconds of a collective: of its bytes at the links' rate, and of its steps."""

    bandwidth: float
    latency: float


CLOUD = "Cloud TPU docs, TPU {0}, https://docs.cloud.google.com/tpu/docs/{0}"
BOOK = "How to Scale Your Model, TPUs, https://jax-ml.github.io/scaling-book/tpus/"
BOOK_GPUS = "How to Scale Your Model, GPUs, https://jax-ml.github.io/scaling-book/gpus/"
PRECISION = "JAX docs, matmul precision, https://docs.jax.dev/en/latest/201/precision.html"
NCCL = "NCCL's tuning model, protocol LL, https://github.com/NVIDIA/nccl src/graph/tuning.cc"
XLA = "XLA's target config of the {} SXM, https://github.com/openxla/xla xla/backends/gpu/target_config/specs"
DATASHEET = "NVIDIA's {0} datasheet, dense, as quoted at https://glennklockwood.com/garden/processors, page {0}"
NONE = Sourced(0, "the platform has none")


def _tpu(version: str, kind: str, peak: float, hbm: tuple[int, float], link: Sourced, axes: int, wrap: Sourced) -> Chip:
    page = CLOUD.format(version)
    by_default = Sourced(peak, f"derived: the bfloat16 peak, of which the default precision is one pass; {PRECISION}")
    return Chip(
        name=f"TPU {version}",
        platform="tpu",
        kind=kind,
        devices=2 if version == "v3" else 1,
        flops={"bfloat16": Sourced(peak, page), "float32": by_default},
        memory=Sourced(hbm[0] * 2**30, f"{page} (GB there are taken as GiB)"),
        memory_bandwidth=Sourced(hbm[1], page),
        link=link,
        hop=Sourced(1e-6, f"{BOOK} (question 5: of v5e; taken for all)"),
        launch=Sourced(0, f"none published; measured where three hops make 3 µs: 8 µs, {BOOK}, ch. 3"),
        torus=Sourced(axes, page),
        wrap=wrap,
        nic=NONE,
        nic_hop=NONE,
    )


def _gpu(name: str, kind: str, peaks: tuple[float, float], hbm: tuple[int, float], link: float, nic: Sourced) -> Chip:
    sheet, xla = DATASHEET.format(name), XLA.format(name.lower())
    return Chip(
        name=name,
        platform="gpu",
        kind=kind,
        devices=1,
        flops={"bfloat16": Sourced(peaks[0], sheet), "float32": Sourced(peaks[1], f"{sheet}: TF32, see {PRECISION}")},
        memory=Sourced(hbm[0], xla),
        memory_bandwidth=Sourced(hbm[1], xla),
        link=Sourced(link, f"{BOOK_GPUS}; half of NVIDIA's figure, which counts both ways"),
        hop=Sourced(0.6e-6, f"{NCCL}, hwLat, NVLink, ring"),
        launch=Sourced(6.6e-6, f"{NCCL}, baseLat, ring"),
        torus=NONE,
        wrap=NONE,
        nic=nic,
        nic_hop=Sourced(5e-6, f"{NCCL}, hwLat, NET, tree"),
    )


WRAP_16 = Sourced(16, f"{BOOK} (only a whole axis of 16)")
WRAP_4 = Sourced(4, f"{BOOK} (whole cubes of 4x4x4, by optical switches)")
WRAP_32 = Sourced(32, f"derived: only a whole axis of the 32x32 pod of {BOOK}")
LINK_V3 = Sourced(83e9, f"derived: all-reduce 340 TB/s a pod, by 1024·4 links, {CLOUD.format('v3')}; the book: 100e9")
LINK_V4 = Sourced(45e9, f"{BOOK} (Google's page: all-reduce 1.1 PB/s a pod, by 4096 chips and 6 links also 45e9)")
LINK_V5E = Sourced(45e9, f"{BOOK} (Google's page: 400 GB/s both ways over 4 links, 50e9)")
LINK_V5P = Sourced(90e9, f"{BOOK} (Google's page: 1200 GB/s both ways over 6 links, 100e9)")
LINK_V6E = Sourced(90e9, f"{BOOK} (Google's page: 800 GB/s both ways over 4 links, 100e9)")
NIC_A100 = Sourced(25e9, "DGX A100 datasheet, eight ConnectX-6 of 200 Gb/s; not checked against NVIDIA's page")
NIC_H100 = Sourced(50e9, f"{BOOK_GPUS}, eight ConnectX-7 of 400 Gb/s; NVIDIA, DGX BasePOD, core components, the same")
CHIPS = {
    "v3": _tpu("v3", "TPU v3", 123e12, (32, 900e9), LINK_V3, 2, WRAP_32),
    "v4": _tpu("v4", "TPU v4", 275e12, (32, 1200e9), LINK_V4, 3, WRAP_4),
    "v5e": _tpu("v5e", "TPU v5 lite", 197e12, (16, 819e9), LINK_V5E, 2, WRAP_16),
    "v5p": _tpu("v5p", "TPU v5", 459e12, (95, 2765e9), LINK_V5P, 3, WRAP_4),
    "v6e": _tpu("v6e", "TPU v6 lite", 918e12, (32, 1638e9), LINK_V6E, 2, WRAP_16),
    "a100": _gpu("A100", "NVIDIA A100-SXM4-80GB", (312e12, 156e12), (85100068864, 2039.04e9), 300e9, NIC_A100),
    "h100": _gpu("H100", "NVIDIA H100 80GB HBM3", (989.4e12, 494.7e12), (84942979072, 3352.32e9), 450e9, NIC_H100),
}


def wire_bytes(kind: str, nbytes: float, group: int) -> float:
    """Bytes that each of `group` devices sends in a collective by rings, whose result is `nbytes` on one device.

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
    """Bytes that a chip sends to others, of a group that spans so many chips along each axis."""
    chips = math.prod(spans)
    return wire_bytes(kind, nbytes if kind in ("all-reduce", "all-gather") else nbytes * group / chips, chips)


def collective_seconds(
    chip: Chip, shape: Sequence[int], kind: str, nbytes: float, group: int, spans: Sequence[int] = ()
) -> Cost:
    """What one collective takes on a slice whose links it has for itself, by rings in two passes.

    Args:
      shape: of the slice: a TPU's torus in chips, such as (16, 16) or (8, 8, 16), or (nodes, GPUs a node).
      kind: one of `training.collectives.KINDS`.
      nbytes: of the result on one device: of an all-reduce the array, of an all-gather the gathered whole, of a
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
    """Rings both ways round along each axis, all at once; what the cores of one chip exchange is free."""
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
    """Within a node over NVLink; between nodes each GPU carries its share, a ring in bytes and a tree in steps."""
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


_TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f} l2_cache_size: {l2}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 cuda_compute_capability {{ major: {major} }} }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{kind}" """
_TARGETS = {  # by the files that `XLA` names
    "a100": {"cores": 108, "fpus": 64, "shared": 167936, "optin": 166912, "clock": 1.41, "l2": 41943040, "major": 8},
    "h100": {"cores": 132, "fpus": 128, "shared": 233472, "optin": 232448, "clock": 1.98, "l2": 52428800, "major": 9},
}


def target_config(name: str) -> str:
    """The GPU "a100" or "h100" as XLA's CUDA plugin takes it for `get_topology_desc(…, target_config=…)`."""
    chip = CHIPS[name]
    sizes = {"bandwidth": chip.memory_bandwidth.value, "memory": chip.memory.value}
    return _TARGET.format(**_TARGETS[name], **sizes, kind=chip.kind)
