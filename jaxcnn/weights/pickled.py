"""Torch's pickles, interpreted without torch and without trust.

The instructions that a dict of tensors needs are interpreted by `safe_pickle`; the few calls accepted only fill in
records of ours.
"""

from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxcnn.safe_pickle import DROPPED, Dropped, Global, Interpreter, RefusedError, shown

STORAGES = {
    "DoubleStorage": np.dtype(np.float64), "FloatStorage": np.dtype(np.float32), "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32), "ShortStorage": np.dtype(np.int16), "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8), "BoolStorage": np.dtype(np.bool_),
}  # fmt: skip
DTYPES_READ = "float16 to 64, bfloat16, int8 to 64, uint8 and bool are read"
_ONLY_TENSORS = "only tensors are read; the file is refused (it should hold model.state_dict() alone)"


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


def unpickle(file: BinaryIO, storages: dict[str, Storage]) -> Any:
    """Return the next object in `file`: dicts, lists, tuples, plain values and the records above.

    Args:
      storages: gets those that the object names, by key.

    Raises:
      RefusedError, ValueError, TypeError, LookupError: as of `Interpreter.load`.
    """
    return _Torch(storages).load(file)


class _Torch(Interpreter):
    """Dicts of tensors; names and shapes alone are in the pickle: those of ResNet-152 take a thirtieth of its bound."""

    only = _ONLY_TENSORS

    def __init__(self, storages: dict[str, Storage]):
        self.storages = storages

    def find(self, name: str) -> Global:
        module, _, last = name.rpartition(".")
        known_storage = last in STORAGES and module in ("torch", "torch.cuda")
        if known_storage or name in _CALLABLE | _INERT:
            return Global(name)
        if module in ("torch", "torch.cuda", "torch.storage", "torch._utils") and (
            last.endswith("Storage") or last == "_rebuild_tensor_v3"
        ):
            raise RefusedError(f"holds a tensor of unsupported dtype ({shown(name)}); {DTYPES_READ}")
        return super().find(name)

    def call(self, function: Any, arguments: Any) -> Any:
        # A pickle repeats a call in a few bytes: what one call may cost is cut short, and a list serves one call.
        match function, arguments[:8]:
            case Global("collections.OrderedDict"), ():
                return {}
            case Global("collections.OrderedDict"), (list(pairs),):  # Python 2's
                made = self.set_items({}, pairs)
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
                return DROPPED
        return super().call(function, arguments)

    def build(self, target: Any, state: Any) -> Any:
        """Drop attributes; only those that torch gives are allowed."""
        match target, state:
            case Dropped(), _:
                return target
            case dict(), dict() if state.keys() <= {"_metadata"}:
                return target
            case Tensor(), tuple():  # a Parameter's before 0.4
                return target
        return super().build(target, state)

    def persistent(self, identity: Any) -> Storage:
        storage = _storage(identity)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise RefusedError("one storage under two dtypes or sizes; the file is refused")
        return storage


def _counts(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _storage(identity: Any) -> Storage:
    match identity:
        case ("storage", Global(name), str(key), _, numel) | ("storage", Global(name), str(key), _, numel, None):
            dtype = STORAGES.get(name.rpartition(".")[2])
            if dtype is not None and _counts(numel):
                return Storage(key, dtype, numel)
    raise RefusedError("a storage described otherwise than torch 0.4 and later do; save it again with a newer torch")
