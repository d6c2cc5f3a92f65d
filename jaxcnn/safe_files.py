"""Files that others wrote or read at the same time: bounded reads, strict JSON, printable text, atomic writes, locks.

A reader of a file of someone else's begins here. See SECURITY.md.
"""

import csv
import errno
import io
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from jaxcnn import UserError

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # what file systems without locks answer
_BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file by `git lfs pull`",
    b"<!doctype html": "a web page: download the file again",
    b"<html": "a web page: download the file again",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"bzh": "compressed by bzip2: unpack it",
    b"\xfd7zxz": "compressed by xz: unpack it",
    b"{": "JSON",
}
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


def looks_like(head: bytes) -> str:
    """Return words for what stands in place of a file of another kind, by its first bytes; "" where that is unknown."""
    for beginning, words in _BEGINNINGS.items():
        if head.lstrip(b"\xef\xbb\xbf \r\n").lower().startswith(beginning):
            return words
    return "a tar archive: unpack it" if head[257:262] == b"ustar" else ""


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace the file in one move, so that neither a reader nor a crash ever sees half of it.

    Raises:
      UserError: it cannot be written; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> UserError:
    """Return the error for a file or folder of a run that could not be written."""
    return UserError(f"{path} cannot be written ({error.strerror}): fix that and run the same command again")


def make_writable(folder: Path, option: str) -> None:
    """Make the folder that an option names, and raise a UserError where nothing can be written to it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{option} {folder} is a file: name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{option} {folder}: {error.strerror}: name a folder that can be written to") from error


@contextmanager
def only_trainer(workdir: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel releases it however the process ends.

    A file system without locks gets a warning in place of the lock.

    Raises:
      UserError: another process trains there (its host and number are named), or the folder cannot be written.
    """
    path = workdir / ".lock"
    # A soft lock, which is a file that exists, would outlive a killed process and refuse to let the run go on.
    lock = FileLock(path, timeout=0, fallback_to_soft=False, preserve_lock_file=True)
    with ExitStack() as held:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock)
        except Timeout:
            owner = path.read_text().strip() or "another process"
            words = f"--workdir {workdir} is in use by {owner}: end it first, or choose another folder"
            raise UserError(words) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise UserError(f"--workdir {workdir} cannot be written: {error.strerror}") from error
            words = f"warning: {workdir} cannot be locked ({error.strerror}): start no second process that trains there"
            print(words, file=sys.stderr, flush=True)
        with suppress(OSError):  # The lock holds even where a full disk has no room for the owner's name.
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, below a heading of all their columns.

    A spreadsheet takes a text that begins with one of = + - @, a tab or a carriage return for a formula: such a text
    has an apostrophe before it. Numbers stay as they are.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    # All texts are quoted: by default csv leaves a carriage return bare, which ends a line.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([_inert(column) for column in columns])
    writer.writerows([_inert(row.get(column, "")) for column in columns] for row in rows)
    return text.getvalue()


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = value.encode(errors="backslashreplace").decode()  # a file's name need not be text
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
