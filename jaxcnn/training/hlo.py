"""The text of a compiled program, read: its computations, how often each runs, and the instructions in them."""

import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

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
    """One array of an instruction's result.

    Attributes:
      stored: bytes with what a TPU's tiles add to its two minor dimensions.
      on_chip: it lies in the chip's own memory, and costs no traffic to HBM.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    stored: int
    on_chip: bool


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
    """A compiled program: what `executable.as_text()` gives.

    Attributes:
      computations: name -> its instructions, in the order in which they run where the program is scheduled.
      entry: the name of the one that is called from outside.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, inside = "", None
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                inside = self.computations[head["name"]] = []
                self.entry = head["name"] if head["entry"] else self.entry
            elif inside is not None and (found := _INSTRUCTION.match(line)):
                operands = tuple(_NAME.findall(found["rest"].partition(")")[0]))
                inside.append(
                    Instruction(found["name"], found["opcode"], arrays(found["type"]), operands, found["rest"])
                )

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
            bounds = [
                condition[name] for name in test.operands if name in condition and condition[name].opcode == "constant"
            ]
            if test.opcode == "compare" and "direction=LT" in test.rest and bounds:
                return int(bounds[0].rest.partition(")")[0])
        return 1

    def instructions(self) -> Iterator[tuple[Instruction, int]]:
        """Every instruction that runs, those inside of fusions too, and how often."""
        for name, body in self.computations.items():
            if times := self.runs.get(name, 0):
                for instruction in body:
                    yield instruction, times


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays in the text of a type, such as "(f32[8,4]{1,0:T(8,128)}, bf16[])"."""
    found = []
    for match in _ARRAY.finditer(text):
        shape = tuple(map(int, filter(None, match["shape"].split(","))))
        size, layout = max(int(match["bits"] or 8), 8) // 8, match["layout"] or ""
        stored = math.prod(_tiled(shape, layout)) * size
        on_chip = bool(_ON_CHIP.search(layout))
        found.append(Array(match["dtype"], shape, math.prod(shape) * size, stored, on_chip))
    return tuple(found)


def _tiled(shape: tuple[int, ...], layout: str) -> list[int]:
    """`shape` with its minor dimensions rounded up to whole tiles."""
    sizes, found = list(shape), _LAYOUT.match(layout)
    if found and found["tile"] and sizes:
        order = [int(i) for i in found["order"].split(",")]  # the minor-most dimension first
        for axis, tile in zip(order, reversed(found["tile"].split(",")), strict=False):
            sizes[axis] = -(-sizes[axis] // int(tile)) * int(tile)
    return sizes
