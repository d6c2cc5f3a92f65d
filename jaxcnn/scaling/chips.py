"""Accelerators that need not be there: published peaks with their sources, slices by name, XLA's descriptions of them.

A slice is written PLATFORM:CHIP:SHAPE, such as "tpu:v5e:4x4" or "gpu:h100:64".
"""

import math
from typing import Any, NamedTuple

from jaxcnn import UserError


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
    """Return the GPU "a100" or "h100" as XLA's CUDA plugin takes it for `get_topology_desc(…, target_config=…)`."""
    chip = CHIPS[name]
    sizes = {"bandwidth": chip.memory_bandwidth.value, "memory": chip.memory.value}
    return _TARGET.format(**_TARGETS[name], **sizes, kind=chip.kind)


PER_NODE = 8  # GPUs of a DGX, joined by NVLink
LARGEST = {"v3": 1024, "v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256}  # chips of a pod, joined by ICI


class Topology(NamedTuple):
    """A slice of a pod, or of a cluster's nodes.

    Attributes:
      name: as it was written.
      version: a key of `CHIPS`.
      shape: of a TPU's torus in chips, or (nodes, GPUs a node).
    """

    name: str
    version: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """The figures of its chips."""
        return CHIPS[self.version]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


def parse_topology(name: str) -> Topology:
    """Return the slice called PLATFORM:CHIP:SHAPE, or PLATFORM:CHIP:CHIPS for the most compact shape of so many chips.

    Raises:
      UserError: no such platform, chip or shape.
    """
    platform, _, rest = name.partition(":")
    version, _, size = rest.partition(":")
    known = [key for key, chip in CHIPS.items() if chip.platform == platform]
    if not known:
        raise UserError(f"--topology {name}: '{platform}' is neither tpu nor gpu: write tpu:v5e:4x4 or gpu:h100:8")
    if version not in known:
        raise UserError(f"--topology {name}: there is no {platform} '{version}', but {', '.join(known)}")
    lengths = size.split("x")
    if not all(n.isascii() and n.isdecimal() and 0 < int(n) < 10**5 for n in lengths):
        raise UserError(f"--topology {name}: '{size}' is no number of chips and no shape: write {_example(platform)}")
    shape = tuple(map(int, lengths))
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
    return Topology(name, version, shape)


def _example(platform: str) -> str:
    return "tpu:v5e:4x4, tpu:v4:4x4x8 or tpu:v5e:16" if platform == "tpu" else "gpu:h100:8 or gpu:h100:64"


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


def abstract_devices(topology: Topology) -> Any:
    """Return JAX devices to lower and compile for; none of them exists.

    Raises:
      UserError: the compiler is not installed, or does not know the slice.
    """
    import jax
    from jax.experimental import topologies

    chip, shape = topology.chip, topology.shape
    if chip.platform == "gpu":
        name, platform, config = "", "cuda", target_config(topology.version)
        options: dict[str, Any] = {"topology": f"1x{shape[0]}x{shape[1]}", "target_config": config}
    else:
        name, platform = f"{topology.version}:{'x'.join(map(str, shape))}", "tpu"
        options = {"chips_per_host_bounds": (*(min(2, n) for n in shape[:2]), 1)}
        if topology.version in ("v4", "v5p"):
            options["chip_config_name"] = "megacore"  # two cores, one device, as JAX has them
    try:
        return topologies.get_topology_desc(platform=platform, topology_name=name, **options).devices
    except (RuntimeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--topology {topology.name}: XLA's compiler does not take it: {reason}") from error
