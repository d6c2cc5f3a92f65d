"""The errors of Orbax: what it prints of them is silenced, for it raises them too, and their words are made short.

And one that is none: it reckons its time limits by the wall clock, which may be set while a checkpoint is written.
"""

import contextlib
import importlib
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import absl.logging


def quieten() -> None:
    """Print no error that the next call of Orbax raises: of a save that fails, hundreds of lines from its threads.

    And no warning either: it has one for every folder that is opened for reading.
    """
    absl.logging.set_verbosity(absl.logging.ERROR)
    if _raised_nowhere not in logging.getLogger("absl").filters:
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_raised_nowhere)
        sys.unraisablehook = partial(_report, sys.unraisablehook)


class _Steady:
    """The module `time`, its `time` counting from some moment on."""

    time = staticmethod(time.monotonic)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def steady() -> None:
    """Let Orbax's time limits run by a clock that nobody sets."""
    futures = [f"futures.{name}" for name in ("future", "signaling_client", "synchronization")]
    for name in (*futures, "checkpointers.async_checkpointer"):
        with contextlib.suppress(ImportError):  # of another version: then a clock that is set may end a save
            module: Any = importlib.import_module(f"orbax.checkpoint._src.{name}")
            module.time = _Steady()


def _raised_nowhere(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    places = [record.pathname, record.getMessage(), *(frame.filename for frame in traceback.extract_tb(trace))]
    return not any("/orbax/" in place for place in places)


def _report(before: Callable[[Any], None], what: Any) -> None:
    # tensorstore would tell each array's failure to an event loop that the first one has ended.
    if not isinstance(what.exc_value, RuntimeError) or str(what.exc_value) != "Event loop is closed":
        before(what)


def reason(error: Exception) -> str:
    """The system's words for the error, where tensorstore hides its number in a long text; else its first line."""
    if number := re.search(r"os_error_code='?(\d+)", str(error)):
        return os.strerror(int(number[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
