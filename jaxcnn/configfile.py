"""Configs on the disk: experiment files, and the `config.json` of a run.

An experiment file is Python and is *executed* when it is loaded: load those that you trust. A config as JSON, such as a
run's `config.json`, is data and is only parsed: it may come from anyone.
"""

import ast
import difflib
import hashlib
import inspect
import json
import re
import runpy
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcnn import UserError
from jaxcnn.config import OPEN, Config, base_config, flatten, group_of, keys_of, typed, unknown_key, validate
from jaxcnn.locations import location
from jaxcnn.safe_files import read_json, shown

_MOST = 2**20  # bytes of a config in JSON, which has some three thousand


def set_key(config: Config, key: str, text: str) -> None:
    """Set dotted `key` from the text of the command line, by the type of the key's default."""
    if key.startswith(OPEN + ".") and key.count(".") == 2:
        config.model.overrides[key.rsplit(".", 1)[-1]] = _literal(text)
        return
    keys = keys_of(config.task.name)
    if key not in keys:
        raise unknown_key(key, keys)
    if key == "task.name" and text != config.task.name:
        keys_of(text)  # names the tasks if there is no such one
        raise UserError(
            f"config.task.name={shown(text)}: this config is of the task '{config.task.name}' and lacks the other's "
            f"keys: start from a file with base_config(task='{text}')"
        )
    default = keys[key][0]
    value = text if isinstance(default, str) else _literal(text)
    if isinstance(default, bool):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(default, tuple):
        value = tuple(value) if isinstance(value, tuple | list) else () if text == "" else (value,)
    group_of(config, key)[key.rpartition(".")[2]] = typed(key, value, keys)


def _literal(text: str) -> Any:
    """Return the Python literal that `text` is, or the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def load_config(path: str | Path, overrides: Iterable[tuple[str, str]] = ()) -> Config:
    """Execute an experiment file, apply (key, text) overrides, and check the result.

    Args:
      path: FILE or FILE:ARGUMENT, where ARGUMENT is passed to the file's `get_config`, as ml_collections has it. A
        file of that very name, colons included, comes first. A file lists what it takes as its `ARGUMENTS`.

    Raises:
      UserError: a missing or broken file, an argument that is due, not taken or unknown, an unknown key, a wrong type
        or value; one line that says where.
    """
    file, argument = split_argument(path)
    if not file.is_file():
        raise UserError(f"config file {file} does not exist: pass an experiment such as experiments/digits/resnet20.py")
    if file.suffix != ".py":
        hint = ": give it as --config-json" if file.suffix == ".json" else " (experiments/*/*.py are examples)"
        raise UserError(f"config file {file} is not a Python file{hint}")
    try:
        module = runpy.run_path(str(file))
        if "get_config" not in module:
            raise UserError(f"config file {file} defines no get_config()")
        _check_argument(file, module, argument)
        config = module["get_config"](*argument)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_config_file_error(file, error)) from error
    if not isinstance(config, ConfigDict) or not config.is_locked:
        raise UserError(f"config file {file}: get_config() must return the ConfigDict made by base_config()")
    for key, text in overrides:
        set_key(config, key, text)
    validate(config)
    return config


def split_argument(path: str | Path) -> tuple[Path, tuple[str, ...]]:
    """Return the file of FILE or FILE:ARGUMENT, and its argument in a tuple that is empty where there is none."""
    text = str(location(path, "--config"))
    colons = [i for i, letter in enumerate(text) if letter == ":"]
    for end in reversed([*colons, len(text)]):  # a path may hold colons: the longest one that exists is the file
        if Path(text[:end]).is_file():
            return Path(text[:end]), (text[end + 1 :],) if end < len(text) else ()
    file, colon, argument = text.partition(".py:")  # there is no such file: the error names this part
    return (Path(f"{file}.py"), (argument,)) if colon else (Path(text), ())


def _check_argument(file: Path, module: dict[str, Any], argument: tuple[str, ...]) -> None:
    """Raise a UserError if the file's get_config is given an argument that it does not take, or lacks one."""
    known = [str(name) for name in module.get("ARGUMENTS", ())]
    try:
        inspect.signature(module["get_config"]).bind(*argument)
    except TypeError:
        if argument:
            raise UserError(f"config file {file} takes no argument: pass it without ':{argument[0]}'") from None
        names = f", where ARGUMENT is one of {', '.join(known)}" if known else ", and see the file for its arguments"
        raise UserError(f"config file {file} needs an argument: pass {file}:ARGUMENT{names}") from None
    if argument and known and argument[0] not in known:
        near = difflib.get_close_matches(argument[0], known, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? It" if near else "it"
        raise UserError(f"config file {file} has no '{argument[0]}': {hint} has {', '.join(known)}")


def _config_file_error(path: Path, error: Exception) -> str:
    """Return a line for an exception out of a config file: where, what, and the nearest key if one was misspelt."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else 0)
    text = " ".join(str(_literal(str(error).strip())).split())  # a KeyError's words are quoted
    if unknown := re.match(r'Key "(.*?)" does not exist', text):
        near = re.search(r'Did you mean "(.*?)" instead', text)  # ConfigDict's, after all the fields of its group
        text = f"config has no key '{unknown[1]}': did you mean '{near[1]}'?" if near else str(unknown_key(unknown[1]))
    return f"{path}:{line}: {type(error).__name__}: {text}"


def to_json(config: Config) -> str:
    """Return the resolved config as JSON: what `config.json` holds."""
    return json.dumps(flatten(config), indent=1, sort_keys=True)


def from_json(
    path: str | Path, overrides: Iterable[tuple[str, str]] = (), whose: str = "a run's config.json"
) -> Config:
    """Return the config in a JSON object, such as a run's `config.json`; data only, nothing is executed.

    Its keys are dotted ("optimizer.name") or nested; those it lacks are at their default. `overrides` go over it.

    Args:
      whose: what the file should be, for the error.

    Raises:
      UserError: a missing or broken file, an unknown key, a wrong type or value; one line that says where.
    """
    try:
        values = read_json(Path(path), _MOST)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
        items = list(_dotted(values))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the folder of a run of `jaxcnn train --workdir`") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not {whose}: {error}") from None
    task = dict(items).get("task.name", "classification")  # it decides which other keys there are
    keys, config = keys_of(task), base_config(task)
    for key, value in items:
        if key.startswith(OPEN + "."):
            config.model.overrides[key.removeprefix(OPEN + ".")] = value
        elif key in keys:
            group_of(config, key)[key.rpartition(".")[2]] = typed(key, value, keys)
        else:
            raise unknown_key(key, keys)
    for key, text in overrides:
        set_key(config, key, text)
    validate(config)
    return config


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of an object whose groups may be objects in it."""
    for key, value in values.items():
        if not isinstance(value, dict):
            yield prefix + key, value
        elif prefix.count(".") < 2:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            raise ValueError(f"'{prefix}{key}' is an object within objects: no key is that deep"[:200])


def config_hash(config: Config) -> str:
    """Return twelve hex digits that change when any value does."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]
