"""Torch's pickles, interpreted without torch and without trust.

A pickle is a program for a small stack machine that may call any function by name. It never meets Python's unpickler
here: `pickletools` splits it into instructions, and those that a dict of tensors needs are interpreted. A name only
ever becomes the inert record `Global`, and the few calls accepted only fill in records of ours.
"""

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxcnn.safe_files import printable

MAX_BYTES = 2**23  # of one pickle, which has names and shapes: those of ResNet-152 take a thirtieth of it
STORAGES = {
    "DoubleStorage": np.dtype(np.float64), "FloatStorage": np.dtype(np.float32), "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32), "ShortStorage": np.dtype(np.int16), "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8), "BoolStorage": np.dtype(np.bool_),
}  # fmt: skip
DTYPES_READ = "float16 to 64, bfloat16, int8 to 64, uint8 and bool are read"
_ONLY_TENSORS = "only tensors are read; the file is refused (it should hold model.state_dict() alone)"


class RefusedError(Exception):
    """What is wrong with a file and how to fix it, in words for its user."""


@dataclass(frozen=True)
class Global:
    """A name that the pickle asks for. It is never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A tensor's memory, found elsewhere in the file under `key`: `numel` elements of `dtype`."""

    key: str
    dtype: np.dtype
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, as the file claims it: unchecked but for its being of counts. All counts are of elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Dropped:
    """Something beside the tensors, of no influence on them: what the file says of it is not kept."""


_DROPPED = Dropped()


def shown(text: str) -> str:
    """Return text of a file, fit for one line of an error."""
    return printable(text[:80])


_MARK = object()
_CALLABLE = {
    "collections.OrderedDict", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter",  # the last before 0.4
}  # fmt: skip
# Names that checkpoints have beside the state dict: dtypes and devices, a trainer's arguments, an optimizer's state,
# NumPy's scalars. What the file makes of them is dropped.
_INERT = {f"torch.{dtype}" for dtype in STORAGES.values()} | {
    "torch.Size", "torch.device", "argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict",
    "collections.Counter", "collections.deque", "_codecs.encode", "numpy.dtype", "numpy.ndarray",
    *(f"{module}.multiarray.{name}" for module in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
    *(f"pathlib.{name}Path" for name in ("Posix", "PurePosix", "Windows", "PureWindows")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "dict", "list")),
    "pytorch_lightning.utilities.parsing.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
}  # fmt: skip


def _global(name: str) -> Global:
    module, _, last = name.rpartition(".")
    known_storage = last in STORAGES and module in ("torch", "torch.cuda")
    if known_storage or name in _CALLABLE | _INERT:
        return Global(name)
    if module in ("torch", "torch.cuda", "torch.storage", "torch._utils") and (
        last.endswith("Storage") or last == "_rebuild_tensor_v3"
    ):
        raise RefusedError(f"holds a tensor of unsupported dtype ({shown(name)}); {DTYPES_READ}")
    raise RefusedError(f"asks for {shown(name)}: {_ONLY_TENSORS}")


def _counts(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _storage(identity: Any) -> Storage:
    match identity:
        case ("storage", Global(name), str(key), _, numel) | ("storage", Global(name), str(key), _, numel, None):
            dtype = STORAGES.get(name.rpartition(".")[2])
            if dtype is not None and _counts(numel):
                return Storage(key, dtype, numel)
    raise RefusedError("a storage described otherwise than torch 0.4 and later do; save it again with a newer torch")


def _call(function: Any, arguments: Any) -> Any:
    """Return what torch's own call would give, as a record."""
    # A pickle repeats a call in a few bytes: what one call may cost is cut short, and a list serves one call.
    match function, arguments[:8]:
        case Global("collections.OrderedDict"), ():
            return {}
        case Global("collections.OrderedDict"), (list(pairs),):  # Python 2's
            made = _set_items({}, pairs)
            pairs.clear()
            return made
        case (
            Global("torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2"),
            (Storage() as storage, offset, tuple(size), tuple(stride), *rest),
        ) if len(size) == len(stride) <= 64 and _counts(offset, *size, *stride) and not any(rest[2:]):
            return Tensor(storage, offset, size, stride)  # a third of the rest would have the values negated
        case Global("torch._utils._rebuild_parameter" | "torch.nn.parameter.Parameter"), (Tensor() as tensor, *_):
            return tensor
        case Global(name), _ if name in _INERT:
            return _DROPPED
    name = function.name if isinstance(function, Global) else "no function"
    raise RefusedError(f"calls {name} in another way than torch does: {_ONLY_TENSORS}")


def _set_items(target: Any, pairs: Iterable[Any]) -> Any:
    if target is _DROPPED:
        return target
    if type(target) is not dict:
        raise TypeError
    for key, value in pairs:
        if type(key) not in (str, int):  # a tuple's hash recurses as deep as the file likes
            raise RefusedError(f"has keys other than strings and integers: {_ONLY_TENSORS}")
        target[key] = value
    return target


def _extend(items: list[Any]) -> Any:
    target, *more = items
    if target is _DROPPED:
        return target
    if type(target) is not list:
        raise TypeError
    target.extend(more)
    return target


def _build(target: Any, state: Any) -> Any:
    """Drop attributes; only those that torch gives are allowed."""
    match target, state:
        case Dropped(), _:
            return target
        case dict(), dict() if state.keys() <= {"_metadata"}:
            return target
        case Tensor(), tuple():  # a Parameter's before 0.4
            return target
    raise RefusedError(f"sets attributes: {_ONLY_TENSORS}")


def _add_pairs(items: list[Any]) -> Any:
    return _set_items(items[0], zip(items[1::2], items[2::2], strict=True))


_TO_MARK, _BELOW_MARK = -1, -2
# Instruction -> how many items it pops (all to the mark; or those and the one below it), and what it pushes for them.
_POPPING: dict[str, tuple[int, Callable[[list[Any]], Any]]] = {
    "MARK": (0, lambda _: _MARK), "NONE": (0, lambda _: None), "NEWTRUE": (0, lambda _: True),
    "NEWFALSE": (0, lambda _: False), "EMPTY_DICT": (0, dict), "EMPTY_LIST": (0, list), "EMPTY_TUPLE": (0, tuple),
    "TUPLE": (_TO_MARK, tuple), "TUPLE1": (1, tuple), "TUPLE2": (2, tuple), "TUPLE3": (3, tuple),
    "LIST": (_TO_MARK, list),
    "DICT": (_TO_MARK, lambda items: _add_pairs([{}, *items])),
    "STACK_GLOBAL": (2, lambda items: _global(".".join(items))),
    "REDUCE": (2, lambda items: _call(*items)), "NEWOBJ": (2, lambda items: _call(*items)),
    "EMPTY_SET": (0, lambda _: _DROPPED), "FROZENSET": (_TO_MARK, lambda _: _DROPPED),
    "ADDITEMS": (_BELOW_MARK, _extend),
    "BUILD": (2, lambda items: _build(*items)),
    "APPEND": (2, _extend), "APPENDS": (_BELOW_MARK, _extend),
    "SETITEM": (3, _add_pairs), "SETITEMS": (_BELOW_MARK, _add_pairs),
}  # fmt: skip
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip


def _step(stack: list[Any], name: str, argument: Any) -> None:
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
        stack.append(make(items[::-1]))
    elif name == "GLOBAL":
        stack.append(_global(argument.replace(" ", ".")))
    elif name not in ("PROTO", "FRAME"):
        raise RefusedError(f"uses the pickle instruction {name}: {_ONLY_TENSORS}")


def unpickle(file: BinaryIO, storages: dict[str, Storage]) -> Any:
    """Return the next object in `file`: dicts, lists, tuples, plain values and the records above.

    Args:
      storages: gets those that the object names, by key.

    Raises:
      RefusedError: it is made of anything else.
      ValueError, TypeError, LookupError: it is no complete pickle.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}  # not a list: its indices are the file's choice
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        if position is None or position - start > MAX_BYTES:
            raise RefusedError(f"its pickle is larger than {MAX_BYTES >> 20} MiB; save model.state_dict() alone")
        match opcode.name:
            case "STOP":
                return stack.pop()
            case "BINPUT" | "LONG_BINPUT" | "PUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "BINPERSID":
                storage = _storage(stack.pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise RefusedError("one storage under two dtypes or sizes; the file is refused")
                stack.append(storage)
            case name:
                _step(stack, name, argument)
    raise ValueError("no end")
