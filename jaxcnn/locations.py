"""Paths as users write them: `~`, file://, gs://, names composed otherwise; the folders of a user who has no home."""

import os
import re
import unicodedata
from pathlib import Path, PurePath, PurePosixPath
from typing import Self
from urllib.parse import unquote, urlsplit

from jaxcnn import UserError

# `Path` has made one slash of two.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])")
_WEB = ("http", "https")  # schemes of pages, which cannot be listed or written


class Address(PurePosixPath):
    """A place on an object store, such as gs://bucket/run, which `jaxcnn.stores` reads and writes."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def resolve(self) -> Self:
        """Return itself: it is complete, as a resolved path is."""
        return self


def place(text: str | PurePath, what: str = "a path") -> Path | Address:
    """Return what `location` does, or the address of an object store; errors are those of `location`."""
    return Address(text) if is_address(text) else location(text, what)


def is_address(text: str | os.PathLike[str]) -> bool:
    """Return whether a user has written the address of an object store: a scheme, but no file's or web page's, `://`."""
    scheme = _ADDRESS.match(written := os.fspath(text))
    return bool(scheme) and scheme[1].lower() not in ("file", *_WEB) and "\0" not in written


def location(text: str | os.PathLike[str], what: str = "a path") -> Path:
    """Return the path on this machine's file systems that a user has written.

    `~` and `~NAME` are homes, file:///DIR is /DIR. A name with accents that is not there is looked for in its other
    Unicode forms: macOS decomposes what keyboards compose.

    Raises:
      UserError: it is an address, such as gs://…, of another machine; or there is no such home.
    """
    written = os.fspath(text)
    if "\0" in written:
        raise UserError(f"{what} {written!r} has a zero byte: write a path")
    if re.match("file:/", written, re.IGNORECASE):
        parts = urlsplit(re.sub("^file:/+", "file:///", written, flags=re.IGNORECASE), allow_fragments=False)
        written = unquote(parts.path + (f"?{parts.query}" if parts.query else ""))
    elif (scheme := _ADDRESS.match(written)) and scheme[1].lower() in _WEB:
        raise UserError(f"{what} {Address(written)} is a web address: download it (curl -LO …) and give the local path")
    elif scheme:
        raise UserError(
            f"{what} {Address(written)} is an address, where only --workdir, config.init_from and folder: take one: "
            f"copy from and to a local folder, or mount it ({_mount(scheme[1])}) and give that"
        )
    path = Path(written)
    if written.startswith("~"):
        path = Path(os.path.expanduser(path))
        if path.parts[0].startswith("~") and not path.exists():
            raise UserError(f"{what} {written}: there is no such home: set HOME, or write the path in full")
    return _as_it_is_composed(path)


def _mount(scheme: str) -> str:
    return {"gs": "gcsfuse BUCKET DIR", "s3": "mount-s3 BUCKET DIR"}.get(scheme, "by FUSE, such as rclone mount")


def _as_it_is_composed(path: Path) -> Path:
    if str(path).isascii() or os.path.lexists(path):
        return path
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((form for form in forms if os.path.lexists(form)), path)


def composed(name: str) -> str:
    """Return a name as all systems agree on it: its characters composed (Unicode's NFC)."""
    return unicodedata.normalize("NFC", name)


def cache_folder() -> Path | None:
    """Return where programs keep what they can make again, XDG_CACHE_HOME or ~/.cache; None for a user without a home.

    None, too, where that cannot be written to, as the home of a container that is read only.

    A folder that all can write to, such as /tmp, is no place for it: compiled programs are executed.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    folder = Path(given or os.path.join(os.path.expanduser("~"), ".cache"))
    if not folder.is_absolute():
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
