"""AlexNet against its paper: sizes, groups, normalisation, and how weights and biases begin."""

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import ALEXNET, create, filled, images, quick, shapes, sizes, traced

from jaxcnn.models import alexnet
from jaxcnn.models.alexnet import SPECS

ONES = {"conv2", "conv4", "conv5", "fc6", "fc7"}  # section 5


def test_the_table_of_counts_covers_the_family():
    assert ALEXNET.keys() == SPECS.keys()


@pytest.mark.parametrize(
    ("name", "channels", "seen"),
    [
        (
            "alexnet",
            (96, 256, 384, 384, 256),
            (3, 48, 256, 192, 192),
        ),  # half of the channels where there are two groups
        ("alexnet_tv", (64, 192, 384, 256, 256), (3, 64, 192, 384, 256)),
    ],
)
def test_layers_and_overlapping_poolings_have_the_sizes_of_the_paper(name, channels, seen):
    outputs, variables = traced(name, 224)
    assert [outputs[f"stage{i}"].shape[1] for i in (1, 2, 3)] == [55, 27, 13]
    expected = {
        f"conv{i}/kernel": (side, side, inputs, outputs)
        for i, (side, inputs, outputs) in enumerate(zip((11, 5, 3, 3, 3), seen, channels, strict=True), start=1)
    }
    expected |= {"fc6/kernel": (6, 6, 256, 4096), "fc7/kernel": (4096, 4096), "head/kernel": (4096, 1000)}
    expected |= {path.replace("kernel", "bias"): shape[-1:] for path, shape in expected.items()}
    assert sizes(variables["params"]) == expected


@cache
def initial(name: str) -> Any:
    init = quick(lambda key: create(name).init(key, jnp.zeros((1, 32, 32, 3))))
    return init(jax.random.key(0))["params"]


def test_weights_begin_as_gaussians_of_deviation_0_01():
    for layer, params in initial("alexnet").items():
        kernel = np.asarray(params["kernel"]) / 0.01
        assert abs(kernel.mean()) < 5 / np.sqrt(kernel.size), layer
        assert kernel.std() == pytest.approx(1, abs=5 / np.sqrt(2 * kernel.size)), layer
        assert np.abs(kernel).max() > 2.5, layer  # not truncated at two deviations


def test_the_biases_that_feed_relus_early_begin_at_one_and_the_others_at_zero():
    biases = {layer: np.unique(params["bias"]).tolist() for layer, params in initial("alexnet").items()}
    assert biases == {layer: [1.0 if layer in ONES else 0.0] for layer in biases}
    assert len(biases) == 8


def test_the_weights_of_torchvision_begin_uniform_within_the_root_of_their_inputs():
    for layer, params in initial("alexnet_tv").items():
        kernel = np.asarray(params["kernel"])
        bound = 1 / np.sqrt(np.prod(kernel.shape[:-1]))
        assert 0.98 * bound < np.abs(kernel).max() <= bound, layer
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=5 / np.sqrt(kernel.size)), layer
        assert not np.any(params["bias"]), layer


@pytest.mark.parametrize(("layer", "alone"), [("conv2", True), ("conv3", False), ("conv4", True), ("conv5", True)])
def test_each_half_of_a_grouped_layer_sees_its_half_of_the_channels(layer, alone):
    """The first half of the outputs, where the second half of the inputs is not a number."""
    model, reached = create("alexnet"), []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> jax.Array:
        if context.module.name != layer:
            return call(*args, **kwargs)
        x = args[0]
        y = call(x.at[..., x.shape[-1] // 2 :].set(jnp.nan))
        reached.append(jnp.isnan(y).any((0, 1, 2)))
        return y

    @quick
    def run(variables: Any, x: jax.Array) -> jax.Array:
        with nn.intercept_methods(watch):
            model.apply(variables, x)
        return reached[-1]

    halves = run(filled(shapes(model, 32)[1]), images(1, 32, 32, 3)).reshape(2, -1)
    assert halves[0].all() == halves[0].any() == (not alone)
    assert halves[1].all()


@pytest.mark.parametrize(("name", "layers"), [("alexnet", 2), ("alexnet_tv", 0)])
def test_response_normalisation_follows_the_first_two_layers_of_the_paper(name, layers):
    model, x = create(name), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    outputs, variables = shapes(model, 32)
    calls: list[tuple[int, ...]] = []
    normalise = alexnet.local_response_norm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alexnet, "local_response_norm", lambda y: calls.append(y.shape[1:]) or normalise(y))
        jax.eval_shape(lambda variables, x: model.apply(variables, x), variables, x)
    assert calls == [outputs[f"stage{i + 1}"].shape[1:] for i in range(layers)]


def test_in_torchvision_dropout_comes_before_the_fully_connected_layers():
    assert dropped("alexnet_tv") == [(3, 3, 32), (512,)]
    assert dropped("alexnet") == [(512,), (512,)]


def dropped(name: str) -> list[tuple[int, ...]]:
    """Shapes that dropout takes, in turn."""
    model, taken = create(name), []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Dropout):
            taken.append(args[0].shape[1:])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        shapes(model, 32, train=True)
    return taken
