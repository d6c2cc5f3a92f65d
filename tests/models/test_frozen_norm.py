"""Frozen BatchNorm: the ordinary network in evaluation, with constants in place of statistics and affine."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import count, create, images, quick, shapes, sizes, variables

from jaxcnn import UserError
from jaxcnn.models import check_model, create_model, layers
from jaxcnn.models.normalization import match_norms

NAMES = ("resnet20", "resnet50_tv", "vgg11_bn", "googlenet_tv")


def frozen_form(name: str, made: Any) -> Any:
    return match_norms(made, shapes(create(name, frozen_norm=True), 32)[1])


def affine(tree: Any) -> dict[str, tuple[int, ...]]:
    """Scales and biases of the norms among parameters of these names."""
    flat = sizes(tree)
    norms = {path.rpartition("/")[0] for path in flat if path.endswith("/scale")}
    return {path: shape for path, shape in flat.items() if path.rpartition("/")[0] in norms}


@pytest.mark.parametrize("name", NAMES)
def test_scale_and_bias_are_no_parameters_and_lie_beside_the_statistics(name):
    frozen, ordinary = (shapes(create(name, frozen_norm=f), 32, train=True)[1] for f in (True, False))
    gone = affine(ordinary["params"])
    assert gone
    assert count(frozen["params"]) == count(ordinary["params"]) - sum(np.prod(shape) for shape in gone.values())
    assert sizes(frozen["params"]) == {k: v for k, v in sizes(ordinary["params"]).items() if k not in gone}
    assert sizes(frozen["batch_stats"]) == sizes(ordinary["batch_stats"]) | gone
    assert sizes(match_norms(ordinary, frozen)) == sizes(frozen)
    assert sizes(match_norms(frozen, sizes(ordinary))) == sizes(ordinary)


@pytest.mark.parametrize("name", NAMES)
def test_freezing_moves_values_and_unfreezing_brings_them_back(name):
    ordinary = variables(name)
    frozen = frozen_form(name, ordinary)
    module = next(path for path in affine(ordinary["params"]) if path.endswith("/scale")).split("/")
    taken, left = frozen["batch_stats"], ordinary["params"]
    for part in module:
        taken, left = taken[part], left[part]
    assert taken is left  # not copied
    jax.tree.map(np.testing.assert_array_equal, match_norms(frozen, ordinary), ordinary)
    assert match_norms(frozen, frozen) == frozen
    assert match_norms(frozen, {}) == frozen


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("resnet20", "float32"),
        ("resnet20", "bfloat16"),
        ("vgg11_bn", "float32"),
        pytest.param("googlenet_tv", "float32", marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients_by_the_images_are_those_of_the_ordinary_network_in_evaluation(name, dtype):
    x, made = images(4, 32, 32, 3), variables(name)
    forms = [(create(name, dtype=jnp.dtype(dtype), frozen_norm=frozen), frozen) for frozen in (False, True)]

    def program(model: Any, made: Any) -> Any:
        def total(x: jax.Array) -> Any:
            outputs = model.apply(made, x)
            return jnp.sum(outputs["logits"] * jnp.arange(10.0)), outputs

        return quick(jax.value_and_grad(total, has_aux=True))(x)

    ordinary, frozen = (program(model, frozen_form(name, made) if frozen else made) for model, frozen in forms)
    assert np.ptp(frozen[0][1]["logits"]) > 0.1
    assert np.abs(frozen[1]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, frozen, ordinary)


@pytest.mark.parametrize("name", ["resnet20", pytest.param("googlenet_tv", marks=pytest.mark.slow)])
def test_training_neither_uses_nor_moves_the_statistics_of_the_batch(name):
    model, made, x = create(name, frozen_norm=True), frozen_form(name, variables(name)), images(4, 32, 32, 3)
    rates = {"dropout": 0.0} | ({"aux_dropout": 0.0} if name == "googlenet_tv" else {})
    model = model.clone(**rates)
    outputs, updates = quick(lambda made, x: model.apply(made, x, train=True, mutable=["batch_stats"]))(made, x)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], made["batch_stats"])
    evaluation = quick(lambda made, x: model.apply(made, x))(made, x)
    np.testing.assert_allclose(outputs["logits"], evaluation["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_epsilon_is_the_layers_own(frozen):
    x = images(5, 3)
    norm: Any = layers.batch_norm(False, dtype=jnp.float32, epsilon=0.3, frozen=frozen)
    made: Any = {"batch_stats": {"mean": jnp.full(3, 0.2), "var": jnp.full(3, 0.5)}, "params": {}}
    made["batch_stats" if frozen else "params"] |= {"scale": jnp.full(3, 2.0), "bias": jnp.full(3, -1.0)}
    np.testing.assert_allclose(norm.apply(made, x), (x - 0.2) / np.sqrt(0.8) * 2 - 1, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", ["resnet20", "vgg11_bn", "googlenet_tv"])
def test_the_epsilon_of_a_network_reaches_every_norm(name, frozen):
    model: Any = create(name, frozen_norm=frozen, norm_epsilon=0.25)
    made, how = shapes(model, 32)[1], {"train": True, "mutable": ["batch_stats"], "rngs": jax.random.key(0)}
    program = str(jax.make_jaxpr(lambda made, x: model.apply(made, x, **how))(made, images(1, 32, 32, 3)))
    norms = sum(path.endswith("/mean") for path in sizes(made["batch_stats"]))
    assert program.count(" 0.25:f32[]") == norms


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_network_keeps_the_conventions(name):
    check_model(name, frozen_norm=True)


@pytest.mark.parametrize("override", [{"frozen_norm": True}, {"norm_epsilon": 1e-4}])
@pytest.mark.parametrize("name", ["vgg16", "googlenet"])
def test_a_network_without_norms_has_none_to_freeze(name, override):
    with pytest.raises(UserError, match=f"model {name} has no BatchNorm"):
        create_model(name, **override)
