"""Compiling for devices that are not there: what is kept, what is refused; test_scaling.py asks real compilers."""

import gzip
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxcnn.scaling import ahead_of_time
from jaxcnn.scaling.chips import parse_topology
from jaxcnn.scaling.program_costs import memory_limit

GIB = 2**30


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.50G of "
            "15.75G hbm. Exceeded hbm capacity by 2.75G.",
            [round(18.5 * GIB), round(15.75 * GIB)],
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (15.98G) "
            "exceeds available HBM (15.75G).",
            [round(15.98 * GIB), round(15.75 * GIB)],
        ),
        ("INTERNAL: Mosaic failed", []),
    ],
)
def test_a_refusal_for_size_is_read(message, sizes):
    assert ahead_of_time.unfit(message) == sizes


def test_limits():
    assert memory_limit(parse_topology("tpu:v5e:4")) == round(15.75 * GIB)  # what its compiler says it has
    assert memory_limit(parse_topology("tpu:v3:4")) < 16 * GIB  # of a core, one of two
    assert memory_limit(parse_topology("gpu:h100:8")) == pytest.approx(0.75 * 84_942_979_072, abs=1)


def program(width) -> Any:
    """What `compile_step` needs of a program; it is compiled for this CPU."""
    x = jax.ShapeDtypeStruct((8, width), jnp.float32)
    step = jax.jit(lambda state, batch: (state @ batch.T, 0.0))
    return SimpleNamespace(
        largest_batch=x,
        compiler_options={},
        lower=lambda batch: step.lower(x, batch),
        compiled=lambda lowered: lowered.compile(),
    )


def test_what_was_compiled_is_kept_under_its_program(tmp_path):
    place = parse_topology("tpu:v5e:1")
    first = ahead_of_time.compile_step(program(16), place, tmp_path)
    assert (first["cached"], "ENTRY" in first["text"]) == (False, True)
    assert ahead_of_time.compile_step(program(16), place, tmp_path) == first | {"cached": True}
    assert not ahead_of_time.compile_step(program(32), place, tmp_path)["cached"]
    assert not ahead_of_time.compile_step(program(16), parse_topology("tpu:v5e:4"), tmp_path)["cached"]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"no gzip",
        gzip.compress(b"x", mtime=0)[:10] + b"\xff" * 20,
        gzip.compress(b'{"text": "ENT', mtime=0),
        gzip.compress(b"[]", mtime=0),
    ],
)
def test_a_damaged_entry_is_compiled_again(tmp_path, damage):
    ahead_of_time.compile_step(program(16), parse_topology("tpu:v5e:1"), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert not ahead_of_time.compile_step(program(16), parse_topology("tpu:v5e:1"), tmp_path)["cached"]
    assert json.loads(gzip.decompress(path.read_bytes()))["text"]


def test_options_of_xla_make_another_program(tmp_path, monkeypatch):
    ahead_of_time.compile_step(program(16), parse_topology("tpu:v5e:1"), tmp_path)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_some=1")
    assert not ahead_of_time.compile_step(program(16), parse_topology("tpu:v5e:1"), tmp_path)["cached"]
