"""Processes that a command starts: signals reach each of them once, and none outlives the command."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Children:
    """Processes to which SIGTERM and Ctrl-C go on as they come, the third time as SIGKILL; none outlives the block.

    Attributes:
      processes: those started, in that order.
      signal: the first signal that has come, or None.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.signal: signal.Signals | None = None
        self.received = 0

    def __enter__(self) -> "Children":
        self.before = {number: signal.signal(number, self._forward) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def start(
        self, words: Sequence[str], prepare: Callable[[], object] = lambda: None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a process of its own group, so that Ctrl-C reaches it once, by way of us; it is killed if we are.

        Args:
          prepare: called in the new process before it is what it will be.
          options: of `subprocess.Popen`.
        """
        before = _following(os.getpid(), prepare)
        fixed: dict[str, Any] = {"process_group": 0, "preexec_fn": before, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen[bytes](words, **fixed, **options)
        self.processes.append(process)
        if self.signal:  # It came while the process was started.
            process.send_signal(self.signal)
        return process

    def _forward(self, number: int, _: object) -> None:
        self.signal = self.signal or signal.Signals(number)
        self.received += 1
        for process in self.processes:
            process.send_signal(number if self.received < 3 else signal.SIGKILL)


def _following(parent: int, prepare: Callable[[], object]) -> Callable[[], None]:
    """Return what the new process does first: it asks the kernel to be killed when its parent ends."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def before() -> None:
        if libc:
            libc.prctl(_KILL_WITH_PARENT, signal.SIGKILL)
        prepare()
        if os.getppid() != parent:  # The parent ended before it could be asked for.
            os._exit(1)

    return before
