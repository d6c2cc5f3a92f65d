"""`jaxcnn scaling`: what a config costs on 1 to thousands of chips, compiled for chips that need not be there."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, config_of, count, parse, set_up_jax
from jaxcnn.locations import location
from jaxcnn.safe_files import make_writable
from jaxcnn.scaling.study import Grid, Study, read_study, requests_of, sweep_of


def main(argv: list[str]) -> int:
    """Compile, predict and draw, or measure, as `argv` says; what is made is in --out."""
    parser = _parser()
    arguments, overrides = parse(parser, argv)
    _check_use(parser, arguments, overrides)

    make_writable(arguments.out, "--out")
    if arguments.measure:
        rows = _measured(arguments, overrides)
        _write(arguments.out, rows, f"Scaling of {rows[0]['config']}, measured")
        return 0
    from jaxcnn.scaling.ahead_of_time import compile_rows

    study = _study(arguments, overrides)
    requests = [request for number, grid in enumerate(study.grids) for request in requests_of(grid, number)]
    with _progress(len(requests)) as report:
        rows, failures = compile_rows(requests, arguments.jobs, report)
    if rows:
        _write(arguments.out, rows, study.title, study.about)
    return _verdict(rows, failures, study.unfit)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("jaxcnn scaling", description=__doc__, epilog=OVERRIDES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE[:ARG]", help="experiment file; it is Python and is executed")
    what.add_argument(
        "--config-json", metavar="FILE", type=location, help="a config in JSON, such as a run's config.json"
    )
    words = "a study, such as experiments/scaling/weak.toml; the configs it names are executed"
    what.add_argument("--study", metavar="FILE", type=location, help=words)
    add = parser.add_argument
    words = "tpu:v5e:4x4, tpu:v4:64, tpu:v5e:16x16:2 (two slices), gpu:h100:64; again"
    add("--topology", metavar="NAME", action="append", default=[], help=words)
    words = "a config key or one of mesh and its values, such as model=1,2 or norm.scope=global,shard; again"
    add("--sweep", metavar="KEY=V,V", action="append", default=[], help=words)
    words = "images a chip, whatever the slice: weak scaling (default: the global batch of the config, strong scaling)"
    add("--batch-per-chip", metavar="N,N", type=_counts, default=[], help=words)
    add("--out", metavar="DIR", type=location, required=True, help="folder of scaling.md, .csv, .json and pictures")
    add("--jobs", metavar="N", type=count, help="compilations at a time (default: as cores and memory allow)")
    add("--unfit", action="store_true", help="a program that does not fit is a result, and no error")
    add("--measure", action="store_true", help="run the step on this machine's devices, and compile for no other")
    add("--devices", metavar="N,N", type=_counts, help="--measure: how many of them (default: 1, 2, 4 … all)")
    for name, default in (("steps", 20), ("warmup", 5), ("repeats", 5)):
        add(f"--{name}", metavar="N", type=count, help=f"--measure: {name} (default: {default})")
    return parser


def _counts(text: str) -> list[int]:
    return [count(number) for number in text.split(",")]


def _check_use(parser: argparse.ArgumentParser, arguments: argparse.Namespace, overrides: Sequence[Any]) -> None:
    """Refuse options that would have no effect."""
    given = {f"--{name}" for name in ("devices", "steps", "warmup", "repeats") if getattr(arguments, name)}
    if given and not arguments.measure:
        parser.error(f"{', '.join(sorted(given))}: these go with --measure")
    ahead = [f"--{name}" for name in ("study", "topology", "sweep", "jobs", "unfit") if getattr(arguments, name)]
    if arguments.measure and ahead:
        parser.error(f"--measure takes no {ahead[0]}: it runs on this machine")
    if arguments.measure and len(arguments.batch_per_chip) > 1:
        raise UserError("--measure takes one --batch-per-chip")
    if arguments.study and (arguments.topology or arguments.sweep or arguments.batch_per_chip or overrides):
        parser.error("--study says what is run: it takes no --topology, --sweep, --batch-per-chip or --config.KEY")
    if not (arguments.study or arguments.measure or arguments.topology):
        parser.error("no --topology, such as tpu:v5e:2x2, tpu:v4:64 or gpu:h100:8")


def _study(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> Study:
    if arguments.study:
        study = read_study(arguments.study)
        return replace(study, unfit=study.unfit or arguments.unfit)
    config, sweep, is_json = arguments.config or arguments.config_json, sweep_of(arguments.sweep), not arguments.config
    grid = Grid(str(config), arguments.topology, arguments.batch_per_chip, overrides, sweep, json=is_json)
    return Study(f"Scaling of {config}", "", [grid], arguments.unfit)


def _measured(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> list[dict[str, Any]]:
    from jaxcnn.scaling.measure import measured_rows, simulate

    config = config_of(arguments, overrides)
    simulate(arguments.devices)
    set_up_jax()
    lengths = {name: getattr(arguments, name) for name in ("steps", "warmup", "repeats") if getattr(arguments, name)}
    name, batch = arguments.config or str(arguments.config_json), next(iter(arguments.batch_per_chip), None)
    return measured_rows(config, name, arguments.devices, batch, lengths)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Report each compilation: by a bar on a terminal, else by plain lines."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling", total=total)

        def report(done: int, text: str) -> None:
            line = text if console.is_terminal else f"{done}/{total} {text}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            bar.update(task, completed=done)

        yield report


def _write(out: Path, rows: list[dict[str, Any]], title: str, about: str = "") -> None:
    from jaxcnn.scaling import report

    names = report.write(out, rows, title, about)
    print(report.in_terminal(rows))
    print(f"written to {out}: {', '.join(names)}")


def _verdict(rows: list[dict[str, Any]], failures: list[tuple[str, bool]], unfit_is_fine: bool) -> int:
    """Return the exit code: 1 where a compiler failed; raise a UserError for what the user can fix."""

    def and_more(faults: Sequence[Any]) -> str:
        return f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""

    if text := next((text for text, mine in failures if not mine), ""):
        print(f"jaxcnn: {text}{and_more(failures)}", file=sys.stderr)
        return 1
    if failures:
        raise UserError(failures[0][0] + and_more(failures))
    unfit = [row for row in rows if not row["fits"]]
    if unfit and not unfit_is_fine:
        from jaxcnn.scaling.report import advice

        raise UserError(advice(unfit[0]) + and_more(unfit))
    return 0
