"""What a run tells: the files, and the terminal or plain lines."""

import contextlib
import json
import os
import pty
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]
from tensorboardX.record_writer import RecordWriter

from jaxcnn import UserError
from jaxcnn.tasks.classification import Classification
from jaxcnn.training.run_files import read_metrics
from jaxcnn.training.run_log import Board, RunLog

LINE = {"train/loss": 1.25, "train/top1": 0.5, "train/images_per_sec": 1234.5, "train/data_wait_frac": 0.01}
SCORES = {"eval/loss": 0.75, "eval/top1": 0.625, "eval/examples": 37}

HEADLINE = Classification.headline


def events(workdir: Path) -> list[Any]:
    """All TensorBoard events, file by file; a record is its length, a checksum, the bytes and a checksum."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def told(workdir: Path, start: int = 0) -> None:
    log = RunLog(workdir, HEADLINE, "top1", start, 12)
    log.say("model  tiny")
    for step in range(start + 1, 13):
        log.advance(step, step / 5, 2.5)
    log.metrics(12, 2.4, LINE)
    log.metrics(12, 2.4, SCORES)
    log.close()


def test_without_a_terminal_it_says_plain_lines_on_stderr_and_nothing_else(tmp_path, capsys):
    told(tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "model  tiny",
        "step 12/12  epoch 2.40  loss 1.2500  top-1 50.00%  1,234 images/s  data wait 1.0%",
        "step 12/12  epoch 2.40  eval loss 0.7500  eval top-1 62.50%  of 37",
    ]
    assert all(c == "\n" or c.isprintable() for c in err)


def test_plain_lines_of_training_say_the_time_that_is_left(tmp_path, capsys):
    log = RunLog(tmp_path, HEADLINE, "top1", 100, 1000)
    with mock.patch("time.monotonic", side_effect=[50.0, 60.0]):  # of steps 101 and 121: half a second a step
        log.advance(101, 20.2, None)
        log.metrics(121, 24.2, LINE)
    log.metrics(121, 2.4, SCORES)
    log.metrics(1000, 2.4, LINE)
    log.close()
    first, scores, last = capsys.readouterr().err.splitlines()
    assert first.endswith("  1,234 images/s  data wait 1.0%  0:07:20 left")
    assert "left" not in scores + last


@contextmanager
def terminal() -> Iterator[list[str]]:
    """stderr is a terminal 100 columns wide; afterwards the list holds what it showed."""
    near, far = pty.openpty()
    text, parts = list[str](), list[bytes]()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(near, 65536):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    environment = {"COLUMNS": "100", "TERM": "xterm-256color", "NO_COLOR": ""}
    with (
        os.fdopen(far, "w") as stderr,
        mock.patch.object(sys, "stderr", stderr),
        mock.patch.dict(os.environ, environment),
    ):
        yield text
    reader.join(10)
    os.close(near)
    text.append(b"".join(parts).decode())


def test_on_a_terminal_it_shows_a_bar_with_the_steps_and_the_loss_and_the_scores_above_it(tmp_path):
    with terminal() as shown:
        told(tmp_path)
    (text,) = shown
    for part in ("\x1b[", "━", "12/12", "loss 1.2500", "eval top-1 62.50%  of 37", "model  tiny"):
        assert part in text, part
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_a_resumed_bar_starts_where_the_run_was(tmp_path):
    with terminal() as shown:
        RunLog(tmp_path, HEADLINE, "top1", 5, 12).close()
    assert " 5/12" in shown[0]


def test_metrics_keep_every_digit(tmp_path):
    log = RunLog(tmp_path, HEADLINE, "top1", 0, 3)
    exact = {"train/loss": 0.1 + 0.2, "train/grad_norm": 1e-30, "train/top1": 1 / 3}
    log.metrics(3, 1 / 3, exact)
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 3, "epoch": 1 / 3, **exact}]


def test_a_line_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    log = RunLog(tmp_path, HEADLINE, "top1", 0, 3)
    log.metrics(1, 0.2, LINE)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    log.close()


def test_lines_after_the_checkpoint_are_dropped_when_the_run_goes_on_and_a_torn_one_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "epoch": step / 5, "train/loss": step / 3}) for step in (4, 8, 8, 12)]
    path.write_text("\n".join(lines) + '\n{"step": 16, "ep')
    assert [line["step"] for line in read_metrics(path)] == [4, 8, 8, 12]
    RunLog(tmp_path, HEADLINE, "top1", 8, 20).close()
    assert path.read_text() == "\n".join(lines[:3]) + "\n"


def test_a_new_run_in_a_folder_starts_with_an_empty_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "epoch": 1.0}\n')
    RunLog(tmp_path, HEADLINE, "top1", 0, 20).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_tensorboard_has_every_value_at_its_step(tmp_path):
    told(tmp_path)
    found = {(v.tag, e.step): v.simple_value for e in events(tmp_path) for v in e.summary.value}
    assert found == {(name, 12): pytest.approx(value) for name, value in (LINE | SCORES).items()}


@pytest.mark.parametrize("start", [0, 8])
def test_tensorboard_is_told_from_where_a_run_does_again_what_was_told(start, tmp_path):
    """From the first step too: a process killed before its first checkpoint has told something."""
    told(tmp_path, start)
    assert [e.step for e in events(tmp_path) if e.HasField("session_log")] == [start + 1]


@pytest.mark.parametrize("damage", ["garbage", "3", '{"epoch": 1}'])
def test_a_damaged_line_of_metrics_is_an_error_that_names_it_unless_it_is_the_last(damage, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damage}\n')
    assert [line["step"] for line in read_metrics(path)] == [1]
    path.write_text(f'{{"step": 1}}\n{damage}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 "):
        RunLog(tmp_path, HEADLINE, "top1", 2, 3)
    assert len(path.read_text().splitlines()) == 3, "nothing is lost"


def test_a_process_that_does_not_write_is_silent(tmp_path, capsys):
    log = RunLog(tmp_path, HEADLINE, "top1", 0, 3, writes=False)
    log.say("hello")
    log.advance(1, 0.1, 2.0)
    log.metrics(1, 0.2, LINE)
    log.close()
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_with_the_file(tmp_path):
    log = RunLog(tmp_path, HEADLINE, "top1", 0, 10)
    log.file.close()
    log.file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with pytest.raises(UserError, match=r"metrics\.jsonl .*No space left"):
        log.metrics(1, 0.1, {"train/loss": 1.0})
    log.board.close()
    log.board.records = RecordWriter("/dev/full")
    log.board.scalars(1, {"train/loss": 1.0})
    with pytest.raises(UserError, match=r"tensorboard .*No space left"):
        log.flush()
    log.close()  # and is no second error


def test_the_files_of_tensorboard_are_in_the_order_of_the_runs_though_the_clock_is_set_back(tmp_path, monkeypatch):
    for number, now in enumerate((5e9, 4e9, 4e9, 6e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        Board(tmp_path, purge_step=number).close()
    names = sorted(tmp_path.iterdir())
    assert [int(path.name.split(".")[3]) for path in names] == [5 * 10**9, 5 * 10**9 + 1, 5 * 10**9 + 2, 6 * 10**9]
