"""The collectives of a compiled program: what crosses the wire in a step."""

import math
import re
from typing import Any, NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_CALL = re.compile(rf"= (?P<shape>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<shape>[\d,]*)\]")


class Traffic(NamedTuple):
    """Of one kind of collective: how many there are in the program's text, and the bytes of their results together."""

    number: int
    bytes: int


def collectives(executable: Any) -> dict[str, Traffic]:
    """Kind -> count and bytes on each device, of what `jitted.lower(…).compile()` gives; a loop's body counts once."""
    found = {}
    for call in _CALL.finditer(executable.as_text()):
        arrays = [
            max(int(array["bits"] or 8), 8) // 8 * math.prod(map(int, filter(None, array["shape"].split(","))))
            for array in _ARRAY.finditer(call["shape"])
        ]
        # An asynchronous one, all-reduce apart, has its operands before its results.
        results = arrays[len(arrays) // 2 :] if call["start"] and call["kind"] != "all-reduce" else arrays
        before = found.get(call["kind"], Traffic(0, 0))
        found[call["kind"]] = Traffic(before.number + 1, before.bytes + sum(results))
    return found
