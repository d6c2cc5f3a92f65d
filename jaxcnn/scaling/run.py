"""The compilations of `jaxcnn scaling`, several processes at a time, as memory allows."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from jaxcnn import UserError
from jaxcnn.configfile import to_json
from jaxcnn.scaling.study import Request

Say = Callable[[int, str], None]  # (compilations done, what of the last)

_EACH = 5 * 2**30  # bytes that one compilation may take: ResNet-50 for a TPU takes 3 to 4.4 GB
_STACK = 2**28  # bytes: on the usual 8 MiB libtpu's recursion overflows (ResNet-50 for v6e)


class Failed(Exception):
    """A compiler that failed; no fault of the user's."""


def plugins() -> Path:
    """Where `make aot` puts the compilers: beside this environment, and of no consequence to it."""
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
        raise UserError(
            f"--topology {name} needs {what}: `make aot` installs it beside this environment, "
            "`pip install 'jaxcnn[aot]'` in one of its own"
        )


def default_jobs() -> int:
    """How many compilations fit the cores and the memory that is free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = _EACH
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, free // _EACH))


def compile_all(requests: Sequence[Request], jobs: int, cache: Path, say: Say) -> list[dict[str, Any]]:
    """The facts of each request, in their order; {"error", "mine"} of one that failed. Ctrl-C ends the compilers."""
    running: set[subprocess.Popen[str]] = set()
    pool = ThreadPoolExecutor(jobs)
    try:
        with _deep_stack():
            futures = {pool.submit(_compile, request, cache, running): request for request in requests}
            for done, future in enumerate(as_completed(futures), 1):
                say(done, _said(futures[future], future.result()))
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.kill()


def _compile(request: Request, cache: Path, running: set[subprocess.Popen[str]]) -> dict[str, Any]:
    question = {"config": json.loads(to_json(request.config)), "topology": request.topology.name, "cache": str(cache)}
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxcnn.scaling.worker"],
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
    """Variables under which no device is looked for, and the compilers are found and keep quiet."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    if platform == "gpu":
        flags.append("--xla_gpu_autotune_level=0")  # there is no device to time kernels on
    paths = [str(plugins()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": " ".join(flags),
        "PYTHONPATH": os.pathsep.join(paths),
    }


def _said(request: Request, answer: dict[str, Any]) -> str:
    row = request.row
    variant = "".join(f" {key}={value}" for key, value in row["variant"].items())
    what = f"{row['model']} on {row['topology']}, {row['batch_per_chip']:g} a chip{variant}"
    if "error" in answer:
        return f"{what}: failed"
    return f"{what}: {'cached' if answer['cached'] else 'compiled'} {answer['compile_seconds']:.0f} s"


@contextmanager
def _deep_stack() -> Iterator[None]:
    """Child processes give their threads a deep stack."""
    try:
        import resource

        before = resource.getrlimit(resource.RLIMIT_STACK)
        deep = _STACK if before[1] == resource.RLIM_INFINITY else min(_STACK, before[1])
        resource.setrlimit(resource.RLIMIT_STACK, (deep, before[1]))
    except (ImportError, ValueError, OSError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, before)
