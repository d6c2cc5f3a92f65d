"""XLA's options for the programs of a run."""

import os
import subprocess
import sys

import jax
import pytest
from tiny import Blobs, Tiny, build, tiny_config

import jaxcnn
from jaxcnn.scaling.ahead_of_time import plugins
from jaxcnn.training import program

# Adds to an array at places that occur many times, in a program for a GPU that is not there.
_SCATTER = """
import jax, jax.numpy as jnp
from jaxcnn.scaling.ahead_of_time import abstract_devices
from jaxcnn.scaling.chips import parse_topology
from jaxcnn.training.program import compiler_options
from tiny import tiny_config

where = jax.sharding.SingleDeviceSharding(abstract_devices(parse_topology("gpu:h100:8"))[0])
shapes = [jax.ShapeDtypeStruct((n,), t, sharding=where) for n, t in ((9, "f4"), (999, "i4"), (999, "f4"))]
for on in (False, True):
    options = compiler_options(tiny_config(deterministic=on), "gpu")
    step = jax.jit(lambda x, i, y: x.at[i].add(y), compiler_options=options)
    print(step.lower(*shapes).compile().as_text().count("sort("))
"""


@pytest.mark.aot
def test_deterministic_makes_the_compiler_for_gpus_sort_what_is_added_at_one_place():
    paths = os.pathsep.join([str(plugins()), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_gpu_autotune_level=0"}
    done = subprocess.run([sys.executable, "-c", _SCATTER], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "1"], done.stderr


def test_the_options_reach_xla_with_every_program_of_a_run_though_its_backend_is_up(tmp_path, monkeypatch):
    config = tiny_config(steps=2, deterministic=True, model__name="mine")
    jax.devices()
    assert jaxcnn.train(config, tmp_path, model=Tiny(), data=Blobs())["deterministic"] is True
    monkeypatch.setattr(program, "compiler_options", lambda config, platform: {"no_such_option": config.deterministic})
    made = build(config)
    batch, evaluated = (next(iter(x.values())) for x in (made.batch, made.eval_batch))
    for lowered in (
        made.lower(batch),
        made.eval_step.lower(made.variables, evaluated),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
            made.compiled(lowered)


@pytest.mark.parametrize(
    ("platform", "changes", "passed"),
    [
        ("cpu", {"dtype": "bfloat16"}, True),
        ("cpu", {"dtype": "bfloat16", "onednn": False}, False),
        ("cpu", {"dtype": "float32"}, False),
        ("gpu", {"dtype": "bfloat16"}, False),
        ("tpu", {"dtype": "bfloat16"}, False),
    ],
)
def test_onednn_is_asked_for_on_a_cpu_in_16_bits(platform, changes, passed):
    assert bool(program.compiler_options(tiny_config(**changes), platform)) is passed


def test_an_option_that_this_xla_does_not_have_never_reaches_it(monkeypatch):
    monkeypatch.setattr(program, "_ONEDNN", "xla_cpu_no_such_option")
    assert program.compiler_options(tiny_config(dtype="bfloat16"), "cpu") == {}
