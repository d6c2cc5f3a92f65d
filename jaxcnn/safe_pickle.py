"""Pickles of other programs, interpreted without trust.

A pickle is a program for a small stack machine that may call any function by name. It never meets Python's unpickler
here: `pickletools` splits it into instructions, and those that plain data needs are interpreted. A name only ever
becomes the inert record `Global`, and the calls that an `Interpreter` accepts only fill in records of ours.
"""

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from jaxcnn.safe_files import printable


class RefusedError(Exception):
    """What is wrong with a file and how to fix it, in words for its user."""


@dataclass(frozen=True)
class Global:
    """A name that the pickle asks for. It is never looked up."""

    name: str


class Dropped:
    """Something of no influence on what is read: what the file says of it is not kept."""


DROPPED = Dropped()
_MARK = object()
_TO_MARK, _BELOW_MARK = -1, -2
# Instruction -> how many items it pops (all to the mark; or those and the one below it), and the method that makes what
# it pushes of them.
_POPPING: dict[str, tuple[int, Callable[["Interpreter", list[Any]], Any]]] = {
    "MARK": (0, lambda *_: _MARK), "NONE": (0, lambda *_: None), "NEWTRUE": (0, lambda *_: True),
    "NEWFALSE": (0, lambda *_: False), "EMPTY_DICT": (0, lambda *_: {}), "EMPTY_LIST": (0, lambda *_: []),
    "EMPTY_TUPLE": (0, lambda *_: ()),
    "TUPLE": (_TO_MARK, lambda _, items: tuple(items)), "TUPLE1": (1, lambda _, items: tuple(items)),
    "TUPLE2": (2, lambda _, items: tuple(items)), "TUPLE3": (3, lambda _, items: tuple(items)),
    "LIST": (_TO_MARK, lambda _, items: list(items)),
    "DICT": (_TO_MARK, lambda self, items: self.add_pairs([{}, *items])),
    "STACK_GLOBAL": (2, lambda self, items: self.find(".".join(items))),
    "REDUCE": (2, lambda self, items: self.call(*items)), "NEWOBJ": (2, lambda self, items: self.call(*items)),
    "EMPTY_SET": (0, lambda *_: DROPPED), "FROZENSET": (_TO_MARK, lambda *_: DROPPED),
    "ADDITEMS": (_BELOW_MARK, lambda _, items: extend(items)),
    "BUILD": (2, lambda self, items: self.build(*items)),
    "APPEND": (2, lambda _, items: extend(items)), "APPENDS": (_BELOW_MARK, lambda _, items: extend(items)),
    "SETITEM": (3, lambda self, items: self.add_pairs(items)),
    "SETITEMS": (_BELOW_MARK, lambda self, items: self.add_pairs(items)),
}  # fmt: skip
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip


class Interpreter:
    """What one kind of pickle may hold; by default plain values alone. A subclass says which names and calls are known.

    Attributes:
      only: what is read and what to do with a file of anything else, the end of an error.
      most: bytes of a pickle.
      keys: types of a dict's keys. A tuple's hash recurses as deep as the file likes.
    """

    only = "only plain values are read; the file is refused"
    most = 2**23
    keys: tuple[type, ...] = (str, int)

    def find(self, name: str) -> Global:
        """Return the record of a name, module and all, that the pickle asks for; RefusedError if it is unknown."""
        raise RefusedError(f"asks for {shown(name)}: {self.only}")

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what the call would give, as a record; RefusedError if it is unknown."""
        name = function.name if isinstance(function, Global) else "no function"
        raise RefusedError(f"calls {name} in another way than is known: {self.only}")

    def build(self, target: Any, state: Any) -> Any:
        """Return `target` with its attributes set to `state`; RefusedError if it has none that are known."""
        raise RefusedError(f"sets attributes: {self.only}")

    def persistent(self, identity: Any) -> Any:
        """Return the record of something that is kept outside of the pickle."""
        raise RefusedError(f"names something outside of it: {self.only}")

    def set_items(self, target: Any, pairs: Iterable[Any]) -> Any:
        """Return the dict `target` with the pairs added."""
        if target is DROPPED:
            return target
        if type(target) is not dict:
            raise TypeError
        for key, value in pairs:
            if type(key) not in self.keys:
                raise RefusedError(f"has keys other than strings and integers: {self.only}")
            target[key] = value
        return target

    def add_pairs(self, items: list[Any]) -> Any:
        """Return the dict items[0] with keys and values, which alternate in the rest, added."""
        return self.set_items(items[0], zip(items[1::2], items[2::2], strict=True))

    def load(self, file: BinaryIO) -> Any:
        """Return the next object in `file`: dicts, lists, tuples, plain values and records.

        Raises:
          RefusedError: it is made of anything else.
          ValueError, TypeError, LookupError: it is no complete pickle.
        """
        stack: list[Any] = []
        memo: dict[Any, Any] = {}  # not a list: its indices are the file's choice
        start = file.tell()
        for opcode, argument, position in pickletools.genops(file):
            if position is None or position - start > self.most:
                raise RefusedError(f"its pickle is larger than {self.most >> 20} MiB: {self.only}")
            match opcode.name:
                case "STOP":
                    return stack.pop()
                case "BINPUT" | "LONG_BINPUT" | "PUT" | "MEMOIZE":
                    memo[len(memo) if argument is None else argument] = stack[-1]
                case "BINGET" | "LONG_BINGET" | "GET":
                    stack.append(memo[argument])
                case "BINPERSID":
                    stack.append(self.persistent(stack.pop()))
                case name:
                    self._step(stack, name, argument)
        raise ValueError("no end")

    def _step(self, stack: list[Any], name: str, argument: Any) -> None:
        if name in _LITERALS:
            stack.append(argument)
        elif name in _POPPING:
            count, make = _POPPING[name]
            items = []
            if count >= 0:
                items = [stack.pop() for _ in range(count)]
            else:
                while (item := stack.pop()) is not _MARK:
                    items.append(item)
                if count == _BELOW_MARK:
                    items.append(stack.pop())
            stack.append(make(self, items[::-1]))
        elif name == "GLOBAL":
            stack.append(self.find(argument.replace(" ", ".")))
        elif name not in ("PROTO", "FRAME"):
            raise RefusedError(f"uses the pickle instruction {name}: {self.only}")


def extend(items: list[Any]) -> Any:
    """Return the list items[0] with the rest added."""
    target, *more = items
    if target is DROPPED:
        return target
    if type(target) is not list:
        raise TypeError
    target.extend(more)
    return target


def shown(text: str) -> str:
    """Return text of a file, fit for one line of an error."""
    return printable(text[:80])
