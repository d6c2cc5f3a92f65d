"""Checksums of a checkpoint's files, so that damage is noticed before anything is trained on it or scored with it.

Orbax's own do not reach the data of arrays: a bit that flips there would be read as another weight.
"""

import json
import os
import shutil
import zlib
from pathlib import Path

from jaxcnn import UserError
from jaxcnn.safe_files import read_json
from jaxcnn.stores import COMMIT, SET_BACK

MANIFEST = "checksums.json"
PROMISE = {"checksums": MANIFEST}  # in Orbax's metadata of a checkpoint: one of an older version has no manifest
UNFINISHED = ".orbax-checkpoint-tmp"  # ends the name of a folder that Orbax is writing
DELETED = ".deleted"  # a checkpoint goes there in one move, and then file by file
_METADATA = "_CHECKPOINT_METADATA"  # Orbax writes this one and COMMIT last, after the manifest


def seal(folder: Path) -> None:
    """Write the manifest of a checkpoint whose files are all there: size and CRC-32 of each."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    sums = {name: _checksum(folder / name) for name in names if name != _METADATA}
    (folder / MANIFEST).write_text(json.dumps(sums))


def fault(folder: Path, part: str = "") -> str:
    """What is wrong with the files of a checkpoint, "" for nothing, in the manifest's order.

    Args:
      part: only the files whose names begin so.
    """
    name = _METADATA
    try:
        about = read_json(folder / name).get("custom_metadata") or {}
        if "checksums" not in about:
            return ""  # written by an older version: Orbax will say what it notices
        name = COMMIT
        os.stat(folder / name)
        name = MANIFEST
        manifest = read_json(folder / name)
        for name, (size, checksum) in manifest.items():
            if os.path.isabs(name) or ".." in Path(name).parts:
                return f"{MANIFEST} names a file outside of the folder"
            if not name.startswith(part):
                continue
            if (found := os.stat(folder / name).st_size) != size:
                return f"{name} has {found:,} of {size:,} bytes"
            if _checksum(folder / name)[1] != checksum:
                return f"{name} has other bytes than were written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name}: {error.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{name} is damaged"
    return ""


def put_in_order(folder: Path) -> list[str]:
    """Before a run goes on: finish what a kill has left undone, and move damaged checkpoints out of the way.

    Returns:
      What to say of it. The newest checkpoint is sound afterwards, and the scores of all others are.

    Raises:
      UserError: all there are are damaged. They stay where they are, or the next start would be a new run.
    """
    sweep(folder)
    steps = sorted((path for path in folder.glob("[0-9]*") if path.name.isdecimal()), key=lambda path: int(path.name))
    damaged: dict[Path, str] = {}
    while steps and (words := fault(steps[-1])):
        damaged[steps.pop()] = words
    if damaged and not steps:
        newest, words = next(iter(damaged.items()))
        raise UserError(
            f"every checkpoint in {folder} is damaged (of the newest, {newest.name}, {words}): "
            "restore one from a backup, or start again in a new --workdir"
        )
    damaged |= {step: words for step in steps[:-1] if (words := fault(step, "metrics/"))}
    return [_set_aside(step, words, steps[-1].name) for step, words in damaged.items()]


def _set_aside(step: Path, words: str, newest: str) -> str:
    aside = step.with_name(f"damaged-{step.name}")
    shutil.rmtree(aside, ignore_errors=True)
    step.rename(aside)
    return f"checkpoint {step} is damaged ({words}): now {aside.name}, going on from step {newest}"


def set_back(step: Path) -> None:
    """Make room for another checkpoint of the same step; until it is there, a restart takes this one."""
    step.rename(f"{step}{SET_BACK}")


def sweep(folder: Path) -> None:
    """While nothing is being written: delete what is no checkpoint any more, or was never finished."""
    for before in folder.glob(f"*{SET_BACK}"):
        if not before.with_suffix("").exists():
            before.rename(before.with_suffix(""))  # what was to replace it was not finished
    for pattern in (f"{DELETED}/*", f"*{SET_BACK}", f"*{UNFINISHED}*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _checksum(path: Path) -> list[int]:
    """Size in bytes and CRC-32."""
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]
