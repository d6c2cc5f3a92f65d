"""`jaxcnn scaling`: what a config costs on 1 to thousands of chips, compiled for chips that need not be there."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, count, parse
from jaxcnn.configfile import to_json
from jaxcnn.scaling.study import Request, Run, Study, read_study, requests_of, sweep_of


def main(argv: list[str]) -> int:
    """Compile, predict and draw, or measure, as `argv` says; what is made is in --out."""
    parser = _parser()
    arguments, overrides = parse(parser, argv)
    _check_use(parser, arguments, overrides)
    out: Path = arguments.out
    _check_folder(f"--out {out}", out)
    if arguments.measure:
        from jaxcnn.commands.scaling_measure import measured

        rows = measured(arguments, overrides)
        _write(out, rows, Study(f"Scaling of {rows[0]['config']}, measured", "", []))
        return 0
    study = _study(arguments, overrides)
    requests = [request for number, run in enumerate(study.runs) for request in requests_of(run, number)]
    rows, failures = _rows(requests, arguments.jobs)
    if rows:
        _write(out, rows, study)
    return _verdict(rows, failures, study.unfit)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("jaxcnn scaling", description=__doc__, epilog=OVERRIDES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE[:ARG]", help="experiment file; it is Python and is executed")
    what.add_argument("--config-json", metavar="FILE", type=Path, help="a config in JSON, such as a run's config.json")
    what.add_argument(
        "--study",
        metavar="FILE",
        type=Path,
        help="a study, such as experiments/scaling/weak.toml; the configs it names are executed",
    )
    add = parser.add_argument
    add("--topology", metavar="NAME", action="append", default=[], help="tpu:v5e:4x4, tpu:v4:64, gpu:h100:8; again")
    words = "a config key or one of mesh and its values, such as model=1,2 or norm.scope=global,shard; again"
    add("--sweep", metavar="KEY=V,V", action="append", default=[], help=words)
    words = "images a chip, whatever the slice: weak scaling (default: the global batch of the config, strong scaling)"
    add("--batch-per-chip", metavar="N,N", type=_counts, default=[], help=words)
    add("--out", metavar="DIR", type=Path, required=True, help="folder of scaling.md, .csv, .json and pictures")
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
    """Options that would be without effect are wrong use."""
    given = {f"--{name}" for name in ("devices", "steps", "warmup", "repeats") if getattr(arguments, name)}
    if given and not arguments.measure:
        parser.error(f"{', '.join(sorted(given))}: these go with --measure")
    ahead = [f"--{name}" for name in ("topology", "sweep", "jobs", "unfit") if getattr(arguments, name)]
    if arguments.measure and (ahead or arguments.study):
        parser.error(
            f"--measure takes {'no --study' if arguments.study else f'no {ahead[0]}'}: it runs on this machine"
        )
    if arguments.study and (arguments.topology or arguments.sweep or arguments.batch_per_chip or overrides):
        parser.error("--study says what is run: it takes no --topology, --sweep, --batch-per-chip or --config.KEY")
    if not (arguments.study or arguments.measure or arguments.topology):
        parser.error("no --topology, such as tpu:v5e:2x2, tpu:v4:64 or gpu:h100:8")


def _check_folder(what: str, folder: Path) -> None:
    """Raise a UserError, before anything is compiled, where a folder cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}: name a folder that can be written to") from error


def _study(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> Study:
    if arguments.study:
        study = read_study(arguments.study)
        return Study(study.title, study.about, study.runs, study.unfit or arguments.unfit)
    config, is_json = arguments.config or arguments.config_json, not arguments.config
    sweep = sweep_of(arguments.sweep)
    run = Run(str(config), arguments.topology, arguments.batch_per_chip, overrides, sweep, json=is_json)
    return Study(f"Scaling of {config}", "", [run], arguments.unfit)


def _rows(requests: Sequence[Request], jobs: int | None) -> tuple[list[dict[str, Any]], list[tuple[str, bool]]]:
    """Complete rows of what was compiled, and (what went wrong, is it the user's) of what was not."""
    from jaxcnn.scaling.ahead_of_time import cache_folder
    from jaxcnn.scaling.prediction import efficiencies, predict
    from jaxcnn.scaling.report import label
    from jaxcnn.scaling.run import check_compilers, compile_all, default_jobs
    from jaxcnn.scaling.series import series

    _check_data(requests)
    check_compilers(requests)
    _check_folder(f"JAXCNN_AOT_CACHE {cache_folder()}", cache_folder())
    with _progress(len(requests)) as say:
        answers = compile_all(requests, jobs or default_jobs(), cache_folder(), say)
    rows, failures = [], []
    for request, answer in zip(requests, answers, strict=True):
        if "error" in answer:
            failures.append((f"{request.topology.name}: {answer['error']}", answer["mine"]))
            continue
        row = request.row | answer | {"notes": request.row["notes"] + answer["notes"]}
        rows.append(row | predict(row, request.topology))
    for points in series(rows).values():
        efficiencies(points)
    label(rows)
    return rows, failures


def _check_data(requests: Sequence[Request]) -> None:
    """Raise the UserError of data whose shapes cannot be had, or of a network that there is not."""
    from jaxcnn.data.dataset import Dataset
    from jaxcnn.models import create_model

    for config in {to_json(request.config): request.config for request in requests}.values():
        create_model(config.model.name, config.model.num_classes or 1000, **config.model.overrides)
        try:
            Dataset(config)
        except UserError as error:
            hint = "compiling takes no more than shapes, so --config.data.name=synthetic:CLASSES:EXAMPLES can stand in"
            raise UserError(f"{error}; {hint}") from error


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """What tells of each compilation: a bar on a terminal, else plain lines."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, text: print(f"{done}/{total} {text}", file=sys.stderr, flush=True)
        return
    with Progress(console=console) as bar:
        task = bar.add_task("compiling", total=total)

        def say(done: int, text: str) -> None:
            bar.console.print(text, highlight=False, markup=False)
            bar.update(task, completed=done)

        yield say


def _write(out: Path, rows: list[dict[str, Any]], study: Study) -> None:
    from jaxcnn.scaling import plots, report
    from jaxcnn.scaling.chips import CHIPS
    from jaxcnn.training.run_log import write_atomically

    out.mkdir(parents=True, exist_ok=True)
    for name in plots.NAMES:
        (out / name).unlink(missing_ok=True)  # of other rows
    write_atomically(out / "scaling.json", report.as_json(rows))
    write_atomically(out / "scaling.csv", report.as_csv(rows))
    roofs = {
        (name, dtype): (figure.value, CHIPS[name].memory_bandwidth.value)
        for name in CHIPS
        for dtype, figure in CHIPS[name].flops.items()
    }
    pictures = [path.name for path in plots.draw(rows, out, roofs)]
    text = report.as_markdown(rows, study.title, study.about, pictures, _made())
    write_atomically(out / "scaling.md", text)
    print(report.in_terminal(rows))
    print(f"written to {out}: {', '.join(['scaling.md', '.csv', '.json', *pictures])}")


def _made() -> str:
    """What the figures were made with."""
    from importlib import metadata

    from jaxcnn.scaling.run import plugins
    from jaxcnn.training.report import commit

    found = {d.name: d.version for d in metadata.distributions(path=[*sys.path, str(plugins())])}
    names = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
    versions = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    return f"Made by `jaxcnn scaling`, commit {commit() or 'unknown'}; {versions}."


def _verdict(rows: list[dict[str, Any]], failures: list[tuple[str, bool]], unfit_is_fine: bool) -> int:
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        if any(not mine for _, mine in failures):
            print(f"jaxcnn: {next(text for text, mine in failures if not mine)}{more}", file=sys.stderr)
            return 1
        raise UserError(failures[0][0] + more)
    unfit = [row for row in rows if not row["fits"]]
    if unfit and not unfit_is_fine:
        more = f" (and {len(unfit) - 1} more)" if len(unfit) > 1 else ""
        raise UserError(_mend(unfit[0]) + more)
    return 0


def _mend(row: dict[str, Any]) -> str:
    """By how much a program does not fit, and what would make it fit, as far as arithmetic tells."""
    needed, limit, batch = row["hbm_bytes"], row["hbm_limit_bytes"], row["batch_per_chip"]
    state = sum(row["memory"].get(kind, 0) for kind in ("parameters", "optimizer", "other"))
    fitting = int(batch * max(0, limit - state) / max(1, needed - state))
    step = 2 ** max(0, fitting.bit_length() - 3)  # one of three digits, so to speak: it is an estimate
    ways = [f"about {fitting // step * step} images a chip"] if 0 < fitting < batch else []
    ways += ["remat=block, which takes less"] if row["remat"] == "none" and batch > 1 else []
    cut = row["memory"].get("parameters", 0) + row["memory"].get("optimizer", 0)
    if row["placement"] == "replicated" and cut * (1 - 1 / row["chips"]) > needed - limit:
        ways += ["mesh.placement=fsdp"]
    mend = f"try {' or '.join(ways)}" if ways else "a chip with more memory is due"
    over = f"{needed / 2**30:.2f} GiB of {limit / 2**30:.2f}, {(needed - limit) / 2**20:,.0f} MiB too many"
    what = f"{row['model']} at {batch:,} images a chip does not fit {row['topology']}"
    return f"{what}: it takes {over}: {mend}; --unfit makes it a result"
