"""The errors of Orbax: what it prints of them is silenced, for it raises them too, and their words are made short."""

import logging
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any


def quieten() -> None:
    """Print no error that the next call of Orbax raises: of a save that fails, hundreds of lines from its threads."""
    if _raised_nowhere not in logging.getLogger("absl").filters:
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_raised_nowhere)
        sys.unraisablehook = partial(_report, sys.unraisablehook)


def _raised_nowhere(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname and "/orbax/" not in record.getMessage()


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
