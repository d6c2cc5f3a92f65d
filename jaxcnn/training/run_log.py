"""What a run tells: metrics.jsonl, TensorBoard events, result.json, and a progress bar or plain lines on stderr."""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from jaxcnn import UserError
from jaxcnn.safe_files import not_written, read_bytes, write_atomically
from jaxcnn.tasks.base import Headline

_RATES = {"train/images_per_sec": "{:,.0f} images/s", "train/data_wait_frac": "data wait {:.1%}"}
_COUNTS = {"eval/examples": "of {:,.0f}"}
_MOST = 2**30  # bytes of a metrics.jsonl


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a crash is left out.

    Raises:
      UserError: another line is damaged.
    """
    try:
        texts = read_bytes(path, _MOST).splitlines() if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path} is no file of metrics: {error}") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if not all(type(value) in (int, float) for value in line.values()):
                raise ValueError
            lines.append(line | {"step": int(line["step"])})
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            if number < len(texts):
                raise UserError(f"{path}:{number} is no line of metrics: mend or remove that line") from None
    return lines


class RunLog:
    """Writes a run's metrics; on resume, what was logged after the checkpoint is dropped, for it is computed again.

    Args:
      headline: the task's scores that the bar and the lines show.
      start, total: the step resumed from and the last one.
      evaluation_due: whether that of step `start` is to come, too.
      writes: False in all processes but the first, which then only keep silent.
    """

    def __init__(
        self, workdir: Path, headline: Sequence[Headline], start: int, total: int, writes: bool = True,
        evaluation_due: bool = False,
    ):  # fmt: skip
        self.path, self.total, self.writes = workdir / "metrics.jsonl", total, writes
        self.bar: Progress | None = None
        formats = {item.name: item.format for item in headline}
        self.formats = {f"train/{name}": form for name, form in formats.items()} | _RATES
        self.formats |= {f"eval/{name}": f"eval {form}" for name, form in formats.items()} | _COUNTS
        self.rates = ""  # what the bar shows until the next line of the log
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
        if self.bar and "train/loss" in values:
            words = self._words({name: value for name, value in values.items() if name != "train/loss"})
            self.rates = words.replace("  ", " ").replace("data wait", "wait")  # all of it fits in 80 columns
            self.advance(step, epoch, values["train/loss"])
        else:
            self.say(f"step {step}/{self.total}  epoch {epoch:.2f}  {self._words(values)}")

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
