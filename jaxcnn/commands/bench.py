"""`jaxcnn bench`: images per second of reading alone, of the step alone, and of both in the training loop."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jaxcnn
from jaxcnn.commands.options import OVERRIDES, Parser, add_config, config_of, count, parse, set_up_jax

_PACKAGES = ("jax", "jaxlib", "flax", "grain", "numpy", "simplejpeg", "opencv-python-headless", "pillow")
_SHARED = '1 / (1 / data only + 1 / device only), "shared" above.'
_PROFILED = 5  # steps
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
    add_config(parser)
    number = {"metavar": "N", "type": count}
    parser.add_argument("--steps", **number, default=50, help="steps of a measurement that count (default: 50)")
    parser.add_argument("--warmup", **number, default=10, help="steps before them that do not (default: 10)")
    parser.add_argument("--repeats", **number, default=5, help="measurements of each part, in turn (default: 5)")
    words = f"afterwards, trace {_PROFILED} steps and sum them by operation; TensorBoard and Perfetto open the trace"
    parser.add_argument("--profile", metavar="DIR", type=Path, help=words)
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    arguments, overrides = parse(parser, argv)

    config = config_of(arguments, overrides)
    set_up_jax(config)
    import jax

    if arguments.profile:
        from jaxcnn.training.profile import prepare

        prepare(arguments.profile)
    result = _measure(config, arguments.steps, arguments.warmup, arguments.repeats, arguments.profile)
    if jax.process_index() == 0:
        print(json.dumps(result) if arguments.json else _table(result))
    return 0


def _measure(config: Any, steps: int, warmup: int, repeats: int, folder: Path | None) -> dict[str, Any]:
    """What `--json` prints; a profile is put into `folder`."""
    import jax
    import jax.numpy as jnp

    from jaxcnn.configfile import config_hash
    from jaxcnn.data.batches import Slice, usable_cores
    from jaxcnn.data.dataset import Dataset
    from jaxcnn.models import create_model
    from jaxcnn.training import report, throughput
    from jaxcnn.training.program import ByBucket, build_program
    from jaxcnn.training.sharding import make_mesh

    commit = report.commit()
    data = Dataset(config, Slice(jax.process_index(), jax.process_count()))
    model = create_model(config.model.name, data.num_classes, jnp.dtype(config.dtype), **config.model.overrides)
    program = build_program(config, model, data, make_mesh(config.mesh.data, config.mesh.model))
    devices, compiling, state = program.mesh.devices.flatten(), time.monotonic(), program.init()
    train_step = program.train_step.lower(state, program.largest_batch).compile()
    if jax.process_index() == 0:
        print(report.plan(config, program, data, 0), file=sys.stderr)
        print(
            report.compiled(ByBucket({data.buckets[0]: train_step}), time.monotonic() - compiling),
            file=sys.stderr,
            flush=True,
        )
    lengths = {"steps": steps, "warmup": warmup, "repeats": repeats}
    rates = throughput.measure(config, data, program, state, train_step, **lengths)
    profile = {"profile": _profile(folder, config, data, program, train_step)} if folder else {}
    shared = devices[0].platform == "cpu"
    return {
        "model": config.model.name, "data": config.data.name, "resident": config.data.resident,
        "workers": config.data.workers, "global_batch_size": config.global_batch_size, **lengths,
        "images": steps * config.global_batch_size, **throughput.summary(rates, shared),
        "device_kind": devices[0].device_kind, "device_count": len(devices), "process_count": jax.process_count(),
        "cores": usable_cores() * jax.process_count(), "shared": shared,
        "config_hash": config_hash(config), "commit": commit,
        "versions": {"jaxcnn": jaxcnn.__version__} | {name: version(name) for name in _PACKAGES},
        **profile,
    }  # fmt: skip


def _profile(folder: Path, config: Any, data: Any, program: Any, train_step: Any) -> dict[str, Any]:
    """The profile of the step alone, which is put into `folder`."""
    from jaxcnn.training import profile
    from jaxcnn.training.throughput import one_call

    call = one_call(config, data, program, _PROFILED)
    summary = profile.record(folder, train_step, program.init(), call, _PROFILED)
    if summary:
        profile.write(folder, summary)
    return {"folder": str(folder), **summary}


def _table(result: dict[str, Any]) -> str:
    """The result in 80 columns."""
    cores, devices = result["cores"], result["device_count"]
    lines = [
        f"{result['model']} on {devices} × {result['device_kind']}, batches of {result['global_batch_size']}",
        f"{result['repeats']} × {result['steps']} steps, after {result['warmup']} that do not count; images/s",
        "",
        f"{'':<20} {'median':>9} {'min':>9} {'max':>9}  each",
    ]
    each = {"data_only": (cores, "core"), "end_to_end": (devices, "device"), "device_only": (devices, "device")}
    for name, (title, form) in _ROWS.items():
        if name in result:
            row = result[name]
            cells = " ".join(f"{form.format(row[key]):>9}" for key in ("median", "min", "max"))
            count, of = each.get(name, (0, ""))
            lines.append(
                f"{title:<20} {cells}" + (f"  {row['median'] / count:,.0f} a {of} of {count}" if count else "")
            )
    if result["resident"]:
        lines += ["", "data.resident: the data stays on the devices, none is read in training."]
    elif result["shared"]:
        lines += ["", "The CPU is both: reading and the step share its cores, and together allow about", _SHARED]
    if "profile" in result:
        from jaxcnn.training.profile import table

        folder = result["profile"]["folder"]
        lines += ["", table(result["profile"]), "", f"More in {folder}: summary.md, and the trace, plugins/profile."]
    return "\n".join(lines)
