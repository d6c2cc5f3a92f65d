"""What a run says of itself: lines at its start, metrics.jsonl, TensorBoard events, result.json, a progress bar."""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

import jaxcnn
from jaxcnn.config import Config
from jaxcnn.configfile import config_hash, to_json
from jaxcnn.safe_files import not_written, write_atomically
from jaxcnn.tasks.base import Headline
from jaxcnn.training.hlo import collectives
from jaxcnn.training.optimizer import describe_groups, missed_rates, peak_rate
from jaxcnn.training.program import ByBucket, Data, Program
from jaxcnn.training.run_files import read_metrics
from jaxcnn.training.sharding import describe
from jaxcnn.training.state import count_params, path_name, shapes_of

_RATES = {"train/images_per_sec": "{:,.0f} images/s", "train/data_wait_frac": "data wait {:.1%}"}
_COUNTS = {"eval/examples": "of {:,.0f}"}
_size = partial(decimal, precision=2)  # "1.64 kB"


class RunLog:
    """Writes a run's metrics; on resume, what was logged after the checkpoint is dropped, for it is computed again.

    Args:
      headline, best: the task's scores that the bar and the lines show; where there are none, the best one alone.
      start, total: the step resumed from and the last one.
      evaluation_due: whether that of step `start` is to come, too.
      writes: False in all processes but the first, which then only keep silent.
    """

    def __init__(
        self, workdir: Path, headline: Sequence[Headline], best: str, start: int, total: int, writes: bool = True,
        evaluation_due: bool = False,
    ):  # fmt: skip
        self.path, self.total, self.writes = workdir / "metrics.jsonl", total, writes
        self.bar: Progress | None = None
        formats = {item.name: item.format for item in headline} or {best: f"{best} {{:.4g}}"}
        self.formats = {f"train/{name}": form for name, form in formats.items()} | _RATES
        self.formats |= {f"eval/{name}": f"eval {form}" for name, form in formats.items()} | _COUNTS
        self.rates = ""  # what the bar shows until the next line of the log
        self.first: tuple[int, float] | None = None  # the first step seen and when, after compilation
        if not writes:
            return
        kept = [line for line in read_metrics(self.path) if line["step"] <= start]
        if evaluation_due:
            kept = [line for line in kept if line["step"] < start or "eval/examples" not in line]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = self.path.open("a", buffering=1)
        self.board = Board(workdir / "tensorboard", purge_step=start + 1)
        console = Console(stderr=True)
        if console.is_terminal:
            digits = len(str(total))
            columns = (  # on a narrow terminal the note is cut, the step and the time left are not
                TextColumn("step {task.completed:.0f}/{task.total:.0f}", table_column=_fixed(2 * digits + 6)),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                TextColumn(
                    "[cyan]{task.fields[note]}", table_column=Column(ratio=50, no_wrap=True, overflow="ellipsis")
                ),
                TimeRemainingColumn(table_column=_fixed(7)),
            )
            self.bar = Progress(*columns, console=console, expand=True)
            self.task = self.bar.add_task("train", total=total, completed=start, note="")
            self.bar.start()

    def advance(self, step: int, epoch: float, loss: float | None) -> None:
        """Move the bar; `loss` is that of the newest step whose loss has arrived."""
        self.first = self.first or (step, time.monotonic())
        if self.bar:
            newest = "" if loss is None else f"loss {loss:.4f} "
            self.bar.update(self.task, completed=step, note=f"epoch {epoch:.2f} {newest}{self.rates}")

    def say(self, text: str, everywhere: bool = False) -> None:
        """One plain line on stderr, above the bar if there is one; of the first process only, or `everywhere`."""
        if not self.writes and not everywhere:
            return
        if self.bar:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            try:
                print(text, file=sys.stderr, flush=True)
            except BrokenPipeError:  # nobody reads it any more: the run goes on
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    def metrics(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, the same in TensorBoard, and the note of the bar or a plain line."""
        if not self.writes:
            return
        try:
            self.file.write(json.dumps({"step": step, "epoch": epoch, **values}) + "\n")
        except OSError as error:
            raise not_written(self.path, error) from error
        self.board.scalars(step, values)
        if self.bar and any(name.startswith("train/") for name in values):
            words = self._words({name: value for name, value in values.items() if name != "train/loss"})
            self.rates = words.replace("  ", " ").replace("data wait", "wait")  # all of it fits in 80 columns
            self.advance(step, epoch, values.get("train/loss"))
        else:
            left = self._left(step) if any(name.startswith("train/") for name in values) else ""
            self.say(f"step {step}/{self.total}  epoch {epoch:.2f}  {self._words(values)}{left}")

    def _left(self, step: int) -> str:
        """Return words for the time to the last step, by that of all steps so far, evaluations included."""
        first, began = self.first or (step, 0.0)
        if not first < step < self.total:
            return ""
        seconds = (time.monotonic() - began) / (step - first) * (self.total - step)
        return f"  {timedelta(seconds=round(seconds))} left"

    def _words(self, values: dict[str, float]) -> str:
        return "  ".join(form.format(values[name]) for name, form in self.formats.items() if name in values)

    def flush(self) -> None:
        """Write out what is buffered, before the checkpoint that is past it."""
        if self.writes:
            self.board.flush()

    def close(self) -> None:
        """Flush and stop the bar."""
        if not self.writes:
            return
        if self.bar:
            self.bar.stop()
        with contextlib.suppress(OSError):  # what could not be written has been told
            self.file.close()
        self.board.close()


class Board:
    """A file of TensorBoard events, written in the caller's thread, so that its errors are the caller's.

    tensorboardX's SummaryWriter writes in a thread of its own: on a full disk that thread ends and training waits for
    its queue for ever, and `flush` leaves in the queue what a checkpoint relies on.

    TensorBoard reads the files of a folder by their names and drops what is at `purge_step` or later of those before:
    the number in the name grows although the clock may have been set back.
    """

    def __init__(self, folder: Path, purge_step: int):
        self.folder = folder
        numbers = [int(p.name.split(".")[3]) for p in folder.glob("events.out.tfevents.[0-9]*.*")]
        number = max([int(time.time()), *(n + 1 for n in numbers)])
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            self.records = RecordWriter(str(folder / f"events.out.tfevents.{number:010}.{socket.gethostname()}"))
            self._write(file_version="brain.Event:2")
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One point of each curve."""
        with self._writing():
            for name, value in values.items():
                self._write(step=step, summary=scalar(name, value))

    def flush(self) -> None:
        """Write out what is buffered."""
        with self._writing():
            self.records.flush()

    def close(self) -> None:
        """Write out what can be."""
        with contextlib.suppress(OSError):
            self.records.flush()
        with contextlib.suppress(OSError):
            self.records.close()

    def _write(self, **values: Any) -> None:
        self.records.write(Event(wall_time=time.time(), **values).SerializeToString())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise not_written(self.folder, error) from error


def _fixed(width: int) -> Column:
    return Column(no_wrap=True, min_width=width)


class Clock:
    """Where the time of a run goes, in seconds: training, waiting for data, and the rest; it goes on over restarts.

    Args:
      spent: totals of the run's earlier processes, from the checkpoint.
      began: when this process began, by `time.monotonic()`.
    """

    def __init__(self, spent: dict[str, float], began: float):
        self.began = began
        self.spent = {
            "wall_time_s": 0.0,
            "train_time_s": 0.0,
            "data_wait_s": 0.0,
            "compile_time_s": 0.0,
        } | spent
        self.earlier = self.spent["wall_time_s"]
        self.lap_train, self.lap_wait = self.spent["train_time_s"], self.spent["data_wait_s"]
        self.mark = self.began

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Add the block's time to `name`."""
        start = time.monotonic()
        yield
        self.spent[name] += time.monotonic() - start

    @contextmanager
    def waiting_for_data(self, flying: Sequence[Any]) -> Iterator[None]:
        """Count the block as data wait if the device was done with all that is `flying` by its end.

        Where it was still computing, the wait cost nothing. Where it was not, all of it counts: an upper bound.
        """
        start = time.monotonic()
        yield
        if not flying or flying[-1].is_ready():
            self.spent["data_wait_s"] += time.monotonic() - start

    def start(self) -> None:
        """Training begins, or goes on after something else."""
        self.mark = time.monotonic()

    def stop(self, state: Any) -> None:
        """Training pauses once the device is done with `state`, which it may still be computing."""
        jax.block_until_ready(state)
        self.spent["train_time_s"] += time.monotonic() - self.mark
        self.mark = time.monotonic()

    def lap(self, images: int) -> dict[str, float]:
        """Rates since the last lap, in which `images` were trained on; call it after `stop`."""
        train = self.spent["train_time_s"] - self.lap_train
        wait = self.spent["data_wait_s"] - self.lap_wait
        self.lap_train, self.lap_wait = self.spent["train_time_s"], self.spent["data_wait_s"]
        return {
            "train/images_per_sec": images / max(train, 1e-9),
            "train/data_wait_frac": wait / max(train, 1e-9),
        }

    def totals(self) -> dict[str, float]:
        """All that was spent, up to now."""
        return self.spent | {"wall_time_s": self.earlier + time.monotonic() - self.began}


def start_lines(config: Config, program: Program, data: Data, start: int) -> str:
    """Return the lines at the start: model, parameters, types, devices, what lies where on them, length."""
    devices, total, every = program.mesh.devices.flatten(), program.total_steps, data.steps_per_epoch
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.state))
    optimizer, mesh = config.optimizer, program.mesh.shape
    lines = [
        f"model      {config.model.name}, {count_params(program.state.params):,} parameters, "
        f"{data.num_classes} classes, images of {'×'.join(map(str, data.image_shape))}",
        f"types      {config.dtype} compute; parameters, statistics, loss and optimizer float32, {_size(state_bytes)}",
        f"devices    {len(devices)} × {devices[0].device_kind} ({devices[0].platform}), "
        f"processes {jax.process_count()}, mesh data {mesh['data']} × model {mesh['model']}",
        *_heads("placement", describe(program.state) if len(devices) > 1 else []),
        f"norm       {_norm(config, program)}; rematerialisation {config.remat}",
        f"data       {config.data.name}, {data.position['examples']:,} to train on, "
        f"{data.eval_examples:,} to evaluate on, augmentation {config.data.augment}",
        f"training   {total:,} steps of {config.global_batch_size}, {float(every):,.6g} an epoch; "
        f"{optimizer.name}, rate {peak_rate(config):g}, {optimizer.schedule}",
        f"optimizer  {describe_groups(program.groups, program.state.params)}; weight decay "
        f"{optimizer.weight_decay:g} on {_decayed(program):,}",
    ]
    lines += [f"note       {words}" for words in [*missed_rates(config, every), *_surprises(program, data)]]
    if start:
        lines.append(f"resuming   from the checkpoint of step {start:,}")
    return "\n".join(lines)


def _surprises(program: Program, data: Data) -> list[str]:
    """Return a sentence for what a run does that its config does not say."""
    found = []
    frozen = {path.rpartition("/")[0] for path, group in program.groups.items() if group.frozen}
    if frozen & {path.rpartition("/")[0] for path in shapes_of(program.state.batch_stats)}:
        found.append(
            "BatchNorm's statistics in frozen layers go on changing: model.overrides.frozen_norm=True fixes them"
        )
    if data.num_classes == 1 and "label" in program.largest_batch:
        found.append("there is one class, so every score is perfect: the data set needs two or more")
    return found


def _decayed(program: Program) -> int:
    """Return the number of parameters that train and decay."""
    sizes = {path: math.prod(shape) for path, shape in shapes_of(program.state.params).items()}
    return sum(size for path, size in sizes.items() if program.groups[path].decay and not program.groups[path].frozen)


def _norm(config: Config, program: Program) -> str:
    if not program.normalised:
        return "no BatchNorm"
    return f"BatchNorm over {program.normalised} images of {config.global_batch_size}, scope {config.norm.scope}"


def _heads(name: str, lines: list[str]) -> list[str]:
    """The lines with `name` before the first, and room for it before the others."""
    return [f"{name if i == 0 else '':<11}{line}" for i, line in enumerate(lines)]


def compiled_line(program: ByBucket, seconds: float) -> str:
    """Return the line after compilation: its time, memory on each device and collectives, of the largest bucket."""
    text = f"compiled   in {seconds:.1f} s"
    executable = max(program.programs.values(), key=lambda x: getattr(x.memory_analysis(), "temp_size_in_bytes", 0))
    if memory := executable.memory_analysis():
        held, temporary = (_size(size) for size in (memory.argument_size_in_bytes, memory.temp_size_in_bytes))
        text += f"; each device holds {held} of state and batch, {temporary} of temporaries"
    sent = [f"{count} × {kind} of {_size(size)}" for kind, (count, size) in collectives(executable).items()]
    return text + (f"; collectives per step: {', '.join(sent)}" if sent else "")


def result(
    config: Config, program: Program, workdir: Path, commit: str, images: int, spent: dict[str, float]
) -> dict[str, Any]:
    """What result.json holds: final metrics, what was run, on what, and how long it took.

    `images_per_sec` is all images trained on over all the wall time, compilation, evaluation and checkpoints included;
    `train_images_per_sec` is over the time spent training alone.
    """
    lines = read_metrics(workdir / "metrics.jsonl")
    final: dict[str, Any] = {}
    for line in lines:
        final |= line
    best, direction = program.task.best
    scores = [line[f"eval/{best}"] for line in lines if f"eval/{best}" in line]
    devices = program.mesh.devices.flatten()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "model": config.model.name,
        **final,
        f"best/eval/{best}": {"max": max, "min": min}[direction](scores, default=None),
        **program.task.about(),
        "parameters": count_params(program.state.params),
        "config_hash": config_hash(config),
        "commit": commit,
        "versions": {"jaxcnn": jaxcnn.__version__} | {name: version(name) for name in packages},
        "deterministic": config.deterministic,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "images": images,
        "images_per_sec": images / spent["wall_time_s"],
        "train_images_per_sec": images / max(spent["train_time_s"], 1e-9),
        "data_wait_frac": spent["data_wait_s"] / max(spent["train_time_s"], 1e-9),
        **spent,
    }


def commit() -> str:
    """The commit of the code that runs, "+" behind it if changed since; "" where the code is in no git checkout."""
    here = Path(jaxcnn.__file__).parent
    try:
        arguments = ["git", "-C", str(here), *["describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def dry_run(config: Config, program: Program, data: Data) -> str:
    """Compile the step -> the config as JSON, and lines of network, devices, steps, batches, optimizer, memory."""
    began = time.monotonic()
    train_step = program.compile_training()
    batches = [
        ", ".join(f"{path_name(path)} {x.dtype} {x.shape}" for path, x in jax.tree_util.tree_leaves_with_path(batch))
        for batch in program.batch.values()
    ]
    lines = [to_json(config), start_lines(config, program, data, 0), *_heads("batch", batches)]
    return "\n".join([*lines, compiled_line(train_step, time.monotonic() - began)])


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """Return what is worth a line of what `result` holds: the scores, and how long it took."""
    scores = [key for key in result if key.startswith("eval/")]
    keys = ("step", "epoch", "train/loss", *scores, "images_per_sec", "wall_time_s")
    return {key: result[key] for key in keys if key in result}
