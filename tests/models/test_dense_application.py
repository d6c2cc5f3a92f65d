"""Dense application against a loop over windows, with the weights that ordinary application has."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError
from nets import create, evaluation, images, quick, shapes, traced, variables

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.models.pooling import max_pool

NETWORKS = ("alexnet", "alexnet_tv", "vgg11", "vgg11_bn")
# The map that fc6 sees.
LAST_MAP = {
    "alexnet": lambda outputs: max_pool(outputs["stage3"], 3, 2),
    "vgg": lambda outputs: outputs["stage5"],  # of small images, not pooled
}


def dense(name: str) -> Any:
    return create(name).clone(dense=True)


def window_by_window(params: Any, feature_map: np.ndarray) -> np.ndarray:
    """The fully connected layers of each window (N, h, w, C) of a map, and the mean of their class scores."""
    height, width = params["fc6"]["kernel"].shape[:2]
    scores = []
    for top in range(feature_map.shape[1] - height + 1):
        for left in range(feature_map.shape[2] - width + 1):
            x = feature_map[:, top : top + height, left : left + width].astype(np.float64).reshape(len(feature_map), -1)
            for layer in ("fc6", "fc7", "head"):
                kernel = params[layer]["kernel"].reshape(-1, params[layer]["bias"].size)
                x = x @ kernel + params[layer]["bias"]
                x = x if layer == "head" else np.maximum(x, 0)
            scores.append(x)
    return np.mean(scores, axis=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_the_ordinary_size_score_the_same(name):
    x = images(3, 32, 32, 3)
    ordinary = evaluation(name)(variables(name), x)["logits"]
    found = quick(dense(name).apply)(variables(name), x)["logits"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, ordinary, rtol=1e-4, atol=1e-4 * np.abs(ordinary).max())


@pytest.mark.parametrize(("name", "sides"), [("alexnet", (41, 32)), ("alexnet_tv", (48, 57)), ("vgg11_bn", (64, 83))])
def test_larger_images_score_the_mean_over_all_windows_of_their_map(name, sides):
    outputs = quick(dense(name).apply)(variables(name), images(2, *sides, 3))
    feature_map = np.asarray(LAST_MAP[name[:3] if name[:3] == "vgg" else "alexnet"](outputs))
    kernel = variables(name)["params"]["fc6"]["kernel"].shape
    windows = (feature_map.shape[1] - kernel[0] + 1) * (feature_map.shape[2] - kernel[1] + 1)
    assert windows > 1
    expected = window_by_window(variables(name)["params"], feature_map)
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_network_that_averages_its_map_is_dense_as_it_is():
    """Its head is linear: the score of the mean is the mean of the scores."""
    x, made = images(2, 40, 56, 3), variables("resnet20")
    outputs = evaluation("resnet20")(made, x)
    head = made["params"]["head"]
    scores = np.asarray(outputs["stage3"], np.float64) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(outputs["logits"], scores.mean((1, 2)), rtol=1e-4, atol=1e-4)
    assert not hasattr(create("resnet20"), "dense")
    assert not hasattr(create("googlenet"), "dense")


@pytest.mark.parametrize(("name", "side"), [("vgg16", 8), ("vgg19_bn", 8), ("alexnet", 7), ("alexnet_tv", 7)])
def test_networks_of_224_pixels_take_the_scales_of_the_paper(name, side):
    """The map of 256 pixels is 8 wide in VGG, whose fc6 sees 7, and 7 in AlexNet, whose fc6 sees 6: shapes alone."""
    made = traced(name, 224)[1]
    model: Any = create_model(name, dtype=jnp.float32).clone(dense=True)

    def logits(height: int, width: int) -> Any:
        x = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        return jax.eval_shape(lambda made, x: model.apply(made, x)["logits"], made, x)

    assert logits(256, 344).shape == logits(680, 512).shape == logits(224, 224).shape == (1, 1000)
    with pytest.raises(UserError, match=rf"\d×{side} .*(6×6|7×7)"):
        logits(192, 256)


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_another_size_stays_an_error_outside_dense_application(name):
    with pytest.raises(ScopeParamShapeError):
        create(name).apply(variables(name), images(1, 64, 64, 3))


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_parameters_are_not_made_in_dense_application(name):
    with pytest.raises(UserError, match=r"model\.overrides\.dense is for evaluation"):
        shapes(create(name, dense=True), 32)


def test_the_compute_type_reaches_the_convolutions_and_scores_are_float32():
    model = create("vgg11", dtype=jnp.bfloat16).clone(dense=True)
    program = jax.make_jaxpr(lambda made, x: model.apply(made, x)["logits"])(variables("vgg11"), images(1, 48, 48, 3))
    convolutions = [e for e in program.eqns if e.primitive.name == "conv_general_dilated"]
    assert len(convolutions) == 8 + 2
    assert {str(v.aval.dtype) for e in convolutions for v in (*e.invars, *e.outvars)} == {"bfloat16"}  # type: ignore[attr-defined]
    logits: Any = program.out_avals[0]
    assert logits.dtype == jnp.float32
