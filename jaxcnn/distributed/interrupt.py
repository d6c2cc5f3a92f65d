"""Signals that end a run: SIGTERM and Ctrl-C become a flag that the loop reads, so that all steps are saved."""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

from jaxcnn.safe_files import printable


def flush() -> None:
    """Write out what is buffered, where there is someone to read it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed; or None, which began closed
            stream.flush()


def end_process(code: int, words: str) -> NoReturn:
    """End with a last line on stderr, wherever the main thread is."""
    flush()
    start = "\x1b[?25h\n" if os.isatty(2) else ""  # there may be a progress bar, which hides the cursor
    os.write(2, f"{start}jaxcnn: {printable(' '.join(words.split()))}\n".encode(errors="backslashreplace"))
    os._exit(code)


class Cut(Exception):
    """A signal has come: what was begun is not finished."""


class Interrupt:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads; a second one ends the process at once.

    With `end` the first does, too, while nothing is unsaved. A thread sees to it: the main one may compile for minutes.

    Attributes:
      signal: the first that has come, or None.
      unsaved: whether steps have been taken that a checkpoint is to have.

    Args:
      end: (exit code, words) ends the process.
    """

    def __init__(self, end: Callable[[int, str], object] | None = None) -> None:
        self.signal: signal.Signals | None = None
        self.unsaved = self.waiting = False
        self.end = end
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
        self.wakeup = signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.wakeup)
        os.close(self.writing)

    def next(self, items: Iterator[Any], *default: Any) -> Any:
        """As the built-in `next`, but a signal ends the wait.

        Raises:
          Cut: a signal has come, before or meanwhile.
        """
        try:
            self.waiting = True
            if self.signal:
                raise Cut
            return next(items, *default)
        finally:
            self.waiting = False

    def _receive(self, number: int, _: object) -> None:
        """In the main thread, once it is in Python."""
        self.signal = self.signal or signal.Signals(number)
        if self.waiting:
            self.waiting = False
            raise Cut

    def _watch(self, reading: int) -> None:
        """In a thread, when the signal comes."""
        come = 0
        while number := int.from_bytes(os.read(reading, 1)):
            if number not in self.before:
                continue
            name, come = signal.Signals(number).name, come + 1
            if come > 1:
                end_process(128 + number, f"{name} again: ended at once")
            if self.end and not self.unsaved:
                again = "run the same command again to go on"
                self.end(128 + number, f"{name}: stopped before a step was taken, there is nothing to save; {again}")
            os.write(2, f"\njaxcnn: {name}: stopping after this step; once more ends it at once\n".encode())
        os.close(reading)


class Preemption:
    """An `Interrupt` of several processes, by JAX's preemption service: all stop at one step.

    SIGTERM is JAX's: its handler is C++'s, one of Python installed later would disable it, one installed earlier would
    never be called. Ctrl-C is forwarded to it. Every reading of `signal`, and every wait, is a point that each process
    passes for the n-th time as its n-th; JAX chooses the one at which all stop. A signal during compilation is noticed
    at the first of them, and a second one changes nothing.

    Attributes:
      unsaved: as of `Interrupt`.
    """

    def __init__(self) -> None:
        self.unsaved, self.points = False, itertools.count()
        self.received = self.agreed = 0

    def __enter__(self) -> "Preemption":
        self.before = signal.signal(signal.SIGINT, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    @property
    def signal(self) -> signal.Signals | None:
        """The signal by which all processes stop here, or None; Ctrl-C in any of them is Ctrl-C in all."""
        import jax
        import numpy as np
        from jax.experimental import multihost_utils

        if not self.agreed and multihost_utils.reached_preemption_sync_point(next(self.points)):
            with jax.transfer_guard("allow"):  # The loop forbids what is not explicit.
                received = multihost_utils.process_allgather(np.int32(self.received))
            self.agreed = int(signal.SIGINT if signal.SIGINT in received else signal.SIGTERM)
        return signal.Signals(self.agreed) if self.agreed else None

    def next(self, items: Iterator[Any], *default: Any) -> Any:
        """As the built-in `next`, and a point too; the wait has its end in `config.data.timeout`.

        Raises:
          Cut: all stop here.
        """
        if self.signal:
            raise Cut
        return next(items, *default)

    def _forward(self, number: int, _: object) -> None:
        self.received = number
        os.kill(os.getpid(), signal.SIGTERM)
        os.write(2, b"\njaxcnn: SIGINT: stopping at the next step that all processes can stop at\n")


class Interrupted(Exception):
    """The run was asked to stop and has saved; `code` is the shell's for the signal (130 Ctrl-C, 143 SIGTERM)."""

    def __init__(self, number: signal.Signals, message: str):
        super().__init__(f"{number.name}: {message}")
        self.code = 128 + number
