"""Files of weights: there and back for what torch and safetensors write, UserError and nothing run for the rest."""

import argparse
import copyreg
import gzip
import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn import UserError
from jaxcnn.weights.files import read_state_dict, write_safetensors

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
FORMATS = ("zip", "zip, big-endian", "zip before torch 2", "legacy")


def fake(module: str, name: str) -> Any:
    """What a pickler writes down as `module.name`, without there being a torch."""

    def function() -> None: ...

    function.__module__, function.__qualname__ = module, name
    return function


REBUILD = fake("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = fake("torch._utils", "_rebuild_parameter")
OLD_PARAMETER = fake("torch.nn.parameter", "Parameter")
KINDS = {name: fake("torch", name) for name in (*STORAGES, "ComplexFloatStorage")}


class Reduced:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


@dataclass(frozen=True)
class Memory:
    """A storage: pickles as a persistent id."""

    key: str
    kind: str
    array: np.ndarray
    numel: int | None = None  # to lie about


class Pickler(pickle.Pickler):
    def __init__(self, file: Any, protocol: int, legacy: bool):
        super().__init__(file, protocol)
        self.legacy, self.memories = legacy, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Memory):
            return None
        self.memories[obj.key] = obj.array
        numel = obj.array.size if obj.numel is None else obj.numel
        return ("storage", KINDS[obj.kind], obj.key, "cpu", numel, *([None] if self.legacy else []))


def pickled(obj: Any, protocol: int = 2, legacy: bool = False) -> tuple[bytes, dict[str, np.ndarray]]:
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils", "torch.nn", "torch.nn.parameter")}
    for function in (REBUILD, REBUILD_PARAMETER, OLD_PARAMETER, *KINDS.values()):
        setattr(modules[function.__module__], function.__qualname__, function)
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, modules):
        pickler = Pickler(file, protocol, legacy)
        pickler.dump(obj)
    return file.getvalue(), pickler.memories


def swapped(array: np.ndarray, order: str) -> bytes:
    return array.view(f"u{array.itemsize}").astype(f"{order.replace('=', '<')}u{array.itemsize}").tobytes()


def zipped(data_pkl: bytes, memories: dict[str, np.ndarray] | None = None, order: str = "<", **options: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        if order != "=":  # torch 1 leaves it out: little-endian
            archive.writestr("archive/byteorder", {"<": "little", ">": "big"}[order])
        for key, array in (memories or {}).items():
            archive.writestr(f"archive/data/{key}", swapped(array, order))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def legacy(data_pkl: bytes, memories: dict[str, np.ndarray] | None = None) -> bytes:
    memories = memories or {}
    header = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}})
    data = b"".join(pickle.dumps(part, 2) for part in header) + data_pkl + pickle.dumps(sorted(memories), 2)
    return data + b"".join(struct.pack("<q", memories[k].size) + swapped(memories[k], "<") for k in sorted(memories))


def saved(obj: Any, form: str = "zip", protocol: int = 2) -> bytes:
    data_pkl, memories = pickled(obj, protocol, form == "legacy")
    if form == "legacy":
        return legacy(data_pkl, memories)
    return zipped(data_pkl, memories, {"zip": "<", "zip, big-endian": ">", "zip before torch 2": "="}[form])


def tensor(array: Any, key: str = "0") -> Reduced:
    """A tensor with a storage of its own."""
    array = np.asarray(array)
    kind = next(kind for kind, dtype in STORAGES.items() if array.dtype == dtype)
    strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
    memory = Memory(key, kind, np.ravel(array))
    return Reduced(REBUILD, memory, 0, array.shape, tuple(strides), False, OrderedDict())


def view(memory: Memory, offset: int, size: Any, stride: Any) -> Reduced:
    return Reduced(REBUILD, memory, offset, size, stride, False, OrderedDict())


def file_of(folder: Path, data: bytes, name: str = "weights.pth") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def bits(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {k: (str(v.dtype), v.shape, v.tobytes()) for k, v in arrays.items()}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    return message


@st.composite
def memories(draw: st.DrawFn, key: str) -> Memory:
    """Any bits, NaNs among them: what is moved must not be computed with."""
    kind = draw(st.sampled_from(sorted(STORAGES)))
    dtype = np.dtype(STORAGES[kind])
    raw = np.frombuffer(draw(st.binary(max_size=40 * dtype.itemsize)), np.uint8)
    raw = raw[: len(raw) // dtype.itemsize * dtype.itemsize]
    return Memory(key, kind, (raw % 2 if kind == "BoolStorage" else raw).view(dtype))


@st.composite
def views(draw: st.DrawFn, memory: Memory) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Offset, size and strides within the memory."""
    numel = memory.array.size
    shape, strides = [], []
    room = numel - 1
    for _ in range(draw(st.integers(0, 4))):
        stride = draw(st.integers(0, 6))
        most = 3 if stride == 0 else max(room, 0) // stride + 1
        n = draw(st.integers(0 if draw(st.booleans()) else min(1, numel), min(most, 4) if numel else 0))
        room -= max(n - 1, 0) * stride
        shape.append(n)
        strides.append(stride if n > 1 else draw(st.integers(0, 2**40)))  # torch keeps what it does not use
    if numel == 0 and 0 not in shape:
        shape, strides = [0, *shape], [1, *strides]
    return draw(st.integers(0, max(room, 0))), tuple(shape), tuple(strides)


@st.composite
def shared(draw: st.DrawFn) -> list[tuple[Memory, Any]]:
    """Views, some of one storage."""
    pool = [draw(memories(key=str(key))) for key in range(draw(st.integers(1, 3)))]
    chosen = draw(st.lists(st.sampled_from(range(len(pool))), min_size=1, max_size=5))
    return [(pool[i], draw(views(pool[i]))) for i in chosen]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    entries=shared(),
    form=st.sampled_from(FORMATS),
    protocol=st.integers(1, 5),
    wrap=st.sampled_from([lambda t: t, lambda t: Reduced(REBUILD_PARAMETER, t, True, OrderedDict())]),
)
def test_what_torch_saves_is_read_bit_for_bit(entries, form, protocol, wrap, tmp_path_factory):
    state = OrderedDict((f"layer.{i}", wrap(view(memory, *where))) for i, (memory, where) in enumerate(entries))
    arrays = read_state_dict(file_of(tmp_path_factory.getbasetemp(), saved(state, form, protocol)))
    expected = {}
    for i, (memory, (offset, size, stride)) in enumerate(entries):
        strides = [s * memory.array.itemsize if n > 1 else 0 for n, s in zip(size, stride, strict=True)]
        window = memory.array[offset:] if 0 not in size else memory.array
        expected[f"layer.{i}"] = np.lib.stride_tricks.as_strided(window, size, strides)
    assert bits(arrays) == bits(expected)
    for array in arrays.values():
        assert array.flags.c_contiguous
        assert array.flags.writeable
        array[...] = 0  # shares nothing
    others = list(arrays.values())
    assert not any(np.shares_memory(a, b) for i, a in enumerate(others) for b in others[:i])


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    entries=st.dictionaries(names, shared().map(lambda entries: entries[0]), max_size=4),
    metadata=st.none() | st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"]))),
)
def test_safetensors_go_there_and_back_bit_for_bit(entries, metadata, tmp_path_factory):
    state = {}
    for name, (memory, (_, size, _)) in entries.items():
        state[name] = np.resize(memory.array, size).T  # not contiguous
    path = tmp_path_factory.getbasetemp() / "weights.safetensors"
    write_safetensors(path, state, metadata)
    assert bits(read_state_dict(path)) == bits(state)
    with safetensors.safe_open(path, "np") as theirs:
        assert (theirs.metadata() or {}) == (metadata or {})
        assert set(theirs.keys()) == set(state)


def test_a_header_may_have_any_length(tmp_path):
    """Its lowest byte, the first of the file, is that of a pickle (0x80) or a zip file (0x50) once in a while."""
    path = tmp_path / "weights.safetensors"
    for name in ("a" * length for length in range(0, 300, 8)):
        write_safetensors(path, {name: np.zeros(1)})
        assert set(read_state_dict(path)) == {name}


def test_a_file_is_recognised_by_its_content(tmp_path):
    state = {"a": np.arange(6.0).reshape(2, 3)}
    write_safetensors(tmp_path / "safe.pth", state)
    assert bits(read_state_dict(tmp_path / "safe.pth")) == bits(state)
    for form in FORMATS:
        data = saved({"a": tensor(state["a"])}, form)
        assert bits(read_state_dict(file_of(tmp_path, data, "torch.safetensors"))) == bits(state)


def test_writing_leaves_the_old_file_whole_or_makes_the_new_one(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, {"a": np.ones(3)})
    old = path.read_bytes()
    with pytest.raises(UserError, match=r"weights.safetensors: b is of complex128"):
        write_safetensors(path, {"a": np.zeros(3), "b": np.zeros(2, complex)})
    with mock.patch("os.replace", side_effect=OSError(28, "No space left")), pytest.raises(UserError):
        write_safetensors(path, {"a": np.zeros(3)})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="No such file or directory"):
        write_safetensors(tmp_path / "nowhere" / "weights.safetensors", {"a": np.ones(3)})


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_checkpoint_is_unwrapped(tmp_path, form, key):
    inner = OrderedDict((name, tensor(np.full(2, name == "a"), name)) for name in "ab")
    optimizer = {
        "state": {0: {"momentum_buffer": tensor(np.ones(3), "c")}},
        "param_groups": [{"lr": 0.1, "betas": (1, 2)}],
    }
    checkpoint = {"epoch": 90, "arch": "resnet50", "best": None, key: inner, "optimizer": optimizer, "ema": True}
    arrays = read_state_dict(file_of(tmp_path, saved(checkpoint, form)))
    assert bits(arrays) == bits({"a": np.array([True, True]), "b": np.array([False, False])})


def test_files_of_torch_before_0_4(tmp_path):
    """Python 2's OrderedDict of a list, byte strings, Parameters with state."""
    parameter = Reduced(OLD_PARAMETER, tensor(np.arange(3)), state=(True, False, OrderedDict()))
    data_pkl, memories = pickled(Reduced(OrderedDict, [["conv1.weight", parameter]]), legacy=True)
    data_pkl = data_pkl.replace(b"X\x0c\x00\x00\x00conv1.weight", b"U\x0cconv1.weight")
    arrays = read_state_dict(file_of(tmp_path, legacy(data_pkl, memories)))
    assert bits(arrays) == bits({"conv1.weight": np.arange(3)})


def test_the_metadata_of_a_module_is_let_pass(tmp_path):
    state = OrderedDict(a=tensor(np.ones(2)))
    vars(state)["_metadata"] = OrderedDict({"": {"version": 1}})
    assert bits(read_state_dict(file_of(tmp_path, saved(state)))) == bits({"a": np.ones(2)})


def test_a_bool_is_0_or_1(tmp_path):
    memory = Memory("0", "BoolStorage", np.array([0, 1, 2, 255], np.uint8))
    array = read_state_dict(file_of(tmp_path, saved({"a": view(memory, 0, (4,), (1,))})))["a"]
    assert array.tobytes() == b"\0\1\1\1"


def call(module: str, name: str, *arguments: str) -> bytes:
    """A call in protocol 0's words, as malicious files have it."""
    return f"c{module}\n{name}\n(".encode() + b"".join(f"V{a}\n".encode() for a in arguments) + b"tR."


def stack_global(module: str, name: str, *arguments: str) -> bytes:
    words = [b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name, *arguments)]
    return b"\x80\x04" + words[0] + words[1] + b"\x93(" + b"".join(words[2:]) + b"tR."


ATTACKS = {  # each makes the file CANARY if Python's own unpickler reads it
    "GLOBAL": (call("os", "system", "touch CANARY"), "os.system"),
    "STACK_GLOBAL": (stack_global("os", "system", "touch CANARY"), "os.system"),
    "eval": (call("builtins", "eval", "open('CANARY', 'w').close()"), "builtins.eval"),
    "getattr": (call("builtins", "exec", "open('CANARY', 'w').close()"), "builtins.exec"),
    "dotted": (stack_global("os", "path.genericpath.os.system", "touch CANARY"), "os.path.genericpath.os.system"),
    "a class": (call("_io", "FileIO", "CANARY", "w"), "_io.FileIO"),
    "INST": (b"(VCANARY\nVw\ni_io\nFileIO\n.", "INST"),
    "OBJ": (b"(c_io\nFileIO\nVCANARY\nVw\no.", "_io.FileIO"),
    "EXT": (b"\x80\x02\x82\xf0(X\x0c\x00\x00\x00touch CANARYtR.", "EXT1"),
    "in a state dict": (b"\x80\x02}U\x01a" + call("os", "system", "touch CANARY")[:-1] + b"s.", "os.system"),
    "as state": (b"ccollections\nOrderedDict\n)R" + call("os", "system", "touch CANARY")[:-1] + b"0.", "os.system"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "CANARY"
    payload, asked = ATTACKS[attack]
    copyreg.add_extension("os", "system", 0xF0)
    try:
        result = pickle.loads(payload)  # the attack is a real one
        if isinstance(result, io.FileIO):
            result.close()
        assert canary.exists()
        canary.unlink()
        for data in (zipped(payload), legacy(payload), payload):
            message = refusal(file_of(tmp_path, data))
            assert not canary.exists()
            if data[:1] in (b"P", b"\x80"):
                assert asked in message
                assert "only tensors are read; the file is refused" in message
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


FLOATS = Memory("0", "FloatStorage", np.zeros(8, np.float32))
ORDERED = b"\x80\x02ccollections\nOrderedDict\n"
REFUSED = {  # objects that run nothing even so, and are refused
    "a name within a name": stack_global("collections", "OrderedDict.__init__", "a"),
    "a name within ours": stack_global("torch._utils", "_rebuild_tensor_v2.__globals__", "a"),
    "a name with a newline": stack_global("os\n", "sys\ntem", "a"),
    "a name with backslashes": b"\x80\x02}U\x01acos\nsys\\otem\ns.",
    "attributes": ORDERED + b")R}X\x09\x00\x00\x00__class__NsbX\x01\x00\x00\x00aNs.",
    "attributes of a class": ORDERED + b"}X\x01\x00\x00\x00aNsb.",
    "a call of no function": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a call of a dict": ORDERED + b")R)R.",
    "a call of a storage class": b"\x80\x02ctorch\nFloatStorage\nK\x08\x85R.",
    "NEWOBJ": ORDERED + b")\x81.",
    "a text persistent id": b"\x80\x02P0\n.",
    "another persistent id": b"\x80\x02(X\x06\x00\x00\x00moduleNNtQ.",
    "a key as deep as the file": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
    "a large memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "a long string": b"\x80\x04}\x8d" + struct.pack("<Q", 2**62) + b"aNs.",
    "a long integer": b"\x80\x02}U\x01a\x8b" + struct.pack("<i", 2**31 - 1) + b"s.",
    "itself": b"\x80\x02}q\x00U\x01ah\x00s.",
    "a list of calls": ORDERED + b"q\x00](]" * 1000 + b".",
    "an unmatched stack": b"\x80\x02}u.",
    "no dict": b"\x80\x02]K\x01a.",
    "an empty dict": b"\x80\x02}.",
    "a number": b"\x80\x02}U\x01aK\x01s.",
    "a pickle without an end": b"\x80\x02}",
    "nothing": b"",
    "points beyond": {"a": view(FLOATS, 0, (3, 3), (3, 1))},
    "an offset beyond": {"a": view(FLOATS, 8, (), ())},
    "strides beyond": {"a": view(FLOATS, 0, (2,), (2**62,))},
    "strides that wrap": {"a": view(FLOATS, 0, (5,), (2**62,))},
    "negative offset": {"a": view(FLOATS, -1, (2,), (1,))},
    "negative stride": {"a": view(FLOATS, 7, (2,), (-1,))},
    "negative size": {"a": view(FLOATS, 0, (-2,), (1,))},
    "sizes of strings": {"a": view(FLOATS, 0, ("2",), (1,))},
    "sizes of reals": {"a": view(FLOATS, 0, (2.0,), (1,))},
    "sizes without strides": {"a": view(FLOATS, 0, (2,), ())},
    "giant sizes": {"a": view(FLOATS, 0, (2**62, 2**62), (0, 0))},
    "giant and empty": {"a": view(FLOATS, 0, (2**62, 2**62, 0), (0, 0, 0))},
    "more than integers hold": {"a": view(FLOATS, 0, (2**80,), (0,))},
    "too many dimensions": {"a": view(FLOATS, 0, (1,) * 65, (0,) * 65)},
    "repeated beyond reason": {f"a{i}": view(FLOATS, 0, (8, 1000), (1, 0)) for i in range(10)},
    "a giant storage": {"a": view(Memory("0", "FloatStorage", FLOATS.array, 2**40), 0, (2**40,), (1,))},
    "a negative storage": {"a": view(Memory("0", "FloatStorage", FLOATS.array, -8), 0, (2,), (1,))},
    "two storages of one key": {"a": view(FLOATS, 0, (8,), (1,)), "b": tensor(np.zeros(4))},
    "negated": {"a": Reduced(REBUILD, FLOATS, 0, (8,), (1,), False, OrderedDict(), {"neg": True})},
    "complex": {"a": view(Memory("0", "ComplexFloatStorage", FLOATS.array), 0, (8,), (1,))},
    "a list among tensors": {"a": tensor(np.ones(2)), "epochs": [3]},
    "a name of a number": {3: tensor(np.ones(2))},
    "a name of half a character": {"\ud800": tensor(np.ones(2))},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_state_dict_of_tensors_is_refused(tmp_path, what):
    content = REFUSED[what]
    for form in ("zip", "legacy"):
        if isinstance(content, bytes):
            data = zipped(content) if form == "zip" else legacy(content)
        else:
            data = saved(content, form)
        refusal(file_of(tmp_path, data))


def test_storage_keys_as_deep_as_the_file_are_refused(tmp_path):
    keys = b"\x80\x02])" + b"\x85" * 100_000 + b"a."
    refusal(
        file_of(
            tmp_path, legacy(pickled({"a": tensor(np.ones(2))}, legacy=True)[0])[: -len(pickle.dumps([], 2))] + keys
        )
    )


def test_refusals_say_what_and_how_to_mend_it(tmp_path):
    complex_tensor = {"a": view(Memory("0", "ComplexFloatStorage", FLOATS.array), 0, (8,), (1,))}
    texts = {
        saved(complex_tensor): "unsupported dtype (torch.ComplexFloatStorage); float16 to 64",
        saved({"a": tensor(np.ones(2)), "epochs": [3]}): "entry epochs is no tensor; save model.state_dict() alone",
        saved({"a": view(FLOATS, 0, (3, 3), (3, 1))}): "a reaches outside of its storage; the file is refused",
        saved({"a": view(FLOATS, 0, (8, 9**9), (1, 0))}): "more than 16 times the file's size",
        zipped(pickled({"a": tensor(np.ones(99))})[0], compression=zipfile.ZIP_DEFLATED): "torch.save its state_dict()",
        pickle.dumps({"a": 1}, 2): "a pickle, but not one of torch.save's",
        safetensors.numpy.save({"a": np.ones(2, np.uint16)}): "a is of dtype U16; float16 to 64",
        b"": "the file is empty",
        b"<html>not found</html>": "neither safetensors nor torch's .pth, but a web page",
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
        gzip.compress(b"weights"): "gzip",
        bytes(257) + b"ustar": "tar archive",
        b'{"metadata": {}, "weight_map": {}}': "JSON",
        bytes(9): "neither safetensors nor torch's .pth",
    }
    for data, text in texts.items():
        assert text in refusal(file_of(tmp_path, data))
    assert "no such file" in refusal(tmp_path / "nowhere.pth")
    assert "not a file" in refusal(tmp_path)


WEIGHTS = {"conv.weight": tensor(np.ones(2)), "bn.num_batches_tracked": tensor(np.zeros((), np.int64), "1")}


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state_dict": WEIGHTS, "epoch": 3, "hyper_parameters": {"lr": 0.1}},
        {"model_state_dict": WEIGHTS, "optimizer_state_dict": {"state": {0: {"step": 1}}}, "loss": 0.5},
        {"model": {"state_dict": WEIGHTS}, "args": argparse.Namespace(lr=0.1, out=Path("x")), "s": {1}},
        {"ema": WEIGHTS, "best": True},
        {"weights": WEIGHTS, "epoch": 3},
        {"ema_state_dict": WEIGHTS, "step": 1},
        {"params": WEIGHTS},
        WEIGHTS | {"epoch": 3, "note": "text"},
    ],
)
def test_a_state_dict_is_found_where_trainers_put_it(checkpoint, tmp_path):
    for form in ("zip", "legacy"):
        arrays = read_state_dict(file_of(tmp_path, saved(checkpoint, form)))
        assert list(arrays) == list(WEIGHTS)
        assert arrays["conv.weight"].tolist() == [1, 1]


def test_zip_files_that_grow_are_refused(tmp_path):
    data_pkl, memories = pickled({"a": tensor(np.zeros(10**6))})
    bomb = zipped(data_pkl, memories, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 20_000
    assert "compressed" in refusal(file_of(tmp_path, bomb))
    stored = zipped(data_pkl, memories)
    file = io.BytesIO(stored)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data/0", b"")
    assert "overlap" in refusal(file_of(tmp_path, file.getvalue()))
    directory = stored.index(b"PK\x01\x02")
    lies = bytearray(stored)
    lies[directory + 20 : directory + 28] = struct.pack("<II", 2**31, 2**31)  # data.pkl's sizes
    assert "overlap" in refusal(file_of(tmp_path, bytes(lies)))
    assert "not one of torch.save's" in refusal(file_of(tmp_path, zipped(b"").replace(b"data.pkl", b"code.pkl")))


def test_a_large_pickle_is_refused_before_it_is_memory(tmp_path):
    assert "larger than 8 MiB" in refusal(
        file_of(tmp_path, zipped(b"\x80\x02}X" + struct.pack("<i", 2**23) + bytes(2**23) + b"Ns."))
    )


@cache
def small_files() -> list[bytes]:
    views_of_one = {"a": tensor(np.arange(6.0).reshape(2, 3)), "b": tensor(np.array([True, False]), "1")}
    files = [saved(OrderedDict(views_of_one), form, protocol) for form in ("zip", "legacy") for protocol in (2, 4)]
    return [*files, safetensors.numpy.save({"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False])})]


@pytest.mark.parametrize("which", range(5))
def test_a_file_cut_short_is_refused(tmp_path, which):
    data = small_files()[which]
    assert read_state_dict(file_of(tmp_path, data)).keys() == {"a", "b"}
    for length in [*range(0, len(data), 6), len(data) - 1]:
        refusal(file_of(tmp_path, data[:length]))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    which=st.integers(0, 4),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    whole=st.booleans(),
)
def test_a_damaged_file_gives_arrays_or_a_refusal(which, changes, whole, tmp_path_factory):
    data = bytearray(small_files()[which])
    for where, value in changes:
        data[int(where * len(data))] = value
    try:
        arrays = read_state_dict(file_of(tmp_path_factory.getbasetemp(), bytes(data)))
    except UserError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= 16 * len(data)
