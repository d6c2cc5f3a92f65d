"""Compile training steps for devices that are not there, several at a time, and keep what the compilers gave.

Each compilation has a process of its own, since a compiler clutters its process and may die in it: this module, run
as a script. It reads {"config": …, "topology": …, "cache": …} from stdin and answers on stdout with one JSON object,
the compiled part of a row, or {"error": …, "mine": …}, where "mine" says that the user can fix it. What a compiler gave
is kept on the disk under the lowered program, so that each program is compiled once.
"""

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxcnn import UserError, locations
from jaxcnn.config import Config
from jaxcnn.configfile import from_json, to_json
from jaxcnn.data import usable_cores
from jaxcnn.data.dataset import Dataset
from jaxcnn.models import create_model
from jaxcnn.safe_files import make_writable, write_atomically
from jaxcnn.scaling.chips import CHIPS, Topology, estimate, parse_topology, set_efficiencies
from jaxcnn.scaling.program_costs import compiled_part
from jaxcnn.scaling.rows import LABELS, series
from jaxcnn.scaling.study import Request
from jaxcnn.tasks import create_task
from jaxcnn.training.program import Program, build_program
from jaxcnn.training.sharding import make_mesh

Report = Callable[[int, str], None]  # (compilations done, the last one in words)

_EACH = 5 * 2**30  # bytes that one compilation may take: ResNet-50 for a TPU takes 3 to 4.4 GB
_STACK = 2**28  # bytes: libtpu's recursion overflows the usual 8 MiB (ResNet-50 for v6e)
_OPTIONS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # variables that change what is compiled
_PACKAGES = ("jaxlib", "libtpu", "jax-cuda12-plugin")
_GPU_PACKAGES = ("jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")
_UNFIT = (  # what a TPU's compiler says at its end, and before it begins
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def plugins() -> Path:
    """Return where `make aot` puts the compilers: beside this environment, which does not see them."""
    return Path(sys.prefix, "aot")


def check_compilers(requests: Sequence[Request]) -> None:
    """Raise a UserError if a compiler that is needed is not installed."""
    places = [str(plugins()), *sys.path]
    for request in requests:
        chip, name = request.topology.chip, request.topology.name
        if chip.platform == "tpu" and not PathFinder.find_spec("libtpu", places):
            what = "XLA's TPU compiler, the package libtpu"
        elif chip.platform == "gpu" and not any([*Path(place).glob("jax_plugins/xla_cuda1*")] for place in places):
            what = "XLA's CUDA compiler, the packages jax-cuda12-plugin and jax-cuda12-pjrt"
        else:
            continue
        here = "`make aot` installs it beside this environment, `pip install 'jaxcnn[aot]'` in one of its own"
        raise UserError(f"--topology {name} needs {what}: {here}")


def default_jobs() -> int:
    """Return how many compilations fit the cores and the free memory."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = _EACH
    return max(1, min(usable_cores(), free // _EACH))


def compile_rows(
    requests: Sequence[Request], jobs: int | None, report: Report
) -> tuple[list[dict[str, Any]], list[tuple[str, bool]]]:
    """Compile every request and predict from what the compilers gave.

    Args:
      jobs: compilations at a time; None: as many as cores and memory allow.
      report: called with (compilations done, the last one in words).

    Returns:
      Complete rows of what was compiled, and (what went wrong, whether the user can fix it) of what was not.

    Raises:
      UserError: before anything is compiled, where data, a network, a compiler or the cache cannot be had.
    """
    for config in {to_json(request.config): request.config for request in requests}.values():
        create_model(config.model.name, config.model.num_classes or 1000, **config.model.overrides)
        try:
            data_of(config)
        except UserError as error:
            hint = "compiling takes no more than shapes, so --config.data.name=synthetic:CLASSES:EXAMPLES can stand in"
            raise UserError(f"{error}; {hint}") from error
    check_compilers(requests)
    cache = cache_folder()
    make_writable(cache, "JAXCNN_AOT_CACHE")
    answers = compile_all(requests, jobs or default_jobs(), cache, report)
    rows, failures = [], []
    for request, answer in zip(requests, answers, strict=True):
        if "error" in answer:
            failures.append((f"{request.topology.name}: {answer['error']}", answer["mine"]))
            continue
        row = request.row | answer | {"notes": request.row["notes"] + answer["notes"]}
        rows.append(row | estimate(row, request.topology) | {"labels": LABELS})
    for points in series(rows).values():
        set_efficiencies(points)
    return rows, failures


def data_of(config: Config) -> Dataset:
    """Return the data set of a config with the targets that its task asks for."""
    task = create_task(config)
    return Dataset(config, targets=task.targets, pixel_range=task.pixel_range)


def compile_all(requests: Sequence[Request], jobs: int, cache: Path, report: Report) -> list[dict[str, Any]]:
    """Return what each compilation answered, in the order of the requests; Ctrl-C ends the compilers."""
    running: set[subprocess.Popen[str]] = set()
    pool = ThreadPoolExecutor(jobs)
    _deepen_stacks()
    try:
        futures = {pool.submit(_compile, request, cache, running): request for request in requests}
        for done, future in enumerate(as_completed(futures), 1):
            report(done, _words(futures[future], future.result()))
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.kill()


def _compile(request: Request, cache: Path, running: set[subprocess.Popen[str]]) -> dict[str, Any]:
    question = {"config": json.loads(to_json(request.config)), "topology": request.topology.name, "cache": str(cache)}
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxcnn.scaling.ahead_of_time"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=_environment(request.topology.chip.platform),
    )  # fmt: skip
    running.add(process)
    answer, noise = process.communicate(json.dumps(question))
    running.discard(process)
    try:
        return json.loads(answer)
    except ValueError:
        lines = [line for line in noise.splitlines() if line.strip()]
        code = process.returncode
        how = f"was killed by signal {-code} (memory? --jobs 1 takes least)" if code < 0 else f"ended with {code}"
        return {"error": f"the compiler {how}: {lines[-1][:200] if lines else 'it said nothing'}", "mine": False}


def _environment(platform: str) -> dict[str, str]:
    """Return variables under which JAX looks for no device, and finds compilers that keep quiet."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    if platform == "gpu":
        flags.append("--xla_gpu_autotune_level=0")  # there is no device to time kernels on
    paths = [str(plugins()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": " ".join(flags), "PYTHONPATH": os.pathsep.join(paths),
    }  # fmt: skip


def _words(request: Request, answer: dict[str, Any]) -> str:
    row = request.row
    variant = "".join(f" {key}={value}" for key, value in row["variant"].items())
    end = "failed"
    if "error" not in answer:
        end = f"{'cached' if answer['cached'] else 'compiled'} {answer['compile_seconds']:.0f} s"
    return f"{row['model']} on {row['topology']}, {row['batch_per_chip']:g} a chip{variant}: {end}"


def _deepen_stacks() -> None:
    """Give the threads of child processes a deep stack; this process, which only waits for them, keeps the limit."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_STACK)[1]
        deep = _STACK if most == resource.RLIM_INFINITY else min(_STACK, most)
        resource.setrlimit(resource.RLIMIT_STACK, (deep, most))


def main() -> int:
    """Answer one request, in a process of its own."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what a compiler prints out of the answer
    request = json.load(sys.stdin)
    try:
        answer = _answer(request)
    except UserError as error:
        answer = {"error": str(error), "mine": True}
    except Exception as error:
        words = str(error).strip().splitlines() or [""]
        answer = {"error": f"{type(error).__name__}: {words[0]}", "mine": False}
    with answers:
        json.dump(answer, answers)
    return 0


def _end_with(parent: int) -> None:
    """Exit once the command is gone, so that one that was killed leaves no compiler behind."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(request["config"]))
        config = from_json(path)
    place = parse_topology(request["topology"])
    mesh = make_mesh(config.mesh.data, config.mesh.model, abstract_devices(place))
    data = data_of(config)
    model = create_model(config.model.name, data.num_classes, jnp.dtype(config.dtype), **config.model.overrides)
    program = build_program(config, model, data, mesh)
    return compiled_part(compile_step(program, place, Path(request["cache"])), program, place)


_TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f} l2_cache_size: {l2}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 cuda_compute_capability {{ major: {major} }} }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{kind}" """
_TARGETS = {  # by the files that `chips.XLA` names
    "a100": {"cores": 108, "fpus": 64, "shared": 167936, "optin": 166912, "clock": 1.41, "l2": 41943040, "major": 8},
    "h100": {"cores": 132, "fpus": 128, "shared": 233472, "optin": 232448, "clock": 1.98, "l2": 52428800, "major": 9},
}


def target_config(name: str) -> str:
    """Return the GPU "a100" or "h100" as XLA's CUDA plugin takes it for `get_topology_desc(…, target_config=…)`."""
    chip = CHIPS[name]
    sizes = {"bandwidth": chip.memory_bandwidth.value, "memory": chip.memory.value}
    return _TARGET.format(**_TARGETS[name], **sizes, kind=chip.kind)


def abstract_devices(topology: Topology) -> Any:
    """Return JAX devices to lower and compile for; none of them exists.

    Raises:
      UserError: the compiler is not installed, or does not know the slice.
    """
    chip, shape = topology.chip, topology.shape
    if chip.platform == "gpu":
        name, platform, config = "", "cuda", target_config(topology.version)
        options: dict[str, Any] = {"topology": f"1x{shape[0]}x{shape[1]}", "target_config": config}
    else:
        name, platform = f"{topology.version}:{'x'.join(map(str, shape))}", "tpu"
        options = {"chips_per_host_bounds": (*(min(2, n) for n in shape[:2]), 1)}
        if topology.slices > 1:
            options["num_slices"] = topology.slices
        if topology.version in ("v4", "v5p"):
            options["chip_config_name"] = "megacore"  # two cores, one device, as JAX has them
    try:
        return topologies.get_topology_desc(platform=platform, topology_name=name, **options).devices
    except (RuntimeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--topology {topology.name}: XLA's compiler does not take it: {reason}") from error


def compile_step(program: Program, topology: Topology, folder: Path) -> dict[str, Any]:
    """Compile the training step of `program`, whose mesh is of abstract devices, or read what was kept.

    Returns:
      "seconds" of compilation, "memory" {bytes by kind}, "cost" {flops, bytes accessed}, empty on a GPU, and "text"; or
      "unfit", [bytes needed, bytes there are], of a program that the compiler refuses for its size. "cached" says
      whether it was on the disk.
    """
    lowered = program.lower(program.largest_batch)
    text = f"{program.compiler_options or ''}{lowered.as_text()}"  # The text of the program is without its options.
    path = folder / f"{_key(text, topology)}.json.gz"
    if kept := _read(path):
        return kept | {"cached": True}
    start = time.monotonic()
    try:
        executable = program.compiled(lowered)
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
    write_atomically(path, gzip.compress(json.dumps(found).encode(), 6))
    return found | {"cached": False}


def unfit(message: str) -> list[int]:
    """Return [bytes needed at least, bytes there are] of a compiler's refusal for size; [] of any other message."""
    for pattern in _UNFIT:
        if used := pattern.search(message):
            return [round(float(used[i]) * _UNITS[used[i + 1]]) for i in (1, 3)]
    return []


def _key(text: str, topology: Topology) -> str:
    gpu = topology.chip.platform == "gpu"
    versions = [f"{name} {_version(name)}" for name in _PACKAGES + _GPU_PACKAGES * gpu]
    options = [f"{name}={os.environ.get(name, '')}" for name in _OPTIONS]
    options += [target_config(topology.version)] if gpu else []
    words = [topology.version, str(topology.shape), str(topology.slices), *versions, *options, text]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _read(path: Path) -> dict[str, Any] | None:
    """Return what is kept there; a damaged file is as good as none."""
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error):
        return None


def cache_folder() -> Path:
    """Return where compiled programs are kept; JAXCNN_AOT_CACHE moves it."""
    if given := os.environ.get("JAXCNN_AOT_CACHE"):
        return locations.location(given, "JAXCNN_AOT_CACHE")
    if home := locations.cache_folder():
        return home / "jaxcnn" / "aot"
    raise UserError("there is no home to keep compiled programs in: set JAXCNN_AOT_CACHE to a folder of yours")


if __name__ == "__main__":
    sys.exit(main())
