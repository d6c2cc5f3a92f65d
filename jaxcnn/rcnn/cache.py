"""Features on the disk, by what they are of: a file for each image, bounded in all, replaced where one is damaged."""

import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np

from jaxcnn import UserError
from jaxcnn.safe_files import write_atomically

Arrays = dict[str, np.ndarray]
_NAME = "{}.npz"


class Cache:
    """Arrays by the digest of what they were computed from.

    A file is written in one move, and its checksums are compared when it is read: one that a crash or a disk has
    damaged is removed, as if it had never been there. Where the limit is reached, files that this run has not used go
    first, the oldest ones; if all are in use, nothing is kept of further images, and they are computed again in every
    pass. An eviction of files in use would not help: every pass over all images would miss all of them.

    Args:
      folder: made if it must be; no other process may use it.
      limit: bytes of all files.

    Attributes:
      bytes: of all files.
      refused: how many arrays were not kept.

    Raises:
      UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit, self.refused = folder, limit, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f".{_NAME.format('*')}.*"):
                path.unlink(missing_ok=True)  # A process that was killed while it wrote has left it.
            found = [(path, path.stat()) for path in folder.glob(_NAME.format("*"))]
        except OSError as error:
            raise UserError(f"{folder} cannot hold features ({error.strerror}): name another folder") from error
        # Name -> bytes of the files that this run has not used, the oldest first, and of those that it has.
        self.unused = {path.name: status.st_size for path, status in sorted(found, key=lambda each: each[1].st_mtime)}
        self.used = dict[str, int]()

    @property
    def bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(self.unused.values()) + sum(self.used.values())

    def claim(self, key: str) -> bool:
        """Return whether there is a file of this key, which may be damaged; it counts as used from now on."""
        name = _NAME.format(key)
        if name in self.unused:
            self.used[name] = self.unused.pop(name)
        return name in self.used

    def get(self, key: str) -> Arrays | None:
        """Return the arrays of a key, None where there are none or they are damaged."""
        if not self.claim(key):
            return None
        name = _NAME.format(key)
        path = self.folder / name
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {array: file[array] for array in file.files}
            os.utime(path)
            return arrays
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"features   {path} is damaged ({type(error).__name__}): computed again", file=sys.stderr)
            del self.used[name]
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, arrays: Arrays) -> bool:
        """Keep the arrays of a key if there is room; return whether there was.

        Raises:
          UserError: they cannot be written.
        """
        name, memory = _NAME.format(key), io.BytesIO()
        np.savez(memory, allow_pickle=False, **arrays)
        size = memory.getbuffer().nbytes
        while self.bytes + size > self.limit and self.unused:
            oldest = next(iter(self.unused))
            (self.folder / oldest).unlink(missing_ok=True)
            del self.unused[oldest]
        if self.bytes + size > self.limit:
            if not self.refused:
                print(
                    f"features   {self.folder} has reached its limit of {self.limit:,} bytes: those of further images "
                    "are computed in every pass; raise --cache-gb to keep them",
                    file=sys.stderr,
                )
            self.refused += 1
            return False
        write_atomically(self.folder / name, memory.getvalue())
        self.used[name] = size
        return True
