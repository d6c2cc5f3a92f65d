"""Several runs of one file: which they are, which of them are done, and the table of their scores.

The file is TOML, a table for each config:

    [[run]]
    config = "../digits/resnet20.py"       # FILE[:ARGUMENT] from the file's own folder, or a list of them
    seeds = [0, 1, 2]
    set = { epochs = 5 }                   # keys of the config and their values
    sweep = { "optimizer.learning_rate" = [0.001, 0.003], dtype = ["bfloat16", "float32"] }

Every combination of configs, values and seeds is a run. A run's folder is named after the config, the keys that are
swept and the seed, so that a value or a seed more leaves the other names as they are.
"""

import hashlib
import itertools
import re
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.configfile import config_hash, load_config, split_argument
from jaxcnn.safe_files import csv_text, read_bytes
from jaxcnn.tasks import create_task
from jaxcnn.tasks.base import Headline
from jaxcnn.text_table import markdown_table
from jaxcnn.training.run_files import read_result

_LARGEST = 2**20  # bytes of a sweep's file
_LONGEST = 120  # letters of a folder's name, which a file system takes
_KEYS: dict[str, tuple[type, ...]] = {
    "config": (str, list), "name": (str,), "set": (dict,), "sweep": (dict,), "seeds": (list,)
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      name: of its folder.
      group: the same without the seed: the runs of a group differ in it alone.
      source: FILE[:ARGUMENT] of its experiment.
      overrides: what is set over it, as texts of the command line.
      config: all of it together.
    """

    name: str
    group: str
    source: str
    overrides: Mapping[str, str]
    config: Config

    def command(self, workdir: Path) -> list[str]:
        """Return the words of `jaxcnn …` that train it, in one process whatever the surroundings."""
        keys = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return ["train", "--config", self.source, "--workdir", str(workdir), *keys, "--processes", "1"]

    def differs_in_seed_alone(self, other: "Run") -> bool:
        """Return whether the two are the same but for the seed."""
        mine, theirs = ({**run.overrides, "seed": ""} for run in (self, other))
        return (self.source, mine) == (other.source, theirs)

    def result(self, out: Path) -> dict[str, Any]:
        """Return its result.json in the sweep's folder; {} where this very config has none yet."""
        found = read_result(out / self.name)
        return found if found.get("config_hash") == config_hash(self.config) else {}


def read_sweep(path: Path) -> list[Run]:
    """Return the runs of a sweep's file; their configs are Python, and are executed.

    Raises:
      UserError: a missing or broken file, an unknown key, a bad config, or two runs of one name.
    """
    try:
        values = tomllib.loads(read_bytes(path, _LARGEST).decode())
    except OSError as error:
        raise UserError(f"sweep {path} cannot be read: {error.strerror}: experiments/sweeps/ has examples") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8 or no regular file
        raise UserError(f"sweep {path} is no file of TOML: {error}") from error
    tables = values.pop("run", None)
    if values:
        raise UserError(f"sweep {path} has no key '{next(iter(values))}': it holds tables of the form [[run]]")
    _expect(path, "run", isinstance(tables, list) and tables, "one or more tables, each below a line [[run]]")
    runs: dict[str, Run] = {}
    groups: dict[str, Run] = {}
    for run in itertools.chain.from_iterable(_runs(path, table) for table in tables or ()):
        # Runs of one group must differ in their seed alone, or their mean would be over different configs.
        if run.name in runs or not groups.setdefault(run.group, run).differs_in_seed_alone(run):
            raise UserError(f"sweep {path} has two runs '{run.name}': give one of their tables another name = \"…\"")
        runs[run.name] = run
    return list(runs.values())


def _runs(path: Path, table: Any) -> list[Run]:
    """Return the runs of one table: configs × values of each swept key × seeds."""
    _check(path, table)
    configs = table["config"] if isinstance(table["config"], list) else [table["config"]]
    fixed, swept, seeds = table.get("set", {}), table.get("sweep", {}), table.get("seeds", [None])
    leaves = [key.rpartition(".")[2] for key in swept]
    shown = [key if leaves.count(leaf) > 1 else leaf for key, leaf in zip(swept, leaves, strict=True)]
    runs = []
    for config, values, seed in itertools.product(configs, itertools.product(*swept.values()), seeds):
        source = str(path.parent / config)
        overrides = {key: _text(value) for key, value in {**fixed, **dict(zip(swept, values, strict=True))}.items()}
        start = [table["name"]] if "name" in table else []
        if not start or len(configs) > 1:  # A table's own name does not tell its configs apart.
            start.append(_name_of(source))
        group = ",".join([*start, *(f"{key}={_text(value)}" for key, value in zip(shown, values, strict=True))])
        name = group
        if seed is not None:
            overrides["seed"], name = str(seed), f"{group},seed={seed}"
        runs.append(Run(_folder(name), group, source, overrides, load_config(source, overrides.items())))
    return runs


def _check(path: Path, table: Any) -> None:
    """Raise a UserError that names the key unless a table has what it must, of the types that it must be."""
    _expect(path, "run", isinstance(table, dict), "one or more tables, each below a line [[run]]")
    for key, value in table.items():
        if key not in _KEYS:
            raise UserError(f"sweep {path}: a run has no key '{key}': {', '.join(_KEYS)}")
        _expect(path, key, isinstance(value, _KEYS[key]), f"of type {_KEYS[key][0].__name__}")
    configs, swept, seeds = table.get("config"), table.get("sweep", {}), table.get("seeds", [0])
    listed = configs if isinstance(configs, list) else [configs]
    _expect(path, "config", listed and all(c and isinstance(c, str) for c in listed), 'FILE[:ARGUMENT], as "a.py"')
    sound = seeds and all(type(seed) is int for seed in seeds)
    _expect(path, "seeds", sound and len(set(seeds)) == len(seeds), "integers, each once: [0, 1, 2]")
    for key, value in table.get("set", {}).items():
        _expect(path, f"set.{key}", not isinstance(value, dict), 'a value: write dotted keys in quotes, { "a.b" = 1 }')
    for key, values in swept.items():
        words = 'a list of values: write dotted keys in quotes, { "a.b" = [1, 2] }'
        _expect(path, f"sweep.{key}", isinstance(values, list) and values, words)
    _expect(path, "sweep.seed", "seed" not in swept, "left out: write seeds = [0, 1, 2]")
    twice = [key for key in swept if key in table.get("set", {})] + ["seed"] * ("seeds" in table)
    for key in twice:
        _expect(path, f"set.{key}", key not in table.get("set", {}), "left out, as its values are listed elsewhere")


def _expect(path: Path, key: str, sound: Any, words: str) -> None:
    if not sound:
        raise UserError(f"sweep {path}: '{key}' must be {words}")


def _text(value: Any) -> str:
    """Return a value as the command line has it."""
    return value if isinstance(value, str) else repr(value)


def _name_of(source: str) -> str:
    """Return "resnet" for ../imagenet/resnet.py, "resnet_resnet50" for ../imagenet/resnet.py:resnet50."""
    file, argument = split_argument(source)
    return "_".join([file.stem, *argument])


def _folder(name: str) -> str:
    """Return `name` as that of a folder, without what a shell or a file system would take for something else."""
    plain = re.sub(r"[^\w.,=+-]+", "_", name).lstrip(".-") or "run"
    if len(plain.encode()) <= _LONGEST:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain.encode()[: _LONGEST - 9].decode(errors='ignore')}-{digest}"


def tables(runs: Sequence[Run], out: Path, states: Mapping[str, str]) -> tuple[str, str]:
    """Return the sweep's table as Markdown, with the mean ± sd over the seeds of a group, and as CSV, one row a run.

    Args:
      states: what is said of each run, by its name; the scores are those of the runs that are "done".
    """
    results = {run.name: read_result(out / run.name) if states[run.name] == "done" else {} for run in runs}
    scores = _headline(runs)
    rows = [("run", *scores, "time", "state")]
    for group in dict.fromkeys(run.group for run in runs):
        members = [run for run in runs if run.group == group]
        for run in members:
            shown = [_shown(score, [results[run.name]]) for score in scores.values()]
            rows.append((run.name, *shown, _duration(results[run.name]), states[run.name]))
        if len(members) > 1:
            done = [results[run.name] for run in members if results[run.name]]
            means = [_shown(score, done) for score in scores.values()]
            rows.append((f"{group}: mean ± sd", *means, "", f"{len(done)} of {len(members)} seeds"))
    return markdown_table(rows), _csv(runs, results, states, list(scores))


def _headline(runs: Sequence[Run]) -> dict[str, Headline]:
    """Return the scores that the tasks of the runs show, the best one where they show none."""
    tasks = [create_task(run.config) for run in runs]
    shown = {score.name: score for task in tasks for score in task.headline}
    return shown or {task.best[0]: Headline(task.best[0], "{:.4g}") for task in tasks}


def _shown(score: Headline, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the score of one result, or the mean of several ± their sample standard deviation (n - 1)."""
    values = [result[f"eval/{score.name}"] for result in results if f"eval/{score.name}" in result]
    form = score.format[score.format.index("{") :]  # without the words before the number
    if len(values) < 2:
        return form.format(*values) if values else ""
    return f"{form.format(statistics.mean(values))} ± {form.format(statistics.stdev(values))}"


def _duration(result: Mapping[str, Any]) -> str:
    seconds = result.get("wall_time_s")
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _csv(runs: Sequence[Run], results: Mapping[str, Any], states: Mapping[str, str], scores: Sequence[str]) -> str:
    """Return one row a run: what was set in it, its scores in full, its time in seconds, and its state."""
    keys = list(dict.fromkeys(key for run in runs for key in run.overrides))
    rows = []
    for run in runs:
        found = results[run.name]
        row = {"run": run.name, "config": run.source} | {key: run.overrides.get(key, "") for key in keys}
        row |= {f"eval/{name}": found.get(f"eval/{name}", "") for name in scores}
        rows.append(row | {"wall_time_s": found.get("wall_time_s", ""), "state": states[run.name]})
    return csv_text(rows)
