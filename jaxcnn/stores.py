"""Runs and images on object stores: gs://…, s3://…, and whatever else fsspec reads and writes.

A run there is trained and read in a folder of this machine. What the store has is fetched into it at the start; what
the first process writes into it is copied back every few seconds and at the end. Each process has such a folder of its
own, since the machines of a pod share no disk.

Orbax is not given the address: of all stores it writes gs:// alone (0.12.8), without the moves and the checksums of
`training.checksums`. A checkpoint is on a store what it is on a disk, and is checked in the same way when it is read.
"""

import errno
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxcnn import UserError, safe_files
from jaxcnn.locations import Address

COMMIT = "commit_success.txt"  # Orbax writes it last: a checkpoint without it is not finished, here and on a store
SET_BACK = ".before"  # ends the name of a checkpoint while another of its step is written
EVERY = 15.0  # seconds between two looks at what a run has written
_AT_ONCE = 8  # files that are fetched at the same time
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}

_copies: dict[Path, "_Copy"] = {}  # folders of this machine that stand for an address


def file_system(address: Address) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and what it calls the address.

    Raises:
      UserError: its package is not installed, or there is none for that scheme.
    """
    import fsspec  # not at the top: no local run needs it

    scheme = str(address).partition(":")[0]
    try:
        return fsspec.core.url_to_fs(str(address))
    except ImportError as error:
        package = _PACKAGES.get(scheme, "the package that fsspec names")
        raise UserError(f"{address} cannot be reached ({_words(error)}): pip install {package}") from error
    except ValueError as error:
        words = "write gs://, s3:// or another scheme of fsspec, or give a folder"
        raise UserError(f"{address} cannot be reached ({_words(error)}): {words}") from error


@contextmanager
def reaching(address: Address | str, verb: str = "read") -> Iterator[None]:
    """Turn what the libraries of a store raise, each errors of its own, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        words = f"{address} cannot be {verb} ({_words(error)}): check the address, the network and your access to it"
        raise UserError(words) from error


def entries(folder: Address) -> list[tuple[bytes, bool]]:
    """Return the names in a folder of a store, each with whether it is a folder; [] of one that is not there.

    Raises:
      UserError: the store cannot be read.
    """
    fs, root = file_system(folder)
    with reaching(folder):
        try:
            found = fs.ls(root, detail=True)
        except FileNotFoundError:
            return []
    names = [(item["name"].rstrip("/"), item["type"] == "directory") for item in found]
    # A store may have an empty file for the folder itself.
    return [(os.fsencode(name.rpartition("/")[2]), kind) for name, kind in names if name.strip("/") != root.strip("/")]


def read_bytes(path: bytes, most: int) -> bytes:
    """Return the bytes of a file on a store.

    Raises:
      UserError: the store cannot be read.
      FileNotFoundError: it has no such file.
      ValueError: it has more than `most` bytes.
    """
    address = Address(os.fsdecode(path))
    fs, name = file_system(address)
    with reaching(address):
        try:
            found = fs.cat_file(name, end=most + 1)
        except FileNotFoundError:
            found = None
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(address))
    if len(found) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return found


def is_copy(folder: Path) -> bool:
    """Return whether a run's folder is this process's own, in place of one that all processes see."""
    return folder in _copies


def named(text: str) -> str:
    """Return `text` with addresses in place of the folders that stand for them."""
    for folder, copy in _copies.items():
        text = text.replace(str(folder), str(copy.address))
    return text


def complete(step: Path) -> None:
    """Fetch the arrays of a checkpoint, RUN/checkpoints/STEP, where RUN stands for an address."""
    if (copy := _copies.get(step.parent.parent)) and not (step / "state").exists():
        copy.fetch(lambda parts: parts[:3] == ("checkpoints", step.name, "state"))


def claim(folder: Path) -> None:
    """Begin to copy what is written into a run's folder, where that stands for an address, beginning with its lock.

    No store has a lock that goes with its process: the last trainer to come has the run, and the one before notices.
    """
    if copy := _copies.get(folder):
        copy.claim()


@contextmanager
def opened(workdir: Path | Address, arrays: bool = False) -> Iterator[Path]:
    """Give a run's folder on this machine: `workdir`, or a copy of what the store has there, removed at the end.

    Args:
      arrays: fetch those of all checkpoints; else `complete` fetches those of one.

    Raises:
      UserError: the store cannot be read; or, at the end of a run that was claimed, not be written: the copy stays.
    """
    if not isinstance(workdir, Address):
        yield workdir
        return
    copy = _Copy(workdir)
    _copies[copy.folder] = copy
    try:
        copy.fetch(lambda parts: arrays or parts[0] != "checkpoints" or parts[2] != "state")
        yield copy.folder
    except BaseException as error:
        error.args = tuple(named(word) if isinstance(word, str) else word for word in error.args)
        if os.strerror(errno.ENOSPC) in str(error):  # here, not there
            error.args = (f"{error}; the disk is that of {tempfile.gettempdir()}: TMPDIR names another folder",)
        if words := copy.close():
            _say(words)
        raise
    else:
        if words := copy.close():
            raise UserError(words)
    finally:
        del _copies[copy.folder]


class _Copy:
    """A folder of this machine that stands for a run on a store.

    Attributes:
      files: name of each file outside of checkpoints/ that the store has -> its state here when it was the same.
      steps: likewise of the store's checkpoints; None of one that is not finished.
      lost: whether another process has claimed the run since.
    """

    def __init__(self, address: Address):
        self.address, (self.fs, self.root) = address, file_system(address)
        self.folder = Path(tempfile.mkdtemp(prefix="jaxcnn-run-")).resolve()
        self.files, self.steps = dict[str, Any](), dict[str, Any]()
        self.thread: threading.Thread | None = None
        self.ending, self.lost = threading.Event(), False

    def fetch(self, wanted: Callable[[tuple[str, ...]], bool]) -> None:
        """Fetch the files of whose names the parts are `wanted`; of checkpoints those that are finished."""
        with reaching(self.address):
            there = [tuple(name.split("/")) for name in self._list("")]
            there = [parts for parts in there if not {"", ".", ".."} & {*parts}]  # a name leads nowhere else
            steps = {parts[1] for parts in there if parts[0] == "checkpoints" and parts[2:]}
            finished = {parts[1] for parts in there if parts[0] == "checkpoints" and parts[2:] == (COMMIT,)}
            there = [p for p in there if p[0] != "checkpoints" or (p[2:] and p[1] in finished)]
            files = [parts for parts in there if wanted(parts)]
            names = ["/".join(parts) for parts in files]
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                got = dict(zip(names, threads.map(self._get, names), strict=True))
        for parts, here in zip(files, got.values(), strict=True):
            if not here and parts[0] == "checkpoints":  # the run goes on, and has removed it meanwhile
                shutil.rmtree(self.folder / "checkpoints" / parts[1], ignore_errors=True)
        self.files = {name: self._state(name) for name in names if not name.startswith("checkpoints/")}
        self.steps = {step: self._state(f"checkpoints/{step}/{COMMIT}") for step in steps}

    def claim(self) -> None:
        """Write the lock to the store, and begin to copy."""
        with reaching(self.address, "written"):
            self._put(".lock")
        self.thread = threading.Thread(target=self._go_on, daemon=True)
        self.thread.start()

    def _go_on(self) -> None:
        """Copy every few seconds; say once that it fails, and try again."""
        failed = False
        while not self.ending.wait(EVERY) and not self.lost:
            words = self.copy_back()
            if words and not failed:
                _say(f"warning: {words}" + "; trying again" * (not self.lost))
            failed = bool(words)

    def close(self) -> str:
        """Copy the rest and remove the folder; or return why it stays."""
        words = ""
        if self.thread:
            self.ending.set()
            self.thread.join()
            words = self.copy_back()
        if words:
            return f"{words}; all of the run is in {self.folder}"
        shutil.rmtree(self.folder, ignore_errors=True)
        return ""

    def copy_back(self) -> str:
        """Copy what was written since the last time; return what is wrong, "" for nothing."""
        try:
            with reaching(self.address, "written"):
                self.lost = self.lost or self.fs.cat_file(self._there(".lock")) != (self.folder / ".lock").read_bytes()
                if self.lost:
                    return f"another process trains in {self.address} since: this one no longer writes there"
                steps = self._steps_here()  # first: a checkpoint goes after the lines of the log that are before it
                for name in self._files_here():
                    if self.files.get(name) != (state := self._state(name)):
                        self._put(name)
                        self.files[name] = state
                for step, state in steps.items():
                    if state not in (None, self.steps.get(step)):
                        try:
                            self._put_step(step)
                            self.steps[step] = state
                        except FileNotFoundError:  # newer ones have taken its place meanwhile
                            if self._state(f"checkpoints/{step}/{COMMIT}"):
                                raise
                for step in [step for step in self.steps if step not in steps]:
                    self._remove(step)
        except UserError as error:
            return str(error)
        return ""

    def _steps_here(self) -> dict[str, Any]:
        """Return the finished checkpoints with their states; one that is set back, and replaced soon, has None."""
        steps = {}
        for path in (self.folder / "checkpoints").glob("*"):
            state = self._state(f"checkpoints/{path.name}/{COMMIT}")
            if path.name.endswith(SET_BACK):
                steps.setdefault(path.name.removesuffix(SET_BACK), None)
            elif state and (path.name.isdecimal() or path.name.startswith("damaged-")):
                steps[path.name] = state
        return steps

    def _files_here(self) -> Iterator[str]:
        """Yield the names of all other files, but for those that are not written yet."""
        for folder, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if Path(folder, name) != self.folder / "checkpoints"]
            for name in files:
                if not name.startswith("."):
                    yield Path(folder, name).relative_to(self.folder).as_posix()

    def _put_step(self, step: str) -> None:
        """Copy a checkpoint; the file that says that it is finished goes last."""
        if step in self.steps:  # until the new one is there, a restart takes the old one
            if self.steps[step]:
                old, aside = (self._there(f"checkpoints/{name}") for name in (step, f"{step}{SET_BACK}"))
                for name in _commit_last(self._list(f"checkpoints/{step}")):
                    self.fs.cp_file(f"{old}/{name}", f"{aside}/{name}")
                self.steps[f"{step}{SET_BACK}"] = None
            self._remove(step)
        self.steps[step] = None
        folder = self.folder / "checkpoints" / step
        for name in _commit_last([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]):
            self.fs.put_file(str(folder / name), self._there(f"checkpoints/{step}/{name}"))

    def _remove(self, step: str) -> None:
        """Remove a checkpoint from the store; the file that says that it is finished goes first."""
        for name in reversed(_commit_last(self._list(f"checkpoints/{step}"))):
            self.fs.rm_file(self._there(f"checkpoints/{step}/{name}"))
        del self.steps[step]

    def _list(self, folder: str) -> list[str]:
        """Return the names of all files in a folder of the store, from that folder on."""
        self.fs.invalidate_cache()
        start = self._there(folder).rstrip("/")
        return [name.removeprefix(start).lstrip("/") for name in self.fs.find(start)]

    def _there(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def _get(self, name: str) -> bool:
        """Fetch a file; return whether it was there."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.fs.get_file(self._there(name), str(path))
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            return False
        return True

    def _put(self, name: str) -> None:
        """Copy a file that may grow meanwhile, all at once."""
        self.fs.pipe_file(self._there(name), safe_files.read_bytes(self.folder / name, 2**32))

    def _state(self, name: str) -> Any:
        """Return what changes whenever a file here is written; None where there is none."""
        try:
            status = os.stat(self.folder / name)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def _commit_last(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (name == COMMIT, name))


def _words(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:200] or type(error).__name__


def _say(words: str) -> None:
    print(safe_files.printable(words), file=sys.stderr, flush=True)
