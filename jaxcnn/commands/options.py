"""What several commands share: overrides of a config on the command line, and the set-up of JAX."""

import argparse
import os
from pathlib import Path
from typing import Any, NoReturn

from jaxcnn import UserError

OVERRIDES = "any key of jaxcnn/config.py can be set with --config.KEY=VALUE, such as --config.epochs=5"


class Parser(argparse.ArgumentParser):
    """argparse, but wrong use is a UserError: one line, as for all other bad input. Options are written in full."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage."""
        dash = " (a file whose name begins with - goes after --, or as ./-…)" if "unknown argument -" in message else ""
        raise UserError(f"{self.prog.removeprefix('jaxcnn ')}: {message}{dash}; `{self.prog} --help` tells how")


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Parse `argv` -> the command's arguments and the overrides as (key, text); anything else unknown is an error."""
    arguments, rest = parser.parse_known_args(argv)
    overrides = []
    while rest:
        word = rest.pop(0)
        key, equals, text = word.partition("=")
        if not key.startswith("--config."):
            parser.error(f"unknown argument {word}")
        if not equals:
            if not rest:
                parser.error(f"{word} has no value: write {word}=VALUE")
            text = rest.pop(0)
        overrides.append((key.removeprefix("--config."), text))
    return arguments, overrides


def count(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    number = int(text) if text.isascii() and text.isdecimal() else 0
    if not 1 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: write a whole number, 1 or more")
    return number


def add_config(parser: argparse.ArgumentParser, name: str = "--config") -> None:
    """Declare `name` and --config-json, of which exactly one is due."""
    group = parser.add_mutually_exclusive_group(required=True)
    words = "experiment file; it is Python and is executed: trust where it is from (ARG: what its get_config is given)"
    may_lack: dict[str, Any] = {} if name.startswith("-") else {"nargs": "?"}
    group.add_argument(name, metavar="FILE[:ARG]", help=words, **may_lack)
    words = "a config in JSON, such as a run's config.json; nothing in it is executed"
    group.add_argument("--config-json", metavar="FILE", type=Path, help=words)


def config_of(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> Any:
    """The config that the arguments of `add_config` name, with `overrides`; errors are those of `jaxcnn.configfile`."""
    from jaxcnn.configfile import from_json, load_config

    if arguments.config_json:
        if not arguments.config_json.exists():
            raise UserError(f"config file {arguments.config_json} does not exist: a run's config.json is such a file")
        return from_json(arguments.config_json, overrides, "a config in JSON")
    return load_config(arguments.config, overrides)


def set_up_jax(config: Any = None) -> None:
    """Keep compiled programs on the disk, so that the second start of a run does not compile again.

    JAX_COMPILATION_CACHE_DIR moves the cache; JAX_ENABLE_COMPILATION_CACHE=false turns it off.

    Args:
      config: with `deterministic`, XLA is asked for deterministic GPU operations; other devices ignore the flag.
    """
    flag, given = "--xla_gpu_deterministic_ops=true", os.environ.get("XLA_FLAGS", "")
    if config is not None and config.deterministic and flag not in given.split():
        os.environ["XLA_FLAGS"] = f"{given} {flag}".strip()  # XLA reads it once, when JAX starts its backend below
    import jax
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # Orbax warns of every folder that is opened for reading
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxcnn" / "xla"))
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX finds no device: {error}") from error
