"""Files of someone else: what is read is bounded, what is parsed means one thing, what is shown writes no escapes.

A reader of such a file begins here. See SECURITY.md.
"""

import json
import os
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

MAX_JSON = 2**26  # bytes; a manifest of a million classes or shards stays below it


def read_bytes(path: str | bytes | Path, most: int) -> bytes:
    """The bytes of a file.

    Raises:
      OSError: it cannot be opened or read.
      ValueError: it is no regular file, or has more than `most` bytes.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # without that flag a pipe would block
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > most:
            raise ValueError(f"it has {status.st_size:,} bytes, more than {most:,}")
        return file.read()


def read_json(path: Path, most: int = MAX_JSON) -> Any:
    """The value in a JSON file; errors are those of `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, most))


def parse_json(text: str | bytes) -> Any:
    """The value of JSON in UTF-8.

    Raises:
      ValueError: it is none, is nested too deeply, has a key twice, NaN, Infinity, or half of a surrogate pair.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # which half a pair cannot be
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)[:80]!r} twice")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def shown(value: Any) -> str:
    """A value in a line of error: as Python writes it, but no longer than a path."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


def printable(text: str) -> str:
    """`text` without what could write escapes to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
