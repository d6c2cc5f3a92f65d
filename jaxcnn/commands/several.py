"""A command that several processes run together: its options, and how it ends."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from jaxcnn import UserError
from jaxcnn.distributed.interrupt import flush

if TYPE_CHECKING:
    from jaxcnn.distributed.peers import Team

ENDS: list[Callable[[int], object]] = []  # called with the exit code once a command is over


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """The options of a command that several processes can run together."""
    words = "this is one of several processes; SLURM, TPU pods and Kubernetes need none of these options"
    group = parser.add_argument_group("several processes", words)
    group.add_argument("--coordinator", metavar="HOST:PORT", type=_address, help="where process 0 listens")
    group.add_argument("--processes", metavar="N", type=int, help="how many; 1: alone, whatever the surroundings")
    group.add_argument("--process", metavar="I", type=int, help="which this one is, from 0 on")
    words = "how long to wait for the others (default: 300)"
    group.add_argument("--start-timeout", metavar="SECONDS", type=_seconds, default=300.0, help=words)


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
def team_of(arguments: argparse.Namespace) -> Iterator["Team"]:
    """The processes that run this command together, joined as the options of `add_hosts` or the surroundings say.

    JAX must not have touched a device yet.
    """
    from jaxcnn.distributed.processes import Place, find_place, joined

    count, process = arguments.processes, arguments.process
    given = [value is not None for value in (arguments.coordinator, count, process)]
    if given == [False, True, False] and count == 1:
        place = None
    elif not any(given):
        place = find_place(arguments.start_timeout)
    elif not all(given):
        raise UserError("--coordinator, --processes and --process go together: give all three, or none")
    elif count < 1 or not 0 <= process < count:
        raise UserError(f"--process {process} --processes {count}: processes are numbered from 0 to N - 1")
    else:
        place = Place(arguments.coordinator, count, process)
    ends = [end_at_once] * bool(place and place.processes > 1)
    ENDS.extend(ends)
    with joined(place, arguments.start_timeout) as team:
        yield team
        del ENDS[: len(ends)]


def end_at_once(code: int) -> None:
    """Without what Python and C++ do at their end: they would wait for the other processes, or for a reader."""
    flush()
    os._exit(code)
