"""Where the time of a compiled step goes: JAX's profiler's trace of some steps, summed by operation.

The trace is what TensorBoard's profile plugin, XProf and Perfetto open. It is read with `jax.profiler.ProfileData`, and
the compiled program's text says what its operations are.
"""

import json
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import repeat
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxcnn import UserError
from jaxcnn.text_table import text_table
from jaxcnn.training.hlo import Instruction, Module
from jaxcnn.training.throughput import Call, stepping

_SHARES = (
    "Times are the mean over devices of a step's sum. Each operation counts from its start to its end, waiting for "
    "other devices or for a free thread included, and those that overlap count each in full: shares are of the sum of "
    "all operations, which is not the time of the step."
)
_MOST = 30  # operations in summary.md
_CALLS = {"while", "conditional", "call"}  # last as long as what they call, which has events of its own
_PRODUCTS = {"convolution": "convolution", "dot": "matrix product"}
_LIBRARIES = {"conv": "convolution", "gemm": "matrix product", "matmul": "matrix product", "dot": "matrix product"}
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Event(NamedTuple):
    """One run of an operation on one device; start and end in nanoseconds."""

    device: str
    operation: str
    start: float
    end: float


def record(folder: Path, train_step: Any, state: Any, call: Call, steps: int) -> dict[str, Any]:
    """Trace `steps` steps, or as many as the call takes, after one call that is not traced; return their summary.

    The trace is put below `folder`/plugins/profile. Of several processes the first traces, its own devices; the others
    take the steps with it and get {}.

    Args:
      train_step, state: compiled; donated.
      call: what `jaxcnn.training.throughput.one_call` gives.

    Returns:
      "steps", "step_seconds" by the host's clock, "devices" that the trace has, and per step and device:
      "operation_seconds", the sum of all operations; "busy_seconds", in which at least one ran; "kinds" and
      "operations", the slowest first, rows of "seconds", "share" of the sum, and "count", which is of kernels on a GPU.
      An operation has the "layer" of the model that it comes from, "" where the compiler does not say.

    Raises:
      UserError: the trace cannot be written, such as on a full disk.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # calls of Python would be most of the trace, and slow the steps
    state, _, _ = stepping(train_step, state, repeat(call), 1, 1, 0)
    first = jax.process_index() == 0
    try:
        with jax.profiler.trace(folder, profiler_options=options) if first else nullcontext():
            _, _, lap = stepping(train_step, state, repeat(call), 1, steps, 0)
    except jax.errors.JaxRuntimeError as error:
        if f"{folder}/plugins" not in str(error):
            raise
        reason = str(error).rpartition("; ")[2]
        raise UserError(f"the profile could not be written to {folder}: {reason}") from error
    if not first:
        return {}
    path = max(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime_ns)
    taken = -(-steps // call[0]) * call[0]
    found = summarise(events(path), Module(train_step.as_text()), taken)
    return {"steps": taken, "step_seconds": 1 / lap["train/images_per_sec"], **found}


def events(path: Path) -> list[Event]:
    """Return the runs of XLA's operations in an xplane file.

    On a CPU they lie among what the host's threads do. There an operation may end on another thread than it began on:
    a mark of its own tells when.
    """
    found: list[tuple[Event, Any]] = []
    ends: dict[Any, float] = {}
    # From Python 3.12 on, the reader's types name no module, of which it warns.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        data = jax.profiler.ProfileData.from_file(str(path))
        for plane in data.planes:
            lines = list(plane.lines)
            tpu = [line for line in lines if line.name == "XLA Ops"]  # its other lines show the same time again
            for event in (event for line in tpu or lines for event in line.events):
                stats = dict(event.stats)
                if tpu or "hlo_op" in stats:
                    device = f"{plane.name}:{stats.get('device_ordinal', '')}"
                    name = str(stats.get("hlo_op") or event.name.partition(" = ")[0].lstrip("%"))
                    run = Event(device, name, event.start_ns, event.start_ns + event.duration_ns)
                    found.append((run, stats.get("_p")))
                elif event.name.startswith("end: "):
                    ends[stats.get("_c")] = event.start_ns
    return [run._replace(end=max(run.end, ends.get(mark, 0))) for run, mark in found]


def summarise(found: Sequence[Event], module: Module, steps: int) -> dict[str, Any]:
    """Return what `record` says of the events of `steps` steps of a program."""
    seen = {event.operation for event in found}
    known = {line.name: line for body in module.computations.values() for line in body}
    calls = [known[name] for name in seen & known.keys() if known[name].opcode in _CALLS]
    outer = {call.name for call in calls if any(inner.name in seen for inner in _called(call, module))}
    by_device, runs = defaultdict[str, list[Event]](list), defaultdict[str, list[float]](list)
    for event in found:
        if event.operation not in outer:
            by_device[event.device].append(event)
    # Times are per step and device.
    parts = steps * max(len(by_device), 1)
    for event in (event for device in by_device.values() for event in device):
        runs[event.operation].append((event.end - event.start) / 1e9 / parts)
    total = sum(map(sum, runs.values()))
    operations: list[dict[str, Any]] = []
    kinds: dict[str, dict[str, Any]] = {}
    for name, each in runs.items():
        line = known.get(name)
        work = kind(line, module) if line else "other programs"
        sums = {"seconds": sum(each), "share": sum(each) / total, "count": len(each) / parts}
        operations.append({"operation": name, "kind": work, "layer": layer(line.rest) if line else "", **sums})
        before = kinds.setdefault(work, {"kind": work} | dict.fromkeys(sums, 0))
        kinds[work] = before | {key: before[key] + value for key, value in sums.items()}
    busy = sum(map(_covered, by_device.values())) / 1e9 / parts
    slowest = partial(sorted, key=itemgetter("seconds"), reverse=True)
    return {
        "devices": len(by_device), "operation_seconds": total, "busy_seconds": busy,
        "kinds": slowest(kinds.values()), "operations": slowest(operations),
    }  # fmt: skip


def kind(line: Instruction, module: Module) -> str:
    """Return what sort of work an instruction is: that of its slowest part for a fusion, else what XLA calls it."""
    opcode = line.opcode.removesuffix("-start").removesuffix("-done").removesuffix("-update")
    if opcode == "custom-call":  # of a GPU's library, such as "__cudnn$convForward"
        target = line.attribute("custom_call_target").lower()
        return next((work for part, work in _LIBRARIES.items() if part in target), opcode)
    for inner in [line, *_called(line, module)]:
        if inner.opcode in _PRODUCTS:  # on a TPU a matrix product is written as a convolution
            return _PRODUCTS["dot" if _source(inner.rest).endswith("dot_general") else inner.opcode]
    return opcode


def layer(text: str) -> str:
    """Return the layer that an instruction's text names, such as "stage1_block1/conv1 backward"."""
    source = _source(text)
    names = [part for part in source.split("/")[:-1] if "(" not in part]
    direction = "backward" if "transpose(" in source else "forward" if "jvp(" in source else ""
    return " ".join(filter(None, ["/".join(names), direction]))


def _source(text: str) -> str:
    found = _SOURCE.search(text)
    return found[1] if found else ""


def _called(line: Instruction, module: Module) -> list[Instruction]:
    """Return the instructions of the computations that one names."""
    return [inner for name in module.called(line) for inner in module.computations[name]]


def _covered(run: Sequence[Event]) -> float:
    """Return the nanoseconds in which at least one operation ran."""
    covered, until = 0.0, 0.0
    for event in sorted(run, key=attrgetter("start")):
        covered += max(event.end - max(event.start, until), 0)
        until = max(until, event.end)
    return covered


def write(folder: Path, summary: dict[str, Any]) -> None:
    """Put the summary into the folder, as summary.json and, with its slowest operations, summary.md."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    lines = ["# Profile of the training step", "", headline(summary) + ".", "", _SHARES, ""]
    for title, rows in (("kind", summary["kinds"]), ("operation", summary["operations"][:_MOST])):
        lines += [f"| {title} | ms a step | share | runs a step | |", "| --- | ---: | ---: | ---: | --- |"]
        for row in rows:
            words = f"{row['kind']}, {row['layer']}".removesuffix(", ") if "layer" in row else ""
            lines.append(f"| {row[title]} | {' | '.join(_cells(row))} | {words} |")
        lines.append("")
    (folder / "summary.md").write_text("\n".join(lines))


def headline(summary: dict[str, Any]) -> str:
    """Return the steps, the devices and the time of a step in words."""
    if not summary["devices"]:
        return f"{summary['steps']} steps profiled: the profiler tells nothing of the device's operations"
    busy = summary["busy_seconds"] / summary["step_seconds"]
    devices = f"{summary['devices']} device{'s' if summary['devices'] > 1 else ''}"
    taken = f"{1e3 * summary['step_seconds']:.4g} ms a step; an operation ran in {busy:.1%} of it"
    return f"{summary['steps']} steps on {devices}, {taken}"


def table(summary: dict[str, Any], most: int = 8) -> str:
    """Return the kinds, and the `most` slowest operations, as text."""
    tables = [headline(summary)]
    for title, rows in (("kind", summary["kinds"][:most]), ("operation", summary["operations"][:most])):
        cells = [[row[title], *_cells(row), row.get("layer", "")] for row in rows]
        tables.append(text_table([title, "ms a step", "share", "runs", ""], cells, right={1, 2, 3}))
    return "\n\n".join(tables)


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    return f"{1e3 * row['seconds']:,.3f}", f"{row['share']:.1%}", f"{row['count']:.4g}"
