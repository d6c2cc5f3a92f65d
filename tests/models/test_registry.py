"""What every network promises, whatever its family: names, outputs, randomness, gradients, padding, image sizes."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import (
    CIFAR,
    DETECTION,
    FCN,
    GENERATIVE,
    GOOGLENET,
    KINDS,
    PARAMETERS,
    RESNET,
    count,
    create,
    evaluation,
    filled,
    images,
    quick,
    shapes,
    sizes,
    traced,
    training,
    variables,
)

from jaxcnn import UserError
from jaxcnn.models import create_model, list_models

NAMES = sorted(PARAMETERS.keys() - {"resnet1202"})  # a trace of 1,202 layers takes seconds
NEW = [name for name in NAMES if name not in RESNET | CIFAR]


def test_the_names_are_those_whose_counts_are_published():
    assert list_models() == sorted(PARAMETERS | FCN | DETECTION | GENERATIVE)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_has_the_parameters_of_its_paper_and_returns_logits_and_the_endpoints_it_declares(name):
    model: Any = create_model(name)
    size, classes = model.image_size, 10 if name in CIFAR else 1000
    assert size == (32 if name in CIFAR else 224)
    outputs, made = traced(name, size)
    assert count(made["params"]) == PARAMETERS[name]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(made)} == {"float32"}
    assert outputs.keys() == {"logits", *model.endpoints}
    assert (outputs["logits"].shape, outputs["logits"].dtype) == ((2, classes), jnp.float32)
    for endpoint, (stride, channels) in model.endpoints.items():
        rows, height, width, features = outputs[endpoint].shape
        assert (rows, features) == (2, channels)
        # AlexNet's windows leave a pixel of the edge out: 55 of 56, 27 of 28, 13 of 14.
        assert height == width
        assert size // stride - height in ((0, 1) if name.startswith("alexnet") else (0,))


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("alexnet", [("conv1",), ("fc7",), ("head",)]),
        ("vgg11_bn", [("stage1_conv1",), ("fc7",), ("head",)]),
        ("googlenet", [("conv1", "conv"), ("aux1", "head"), ("aux2", "fc"), ("head",)]),
    ],
)
def test_init_draws_the_same_values_in_training_and_evaluation(name, kept):
    """Of the first layer and of those that follow dropout or the auxiliary heads: all would take long to compile."""

    @quick
    def both(key: jax.Array) -> list[dict[str, jax.Array]]:
        params = [create(name).init(key, jnp.zeros((1, 32, 32, 3)), train=train)["params"] for train in (True, False)]
        return [{".".join(path): _leaf(tree, path) for path in kept} for tree in params]

    train, evaluate = both(jax.random.key(3))
    assert min(np.std(kernel) for kernel in train.values()) > 0
    jax.tree.map(np.testing.assert_array_equal, train, evaluate)


def _leaf(tree: Any, path: tuple[str, ...]) -> jax.Array:
    for part in path:
        tree = tree[part]
    return tree["kernel"]


@pytest.mark.parametrize("name", NEW)
def test_only_the_activations_are_of_the_compute_type(name):
    outputs, made = shapes(create(name, dtype=jnp.bfloat16), 32, train=True)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(made)} == {"float32"}
    auxiliary = [(2, 10)] * 2 if name in GOOGLENET else None
    assert [x.shape for x in outputs.get("aux_logits", ())] == (auxiliary or [])
    assert ("aux_logits" in outputs) == bool(auxiliary)
    logits = [outputs.pop("logits"), *outputs.pop("aux_logits", ())]
    assert {str(x.dtype) for x in logits} == {"float32"}
    assert {str(x.dtype) for x in outputs.values()} == {"bfloat16"}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("alexnet", {}), ("vgg11", {}), ("googlenet", {}), ("vgg11_bn", {"frozen_norm": True})],
)
def test_a_network_of_float64_rounds_nowhere(name, overrides):
    with jax.enable_x64(True):
        model = create(name, dtype=jnp.float64, **overrides)
        x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float64)
        made = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)
        program = jax.make_jaxpr(lambda made, x: model.apply(made, x))(made, x)
    assert "float64" in str(jax.tree.leaves(made)[0].dtype)
    assert "f32[" not in str(program)


def draws(name: str, train: bool, **overrides: Any) -> bool:
    """Whether the program of a network draws random numbers."""
    model, x = create(name, **overrides), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    made = shapes(model, 32)[1]
    rngs = {"rngs": {"dropout": jax.random.key(0)}} if train else {}
    mutable = ["batch_stats"] if train else False
    program = jax.make_jaxpr(lambda made, x: model.apply(made, x, train=train, mutable=mutable, **rngs))(made, x)
    return "random_bits" in str(program)


@pytest.mark.parametrize("name", [*KINDS, "resnet20", "resnet18"])
def test_nothing_is_random_in_evaluation_nor_in_training_without_dropout(name):
    rates = {"dropout": 0.0} | ({"aux_dropout": 0.0} if name in GOOGLENET else {})
    assert not draws(name, train=False)
    assert not draws(name, train=True, **rates)
    for rate in rates:
        assert draws(name, train=True, **(rates | {rate: 0.5}))


RATES = {"googlenet": [0.7, 0.7, 0.4], "googlenet_tv": [0.7, 0.7, 0.2]}  # the others: 0.5 twice


def assert_dropped(drops: list[tuple[jax.Array, jax.Array]], rates: list[float]) -> None:
    """Of what was not zero before, about these parts are now, differing each time; the rest is scaled."""
    masks = []
    for rate, (x, y) in zip(rates, drops, strict=True):
        alive = np.asarray(x) != 0
        masks.append(np.asarray(y)[alive] == 0)
        assert masks[-1].mean() == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / masks[-1].size))
        np.testing.assert_allclose(np.where(y == 0, 0, x), y * (1 - rate), rtol=1e-5)
    assert not any(np.array_equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def assert_trained(name: str, gradients: Any) -> None:
    """Of every array more than a few entries get a gradient: some ReLUs of a narrow network never pass one."""
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        where = jax.tree_util.keystr(path)
        if name.endswith("_bn") and re.search(r"_conv\d.*bias", where):
            assert np.abs(gradient).max() < 1e-5, where  # BatchNorm takes the mean away, and with it this bias
        else:
            assert np.isfinite(gradient).all(), where
            assert np.mean(gradient != 0) > 0.1, where


TRAINED = [pytest.param(name, marks=pytest.mark.slow if name not in KINDS[:-1] else []) for name in NEW]


@pytest.mark.parametrize("name", TRAINED)
def test_in_training_dropout_has_the_rates_of_the_paper_and_every_parameter_gets_a_gradient(name):
    outputs, gradients, drops = training(name)(jax.random.key(0))
    assert_trained(name, gradients)
    assert_dropped(drops, RATES.get(name, [0.5, 0.5]))
    again, other = (training(name)(jax.random.key(seed))[0]["logits"] for seed in (0, 1))
    np.testing.assert_array_equal(outputs["logits"], again)
    assert not np.allclose(outputs["logits"], other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet34_c", "resnet20", "plain20"])
def test_every_parameter_of_a_resnet_gets_a_gradient(name):
    assert_trained(name, training(name)(jax.random.key(0))[1])


@pytest.mark.parametrize("name", KINDS)
def test_evaluation_of_an_image_depends_on_no_other_row_and_on_no_auxiliary_head(name):
    x = images(8, 32, 32, 3)
    outputs = evaluation(name)(variables(name), x)
    assert np.isfinite(outputs["logits"]).all()
    assert np.ptp(outputs["logits"], axis=0).min() > 0
    jax.tree.map(np.testing.assert_array_equal, outputs, evaluation(name)(variables(name), x))
    for padding in (0.0, jnp.nan):
        padded = evaluation(name)(variables(name), x.at[2:].set(padding))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:2], b[:2]), outputs, padded)
    poisoned = jax.tree_util.tree_map_with_path(lambda k, v: v * np.nan if "aux" in str(k) else v, variables(name))
    assert np.isnan(sum(np.sum(leaf) for leaf in jax.tree.leaves(poisoned))) == (name in GOOGLENET)
    jax.tree.map(np.testing.assert_array_equal, outputs, evaluation(name)(poisoned, x))


@pytest.mark.parametrize("name", ["alexnet", "vgg11_lrn", pytest.param("googlenet", marks=pytest.mark.slow)])
def test_evaluation_does_not_depend_on_the_size_of_the_batch(name):
    x = images(8, 32, 32, 3)
    whole, alone = (np.asarray(evaluation(name)(variables(name), part)["logits"]) for part in (x, x[:2]))
    np.testing.assert_allclose(alone, whole[:2], rtol=1e-4, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize(
    ("name", "side", "overrides"),
    [
        ("alexnet", 256, {"small_images": False}),
        ("alexnet", 64, {}),
        ("vgg11", 256, {}),
        ("googlenet", 896, {"small_images": False}),
        ("resnet20", 128, {}),
    ],
)
def test_images_moved_by_the_stride_move_a_feature_map_by_one(name, side, overrides):
    model = create(name, **overrides)
    endpoints = model.endpoints
    step = max(stride for stride, _ in endpoints.values())
    x = images(1, side + step, side + step, 3)
    made = filled(shapes(model, side)[1])

    @quick
    def maps(x: jax.Array) -> dict[str, jax.Array]:
        outputs = model.apply(made, x, train=False)
        return {endpoint: outputs[endpoint][0] for endpoint in endpoints}

    here, moved = maps(x[:, :-step, :-step]), maps(x[:, step:, step:])
    for endpoint, (stride, _) in endpoints.items():
        # Two pixels in the middle: the padding at the edges moves with neither image.
        middle = here[endpoint].shape[0] // 2
        near, far = (slice(middle - 1 + n, middle + 1 + n) for n in (0, step // stride))
        a, b = (np.asarray(y) for y in (moved[endpoint][near, near], here[endpoint][far, far]))
        assert np.ptp(a) > 0.1
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max(), err_msg=endpoint)
        assert not np.allclose(a, here[endpoint][near, near], rtol=0.1)


# What small images may change: the first convolution, the fully connected layer over a map, the auxiliary heads' own.
MAY_DIFFER = {"conv1", "stem_conv", "fc6", "aux1", "aux2"}


@pytest.mark.parametrize(
    "name", ["alexnet", "alexnet_tv", "vgg11_lrn", "vgg16_c", "vgg19_bn", "googlenet", "googlenet_tv", "resnet18"]
)
def test_small_images_change_the_stem_and_the_head_only(name):
    for channels, pixels in ((3, (32, 28, 48, 64)), (1, (28,))):
        normal = sizes(shapes(create(name, small_images=False), 224, channels)[1])
        for side in pixels:
            outputs, made = shapes(create(name), side, channels, train=side == 28)
            small = sizes(made)
            assert small.keys() == normal.keys()
            differing = {path for path in small if small[path] != normal[path]}
            assert {path.removeprefix("params/").split("/")[0] for path in differing} <= MAY_DIFFER
            assert outputs["logits"].shape == (2, 10)


@pytest.mark.parametrize(("name", "side"), [("alexnet", 32), ("alexnet", 2), ("vgg16", 28), ("googlenet", 28)])
def test_images_that_are_too_small_name_the_override(name, side):
    with pytest.raises(UserError, match=r"config\.model\.overrides\.small_images=True"):
        shapes(create(name, small_images=False), side)


@pytest.mark.parametrize("name", NEW)
def test_an_unknown_override_is_named_with_its_model(name):
    with pytest.raises(UserError, match=rf"model {name} has no override 'widht': .*width"):
        create_model(name, small_images=True, widht=3)


def test_what_is_no_field_of_a_network_is_no_override_either():
    with pytest.raises(UserError, match="rcnn_alexnet has no override 'proposes'"):
        create_model("rcnn_alexnet", proposes=True)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *(("alexnet", "dropout", value) for value in (-0.1, 1.0, 1.5, "x", None)),
        *(("vgg16", "width", value) for value in (0, -1.0, float("inf"), float("nan"), "wide")),
        *(("googlenet", "aux_dropout", value) for value in (-1, 1)),
        *(("resnet18", "small_images", value) for value in (3, "yes", None)),
        *(("resnet18", "frozen_norm", value) for value in (1, "yes", None)),
        *(("googlenet_tv", "norm_epsilon", value) for value in (-1e-5, float("nan"), "1e-5")),
        *(("vgg11", "num_classes", value) for value in (0, -1, 1.5)),
        ("vgg11", "dtype", "int8"),
    ],
)
def test_an_illegal_value_is_named_with_the_legal_ones(name, key, value):
    with pytest.raises(UserError, match=rf"model {name}: {key}=.*"):
        create_model(name, **{key: value})
