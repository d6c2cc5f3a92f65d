"""`jaxcnn bench`: images per second of reading alone, of the step alone, and of both in the training loop.

With --infer: images per second and the latency of the forward pass that predict runs, by batch size.
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jaxcnn
from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, add_config, config_of, count, parse, set_up_jax
from jaxcnn.config import Config, flatten
from jaxcnn.configfile import config_hash
from jaxcnn.locations import location
from jaxcnn.safe_files import make_writable

_SHARED = '1 / (1 / data only + 1 / device only), "shared" above.'
_PROFILED = 5  # steps
_PACKAGES = ("jax", "jaxlib", "flax", "grain", "numpy", "simplejpeg", "opencv-contrib-python-headless", "pillow")
_ROWS = {  # what is measured: its title and its form
    "data_only": ("data only", "{:,.0f}"),
    "device_only": ("device only", "{:,.0f}"),
    "end_to_end": ("end to end", "{:,.0f}"),
    "data_wait_frac": ("data wait", "{:.1%}"),
    "ratio": ("end to end / slower", "{:.3f}"),
    "of_shared": ("end to end / shared", "{:.3f}"),
}


def main(argv: list[str]) -> int:
    """Measure as `argv` says. Nothing is written to disk but what --profile asks for."""
    parser = Parser("jaxcnn bench", description=__doc__, epilog=OVERRIDES)
    group = add_config(parser)
    words = "--infer: a network with random weights, of images as its published weights expect them; no config needed"
    group.add_argument("--model", metavar="NAME", help=words)
    words = "time the forward pass; --steps and --warmup are then calls, at each batch size"
    parser.add_argument("--infer", action="store_true", help=words)
    words = "--infer: batch sizes, joined by commas (default: 1,8,32)"
    parser.add_argument("--batches", metavar="N,…", type=_batches, help=words)
    number = {"metavar": "N", "type": count}
    parser.add_argument("--steps", **number, default=50, help="steps of a measurement that count (default: 50)")
    parser.add_argument("--warmup", **number, default=10, help="steps before them that do not (default: 10)")
    parser.add_argument("--repeats", **number, default=5, help="measurements of each part, in turn (default: 5)")
    words = f"afterwards, trace {_PROFILED} steps and sum them by operation; TensorBoard and Perfetto open the trace"
    parser.add_argument("--profile", metavar="DIR", type=location, help=words)
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    arguments, overrides = parse(parser, argv)
    if arguments.infer:
        return _infer(arguments, overrides)
    if arguments.model or arguments.batches:
        raise UserError("--model and --batches go with --infer: training is timed by a --config FILE")

    config = config_of(arguments, overrides)
    set_up_jax()
    import jax

    if arguments.profile:
        make_writable(arguments.profile, "--profile")
    lengths = {"steps": arguments.steps, "warmup": arguments.warmup, "repeats": arguments.repeats}
    result = _measure(config, lengths, arguments.profile)
    if jax.process_index() == 0:
        print(json.dumps(result) if arguments.json else _table(result))
    return 0


def _batches(text: str) -> list[int]:
    return [count(number) for number in text.split(",")]


def _infer(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Time the forward pass of a network with random weights, and print a line for each batch size."""
    if arguments.profile:
        raise UserError("--profile traces training steps: leave it out with --infer")
    keys = dict(overrides)
    if not arguments.model:
        config = config_of(arguments, overrides)
        arguments.model, sized = config.model.name, config.data.image_size
        own = ("model.overrides", "dtype") + ("data.image_size",) * bool(sized)
        keys = {key: value for key, value in flatten(config).items() if key.startswith(own)} | keys
    set_up_jax()
    import jax

    from jaxcnn.text_table import text_table
    from jaxcnn.training.latency import measure
    from jaxcnn.training.trained import TrainedModel

    network = TrainedModel.untrained(arguments.model, keys)
    device, shape = jax.local_devices()[0], "×".join(map(str, network.input["image_shape"]))
    about = {"model": arguments.model, "dtype": network.config.dtype, "image_shape": network.input["image_shape"]}
    about |= {"device_kind": device.device_kind, "steps": arguments.steps, "warmup": arguments.warmup}
    if not arguments.json:
        print(f"{arguments.model}, {about['dtype']}, images of {shape}, on one {device.device_kind}")
    rows = list(measure(network, arguments.batches or (1, 8, 32), arguments.steps, arguments.warmup))
    if arguments.json:
        versions = {"jaxcnn": jaxcnn.__version__} | {name: version(name) for name in _PACKAGES}
        print(json.dumps(about | {"batches": rows, "versions": versions}))
        return 0
    head = ["batch", "images/s", "p50 ms", "p99 ms"]
    cells = [[str(r["batch"]), *(f"{r[key]:,.1f}" for key in ("images_per_sec", "p50_ms", "p99_ms"))] for r in rows]
    print(text_table(head, cells, right=range(4)))
    return 0


def _measure(config: Config, lengths: dict[str, int], folder: Path | None) -> dict[str, Any]:
    """Return what --json prints: images per second, and what was measured where; with a `folder` a profile, too."""
    import jax

    from jaxcnn.data import usable_cores
    from jaxcnn.training import profile, run_log, throughput
    from jaxcnn.training.program import ByBucket
    from jaxcnn.training.train import assemble

    commit = run_log.commit()
    throughput.check_one_shape(config)
    data, program = assemble(config)
    devices, compiling, state = program.mesh.devices.flatten(), time.monotonic(), program.init()
    train_step = program.compiled(program.lower(program.largest_batch))
    if jax.process_index() == 0:
        compiled = run_log.compiled_line(ByBucket({data.buckets[0]: train_step}), time.monotonic() - compiling)
        print(run_log.start_lines(config, program, data, 0), compiled, sep="\n", file=sys.stderr, flush=True)
    rates = throughput.measure(config, data, program, state, train_step, **lengths)
    about = {}
    if folder:
        call = throughput.one_call(config, data, program, _PROFILED)
        found = profile.record(folder, train_step, program.init(), call, _PROFILED)
        if found:
            profile.write(folder, found)
        about = {"profile": {"folder": str(folder), **found}}
    shared = devices[0].platform == "cpu"
    return {
        "model": config.model.name, "data": config.data.name, "resident": config.data.resident,
        "workers": config.data.workers, "global_batch_size": config.global_batch_size, **lengths,
        "images": lengths["steps"] * config.global_batch_size, **throughput.summary(rates, shared),
        "device_kind": devices[0].device_kind, "device_count": len(devices), "process_count": jax.process_count(),
        "cores": usable_cores() * jax.process_count(), "shared": shared,
        "config_hash": config_hash(config), "commit": commit,
        "versions": {"jaxcnn": jaxcnn.__version__} | {name: version(name) for name in _PACKAGES},
        **about,
    }  # fmt: skip


def _table(result: dict[str, Any]) -> str:
    """Return the result as text."""
    from jaxcnn.text_table import text_table

    cores, devices = result["cores"], result["device_count"]
    lines = [
        f"{result['model']} on {devices} × {result['device_kind']}, batches of {result['global_batch_size']}",
        f"{result['repeats']} × {result['steps']} steps, after {result['warmup']} that do not count; images/s",
        "",
    ]
    each = {"data_only": (cores, "core"), "end_to_end": (devices, "device"), "device_only": (devices, "device")}
    rows = []
    for name, (title, form) in _ROWS.items():
        if name in result:
            row = result[name]
            count, of = each.get(name, (0, ""))
            share = f"{row['median'] / count:,.0f} a {of} of {count}" if count else ""
            rows.append([title, *(form.format(row[key]) for key in ("median", "min", "max")), share])
    lines.append(text_table(["", "median", "min", "max", "each"], rows, right={1, 2, 3}))
    if result["resident"]:
        lines += ["", "data.resident: the data stays on the devices, none is read in training."]
    elif result["shared"]:
        lines += ["", "The CPU is both: reading and the step share its cores, and together allow about", _SHARED]
    if "profile" in result:
        from jaxcnn.training.profile import table

        folder = result["profile"]["folder"]
        lines += ["", table(result["profile"]), "", f"More in {folder}: summary.md, and the trace, plugins/profile."]
    return "\n".join(lines)
