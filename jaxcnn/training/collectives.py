"""The collectives of a compiled program: what crosses the wire in a step."""

import math
import re
from typing import Any, NamedTuple

from jaxcnn.training.hlo import Instruction, Module

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Traffic(NamedTuple):
    """Of one kind of collective: how many run in a step, and the bytes of their results together."""

    number: int
    bytes: int


class Collective(NamedTuple):
    """Collectives of one kind and group that run in a step, from one line of the program.

    Attributes:
      number: how often it runs: more than once in a loop.
      bytes: of one result on one device.
      group: devices that take part together.
      groups: how many such groups there are.
    """

    kind: str
    number: int
    bytes: int
    group: int
    groups: int


def collectives(executable: Any) -> dict[str, Traffic]:
    """Kind -> count and bytes on each device, of what `jitted.lower(…).compile()` gives."""
    found: dict[str, Traffic] = {}
    for kind, number, size, _, _ in collectives_of(Module(executable.as_text()), 1):
        before = found.get(kind, Traffic(0, 0))
        found[kind] = Traffic(before.number + number, before.bytes + number * size)
    return found


def collectives_of(module: Module, devices: int) -> list[Collective]:
    """Every collective of a program for so many devices, in the order of the text."""
    found = []
    for instruction, times in module.instructions():
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            group, groups = _groups(instruction, devices)
            found.append(Collective(kind, times, _result_bytes(instruction), group, groups))
    return found


def _result_bytes(instruction: Instruction) -> int:
    arrays = instruction.arrays
    # An asynchronous one, all-reduce apart, has its operands before its results.
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        arrays = arrays[len(arrays) // 2 :]
    return sum(array.bytes for array in arrays)


def _groups(instruction: Instruction, devices: int) -> tuple[int, int]:
    """(devices in a group, groups), from any of XLA's three notations; all devices where it names none."""
    text = instruction.rest
    if instruction.opcode.startswith("collective-permute"):
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", text)
        return 2, pairs[1].count("{") if pairs else 1
    if listed := re.search(r"replica_groups=\{(\{[\d,]*\}[^ ]*)\}", text):  # {{0,1},{2,3}}
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return (groups[0].count(",") + 1, len(groups)) if groups else (devices, 1)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):  # [2,4]<=[8]
        return int(iota[2]), int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\][^{]* \{(.*?)\}", text):  # mesh['a'=2,'b'=4] {'b', 'a':(1)2}
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        group = math.prod(int(part) if part else sizes[name] for name, part in named)
        return group, math.prod(sizes.values()) // group
    return devices, 1
