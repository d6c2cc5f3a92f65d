"""Damage for files: what a careless disk does to bytes, and what a careful enemy does to JSON."""

import json
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

_FULL = (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\x80", b"..", b"/", b"{", b"\xd8\x00")


@st.composite
def damaged(draw: st.DrawFn, seed: bytes) -> bytes:
    """`seed` after up to four changes: bits flipped, bytes set, cut, doubled, moved, or put in."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        stop = min(len(data), at + draw(st.sampled_from((1, 2, 4, 8, 64, 4096))))
        match draw(st.sampled_from(("flip", "flip", "set", "set", "cut", "drop", "double", "move", "insert"))):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                new = draw(st.sampled_from(_FULL) | st.binary(min_size=1, max_size=8))
                data[at : at + len(new)] = new
            case "cut":
                del data[at:]
            case "drop":
                del data[at:stop]
            case "double":
                data[at:at] = data[at:stop] * draw(st.sampled_from((1, 1, 2, 50)))
            case "move":
                part = data[at:stop]
                to = draw(st.integers(0, max(0, len(data) - 1)))
                data[to : to + len(part)] = part
            case "insert":
                data[at:at] = draw(st.sampled_from(_FULL) | st.binary(max_size=16))
    return bytes(data)


_ODD = st.sampled_from(
    [
        *(None, True, 0, -1, 0.5, 2**31, 2**63, 10**40, -(10**400), 1e308, float("nan"), float("inf")),
        *("", "..", "../../x", "/etc/passwd", "a/b", "\0", "\x1b[2J", "é", "x" * 5000),
        *([], {}, [[[[]]]], [1, 2], {"a": {"b": {"c": 1}}}, [None] * 3),
    ]
)
_RAW = ("[" * 3000, '{"a":' * 3000, '"\\ud800"', "1e999", "9" * 5000, "-", '{"a": 1, "a": 2}', "'a'", '"\\u0000"')


@st.composite
def damaged_json(draw: st.DrawFn, seed: Any) -> bytes:
    """The value as JSON, up to three of its parts replaced, gone, or under another name; or text that is not JSON."""
    root: dict[Any, Any] = {"": json.loads(json.dumps(seed))}
    marks = {}
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = root
        key: Any = ""
        while isinstance(inner := holder[key], dict | list) and inner and draw(st.integers(0, 5)):
            holder, key = inner, draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        match draw(st.sampled_from(("odd", "odd", "odd", "gone", "name", "raw", "twice"))):
            case "odd":
                holder[key] = deepcopy(draw(_ODD))
            case "gone" if holder is not root:
                del holder[key]
            case "name" if holder is not root and isinstance(holder, dict):
                holder[draw(st.text(max_size=8) | st.just("../../../x"))] = holder.pop(key)
            case "raw":
                holder[key] = f"RAW{len(marks)}"
                marks[f'"RAW{len(marks)}"'] = draw(st.sampled_from(_RAW))
            case "twice" if isinstance(holder[key], list):
                holder[key] = holder[key] * 2
    text = json.dumps(root[""])
    for mark, raw in marks.items():
        text = text.replace(mark, raw)
    return text.encode()
