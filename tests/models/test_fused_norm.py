"""BatchNorm in the forms of a TPU, computed on a CPU: the plain one, but for rounding, on any number of devices."""

import os
import re
import subprocess
import sys
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import quick
from tiny import Blobs, build, leaves, steps, tiny_config

from jaxcnn.models import create_model, list_models
from jaxcnn.models.fused_norm import fused_norms
from jaxcnn.models.resnet import MODELS, ResNet, Spec
from jaxcnn.scaling.ahead_of_time import plugins
from jaxcnn.training import step
from jaxcnn.training.gradients import fuses_norms
from jaxcnn.training.hlo import Module, collectives_of


def network(stride_in: str = "conv2", dtype: Any = jnp.float32) -> Any:
    return ResNet(Spec((1, 1), bottleneck=True, stride_in=stride_in), num_classes=6, dtype=dtype)


@cache
def values() -> Any:
    """Variables in float64, with scales of both signs and, in the stem, channels with a mean of 100 deviations."""
    rng = np.random.default_rng(0)
    made: Any = jax.eval_shape(network().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            return rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape) * (
                np.where(rng.random(leaf.shape) < 0.3, -1, 1) ** (name == "scale")
            )
        return rng.uniform(-0.3, 0.3, leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, made)


IMAGES = np.random.default_rng(1).standard_normal((4, 40, 48, 3))
LABELS = np.random.default_rng(2).integers(0, 6, 4)


def trained(fused: bool, dtype: Any, stride_in: str = "conv2", shift: float = 0.0) -> tuple[Any, Any, Any]:
    """Loss and outputs, gradients of parameters and images, and statistics of a step, as float64."""
    model, wide = network(stride_in, dtype), jnp.promote_types(dtype, jnp.float32)
    before = jax.tree.map(lambda x: jnp.asarray(x, wide), values())

    def objective(params: Any, images: Any) -> Any:
        outputs, new = model.apply(before | {"params": params}, images, train=True, mutable=["batch_stats"])
        nll = -jax.nn.log_softmax(outputs["logits"])[jnp.arange(4), LABELS]
        # Endpoints may be asked for, the stem's too, which the pooled form does not make for itself.
        return nll.mean() + 0.1 * (outputs["stem"].astype(wide) ** 2).mean(), (outputs, new["batch_stats"])

    with fused_norms(fused):
        run = quick(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
        (loss, (outputs, statistics)), grads = run(before["params"], jnp.asarray(IMAGES + shift, wide))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), ((loss, outputs), grads, statistics))


def distance(a: Any, b: Any) -> float:
    """The largest difference of two trees, each array's relative to its largest element."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


@pytest.mark.parametrize("stride_in", ["conv1", "conv2"])
def test_losses_gradients_and_statistics_are_those_of_the_plain_form(stride_in):
    with jax.enable_x64(True):
        plain, fused = (trained(form, jnp.float64, stride_in) for form in (False, True))
    assert distance(fused, plain) < 1e-12


@pytest.mark.parametrize(("dtype", "shift"), [(jnp.float32, 0.0), (jnp.bfloat16, 0.0), (jnp.float32, 100.0)])
def test_rounding_takes_it_no_farther_from_float64_than_the_plain_form(dtype, shift):
    """Images with a mean of 100 deviations make E[y²] - E[y]² cancel in the plain form, too."""
    with jax.enable_x64(True):
        exact = trained(False, jnp.float64, shift=shift)

    def error(fused: bool) -> list[float]:
        found = trained(fused, dtype, shift=shift)
        norms = [
            np.sqrt(sum(((x - y) ** 2).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))
            / np.sqrt(sum((y**2).sum() for y in jax.tree.leaves(b)))
            for a, b in zip(found, exact, strict=True)
        ]
        return [float(norm) for norm in norms]

    for fused, plain in zip(error(True), error(False), strict=True):
        assert fused < 1.3 * plain + 1e-6


def test_both_forms_have_the_same_variables_and_outputs():
    model, x = network(), jnp.zeros((2, 40, 40, 3))
    run = lambda: jax.eval_shape(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"]), values())  # noqa: E731
    plain = run()
    with fused_norms(True):
        assert jax.tree.map(lambda a: (a.shape, a.dtype), run()) == jax.tree.map(lambda a: (a.shape, a.dtype), plain)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101_tv"])
def test_bottlenecks_alone_have_such_a_form_and_only_where_their_norms_train(name):
    assert MODELS[name]().has_fused_norm == ("18" not in name)
    assert not MODELS[name](frozen_norm=True).has_fused_norm
    assert not MODELS[name](small_images=True).has_fused_norm


class Place:
    """A device of a platform that is not here."""

    def __init__(self, platform: str):
        self.platform = platform
        self.devices = np.array([self], object)


@pytest.mark.parametrize(
    ("platform", "changes", "expected"),
    [
        ("tpu", {}, True),
        ("cpu", {}, False),
        ("gpu", {}, False),
        ("tpu", {"norm__fused": "off"}, False),
        ("tpu", {"mesh__placement": "fsdp"}, False),
        ("tpu", {"norm__scope": "shard"}, True),
    ],
)
def test_the_form_is_chosen_for_a_tpu_where_it_pays(platform, changes, expected):
    mesh: Any = Place(platform)
    assert fuses_norms(tiny_config(**changes), network(), mesh) is expected
    assert not fuses_norms(tiny_config(**changes), network().clone(dropout=0.1), mesh)


def test_of_all_networks_only_bottleneck_resnets_take_it():
    mesh: Any = Place("tpu")
    taking = {name for name in list_models() if fuses_norms(tiny_config(), create_model(name), mesh)}
    assert taking == {f"resnet{depth}{form}" for depth in (50, 101, 152) for form in ("", "_tv")}


def lowered(fused: str, **changes: Any) -> str:
    """The text of the training step of a small bottleneck network."""
    config = tiny_config(norm__fused=fused, **changes)
    program = build(config, network(), Blobs(16, image_shape=(32, 32, 3)))
    return program.lower(program.largest_batch).as_text()


def test_the_program_for_a_cpu_is_the_plain_one_to_the_letter():
    assert lowered("auto") == lowered("off")


# Lowers for a slice that is not there, in a process that finds the compilers; prints whether `auto` changes the step.
_ELSEWHERE = """
import sys
from jaxcnn.scaling.ahead_of_time import abstract_devices
from jaxcnn.scaling.chips import parse_topology
from jaxcnn.training.program import build_program
from jaxcnn.training.sharding import make_mesh
from test_fused_norm import network
from tiny import Blobs, tiny_config

def text(topology, fused, **changes):
    mesh = make_mesh(4, 1, abstract_devices(parse_topology(topology)))
    config, data = tiny_config(mesh__data=4, norm__fused=fused, **changes), Blobs(16, image_shape=(32, 32, 3))
    program = build_program(config, network(), data, mesh)
    return program.lower(program.largest_batch).as_text()

for topology, changes in (
    ("gpu:h100:4", {}), ("tpu:v5e:2x2", {"mesh__placement": "fsdp"}), ("tpu:v5e:2x2", {}), ("tpu:v6e:2x2", {})
):
    print(text(topology, "auto", **changes) == text(topology, "off", **changes))
"""


@pytest.mark.aot
def test_the_program_for_a_gpu_and_of_fsdp_is_the_plain_one_and_that_for_a_tpu_another():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(plugins()), *sys.path]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", _ELSEWHERE], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "False", "False"], done.stderr


CHANGES: dict[str, dict[str, Any]] = {
    "global": {}, "shard": {"norm__scope": "shard"}, "accumulated": {"optimizer__accumulate": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", ["global", *(pytest.param(x, marks=pytest.mark.slow) for x in list(CHANGES)[1:])])
def test_on_eight_devices_the_state_is_that_of_the_plain_form(name, monkeypatch):
    data = Blobs(16, image_shape=(32, 32, 3))
    config = tiny_config(mesh__data=8, optimizer__name="sgd", **CHANGES[name])
    plain, first = steps(build(config, network(), data), 1, data)
    monkeypatch.setattr(step, "fuses_norms", lambda *_: True)
    program = build(config, network(), data)
    fused, second = steps(program, 1, data)
    np.testing.assert_allclose(second, first, rtol=1e-5)
    for (path, x), y in zip(leaves(fused).items(), leaves(plain).values(), strict=True):
        # By the norm: rounding turns a ReLU here and there, by which single gradients differ in the third digit.
        assert np.linalg.norm(x - y) <= 1e-5 + 5e-3 * np.linalg.norm(y), path
    if name == "global":
        # The gradients cross the wire, and eight numbers a channel of each norm at most: no Gram matrix.
        compiled = program.lower(program.largest_batch).compile()
        sent = sum(one.number * one.bytes for one in collectives_of(Module(compiled.as_text()), 8))
        parameters = sum(x.size for x in jax.tree.leaves(program.state.params))
        channels = sum(x.size for x in jax.tree.leaves(program.state.batch_stats)) // 2
        assert 4 * parameters <= sent <= 4 * (parameters + 8 * channels) + 1024


@pytest.mark.parametrize(("scope", "wire"), [("global", "bf16"), ("shard", "f32")])
def test_gradients_of_kernels_cross_the_wire_in_the_type_of_the_plain_form(scope, wire, monkeypatch):
    """XLA adds them as they leave the products, in 16 bits; shards with statistics of their own add float32.

    Lowered only: the CPU compiler of jaxlib 0.10 dies of such a sum in 16 bits.
    """
    monkeypatch.setattr(step, "fuses_norms", lambda *_: True)
    config = tiny_config(mesh__data=2, dtype="bfloat16", norm__scope=scope)
    program = build(config, network(dtype=jnp.bfloat16), Blobs(16, image_shape=(32, 32, 3)))
    # The types of operations with a body, which all-reduces are.
    sent = "".join(re.findall(r"}\) : .*", program.lower(program.largest_batch).as_text()))
    for path, leaf in jax.tree.leaves_with_path(program.state.params):
        shape, kind = "x".join(map(str, leaf.shape)), wire if len(leaf.shape) > 1 else "f32"
        assert f"-> tensor<{shape}x{kind}>" in sent, path
