"""The collectives of a compiled program: what crosses the wire in a step."""

import math
import re
from typing import Any, NamedTuple

import numpy as np

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
      members: of one group that takes part together, by their places in the mesh.
      groups: how many such groups there are.
    """

    kind: str
    number: int
    bytes: int
    members: tuple[int, ...]
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
    found, echoes = [], _echoes(module)
    for name, body in module.computations.items():
        times = module.runs.get(name, 0) if name not in echoes else 0
        ends = {i.operands[0]: i for i in body if i.opcode.endswith("-done") and i.operands}
        for instruction in body if times else ():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                members, groups = _groups(instruction, devices)
                size = ends[instruction.name].bytes if instruction.name in ends else _result_bytes(instruction)
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):  # of a TPU: it keeps its part only
                    kind, size = "reduce-scatter", size // len(members)
                found.append(Collective(kind, times, size, members, groups))
    return found


def _echoes(module: Module) -> set[str]:
    """Computations of a TPU that go on with, or end, a collective which another one has begun."""
    names = {name for name in module.computations if name.startswith("async_collective_fusion")}
    for body in module.computations.values():
        names |= {i.attribute("calls").lstrip("%") for i in body if i.name.startswith("async-collective-done")}
    return names


def _result_bytes(instruction: Instruction) -> int:
    arrays = instruction.arrays
    # An asynchronous one has its operands before its results, and counters behind them; all-reduces may not.
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        arrays = [array for array in arrays if array.shape or array.dtype != "u32"]
        arrays = arrays[len(arrays) // 2 :]
    return sum(array.bytes for array in arrays)


def _groups(instruction: Instruction, devices: int) -> tuple[tuple[int, ...], int]:
    """(members of the first group, groups), from any of XLA's three notations; all devices where it names none."""
    text = instruction.rest
    if instruction.opcode.startswith("collective-permute"):
        pairs = re.findall(r"\{(\d+),(\d+)\}", text.partition("source_target_pairs=")[2].partition("}}")[0] + "}")
        return (int(pairs[0][0]), int(pairs[0][1])) if pairs else (0, 0), len(pairs)
    if listed := re.search(r"replica_groups=\{(\{[\d,]*\}[^ ]*)\}", text):  # {{0,1},{2,3}}
        groups = [tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        return (groups[0], len(groups)) if groups else (tuple(range(devices)), 1)
    if iota := re.search(r"replica_groups=(\[[\d,]+\]<=\S+?),? ", text + " "):  # [4,2]<=[2,4]T(1,0)
        rows = _iota(iota[1])
        return tuple(rows[0].tolist()), len(rows)
    # mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(1)2}
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((\S+)\))? \{(.*?)\}", text):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        places = math.prod(axes.values())
        rows = _along(_iota(f"[{places}]<={mesh[2] or f'[{places}]'}"), axes, mesh[3])
        return tuple(rows[0].tolist()), len(rows)
    return tuple(range(devices)), 1


def _iota(text: str) -> np.ndarray:
    """ "[4,2]<=[2,4]T(1,0)": the numbers from 0 in the second shape, transposed, in the first."""
    shape, source, order = re.fullmatch(r"\[(.*?)\]<=\[(.*?)\](?:T\((.*?)\))?", text).groups()  # type: ignore[union-attr]
    sizes, source = ([int(n) for n in part.split(",")] for part in (shape, source))
    numbers = np.arange(math.prod(source)).reshape(source)
    return numbers.transpose([int(n) for n in order.split(",")] if order else None).reshape(sizes)


def _along(devices: np.ndarray, axes: dict[str, int], named: str) -> np.ndarray:
    """A row for each group along the axes `named`, "'b','a':(1)2": of `a` the part of size 2 after one of size 1."""
    sizes, chosen = [], []
    for name, size in axes.items():
        if part := re.search(rf"'{re.escape(name)}':\((\d+)\)(\d+)", named):
            before, own = int(part[1]), int(part[2])
            chosen.append(len(sizes) + 1)
            sizes += [before, own, size // before // own]
        else:
            chosen += [len(sizes)] if f"'{name}'" in named else []
            sizes.append(size)
    numbers = np.moveaxis(devices.reshape(sizes), chosen, range(-len(chosen), 0))
    return numbers.reshape(-1, math.prod(sizes[axis] for axis in chosen))
