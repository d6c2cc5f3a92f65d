"""What keeps a run safe from outside: one trainer to a folder, and signals that end it between two steps."""

import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxcnn import UserError


@contextmanager
def only_trainer(workdir: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets go of it however the process ends.

    Raises:
      UserError: another process trains there (its host and number are named), or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(
                f"--workdir {workdir} is in use by {owner}: end it first, or choose another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


class Interrupt:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = signal.Signals(number)
        # Not print: the signal may have come in the middle of one.
        said = f"\njaxcnn: {self.signal.name}: stopping after this step or evaluation; once more ends it at once\n"
        os.write(2, said.encode())


class Interrupted(Exception):
    """The run was asked to stop and has saved; `code` is the shell's for the signal (130 Ctrl-C, 143 SIGTERM)."""

    def __init__(self, number: signal.Signals, message: str):
        super().__init__(f"{number.name}: {message}")
        self.code = 128 + number
