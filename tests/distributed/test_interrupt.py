"""Signals that end a run between two steps."""

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from jaxcnn.distributed.interrupt import Cut, Interrupt, Interrupted


def child(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **options)


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
    with child(ENDS, "unsaved", "in C", stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "\n"  # A progress bar may be in the line.
        assert "SIGTERM" in process.stdout.readline()
        assert process.poll() is None
        process.terminate()
        assert process.wait() == 143


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


def test_the_exit_code_is_the_shells_for_the_signal():
    assert Interrupted(signal.SIGINT, "stopped").code == 130
    assert str(Interrupted(signal.SIGTERM, "stopped at step 3")) == "SIGTERM: stopped at step 3"


def test_the_guard_imports_no_jax():
    code = "import sys, jaxcnn.distributed.interrupt; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
