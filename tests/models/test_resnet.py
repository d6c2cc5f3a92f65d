"""The residual networks against their paper: counts, shapes, shortcuts, strides, padding and initialisation."""

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import CIFAR, RESNET, count, filled, images, sizes, traced

from jaxcnn import UserError
from jaxcnn.models import create_model, layers, pooling, resnet
from jaxcnn.models.resnet import SPECS, Block

PARAMETERS = RESNET | CIFAR


def test_the_table_of_counts_covers_the_family():
    assert PARAMETERS.keys() == SPECS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_network_has_the_parameters_of_its_paper_and_the_endpoints_it_declares_at_an_odd_size(name):
    pixels = 33 if name in CIFAR else 65  # a stride rounds up; even sizes are in test_registry
    outputs, variables = traced(name, pixels)
    assert count(variables["params"]) == PARAMETERS[name]
    endpoints: dict[str, tuple[int, int]] = create_model(name).endpoints  # type: ignore[attr-defined]
    assert {"stem", "stage1", "stage2", "stage3"} <= endpoints.keys()
    expected = {k: (2, math.ceil(pixels / s), math.ceil(pixels / s), c) for k, (s, c) in endpoints.items()}
    assert {k: v.shape for k, v in outputs.items()} == expected | {"logits": (2, 10 if name in CIFAR else 1000)}


@pytest.mark.parametrize(
    ("name", "last"), [("resnet18", (32, 512)), ("resnet50", (32, 2048)), ("resnet20", (4, 64)), ("plain56", (4, 64))]
)
def test_the_last_stage_is_that_of_the_paper(name, last):
    endpoints: dict[str, tuple[int, int]] = create_model(name).endpoints  # type: ignore[attr-defined]
    assert list(endpoints.values())[-1] == last


@cache
def initial(train: bool) -> Any:
    block = Block(64, 2, SPECS["resnet50"], jnp.float32)
    return jax.jit(lambda key, x: block.init(key, x, train))(jax.random.key(0), jnp.zeros((2, 4, 4, 256)))


def test_init_draws_the_same_values_in_training_and_evaluation():
    jax.tree.map(np.testing.assert_array_equal, initial(train=True), initial(train=False))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50_tv", "plain20"])
def test_only_the_activations_are_of_the_compute_type(name, dtype):
    outputs, variables = traced(name, 33, train=True, dtype=dtype)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
    assert outputs.pop("logits").dtype == jnp.float32
    assert {str(x.dtype) for x in outputs.values()} == {dtype}


def test_logits_are_not_rounded_to_the_compute_type():
    x, kernel, bias = images(8, 16), images(16, 10, seed=1), images(10, seed=2)
    head = layers.Classifier(10, jnp.bfloat16)
    logits: Any = head.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    rounded = (np.asarray(v.astype(jnp.bfloat16), np.float64) for v in (x, kernel))
    np.testing.assert_allclose(logits, np.matmul(*rounded) + np.asarray(bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("plain34", set()),
        ("plain20", set()),
        ("resnet34_a", set()),
        ("resnet110", set()),
        ("resnet34", {"stage2_block1", "stage3_block1", "stage4_block1"}),
        ("resnet50", {"stage1_block1", "stage2_block1", "stage3_block1", "stage4_block1"}),
        ("resnet34_c", {f"stage{s}_block{b + 1}" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n)}),
    ],
)
def test_projections_are_where_the_option_puts_them(name, blocks):
    params = sizes(traced(name, 33 if name in CIFAR else 65)[1]["params"])
    assert {path.split("/")[0] for path in params if "shortcut" in path} == blocks


@pytest.mark.parametrize(("name", "sides"), [("resnet50", [4, 4, 4]), ("resnet50_tv", [8, 4, 4])])
def test_the_first_1x1_strides_in_the_paper_and_the_3x3_in_torchvision(name, sides):
    block = Block(8, 2, SPECS[name], jnp.float32)
    x = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32)

    def intermediates(x: jax.Array) -> Any:
        variables = block.init(jax.random.key(0), x, False)
        return block.apply(variables, x, False, capture_intermediates=True)[1]["intermediates"]

    layers = jax.eval_shape(intermediates, x)
    assert [layers[f"conv{i}"]["__call__"][0].shape[1] for i in (1, 2, 3)] == sides


def test_kernels_start_from_he_gaussians_that_are_not_truncated():
    params = initial(train=False)["params"]
    kernels = [np.asarray(module["kernel"]) for name, module in params.items() if "conv" in name]
    assert len(kernels) == 4
    for kernel in kernels:
        normal = kernel.ravel() / math.sqrt(2 / math.prod(kernel.shape[:3]))
        assert abs(normal.mean()) < 5 / math.sqrt(normal.size)
        assert abs(normal.std() - 1) < 5 / math.sqrt(2 * normal.size)
        assert np.mean(np.abs(normal) > 2) == pytest.approx(0.0455, rel=0.15)
        assert np.abs(normal).max() > 3


def test_a_block_is_the_relu_of_f_plus_the_shortcut():
    x = images(2, 7, 7, 4)
    plain, option_a = (Block(6, 2, SPECS[name], jnp.float32) for name in ("plain18", "resnet18_a"))
    variables = filled(jax.eval_shape(lambda: plain.init(jax.random.key(0), x, False)))
    f, y = (np.asarray(block.apply(variables, x, False)) for block in (plain, option_a))
    # Where F alone is positive, ReLU lets it through, and what option A adds to it shows.
    added = np.where((f > 0) & (y > 0), y - f, np.nan)
    shortcut = np.broadcast_to(np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 2))), y.shape)
    seen = ~np.isnan(added)
    assert seen[..., :4].mean() > 0.2
    assert f.min() == y.min() == 0
    np.testing.assert_allclose(added[seen], shortcut[seen], atol=1e-6)
    np.testing.assert_array_equal(y[..., 4:], f[..., 4:])


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """By hand: (H, W) with k // 2 zeros on *each* side."""
    k = len(kernel)
    x = np.pad(x, k // 2)
    rows, columns = (range(0, side - k + 1, stride) for side in x.shape)
    return np.array([[np.sum(x[i : i + k, j : j + k] * kernel) for j in columns] for i in rows])


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolutions_pad_alike_on_each_side(kernel, stride, side):
    x, weights = images(side, side), images(kernel, kernel, seed=1)
    layer = layers.conv(1, kernel, stride, dtype=jnp.float32)
    y: Any = layer.apply({"params": {"kernel": weights[:, :, None, None]}}, x[None, :, :, None])
    np.testing.assert_allclose(y[0, :, :, 0], convolved(np.asarray(x), np.asarray(weights), stride), atol=1e-5)


@pytest.mark.parametrize("side", [8, 9])
def test_max_pooling_pads_alike_on_each_side_with_what_never_wins(side):
    x = -1 - jnp.abs(images(side, side))
    padded = np.pad(x, 1, constant_values=-np.inf)
    starts = range(0, side, 2)
    expected = [[padded[i : i + 3, j : j + 3].max() for j in starts] for i in starts]
    np.testing.assert_array_equal(pooling.max_pool(x[None, :, :, None], 3, 2, 1)[0, :, :, 0], expected)


def test_batch_norm_moves_a_tenth_of_the_way_to_the_statistics_of_the_batch():
    norm, x = layers.batch_norm(True, dtype=jnp.float32), 0.01 * images(4, 3, 3, 2)
    variables = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    before = {"mean": jnp.full(2, 0.01), "var": jnp.full(2, 2e-4)}
    applied: Any = norm.apply(variables | {"batch_stats": before}, x, mutable=["batch_stats"])
    y, after = applied
    mean, var = np.mean(x, (0, 1, 2)), np.var(x, (0, 1, 2))
    np.testing.assert_allclose(after["batch_stats"]["mean"], 0.9 * 0.01 + 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(after["batch_stats"]["var"], 0.9 * 2e-4 + 0.1 * var, rtol=1e-4)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)


def test_evaluation_of_an_image_depends_on_no_other_row():
    model = create_model("resnet20", 10, jnp.float32)
    x = images(3, 8, 8, 3)
    variables = filled(traced("resnet20", 33)[1])

    def apply(x: jax.Array) -> np.ndarray:
        outputs: Any = model.apply(variables, x, train=False)
        return np.asarray(outputs["logits"])

    alone = apply(x)
    assert np.all(np.isfinite(alone))
    assert np.ptp(alone, axis=0).min() > 0
    np.testing.assert_array_equal(alone, apply(x))
    np.testing.assert_array_equal(alone[0], apply(x.at[1:].set(jnp.nan))[0])


@pytest.mark.parametrize(
    ("name", "near"), [("resnet_50", "resnet50"), ("ResNet20", "resnet20"), ("plain33", "plain34")]
)
def test_an_unknown_model_names_its_nearest(name, near):
    with pytest.raises(UserError, match=rf"'{name}'.*\b{near}\b"):
        create_model(name)


def test_a_name_like_no_other_says_where_the_names_are():
    with pytest.raises(UserError, match=r"'zzz'.*jaxcnn models"):
        create_model("zzz")


def test_an_unknown_override_is_named_with_its_model():
    with pytest.raises(UserError, match=r"resnet20.*widht"):
        create_model("resnet20", widht=3)


def test_a_head_without_classes_is_refused():
    with pytest.raises(UserError, match="num_classes=0"):
        create_model("resnet18", num_classes=0)


def test_blocks_in_a_loop_compute_what_blocks_in_turn_do(monkeypatch):
    """Outputs, gradients and running statistics, with the same names; the loop is there on an accelerator alone."""
    monkeypatch.setattr(resnet, "SCANNED", 3)
    model: Any = resnet.ResNet(resnet.Spec((3, 3, 3), shortcut="A", cifar=True), 3, jnp.float32)
    x = jnp.asarray(images(2, 8, 8, 3))
    variables: Any = jax.jit(model.init)(jax.random.key(0), x)

    def everything(platform: str) -> Any:
        monkeypatch.setattr(resnet, "platform", lambda: platform)

        def loss(params: Any) -> Any:
            outputs, new = model.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.square(outputs["logits"]).mean(), (outputs, new)

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return step(variables["params"]), step.lower(variables["params"]).as_text().count("stablehlo.while")

    (plain, none), (looped, loops) = everything("cpu"), everything("tpu")
    assert (none, loops) == (0, 6)  # three stages, forward and backward
    assert jax.tree.structure(plain) == jax.tree.structure(looped)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(a).max()), plain, looped)
    assert model.apply(variables, x)["logits"].shape == (2, 3)
