"""VGG against its paper: the columns of Table 1, what stands between the layers, and how weights begin."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import VGG, create, quick, shapes, sizes, traced

from jaxcnn import UserError
from jaxcnn.models import create_model, vgg
from jaxcnn.models.vgg import SPECS

# Table 1: side of the kernels, and the layers of each stage.
COLUMNS = {
    "vgg11": "3 | 3 | 3 3 | 3 3 | 3 3",
    "vgg13": "3 3 | 3 3 | 3 3 | 3 3 | 3 3",
    "vgg16_c": "3 3 | 3 3 | 3 3 1 | 3 3 1 | 3 3 1",
    "vgg16": "3 3 | 3 3 | 3 3 3 | 3 3 3 | 3 3 3",
    "vgg19": "3 3 | 3 3 | 3 3 3 3 | 3 3 3 3 | 3 3 3 3",
}


def test_the_table_of_counts_covers_the_family():
    assert VGG.keys() == SPECS.keys()


@pytest.mark.parametrize("name", VGG)
def test_layers_are_those_of_its_column(name):
    outputs, variables = traced(name, 224)
    assert [outputs[f"stage{i}"].shape[1] for i in range(1, 6)] == [224, 112, 56, 28, 14]
    column = COLUMNS[name.removesuffix("_bn").removesuffix("_lrn")]
    expected, inputs = {}, 3
    for stage, (kernels, channels) in enumerate(zip(column.split("|"), (64, 128, 256, 512, 512), strict=True), start=1):
        for i, side in enumerate(map(int, kernels.split()), start=1):
            expected[f"stage{stage}_conv{i}/kernel"] = (side, side, inputs, channels)
            if name.endswith("_bn"):
                expected[f"stage{stage}_norm{i}/scale"] = expected[f"stage{stage}_norm{i}/bias"] = (channels,)
            inputs = channels
    expected |= {"fc6/kernel": (7, 7, 512, 4096), "fc7/kernel": (4096, 4096), "head/kernel": (4096, 1000)}
    expected |= {path.replace("kernel", "bias"): shape[-1:] for path, shape in expected.items() if "kernel" in path}
    assert sizes(variables["params"]) == expected
    weights = sum(path.endswith("kernel") for path in expected)
    assert name.startswith(f"vgg{weights}")  # the paper names a network by its layers with weights


@cache
def initial(**overrides: Any) -> Any:
    init = quick(lambda key: create("vgg11", **overrides).init(key, jnp.zeros((1, 32, 32, 3))))
    return init(jax.random.key(0))["params"]


@pytest.mark.parametrize("scheme", ["he", "paper"])
def test_weights_begin_as_gaussians_and_biases_at_zero(scheme):
    for layer, params in initial(init_scheme=scheme).items():
        kernel = np.asarray(params["kernel"])
        expected = 0.1 if scheme == "paper" else np.sqrt(2 / np.prod(kernel.shape[:-1]))  # variance 0.01; 2 / fan_in
        assert kernel.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * kernel.size)), layer
        assert np.abs(kernel).max() > 2.4 * expected, layer  # not truncated at two deviations
        assert not np.any(params["bias"]), layer


def test_he_is_the_scheme_unless_another_is_asked_for():
    assert create_model("vgg16").init_scheme == "he"  # type: ignore[attr-defined]


def test_an_unknown_scheme_names_those_there_are():
    with pytest.raises(UserError, match=r"model\.overrides\.init_scheme='xavier'"):
        shapes(create("vgg11", init_scheme="xavier"), 32)


@pytest.mark.parametrize(("name", "layers"), [("vgg11_lrn", 1), ("vgg11", 0)])
def test_response_normalisation_follows_the_first_layer_of_a_lrn_alone(name, layers):
    calls: list[int] = []
    normalise = vgg.local_response_norm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "local_response_norm", lambda x: calls.append(x.shape[-1]) or normalise(x))
        shapes(create(name), 32)
    assert calls == [8] * layers


@pytest.mark.parametrize(("side", "last"), [(28, 1), (32, 2), (48, 3), (64, 4)])
def test_small_images_are_pooled_four_times(side, last):
    outputs, variables = shapes(create("vgg16"), side)
    assert outputs["stage5"].shape == (2, last, last, 64)
    assert variables["params"]["fc6"]["kernel"].shape == (last, last, 64, 512)
