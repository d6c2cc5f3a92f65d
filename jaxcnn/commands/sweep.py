"""`jaxcnn sweep FILE --out DIR`: train a list of configs and seeds, one after another; run again, it goes on."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn import UserError
from jaxcnn.commands.children import Children
from jaxcnn.commands.options import Parser
from jaxcnn.locations import location
from jaxcnn.safe_files import printable, write_atomically

_INDEX = "SLURM_ARRAY_TASK_ID"
_EPILOG = "FILE is TOML: see jaxcnn/training/sweep.py for its keys and experiments/sweeps/ for examples. A run is one \
process that takes all devices of this machine; what it says is in DIR/RUN/train.log."


class Outcome(NamedTuple):
    """The end of a run's process: its exit code, and its last words where that is not 0."""

    code: int
    words: str


def main(argv: list[str]) -> int:
    """Train what `argv` asks for and print the table; 1 or 2 where a run failed, 130 or 143 when a signal came."""
    parser = Parser("jaxcnn sweep", description=__doc__, epilog=_EPILOG)
    parser.add_argument("file", metavar="FILE", type=location, help="a sweep; the configs it names are executed")
    parser.add_argument("--out", metavar="DIR", type=location, required=True, help="folder of the runs and tables")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the runs with their numbers and states, and stop")
    what.add_argument("--task", metavar="I", type=_number, help="train the run of this number alone")
    what.add_argument("--array", action="store_true", help=f"the same of the number in {_INDEX}, for a SLURM array")
    arguments = parser.parse_args(argv)

    from jaxcnn.training.initial_state import check_resume
    from jaxcnn.training.sweep import read_sweep

    runs, out = read_sweep(arguments.file), arguments.out
    if arguments.list:
        for number, run in enumerate(runs):
            print(f"{number}  {run.name}  {_state(run, out)}")
        return 0
    chosen = _chosen(runs, arguments)
    for run in chosen:  # before the first one is trained
        check_resume(run.config, out / run.name)
    outcomes, stopped = _train_all(chosen, out)
    _write_table(arguments.file, runs, out, outcomes)
    failed = {name: outcome for name, outcome in outcomes.items() if outcome.code}
    if stopped and len(outcomes) - len(failed) < len(chosen):
        print(f"jaxcnn: {stopped.name}: stopped; run the same command again to go on", file=sys.stderr)
        return 128 + stopped
    for name, outcome in failed.items():
        print(f"jaxcnn: {name}: {printable(outcome.words)}", file=sys.stderr)
    return max((2 if outcome.code == 2 else 1 for outcome in failed.values()), default=0)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: write a whole number, as --list prints them")
    return int(text)


def _chosen(runs: list[Any], arguments: argparse.Namespace) -> list[Any]:
    """Return the runs that are asked for: all, or one."""
    number = arguments.task
    if arguments.array:
        text = os.environ.get(_INDEX, "")
        if not text.isdecimal():
            raise UserError(f"--array takes {_INDEX}, which is {text!r}: start it by sbatch --array, or give --task I")
        number = int(text)
    if number is None:
        return runs
    if number >= len(runs):
        raise UserError(f"there is no run {number}: {arguments.file} has {len(runs)}, from 0 to {len(runs) - 1}")
    return [runs[number]]


def _train_all(runs: Sequence[Any], out: Path) -> tuple[dict[str, Outcome], Any]:
    """Train each run that has no result, whether or not others fail; return how they ended, and the signal if any."""
    outcomes: dict[str, Outcome] = {}
    with Children() as children, _progress(len(runs)) as (say, note):
        for number, run in enumerate(runs, start=1):
            if children.signal:
                break
            place = f"[{number}/{len(runs)}] {run.name}"
            if run.result(out):
                outcome, words = Outcome(0, ""), "has a result"
            else:
                say(f"{place}: training", number - 1)
                outcome = _train(run, out / run.name, children, note)
                words = outcome.words or "done"
            outcomes[run.name] = outcome
            say(f"{place}: {words}", number)
        return outcomes, children.signal


def _train(run: Any, workdir: Path, children: Children, note: Callable[[str], None]) -> Outcome:
    """Train one run in a process of its own; what it says goes to train.log in its folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "jaxcnn.cli", *run.command(workdir)]
    last = ""
    with (workdir / "train.log").open("ab", buffering=0) as log:
        process: Any = children.start(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with process.stdout as lines:
            for line in lines:
                log.write(line)
                if text := line.decode(errors="replace").strip():
                    last = text
                    note(text)
    code = process.wait()
    if code < 0:
        return Outcome(128 - code, f"the process was ended by signal {-code}")
    return Outcome(code, last.removeprefix("jaxcnn: ") if code else "")


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[str, int], None], Callable[[str], None]]]:
    """Yield what says a line with the number of runs that are over, and what shows a run's newest line.

    On a terminal there is a bar, which the newest line is beside; elsewhere that is left to train.log.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    console = Console(stderr=True)
    columns = (
        TextColumn("run {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=20),
        TextColumn("[cyan]{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, expand=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("sweep", total=total, note="")

        def say(line: str, over: int) -> None:
            console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
            bar.update(task, completed=over, note="")

        def note(line: str) -> None:
            bar.update(task, note=escape(printable(line)))

        yield say, note


def _state(run: Any, out: Path, outcome: Outcome | None = None) -> str:
    """Return what the table says of a run."""
    if outcome and outcome.code:
        return "stopped" if outcome.code in (130, 143) else f"failed: {outcome.words}"
    if outcome or run.result(out):
        return "done"
    return "begun" if (out / run.name / "config.json").exists() else "not begun"


def _write_table(file: Path, runs: Sequence[Any], out: Path, outcomes: dict[str, Outcome]) -> None:
    """Print the table of all runs of the sweep, and write it into its folder."""
    from jaxcnn.training.sweep import tables

    states = {run.name: _state(run, out, outcomes.get(run.name)) for run in runs}
    markdown, csv = tables(runs, out, states)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "table.md", f"`jaxcnn sweep {file} --out {out}`\n\n{markdown}")
    write_atomically(out / "table.csv", csv)
    print(markdown, end="", flush=True)
    print(f"tables: {out / 'table.md'}, {out / 'table.csv'}", file=sys.stderr)
