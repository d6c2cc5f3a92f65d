"""Private parts of other libraries: in one module only, and only as long as there is no public way."""

import ast
import inspect
import multiprocessing.pool
import threading
from pathlib import Path

import jax
import pytest
import tensorflow_datasets as tfds
from grain.multiprocessing import SharedMemoryArray
from jax.experimental import multihost_utils

import jaxcnn
from jaxcnn import compat

ROOT = Path(jaxcnn.__file__).parent
PUBLIC = {"_asdict", "_exit", "_fields", "_replace"}  # documented, of named tuples and of `os`


def private_access(source: str) -> list[str]:
    """The private names of others in `source`, and the attributes of imported modules and classes that it sets."""
    tree, found = ast.parse(source), []
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_self(node.value)}
    imported = set()
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None) or "", *(name.name for name in node.names)]
            found += [name for name in modules if not name.startswith("jaxcnn") and _is_private(name)]
            imported |= {(name.asname or name.name).split(".")[0] for name in node.names}
    for node in nodes:
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own | PUBLIC:
            found.append(node.attr)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "._src" in node.value:
            found.append(node.value)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            found += [f"{node.value.id}.{node.attr}"] if node.value.id in imported - {"sys"} else []
    return found


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import jax\njax.jit(f)", []),
        ("from jax._src import core", ["jax._src"]),
        ("import jax._src.core as core", ["jax._src.core"]),
        ("from grain import _pool", ["_pool"]),
        ("from grain import Array\nArray._pool.apply(int)", ["_pool"]),
        ("import time\ntime.time = f", ["time.time"]),
        ("import importlib\nimportlib.import_module(f'orbax._src.{name}')", ["orbax._src."]),
        ("builder._hook = f", ["_hook"]),
        ("class A:\n  def f(self, other):\n    self._x = other._x", []),
        ("from jaxcnn.models import _REGISTRY\nrow._replace(x=1)", ["_REGISTRY"]),
        ("import sys\nsys.unraisablehook = f", []),
    ],
)
def test_every_form_of_private_access_is_seen(source, found):
    assert private_access(source) == found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_parts_of_others_are_in_one_module(path):
    assert (private_access(path.read_text()) != []) == (path.name == "compat.py")


def test_grain_has_no_public_way_to_wait_for_freed_memory(monkeypatch):
    public = {name for name in vars(SharedMemoryArray) if not name.startswith("_")}
    assert public == {
        *("close_shm_async", "enable_async_del", "from_metadata", "from_shared_memory", "metadata", "unlink_on_del"),
    }
    with multiprocessing.pool.ThreadPool(1) as pool:
        monkeypatch.setattr(SharedMemoryArray, "_del_thread_pool", pool)
        begun, done = threading.Event(), threading.Event()
        pool.apply_async(lambda: begun.set() or done.wait(0.2) or done.set())
        begun.wait()
        compat.wait_for_freed_memory()
        assert done.is_set()


def test_without_grains_pool_there_is_nothing_to_wait_for(monkeypatch):
    monkeypatch.setattr(SharedMemoryArray, "_del_thread_pool", None)
    compat.wait_for_freed_memory()


def test_tfds_takes_no_examples_but_from_the_hook():
    names = inspect.signature(tfds.core.GeneratorBasedBuilder.download_and_prepare).parameters
    assert set(names) == {"self", "download_dir", "download_config", "file_format", "permissions"}
    assert "_split_generators" in tfds.core.GeneratorBasedBuilder.__abstractmethods__


def test_jax_has_no_public_way_to_its_key_value_store():
    public = {name for module in (jax.distributed, multihost_utils) for name in vars(module) if "key_value" in name}
    assert not public, f"use {public} in place of compat.coordination_client"
    assert compat.coordination_client() is None  # there is none without `jax.distributed.initialize`


def test_jax_has_no_public_way_to_a_processs_number_that_leaves_the_devices_alone():
    assert not {"process_id", "process_index"} & vars(jax.distributed).keys(), "use it in place of compat.process_of"
    assert compat.process_of() == (0, 1)
