"""One trainer to a folder, and signals that end a run between two steps."""

import fcntl
import io
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxcnn import UserError
from jaxcnn.distributed.interrupt import Cut, Interrupt, Interrupted, only_trainer

HOLDS = "import sys, time, pathlib; from jaxcnn.distributed.interrupt import only_trainer\n"
HOLDS += "with only_trainer(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_a_second_trainer_is_refused_with_the_process_that_is_there_and_death_lets_go_of_the_folder(tmp_path):
    workdir = tmp_path / "new" / "run"
    with child(HOLDS, workdir) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with (
                pytest.raises(UserError, match=rf"in use by process {holder.pid} on \S+: end it first"),
                only_trainer(workdir),
            ):
                pass
        finally:
            holder.kill()  # SIGKILL: nothing of its own tidies up
    with only_trainer(workdir):
        assert (workdir / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_the_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), only_trainer(tmp_path):
        raise ZeroDivisionError
    with only_trainer(tmp_path):
        pass


@pytest.mark.parametrize("blocked", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_an_error(blocked, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: "), only_trainer(tmp_path / blocked):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_flag_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert interrupt.signal is None
        os.kill(os.getpid(), number)
        assert interrupt.signal is number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_process_at_once(second, code):
    wait = "import time; from jaxcnn.distributed.interrupt import Interrupt\n"
    wait += "with Interrupt() as i:\n print('ready', flush=True)\n while not i.signal: time.sleep(0.01)\n"
    wait += " print('flag', flush=True)\n time.sleep(60)"
    with child(wait) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "flag\n"
        process.send_signal(second)
        assert process.wait(timeout=30) == code


ENDS = """
import hashlib, sys, time
from jaxcnn.distributed.interrupt import Interrupt, end_process
with Interrupt(end_process) as interrupt:
    interrupt.unsaved = sys.argv[1] == "unsaved"
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9) if sys.argv[2] == "in C" else time.sleep(30)
"""


@pytest.mark.parametrize("where", ["in C", "in Python"])
def test_with_nothing_unsaved_one_signal_ends_the_process_wherever_it_is(where):
    with child(ENDS, "nothing", where) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=30) == 143


def test_with_something_unsaved_it_takes_two_though_the_main_thread_is_in_c():
    with child(ENDS, "unsaved", "in C") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.terminate()
        assert process.wait(timeout=30) == 143


def test_a_signal_ends_the_wait_for_what_never_comes():
    def nothing() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGTERM)
        queue.SimpleQueue[int]().get()

    with Interrupt() as interrupt:
        items = nothing()
        assert interrupt.next(items) == 1
        with pytest.raises(Cut):
            interrupt.next(items)
        assert interrupt.signal is signal.SIGTERM
        with pytest.raises(Cut):  # nor does another wait begin
            interrupt.next(iter([2]))


def test_without_a_signal_the_next_is_the_next():
    with Interrupt() as interrupt:
        assert interrupt.next(iter([1])) == 1
        assert interrupt.next(iter([]), None) is None
        with pytest.raises(StopIteration):
            interrupt.next(iter([]))
        os.kill(os.getpid(), signal.SIGINT)  # between two of them it is only noted
        assert interrupt.signal is signal.SIGINT


def test_the_lock_holds_on_a_disk_without_room_for_its_owners_name(tmp_path, monkeypatch):
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

        def fileno(self) -> int:
            return handle

    handle = os.open(tmp_path / ".lock", os.O_CREAT | os.O_RDWR)
    monkeypatch.setattr(Path, "open", lambda *_: Full())
    with only_trainer(tmp_path):
        other = os.open(tmp_path / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)
    os.close(other)


def test_the_exit_code_is_the_shells_for_the_signal():
    assert Interrupted(signal.SIGINT, "stopped").code == 130
    assert str(Interrupted(signal.SIGTERM, "stopped at step 3")) == "SIGTERM: stopped at step 3"


def test_the_guard_imports_no_jax():
    code = "import sys, jaxcnn.distributed.interrupt; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_lock_of_the_same_process_counts_too(tmp_path: Path):
    with only_trainer(tmp_path), pytest.raises(UserError, match="in use by process"), only_trainer(tmp_path):
        pass
