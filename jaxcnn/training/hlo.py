"""Read the HLO text of a compiled program: computations, how often each runs, instructions and collectives."""

import math
import re
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(?P<name>[\w.-]+) = (?P<type>.*?) (?P<opcode>[a-z][\w-]*)\((?P<rest>.*)$")
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<shape>[\d,]*)\](?P<layout>\{[^}]*\})?")
_ON_CHIP = re.compile(r"S\([13]\)")  # a TPU's memory spaces: VMEM, and v4's CMEM
_LAYOUT = re.compile(r"\{(?P<order>[\d,]*)(?::T\((?P<tile>[\d,]+)\))?")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|called_computations|branch_computations|true_computation|false_computation)="
    r"\{?(%[\w.-]+(?:, %[\w.-]+)*)"
)
_NAME = re.compile(r"%([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Array(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    padded: int  # bytes with what a TPU's tiles add to its two minor dimensions
    on_chip: bool  # it lies in the chip's own memory, and costs no traffic to HBM


class Instruction(NamedTuple):
    """One line: `name = arrays opcode(operands), rest`."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str

    @property
    def bytes(self) -> int:
        """Of all arrays of the result."""
        return sum(array.bytes for array in self.arrays)

    def attribute(self, key: str) -> str:
        """The text of `key=…` up to the next comma or space, "" where there is none."""
        found = re.search(rf"\b{key}=([^\s,]+)", self.rest)
        return found[1] if found else ""


class Module:
    """A compiled program: what `executable.as_text()` gives."""

    def __init__(self, text: str):
        # Name -> instructions, in the order in which they run where the program is scheduled.
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, inside = "", None  # the name of the computation that is called from outside
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                inside = self.computations[head["name"]] = []
                self.entry = head["name"] if head["entry"] else self.entry
            elif inside is not None and (found := _INSTRUCTION.match(line)):
                name, result, opcode, rest = found.groups()
                operands = tuple(_NAME.findall(rest.partition(")")[0]))
                inside.append(Instruction(name, opcode, arrays(result), operands, rest))

    def called(self, line: Instruction) -> list[str]:
        """Return the computations that an instruction names."""
        return sorted(set(_NAME.findall(line.rest)) & self.computations.keys())

    @cached_property
    def runs(self) -> dict[str, int]:
        """Computation -> how often it runs; a loop whose trips the compiler does not know counts once."""
        runs = {self.entry: 1}
        # A computation stands in the text before those that call it.
        for name in reversed(self.computations):
            for instruction in self.computations[name] if name in runs else ():
                trips = self._trips(instruction) if instruction.opcode == "while" else 1
                for called in _CALLED.findall(instruction.rest):
                    for inner in _NAME.findall(called):
                        runs[inner] = runs.get(inner, 0) + runs[name] * trips
        return runs

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: as the compiler says, or up to the constant that its counter is compared with."""
        if said := _TRIPS.search(loop.rest):
            return int(said[1])
        condition = {i.name: i for i in self.computations.get(loop.attribute("condition").lstrip("%"), ())}
        for test in condition.values():
            sides = [condition[name] for name in test.operands if name in condition]
            bounds = [side.rest.partition(")")[0] for side in sides if side.opcode == "constant"]
            if test.opcode == "compare" and "direction=LT" in test.rest and bounds:
                return int(bounds[0])
        return 1


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays in the text of a type, such as "(f32[8,4]{1,0:T(8,128)}, bf16[])"."""
    found = []
    for dtype, bits, dimensions, layout in _ARRAY.findall(text):
        shape, size = tuple(map(int, filter(None, dimensions.split(",")))), max(int(bits or 8), 8) // 8
        padded = math.prod(_tiled(shape, layout)) * size
        found.append(Array(dtype, shape, math.prod(shape) * size, padded, bool(_ON_CHIP.search(layout))))
    return tuple(found)


def _tiled(shape: tuple[int, ...], layout: str) -> list[int]:
    """`shape` with its minor dimensions rounded up to whole tiles."""
    sizes, found = list(shape), _LAYOUT.match(layout)
    if found and found["tile"] and sizes:
        order = [int(i) for i in found["order"].split(",")]  # the minor-most dimension first
        for axis, tile in zip(order, reversed(found["tile"].split(",")), strict=False):
            sizes[axis] = -(-sizes[axis] // int(tile)) * int(tile)
    return sizes


class Collective(NamedTuple):
    """Collectives of one kind and group that run in a step, from one line of the program."""

    kind: str
    number: int  # how often it runs: more than once in a loop
    bytes: int  # of one result on one device
    members: tuple[int, ...]  # of one group that takes part together, by their places in the mesh
    groups: int  # how many such groups there are


def collectives(executable: Any) -> dict[str, tuple[int, int]]:
    """Return {kind: (how many run in a step, bytes of their results)}, of what `jitted.lower(…).compile()` gives."""
    found: dict[str, tuple[int, int]] = {}
    for kind, number, size, _, _ in collectives_of(Module(executable.as_text()), 1):
        count, total = found.get(kind, (0, 0))
        found[kind] = (count + number, total + number * size)
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
