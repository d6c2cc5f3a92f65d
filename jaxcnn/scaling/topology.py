"""Slices of accelerators by name, such as "tpu:v5e:4x4" or "gpu:h100:64", and abstract devices that stand for them."""

import math
from typing import Any, NamedTuple

from jaxcnn import UserError
from jaxcnn.scaling.chips import CHIPS, Chip, target_config

PER_NODE = 8  # GPUs of a DGX, joined by NVLink
LARGEST = {"v3": 1024, "v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256}  # chips of a pod, joined by ICI


class Topology(NamedTuple):
    """A slice.

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


def parse(name: str) -> Topology:
    """The slice called PLATFORM:CHIP:SHAPE, or PLATFORM:CHIP:CHIPS, of which the shape is the most compact one.

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
    """The slice of so many chips whose sides are powers of two and about equal, the last the longest: 4x4x8."""
    power = chips.bit_length() - 1
    if chips != 2**power or power == 1:
        raise UserError(f"--topology {name}: {chips} chips are no standard slice: 1, 4, 8, 16, 32 … or give its shape")
    if chips == 4:
        return (2, 2, 1)[:axes]
    return tuple(2 ** ((power + i) // axes) for i in range(axes))


def abstract_devices(topology: Topology) -> Any:
    """A list of JAX devices to lower and compile for; none of them exists.

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
