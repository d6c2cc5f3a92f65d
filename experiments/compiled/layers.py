"""How pooling, response normalisation and grouped convolutions should be written for XLA, asked of its compilers.

    python experiments/compiled/layers.py > table.md

In an environment of its own, `pip install '.[aot]'`: no accelerator is needed. Each form runs forward and backward,
in bfloat16 at batch 128 for the accelerators, and in float32 at batch 32, timed, on this CPU. The stages are AlexNet's
convolution, ReLU, response normalisation and pooling. Mcycles are the TPU compiler's own estimate (v5e: 1500 Mcycles
a second); H100 MB are the operands and results of all kernels (3352 GB a second), PTX the lines of assembly.

What it decided for layers.py and pooling.py of jaxcnn/models; experiments/results/compiled-layers.md has the figures:
- Max pooling: XLA's windows on a TPU, maxima of shifted slices elsewhere.
- Response normalisation: a band matrix sums the five channels on a TPU, shifted slices do elsewhere; d^-0.75 by square
  roots, under half the H100's instructions and the CPU's time; its gradient written out, which changes little on the
  accelerators and saves a CPU much of the time.
- Groups are left to XLA, but for the CPU, which is five times faster on halves.
"""

import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000 device_memory_size: 84942979072 l2_cache_size: 52428800
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 cuda_compute_capability { major: 9 } }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H100 80GB HBM3" """
TOPOLOGIES: dict[str, dict[str, str]] = {
    "v5e": {"platform": "tpu", "topology_name": "v5e:2x2"},
    "H100": {"platform": "cuda", "topology_name": "", "topology": "1x1x1", "target_config": H100},
}
COLUMNS = {"v5e": ["Mcycles", "GFLOP", "MB", "temp MB", "kernels"], "H100": ["MB", "temp MB", "kernels", "PTX"]}
ALPHA, BETA, SPACE = 1e-4, 0.75, ((0, 0),) * 3
Forms = dict[str, Callable[..., jax.Array]]


def by_slices(x: jax.Array) -> jax.Array:
    wide, channels = jnp.pad(x, (*SPACE, (2, 2))), x.shape[-1]
    return sum((wide[..., i : i + channels] for i in range(1, 5)), wide[..., :channels])


def by_band(x: jax.Array, dtype: Any = jnp.float32, precision: Any = None) -> jax.Array:
    channel = np.arange(x.shape[-1])
    band = jnp.asarray(np.abs(channel[:, None] - channel) <= 2, dtype)
    return jnp.einsum("nhwc,cd->nhwd", x.astype(dtype), band, precision=precision, preferred_element_type=jnp.float32)


SUMS: Forms = {  # over the five neighbouring channels
    "window": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1, 1, 5), (1, 1, 1, 1), "SAME"),
    "slices": by_slices,
    "band float32": by_band,
    "band float32 highest": partial(by_band, precision="highest"),
    "band bfloat16": partial(by_band, dtype=jnp.bfloat16),
    "cumsum": lambda x: (lambda total: total[..., 5:] - total[..., :-5])(jnp.cumsum(jnp.pad(x, (*SPACE, (3, 2))), -1)),
    "band on TPU, else slices": lambda x: lax.platform_dependent(x, tpu=SUMS["band bfloat16"], default=by_slices),
}
SCALES: Forms = {"power": lambda d: d**-BETA, "roots": lambda d: lax.rsqrt(d) * jnp.sqrt(lax.rsqrt(d))}


def normalisation(total: Callable, scale: Callable, own_gradient: bool = False) -> Callable[..., jax.Array]:
    """Response normalisation with JAX's gradient, or with a gradient written out, for which only x is kept."""

    def lrn(x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        return (wide * scale(2 + ALPHA * total(wide * wide))).astype(x.dtype)

    def backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
        wide = x.astype(jnp.float32)
        d = 2 + ALPHA * total(wide * wide)
        scaled = g.astype(jnp.float32) * scale(d)
        return ((scaled - 2 * ALPHA * BETA * wide * total(scaled * wide / d)).astype(x.dtype),)

    with_own = jax.custom_vjp(lrn)
    with_own.defvjp(lambda x: (lrn(x), x), backward)
    return with_own if own_gradient else lrn


NORMS: Forms = {f"{n}, {how}": normalisation(SUMS[n], SCALES[how]) for n in SUMS for how in SCALES}
for name in ("window", "slices", "band bfloat16", "band on TPU, else slices"):
    NORMS[f"{name}, roots, own gradient"] = normalisation(SUMS[name], SCALES["roots"], own_gradient=True)


def max_by_slices(x: jax.Array, window: int, stride: int) -> jax.Array:
    for axis in (1, 2):
        last = (x.shape[axis] - window) // stride * stride + 1
        slices = [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(window)]
        x = reduce(lambda a, b: jnp.where((a >= b) | (a != a), a, b), slices)
    return x


def max_by_windows(x: jax.Array, window: int, stride: int) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), "VALID")


POOLS: Forms = {"window": max_by_windows, "slices": max_by_slices}


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
    pads, numbers = ((2, 2) if kernel.shape[0] > 3 else (1, 1)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, (pads, pads), None, None, numbers, groups)


def by_halves(x: jax.Array, kernel: jax.Array, dense: bool = False) -> jax.Array:
    a, b = jnp.split(kernel, 2, axis=-1)
    if dense:
        return conv(x, jnp.concatenate([jnp.concatenate([a, 0 * a], -1), jnp.concatenate([0 * b, b], -1)], axis=2))
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([conv(left, a), conv(right, b)], axis=-1)


GROUPED: Forms = {"feature_group_count=2": partial(conv, groups=2), "halves": by_halves}
GROUPED["zero blocks"] = partial(by_halves, dense=True)


def stage(lrn: Callable, stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution, ReLU, response normalisation and overlapping max pooling, as AlexNet has them."""
    y = lrn(jax.nn.relu(conv(x, kernel, stride)))
    return max_by_windows(y, 3, 2)


def pooled(pool: Callable, window: int, stride: int, x: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
    """Pooling between a convolution with its ReLU and another convolution."""
    return conv(pool(jax.nn.relu(conv(x, before)), window, stride), after)


def step(f: Callable, args: list[Any]) -> jax.stages.Lowered:
    """Program of (arguments, cotangent) -> the output and the gradients, except that of images."""

    def forward_and_backward(args: list[jax.Array], g: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        y, backward = jax.vjp(f, *args)
        return y, [gradient for gradient in backward(g) if gradient.shape[-1] > 3]

    y = jax.eval_shape(f, *args)
    return jax.jit(forward_and_backward).lower(args, jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=args[0].sharding))


def compiled(compiler: str, f: Callable, shapes: list[tuple[int, ...]], dump: Path) -> list[str]:
    """The cells of `COLUMNS[compiler]`."""
    chip = SingleDeviceSharding(topologies.get_topology_desc(**TOPOLOGIES[compiler]).devices[0])
    shutil.rmtree(dump, ignore_errors=True)
    program = step(f, [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=chip) for s in shapes]).compile()
    hlo, cost = program.as_text() or "", program.cost_analysis() or {}
    count, megabytes, sizes = 0, 0.0, {}  # of kernels and copies, and of their operands and results
    instruction = re.compile(r"^\s+(?:ROOT )?(%\S+) = (.*?) ([a-z][\w-]*)\((.*?)\)", re.M)
    for name, shape, kind, operands in instruction.findall(hlo[hlo.index("\nENTRY") :]):
        arrays = re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shape)
        sizes[name] = sum(int(bits) / 8e6 * np.prod([int(n) for n in dims.split(",") if n]) for bits, dims in arrays)
        if not re.fullmatch("parameter|tuple|get-tuple-element|bitcast|constant|.*-done", kind):
            count += 1
            megabytes += sum(sizes.get(operand, 0) for operand in [name, *re.findall(r"%[\w.-]+", operands)])
    rest = [getattr(program.memory_analysis(), "temp_size_in_bytes", 0) / 1e6, count]
    if compiler == "H100":
        return [f"{n:.0f}" for n in (megabytes, *rest, sum(p.read_text().count(";\n") for p in dump.glob("*.ptx")))]
    cycles = sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', hlo))
    return [f"{cycles / 1e6:.2f}", *(f"{n:.0f}" for n in (cost["flops"] / 1e9, cost["bytes accessed"] / 1e6, *rest))]


def timed(forms: Forms, shapes: list[tuple[int, ...]]) -> dict[str, str]:
    """Median milliseconds of each form on this CPU in float32 at batch 32, the forms taken in turn."""
    draw = np.random.default_rng(0).standard_normal
    args = [jnp.asarray(30 * draw((32, *s[1:]) if i == 0 else s), jnp.float32) for i, s in enumerate(shapes)]
    g = jnp.ones(jax.eval_shape(next(iter(forms.values())), *args).shape)
    steps = {name: step(f, args).compile() for name, f in forms.items()}
    spent: dict[str, list[float]] = {name: [] for name in forms}
    for name, run in [*steps.items()] * 6:
        start = time.perf_counter()
        jax.block_until_ready(run(args, g))
        spent[name].append(1e3 * (time.perf_counter() - start))
    return {name: f"{statistics.median(milliseconds[1:]):.0f}" for name, milliseconds in spent.items()}


def main() -> None:
    inside = {n: NORMS[n] for n in NORMS if "roots" in n and "cumsum" not in n} | {"none": lambda x: x}
    pools = {size: {n: partial(pooled, f, *size) for n, f in POOLS.items()} for size in ((3, 2), (2, 2), (3, 1))}
    cases: list[tuple[str, Forms, list[tuple[int, ...]]]] = [
        ("pool 3/2 112×112×64", pools[3, 2], [(128, 112, 112, 64), *[(3, 3, 64, 64)] * 2]),
        ("pool 2/2 56×56×256", pools[2, 2], [(128, 56, 56, 256), *[(3, 3, 256, 256)] * 2]),
        ("pool 3/1 28×28×192", pools[3, 1], [(128, 28, 28, 192), *[(3, 3, 192, 192)] * 2]),
        ("LRN 55×55×96", NORMS, [(128, 55, 55, 96)]),
        ("LRN 27×27×256", NORMS, [(128, 27, 27, 256)]),
        ("stage 1", {n: partial(stage, f, 4) for n, f in inside.items()}, [(128, 224, 224, 3), (11, 11, 3, 96)]),
        ("stage 2", {n: partial(stage, f, 1) for n, f in inside.items()}, [(128, 27, 27, 96), (5, 5, 96, 256)]),
        ("conv2", GROUPED, [(128, 27, 27, 96), (5, 5, 48, 256)]),
        ("conv4", GROUPED, [(128, 13, 13, 384), (3, 3, 192, 384)]),
    ]
    missing, heads = {}, [f"{compiler} {head}" for compiler, row in COLUMNS.items() for head in row]
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:  # XLA leaves the assembly there; there is no device to tune on
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 --xla_dump_to={folder}/dump"
        for title, forms, shapes in cases:
            print("", f"| {title} | {' | '.join(heads)} | CPU ms |", "|---|" + "--:|" * (len(heads) + 1), sep="\n")
            milliseconds, cells = timed(forms, shapes), {}
            for name, f in forms.items():
                for compiler, row in COLUMNS.items():
                    try:
                        cells[compiler] = compiled(compiler, f, shapes, Path(folder, "dump"))
                    except Exception as error:
                        missing[compiler] = f"{compiler}: not compiled: {str(error).splitlines()[0]}"
                        cells[compiler] = ["–"] * len(row)
                print("|", " | ".join([name, *sum(cells.values(), []), milliseconds[name]]), "|", flush=True)
    print("", *missing.values(), sep="\n")


if __name__ == "__main__":
    main()
