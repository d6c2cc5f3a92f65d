"""Processes that a command starts: which signals reach them, how they begin, and that none is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from jaxcnn.commands.children import Children, _following

# These tests have loaded JAX, which warns of every fork; the commands have not.
pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
WAITS = [sys.executable, "-c", "import time; time.sleep(1e6)"]
STUBBORN = """
import os, signal, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.write(1, b"%d\\n" % number))
os.write(1, b"ready\\n")
while True:
    time.sleep(1e6)
"""
ABOUT_ITSELF = "import os, sys; print(os.getpgrp() == os.getpid(), sys.stdin.read(), os.getcwd(), sep='|')"


def test_two_signals_go_on_as_they_come_the_third_kills_and_the_first_is_remembered():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Children() as children:
        process: Any = children.start([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert process.stdout.readline() == b"%d\n" % number
        os.kill(os.getpid(), signal.SIGTERM)
        assert process.wait(60) == -signal.SIGKILL
        process.stdout.close()
    assert children.signal is signal.SIGINT
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_that_comes_while_a_process_starts_reaches_it():
    with Children() as children:
        os.kill(os.getpid(), signal.SIGTERM)
        assert children.signal == signal.SIGTERM
        assert children.start(WAITS).wait(60) == -signal.SIGTERM


def test_processes_do_not_outlive_the_block():
    with Children() as children:
        process = children.start(WAITS)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def typed() -> Iterator[None]:
    """There is something to read on our standard input."""
    before, (reading, writing) = os.dup(0), os.pipe()
    os.write(writing, b"typed")
    os.dup2(reading, 0)
    for descriptor in (reading, writing):
        os.close(descriptor)
    yield
    os.dup2(before, 0)
    os.close(before)


@pytest.mark.usefixtures("typed")
def test_a_process_has_a_group_of_its_own_and_nothing_to_read_and_is_prepared(tmp_path):
    with Children() as children:
        words = [sys.executable, "-c", ABOUT_ITSELF]
        process = children.start(words, partial(os.chdir, tmp_path), stdout=subprocess.PIPE)
        assert process.communicate()[0].decode() == f"True||{tmp_path}\n"


def test_a_process_whose_parent_has_ended_meanwhile_does_not_begin():
    before = _following(os.getpid() + 1, lambda: None)  # such is not the parent
    assert subprocess.run([sys.executable, "-c", ""], preexec_fn=before, check=False).returncode == 1


PARENT = """
import sys
from jaxcnn.commands.children import Children
with Children() as children:
    code = "import time; print('ready', flush=True); time.sleep(20); print('left')"
    children.start([sys.executable, "-c", code]).wait()
"""


def test_a_process_ends_with_a_parent_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        assert parent.stdout.read() == ""  # to its end, which comes when nobody can write any more
