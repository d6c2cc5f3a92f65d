"""The segmentation networks: counts, geometry as released, padding, types, and what their backbones may be."""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import FCN, count, filled, images, quick, sizes

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.models.fcn import ENLARGING
from jaxcnn.models.pooling import max_pool
from jaxcnn.models.resizing import bilinear_kernel, resize

CLASSES = 5
# Small forms of every kind of geometry, norm and head.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "fcn8s": ("fcn8s", {"width": 0.125}),
    "learnt": ("fcn8s_atonce", {"width": 0.125, "backbone": "vgg11_bn", "enlarging": "all_learnt"}),
    "alexnet": ("fcn32s_alexnet", {"width": 0.125}),
    "googlenet": ("fcn8s", {"width": 0.125, "backbone": "googlenet_tv"}),
    "dilated": ("fcn_resnet50_tv", {"backbone": "resnet18"}),
}


def create(name: str, dtype: Any = jnp.float32, **more: Any) -> Any:
    network, overrides = SMALL[name]
    return create_model(network, CLASSES, dtype, **(overrides | more))


@cache
def variables(name: str) -> Any:
    """Values for a network's variables, whatever its overrides do to the forward pass; not to be written to."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return filled(jax.eval_shape(create(name).init, jax.random.key(0), x))


@cache
def evaluation(name: str) -> Callable[..., dict[str, Any]]:
    return quick(create(name).apply)


def traced(model: Any, *shape: int, train: bool = False) -> Any:
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=train), x)


@pytest.mark.parametrize("name", [name for name in FCN if name != "fcn_resnet101_tv"])  # which test_cost counts
def test_a_network_has_the_parameters_of_its_paper_and_logits_for_every_pixel(name):
    model, train = cast(Any, create_model(name, 21)), name.endswith("_tv")
    outputs, made = traced(model, 2, 33, 97, 3, train=train)
    assert count(made["params"]) == FCN[name]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(made)} == {"float32"}
    assert outputs.keys() == {"logits", "scores", *model.endpoints} | ({"aux_logits"} if train else set())
    for logits in (outputs["logits"], *outputs.get("aux_logits", ())):
        assert (logits.shape, logits.dtype) == ((2, 33, 97, 21), jnp.float32)
    border = 2 * getattr(model, "border", 0)
    for endpoint, (stride, channels) in model.endpoints.items():
        rows, height, width, features = outputs[endpoint].shape
        assert (rows, features) == (2, channels)
        assert all(abs(side * stride - pixels - border) <= 2 * stride for side, pixels in ((height, 33), (width, 97)))


@pytest.mark.parametrize(
    ("name", "last"), [("fcn32s", (16, 512)), ("fcn32s_googlenet", (32, 1024)), ("fcn_resnet101_tv", (8, 2048))]
)
def test_the_stride_of_the_last_endpoint_is_that_of_the_paper(name, last):
    model: Any = create_model(name)
    assert list(model.endpoints.values())[-1] == last


@pytest.mark.parametrize(
    ("stride", "strides"), [(0, (4, 8, 16, 32)), (16, (4, 8, 16, 16)), (8, (4, 8, 8, 8)), (2, (4, 4, 4, 4))]
)
def test_dilation_keeps_the_stride(stride, strides):
    model: Any = create_model("resnet18", 3, output_stride=stride)
    assert [model.endpoints[f"stage{i}"][0] for i in (1, 2, 3, 4)] == list(strides)
    outputs = traced(model, 1, 65, 33, 3)[0]
    assert [outputs[f"stage{i}"].shape[1] for i in (1, 2, 3, 4)] == [-(-65 // stride) for stride in strides]


def enlarged(x: np.ndarray, size: int) -> np.ndarray:
    """By hand: the bilinear kernel of this size for each score, half of it apart."""
    kernel, step = bilinear_kernel(size), (size + 1) // 2
    out = np.zeros((len(x), (x.shape[1] - 1) * step + size, (x.shape[2] - 1) * step + size, x.shape[3]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            part = x[:, i, j, None, None] * kernel[..., None]
            out[:, i * step : i * step + size, j * step : j * step + size] += part
    return out


# Kernel and first row of the result; of the maps that the skips score, from coarse to fine.
CUTS = {
    "fcn32s": ((64, 19), ()),
    "fcn16s": ((32, 27), (5,)),
    "fcn8s": ((16, 31), (5, 9)),
    "fcn32s_alexnet": ((63, 18), ()),
}


@pytest.mark.parametrize("name", CUTS)
def test_kernels_and_cut_outs_are_those_of_the_released_networks(name):
    x, model = images(1, 45, 38, 3), create_model(name, CLASSES, jnp.float32, width=0.125)
    made = filled(traced(model, 1, 45, 38, 3)[1])
    outputs: Any = quick(model.apply)(made, x)
    (size, start), cuts = CUTS[name]
    scores = [np.asarray(score) for score in outputs["scores"]]
    expected = enlarged(scores[-1], size)[:, start : start + 45, start : start + 38]
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    for coarse, fine, first, stage in zip(scores, scores[1:], cuts, (4, 3), strict=False):
        pooled = max_pool(outputs[f"stage{stage}"], 2, 2, ceil=True)
        head = made["params"][f"score_pool{stage}"]["head"]
        skip = np.asarray(pooled) @ head["kernel"] + head["bias"]
        total = enlarged(coarse, 4)
        total += skip[:, first : first + total.shape[1], first : first + total.shape[2]]
        np.testing.assert_allclose(fine, total, atol=1e-5)


def test_at_once_the_skips_see_scaled_maps_and_staged_they_see_them_as_they_are():
    x = images(1, 40, 40, 3)
    made = variables("fcn8s")
    staged, at_once = (
        quick(create_model(name, CLASSES, jnp.float32, width=0.125).apply)(made, x)
        for name in ("fcn8s", "fcn8s_atonce")
    )
    np.testing.assert_array_equal(staged["scores"][0], at_once["scores"][0])
    for i, factor, stage in ((1, 0.01, 4), (2, 0.0001, 3)):
        pooled = np.asarray(max_pool(staged[f"stage{stage}"], 2, 2, ceil=True))
        kernel = made["params"][f"score_pool{stage}"]["head"]["kernel"]
        first, (height, width) = (5, 9)[i - 1], staged["scores"][i].shape[1:3]
        skip = (pooled @ kernel)[:, first : first + height, first : first + width]
        below = [enlarged(np.asarray(outputs["scores"][i - 1]), 4) for outputs in (staged, at_once)]
        difference = (staged["scores"][i] - below[0]) - (at_once["scores"][i] - below[1])
        np.testing.assert_allclose(difference, skip * (1 - factor), rtol=1e-4, atol=1e-4)


def test_torchvisions_logits_are_its_scores_by_half_pixel_centres_without_antialiasing():
    x = images(1, 43, 70, 3)
    outputs = evaluation("dilated")(variables("dilated"), x)
    (scores,) = outputs["scores"]
    expected = quick(lambda s: resize(s, (43, 70), aligned_corners=False, antialias=False))(scores)
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_an_image_in_a_larger_canvas_scores_as_it_does_alone(name):
    height, width, x = 33, 65, images(2, 47, 68, 3)  # what is beside an image need not be zero
    together = evaluation(name)(variables(name), x, jnp.array([(40, 31), (height, width)]))
    alone = evaluation(name)(variables(name), x[1:, :height, :width])
    assert jax.tree.structure(together) == jax.tree.structure(alone)
    for found, maps in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        rows, columns = maps.shape[1:3]
        assert np.abs(found[1, :rows, :columns] - maps[0]).max() < 1e-5 * np.abs(maps).max()
        assert not found[1, rows:].any()
        assert not found[1, :, columns:].any()


def test_statistics_of_training_are_those_of_the_images_and_not_of_their_padding():
    model = create("dilated", dropout=0.0, aux_dropout=0.0)
    true, x = jnp.array([[33, 41]] * 2, jnp.int32), images(2, 48, 50, 3)
    apply = quick(lambda *inputs: model.apply(variables("dilated"), *inputs, train=True, mutable=["batch_stats"]))
    (padded, new), (alone, expected) = apply(x, true), apply(x[:, :33, :41])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), new, expected)
    for a, b in ((padded["logits"], alone["logits"]), (padded["aux_logits"][0], alone["aux_logits"][0])):
        assert np.abs(a[:, :33, :41] - b).max() < 1e-4 * np.abs(b).max()


@pytest.mark.parametrize("enlarging", ENLARGING)
def test_what_is_learnt_of_the_enlarging_are_kernels_that_begin_bilinear(enlarging):
    model = create("fcn8s", enlarging=enlarging)
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 40, 40, 3), jnp.float32))["params"]
    kernels = {name: shape for name, shape in sizes(params).items() if name.startswith("enlarge")}
    inner = {"enlarge_stride32/kernel": (4, 4, CLASSES), "enlarge_stride16/kernel": (4, 4, CLASSES)}
    last = {"enlarge_stride8/kernel": (16, 16, CLASSES)}
    assert kernels == {"fixed": {}, "learnt": inner, "all_learnt": inner | last}[enlarging]


def test_scores_begin_at_zero_and_so_do_those_of_a_new_skip():
    @quick
    def heads(key: jax.Array) -> Any:
        params = create("fcn8s").init(key, jnp.zeros((1, 40, 40, 3)))["params"]
        return [params["head"], params["score_pool4"]["head"], params["score_pool3"]["head"]]

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(heads(jax.random.key(0))))


@pytest.mark.parametrize("name", SMALL)
def test_only_the_activations_are_of_the_compute_type(name):
    outputs, made = traced(create(name, jnp.bfloat16), 1, 40, 40, 3, train=True)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(made)} == {"float32"}
    scores = [outputs.pop("logits"), *outputs.pop("scores"), *outputs.pop("aux_logits", ())]
    assert {str(x.dtype) for x in scores} == {"float32"}
    assert {str(x.dtype) for x in outputs.values()} == {"bfloat16"}


@pytest.mark.parametrize("name", ["learnt", "dilated"])
def test_a_network_of_float64_rounds_nowhere(name):
    with jax.enable_x64(True):
        norm: dict[str, Any] = {"frozen_norm": True}  # Flax keeps the statistics of an ordinary one in float32
        model, x = create(name, jnp.float64, **norm), jax.ShapeDtypeStruct((2, 40, 40, 3), jnp.float64)
        made = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)
        true = jax.ShapeDtypeStruct((2, 2), jnp.int32)
        program = jax.make_jaxpr(lambda made, x, true: model.apply(made, x, true))(made, x, true)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(made)} == {"float64"}
    assert "f32[" not in str(program)


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (129, 33)])
@pytest.mark.parametrize("name", SMALL)
def test_any_image_size_will_do(name, shape):
    outputs, _ = traced(create(name), 1, *shape, 3)
    assert outputs["logits"].shape == (1, *shape, CLASSES)


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        *(("fcn8s", backbone) for backbone in ("vgg16_c", "alexnet_tv", "googlenet", "resnet20")),
        *(("fcn_resnet50_tv", backbone) for backbone in ("vgg11_bn", "resnet18_a")),
    ],
)
def test_any_classification_network_is_a_backbone(name, backbone):
    model: Any = create_model(name, CLASSES, backbone=backbone)
    outputs, made = traced(model, 1, 65, 80, 3, train=True)
    assert outputs["logits"].shape == (1, 65, 80, CLASSES)
    classifier: Any = create_model(backbone, CLASSES)
    expected = sizes(traced(classifier, 1, classifier.image_size, classifier.image_size, 3)[1])
    trunk = {path.replace("/trunk/", "/"): shape for path, shape in sizes(made).items() if "/trunk/" in path}
    assert trunk.items() <= expected.items()
    without = expected.keys() - trunk.keys()
    assert {path.split("/")[1] for path in without} <= {"fc6", "fc7", "head", "aux1", "aux2"}
    if name == "fcn8s":
        own = {path: shape for path, shape in sizes(made).items() if path.split("/")[1] in ("fc6", "fc7")}
        assert own == {path: expected[path] for path in without if path.split("/")[1] in ("fc6", "fc7")}


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("fcn32s", {"backbone": "vgg_16"}, r"model fcn32s: backbone='vgg_16'.*nearest are vgg16"),
        ("fcn32s", {"backbone": "fcn8s"}, r"backbone='fcn8s' is no classification network"),
        ("fcn32s", {"padding": -1}, r"model fcn32s: padding=-1, it must be a whole number"),
        ("fcn32s", {"fc6_window": 0}, r"fc6_window=0, it must be"),
        ("fcn32s", {"enlarging": "bicubic"}, r"enlarging='bicubic', it must be fixed \| learnt \| all_learnt"),
        ("fcn32s", {"output_stride": 8}, r"model fcn32s has no override 'output_stride'"),
        ("fcn_resnet50_tv", {"output_stride": 12}, r"output_stride=12, it must be a power of two"),
        ("fcn_resnet50_tv", {"width": 0.5}, r"backbone resnet50_tv has no override 'width'"),
        ("fcn8s", {"frozen_norm": True}, r"backbone vgg16 has no BatchNorm"),
    ],
)
def test_a_wrong_override_is_named_in_one_line(name, overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        create_model(name, **overrides)
    assert "\n" not in str(caught.value)
