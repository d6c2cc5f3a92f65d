"""What commands share: options, overrides of a config, the set-up of JAX, and running in several processes."""

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jaxcnn import UserError
from jaxcnn.distributed.interrupt import flush
from jaxcnn.locations import cache_folder, location

if TYPE_CHECKING:
    from jaxcnn.distributed.processes import Team

ENDS: list[Callable[[int], object]] = []  # called with the exit code once a command is over
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")  # endings of pictures
OVERRIDES = "any key that `jaxcnn config` lists can be set with --config.KEY=VALUE, such as --config.epochs=5"


class Parser(argparse.ArgumentParser):
    """argparse, but wrong use is a UserError: one line, as for all other bad input. Options are written in full."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage."""
        dash = " (a file whose name begins with - goes after --, or as ./-…)" if "unknown argument -" in message else ""
        raise UserError(f"{self.prog.removeprefix('jaxcnn ')}: {message}{dash}; see `{self.prog} --help`")


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


def count(text: str, most: int = 2**31 - 1, least: int = 1) -> int:
    """Return a whole number from `least` to `most`, for argparse."""
    number = int(text) if text.isascii() and text.isdecimal() else -1
    if not least <= number <= most:
        words = f"{least} or more" if most == 2**31 - 1 else f"{least} to {most}"
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: write a whole number, {words}")
    return number


def picture(text: str, endings: tuple[str, ...] = PICTURES) -> Path:
    """Return the path of a picture to write, for argparse; its folder is made by `save`. PNG needs no ending."""
    path = location(text, "picture")
    if path.suffix.lower() not in ("", *endings):
        raise argparse.ArgumentTypeError(f"{text}: the ending says the format, one of {' '.join(endings)}")
    return path


def save(figure: Any, out: Path) -> None:
    """Write a matplotlib figure in the format of its ending, in a folder that is made if it must be."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120, format=out.suffix[1:].lower() or "png")


def add_config(parser: argparse.ArgumentParser, name: str = "--config") -> Any:
    """Declare `name` and --config-json, of which exactly one is due; return their group, which others may join."""
    group = parser.add_mutually_exclusive_group(required=True)
    words = "experiment file; it is Python and is executed: trust where it is from (ARG: what its get_config is given)"
    may_lack: dict[str, Any] = {} if name.startswith("-") else {"nargs": "?"}
    group.add_argument(name, metavar="FILE[:ARG]", help=words, **may_lack)
    words = "a config in JSON, such as a run's config.json; nothing in it is executed, a model MODULE:CLASS is imported"
    group.add_argument("--config-json", metavar="FILE", type=location, help=words)
    return group


def config_of(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> Any:
    """The config that the arguments of `add_config` name, with `overrides`; errors are those of `jaxcnn.configfile`."""
    from jaxcnn.configfile import from_json, load_config

    if arguments.config_json:
        if not arguments.config_json.exists():
            raise UserError(f"config file {arguments.config_json} does not exist: a run's config.json is such a file")
        return from_json(arguments.config_json, overrides, "a config in JSON")
    return load_config(arguments.config, overrides)


def set_up_jax(devices: bool = True) -> None:
    """Keep compiled programs on the disk, so that the second start of a run does not compile again.

    JAX_COMPILATION_CACHE_DIR moves the cache; JAX_ENABLE_COMPILATION_CACHE=false turns it off.

    Args:
      devices: whether to look for devices now, which takes the memory of a GPU.

    Raises:
      UserError: there is no device.
    """
    import jax

    from jaxcnn.distributed.processes import check_devices

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and (cache := cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(cache / "jaxcnn" / "xla"))
    # jaxlib 0.12 cannot write a program with convolutions by oneDNN to the disk: it is compiled at each start.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry", UserWarning)
    if devices:
        check_devices()


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """The options of a command that several processes can run together."""
    words = "this is one of several processes; SLURM, TPU pods and Kubernetes need none of these options"
    group = parser.add_argument_group("several processes", words)
    group.add_argument("--coordinator", metavar="HOST:PORT", type=_address, help="where process 0 listens")
    group.add_argument("--processes", metavar="N", type=int, help="how many; 1: alone, whatever the surroundings")
    group.add_argument("--process", metavar="I", type=int, help="which this one is, from 0 on")
    words = "how long to wait for the others (default: 300)"
    group.add_argument("--start-timeout", metavar="SECONDS", type=_seconds, default=300.0, help=words)
    words = "after how long a silent process counts as dead, which ends all others (default: 60)"
    group.add_argument("--heartbeat-timeout", metavar="SECONDS", type=_seconds, default=60.0, help=words)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < 2**31:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r}: write a number of seconds, more than 0")


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r}: write HOST:PORT, such as node1:29500")
    return text


@contextmanager
def team_of(arguments: argparse.Namespace, stops: bool = False) -> Iterator["Team"]:
    """The processes that run this command together, joined as the options of `add_hosts` or the surroundings say.

    JAX must not have touched a device yet.

    Args:
      stops: whether SIGTERM stops all of several processes at one step, which the command then has to notice.
    """
    from jaxcnn.distributed.processes import by_flags, by_surroundings, joined

    count, process = arguments.processes, arguments.process
    given = [value is not None for value in (arguments.coordinator, count, process)]
    if given == [False, True, False] and count == 1:
        start = None
    elif not any(given):
        start = by_surroundings()
    elif not all(given):
        raise UserError("--coordinator, --processes and --process go together: give all three, or none")
    elif count < 1 or not 0 <= process < count:
        raise UserError(f"--process {process} --processes {count}: processes are numbered from 0 to N - 1")
    else:
        start = by_flags(arguments.coordinator, count, process) if count > 1 else None
    ends = [end_at_once] * (start is not None)
    ENDS.extend(ends)
    with joined(start, arguments.start_timeout, arguments.heartbeat_timeout, stops) as team:
        yield team
        del ENDS[: len(ends)]


def end_at_once(code: int) -> None:
    """Without what Python and C++ do at their end: they would wait for the other processes, or for a reader."""
    flush()
    os._exit(code)
