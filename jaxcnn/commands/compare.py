"""`jaxcnn compare`: one row a run, with the keys in which the runs differ, their scores and their speed.

Runs that differ in the seed alone are one row, with mean ± sd of the scores. Scores are the loss, and the last and the
best value of the score by which the task picks its best checkpoint; --csv has all scores, and one row for each run.
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn import UserError, stores
from jaxcnn.commands.options import Parser
from jaxcnn.config import KEYS, TASK_KEYS
from jaxcnn.locations import Address, place
from jaxcnn.safe_files import csv_text, printable, read_json
from jaxcnn.text_table import markdown_table, text_table
from jaxcnn.training.run_files import read_metrics, read_result

# Scores by which a task picks the best checkpoint, and their direction. Reading them off the tasks would import JAX.
BEST = {
    "top1": max, "miou": max, "map50": max, "map": max, "iwae": max, "fid": min, "discriminator_real": max
}  # fmt: skip
_ABSENT = "–"


@dataclass(frozen=True)
class Run:
    """A run as its files describe it.

    Attributes:
      config: dotted key -> value.
      last: the newest value of everything that was logged or is in result.json.
      best: name of the score that picks the best checkpoint, and its best value; ("", None) before an evaluation.
      done: whether result.json is there, and is as new as the log.
    """

    name: str
    config: dict[str, Any]
    last: dict[str, Any]
    best: tuple[str, float | None]
    done: bool

    @property
    def state(self) -> str:
        """Return "done", or how far the run is."""
        if self.done:
            return "done"
        step, epoch = self.last.get("step", 0), self.last.get("epoch", 0.0)
        if epochs := self.config.get("epochs"):
            return f"training: epoch {epoch:.3g} of {epochs}"
        return f"training: step {step:,} of {self.config.get('steps')}"

    @property
    def figures(self) -> dict[str, float | None]:
        """Return the numbers of a row by the heads of their columns."""
        name, best = self.best
        rate, seconds = self.last.get("train_images_per_sec"), self.last.get("wall_time_s")
        return {
            "parameters": self.last.get("parameters"),
            "steps": self.last.get("step"),
            "loss": self.last.get("eval/loss"),
            (name or "score"): self.last.get(f"eval/{name}"),
            f"best {name}".strip(): best,
            "minutes": seconds and seconds / 60,
            "images/s": rate or self.last.get("train/images_per_sec"),
        }


def main(argv: list[str]) -> int:
    """Compare the runs that `argv` names."""
    parser = Parser("jaxcnn compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", metavar="DIR", nargs="+", type=place, help="folders of runs, finished or not")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--md", action="store_true", help="a Markdown table")
    form.add_argument("--csv", action="store_true", help="one row for each run, every score in full precision")
    arguments = parser.parse_args(argv)
    places = {str(path.resolve()): path for path in arguments.workdir}.values()
    runs = [read_run(path, name) for path, name in zip(places, _names(list(places)), strict=True)]
    if arguments.csv:
        print(csv_text([_in_full(run, differing(runs)) for run in runs]), end="")
        return 0
    head, *rows = table(runs)
    if arguments.md:
        print(markdown_table([head, *rows]), end="")
    else:
        print(_fitted([head, *rows]))
    return 0


def _fitted(rows: Sequence[Sequence[str]]) -> str:
    """Return the table as text, turned over, a column a run, where that alone fits the terminal or comes nearer."""
    columns = list(zip(*rows, strict=True))
    wide, tall = (sum(max(map(len, line)) + 2 for line in lines) for lines in (columns, rows))
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < wide and tall < wide:
        rows = columns
    return text_table(rows[0], rows[1:], right=range(1, len(rows[0]) - (rows is not columns)))


def _names(places: Sequence[Path | Address]) -> list[str]:
    """Return the last parts of the paths, or the paths where two of those are the same."""
    short = [path.resolve().name for path in places]
    return short if len(set(short)) == len(short) else [str(path) for path in places]


def read_run(workdir: Path | Address, name: str) -> Run:
    """Return what the files in a run's folder say.

    Raises:
      UserError: it has no config.json that can be read, or its metrics.jsonl is damaged.
    """
    with stores.opened(workdir) as folder:
        config = _config(folder / "config.json", workdir)
        lines = read_metrics(folder / "metrics.jsonl")
        result = {key: value for key, value in read_result(folder).items() if type(value) in (int, float)}
    logged = {key: value for line in lines for key, value in line.items()}
    done = bool(result) and result.get("step", 0) >= logged.get("step", 0)
    best = _best(config, lines, result if done else {})
    return Run(name, config, logged | (result if done else {}), best, done)


def _config(path: Path, workdir: Path | Address) -> dict[str, Any]:
    """Return dotted key -> value; keys that the version of the run did not have yet are at their default."""
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no config.json: give the folder of a run of `jaxcnn train`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir}/config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{workdir}/config.json is no config: restore the file from a copy")
    task = config.get("task.name", "classification")
    rows = KEYS | TASK_KEYS[task] if isinstance(task, str) and task in TASK_KEYS else KEYS
    return {key: default for key, (default, *_) in rows.items()} | config


def _best(config: dict[str, Any], lines: list[dict[str, Any]], result: dict[str, Any]) -> tuple[str, float | None]:
    """Return the name of the score that picks the best checkpoint, and its best value so far."""
    if found := [key for key in result if key.startswith("best/eval/")]:
        return found[0].removeprefix("best/eval/"), result[found[0]]
    logged = {key for line in lines for key in line}
    names = [name for name in BEST if f"eval/{name}" in logged]
    if config.get("task.metric") == "coco" and "map" in names:
        names = ["map"]
    if not names:
        return "", None
    return names[0], BEST[names[0]](line[f"eval/{names[0]}"] for line in lines if f"eval/{names[0]}" in line)


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the keys of the configs that are not the same in all runs, in the order of their names."""
    keys = sorted({key for run in runs for key in run.config})
    return [key for key in keys if len({_value(run, key) for run in runs}) > 1]


def _value(run: Run, key: str) -> str:
    """Return the value of a key as the table has it; a run of another task or version may lack the key."""
    value = run.config.get(key, _ABSENT)
    return printable(str(list(value) if isinstance(value, tuple) else value))  # JSON has lists alone


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the finished runs that differ in the seed alone together, every other one by itself, in their order."""
    found: dict[Any, list[Run]] = {}
    for run in runs:
        rest = tuple(sorted((key, _value(run, key)) for key in run.config if key != "seed"))
        # A second run of one seed is a repetition and no further sample: it starts another row.
        key, again = (rest if run.done else run.name), 0
        while any(_value(run, "seed") == _value(other, "seed") for other in found.get((key, again), [])):
            again += 1
        found.setdefault((key, again), []).append(run)
    return list(found.values())


def table(runs: Sequence[Run]) -> list[list[str]]:
    """Return the head and the rows of the table; a column in which no run has anything is left out."""
    keys, rows = differing(runs), groups(runs)
    leaves = [key.rpartition(".")[2] for key in keys]
    # A last word that several groups have says nothing by itself.
    heads = [key if leaf == "name" or leaves.count(leaf) > 1 else leaf for key, leaf in zip(keys, leaves, strict=True)]
    figures = list(dict.fromkeys(name for run in runs for name, value in run.figures.items() if value is not None))
    counted = ["n"] if len(rows) < len(runs) else []
    lines = [["run", *heads, *counted, *figures, "state"]]
    for members in rows:
        more = f" (+{len(members) - 1})" if len(members) > 1 else ""
        values = [", ".join(dict.fromkeys(_value(run, key) for run in members)) for key in keys]
        cells = [_cell(name, [run.figures.get(name) for run in members]) for name in figures]
        count = [str(len(members))] if counted else []
        lines.append([f"{members[0].name}{more}", *values, *count, *cells, members[0].state])
    return lines


def _cell(name: str, values: Sequence[float | None]) -> str:
    """Return a number, or the mean of several ± their sample standard deviation (n - 1)."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return _ABSENT
    form = "{:,.0f}" if name in ("parameters", "steps", "images/s") else "{:.1f}" if name == "minutes" else "{:.5g}"
    spread = f" ± {statistics.stdev(numbers):.2g}" if len(numbers) > 1 and name not in ("parameters", "steps") else ""
    return form.format(statistics.mean(numbers)) + spread


def _in_full(run: Run, keys: Sequence[str]) -> dict[str, Any]:
    """Return the row of one run for a program: the differing keys, every number and every score of evaluation."""
    name, best = run.best
    row = {"run": run.name} | {key: run.config.get(key, "") for key in keys}
    row |= {key: run.last.get(key, "") for key in ("parameters", "step", "epoch", "wall_time_s")}
    row |= {"images_per_sec": run.figures["images/s"]}
    row |= {key: value for key, value in run.last.items() if key.startswith("eval/")}
    row |= {f"best/eval/{name}": best} if name else {}
    return {key: "" if value is None else value for key, value in row.items()} | {"state": run.state}
