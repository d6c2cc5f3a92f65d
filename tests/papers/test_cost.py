"""Parameters and multiply-accumulates, counted from the code, against published figures, arithmetic and XLA."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from nets import DETECTION, GENERATIVE

from jaxcnn import UserError
from jaxcnn.models import create_model, list_models
from jaxcnn.models.layers import ConvTranspose, batch_norm, conv
from jaxcnn.models.pooling import max_pool
from jaxcnn.papers.cost import describe, layers, macs, paper_layers, total

# Parameters, and GMACs to three decimals: ../shared/REFERENCES.md, but for what follows from it by arithmetic.
IMAGENET = {
    "alexnet": (60_965_224, 0.724),
    "alexnet_tv": (61_100_840, 0.714),
    "vgg11": (132_863_336, 7.609),
    "vgg11_lrn": (132_863_336, 7.609),
    "vgg13": (133_047_848, 11.308),
    "vgg16_c": (133_638_952, 11.771),
    "vgg16": (138_357_544, 15.470),
    "vgg19": (143_667_240, 19.632),
    "googlenet": (6_998_552, 1.583),
    "googlenet_tv": (6_624_904, 1.498),
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 3.858),
    "resnet50_tv": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.570),
    "resnet101_tv": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.282),
    "resnet152_tv": (60_192_808, 11.514),
}
# BatchNorm has a scale and a bias for each channel of a convolution.
VGG_NORMS = {"vgg11": 2 * 2752, "vgg13": 2 * 2944, "vgg16": 2 * 4224, "vgg19": 2 * 5504}
IMAGENET |= {f"{name}_bn": (IMAGENET[name][0] + more, IMAGENET[name][1]) for name, more in VGG_NORMS.items()}
# Without projections: 1×1 kernels from 64 to 128 channels at 28×28 pixels, and so on, each 6,422,528 MACs.
NO_PROJECTIONS = round(1.814074 - 3 * 0.006422528, 3), round(3.663762 - 3 * 0.006422528, 3)
IMAGENET |= {
    "resnet18_a": (11_515_688, NO_PROJECTIONS[0]),
    "plain18": (11_515_688, NO_PROJECTIONS[0]),
    "resnet34_a": (21_623_848, NO_PROJECTIONS[1]),
    "plain34": (21_623_848, NO_PROJECTIONS[1]),
    # Option C projects in the 13 other blocks, too: 3 of 64 channels at 56×56, 3 of 128 at 28×28 …, 12,845,056 each.
    "resnet34_c": (22_716_840, round(3.663762 + 13 * 0.012845056, 3)),
}
CIFAR = {
    "resnet20": (269_722, 40.55),
    "resnet32": (464_154, 68.86),
    "resnet44": (658_586, 97.17),
    "resnet56": (853_018, 125.49),
    "resnet110": (1_727_962, 252.89),
    "resnet1202": (19_421_274, 2829.24),
}
CIFAR |= {f"plain{depth}": CIFAR[f"resnet{depth}"] for depth in (20, 32, 44, 56)}  # option A costs nothing
# Segmentation networks of 21 classes: parameters, and GMACs at their paper's image size, in training. torchvision's are
# printed, auxiliary head included; the others follow from VGG's: 698 pixels a side, and fc6 on a map of 22.
FCN = {
    "fcn32s": (134_346_581, 180.903),
    "fcn16s": (134_357_354, 180.924),
    "fcn8s": (134_362_751, 180.966),
    "fcn8s_atonce": (134_362_751, 180.966),
    "fcn32s_alexnet": (56_954_261, 20.976),
    "fcn32s_googlenet": (5_995_077, 14.936),
    "fcn_resnet50_tv": (35_322_218, 152.717),
    "fcn_resnet101_tv": (54_314_346, 232.738),
}
AUXILIARY = {"googlenet": 13_378_280, "googlenet_tv": 13_004_888}
DEEP = ["resnet101_tv", "resnet152", "resnet152_tv", "resnet1202"]  # a trace takes seconds


def test_the_figures_cover_the_registry():
    assert sorted(IMAGENET | CIFAR | FCN | DETECTION | GENERATIVE) == list_models()


@pytest.mark.parametrize(
    "name", [*sorted((IMAGENET | CIFAR).keys() - DEEP), *(pytest.param(name, marks=pytest.mark.slow) for name in DEEP)]
)
def test_parameters_and_macs_are_those_of_the_references(name):
    rows = paper_layers(name)
    unit, digits = (1e9, 3) if name in IMAGENET else (1e6, 2)
    parameters, macs = (IMAGENET | CIFAR)[name]
    assert total(rows, "parameters") == parameters
    assert round(total(rows, "macs") / unit, digits) == macs


@pytest.mark.parametrize("name", FCN)
def test_a_segmentation_network_is_counted_with_its_auxiliary_head_and_without_interpolation(name):
    found = describe(name, train=True)
    assert found["parameters"] + found["aux_parameters"] == FCN[name][0]
    assert round(found["macs"] / 1e9, 3) == FCN[name][1]
    assert (found["num_classes"], found["image_size"]) == (21, 520 if name.endswith("_tv") else 500)


# torchvision prints 134.38 for its own, of 800 pixels; the others have 600 pixels, and 300 regions to classify or 2,000
# given ones: VGG-16's map of 38 cells a side takes 110.375, the RPN 3.447, a region 0.119968.
@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("faster_rcnn_resnet50_fpn_tv", 134.38),
        ("faster_rcnn_vgg16", 149.812),
        ("fast_rcnn_vgg16", 350.311),
        ("fast_rcnn_alexnet", 115.093),
    ],
)
def test_a_detector_is_counted_with_its_proposals(name, macs):
    found = describe(name)
    assert found["parameters"] == DETECTION[name]
    assert round(found["macs"] / 1e9, 3) == macs


def test_the_layers_of_a_loop_over_windows_are_a_row_each():
    rows = describe("rcnn_alexnet")["layers"]
    assert [row.name for row in rows if row.macs] == [row.name for row in rows if row.parameters]
    assert {row.name: row.kind for row in rows}["trunk/conv1"] == "conv 11×11/4"


@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_classifiers_are_counted_in_training_only(name):
    row = describe(name, train=True)
    assert row["parameters"] == IMAGENET[name][0]
    assert row["parameters"] + row["aux_parameters"] == AUXILIARY[name]
    trained, evaluated = row["layers"], paper_layers(name)
    assert total(trained, "parameters") == AUXILIARY[name]
    more = {layer.name for layer in trained} - {layer.name for layer in evaluated}
    assert {path.split("/")[0] for path in more} == {"aux1", "aux2"}


@pytest.mark.parametrize(
    "name", ["alexnet", "vgg11_bn", "vgg11_lrn", "googlenet_tv", "resnet18_a", "resnet50", "plain20"]
)
def test_every_parameter_belongs_to_a_row_and_the_rows_to_the_code(name):
    model: Any = create_model(name, 10)
    images = jnp.zeros((1, model.image_size, model.image_size, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    rows = layers(model, images.shape[1:], train=True)
    assert total(rows, "parameters") == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert len({row.name for row in rows}) == len(rows)
    assert not any("." in row.name or row.name == "(no name)" for row in rows)
    assert all(row.parameters or row.kind in ("max pool", "avg pool", "global pool", "LRN") for row in rows)


def test_alexnet_layer_by_layer():
    rows = {row.name: row for row in paper_layers("alexnet")}
    assert [row.name for row in paper_layers("alexnet")] == [
        "conv1", "lrn1", "max_pool1", "conv2", "lrn2", "max_pool2", "conv3", "conv4", "conv5", "max_pool3",
        "fc6", "fc7", "head",
    ]  # fmt: skip
    assert rows["conv1"].kind == "conv 11×11/4"
    assert rows["conv1"].macs == 55 * 55 * 96 * 11 * 11 * 3
    assert rows["conv2"].kind == "conv 5×5 g2"
    assert rows["conv2"].macs == 27 * 27 * 256 * 5 * 5 * 48
    assert rows["conv2"].parameters == 5 * 5 * 48 * 256 + 256
    assert rows["max_pool3"][1:5] == ("max pool", (6, 6, 256), 0, 0)
    assert rows["fc6"].macs == 6 * 6 * 256 * 4096
    assert rows["fc6"].activation_bytes == 2 * 4096
    assert rows["head"].activation_bytes == 4 * 1000  # logits are float32


def test_activations_grow_with_the_batch_and_the_type_and_nothing_else_does():
    one, many, wide = describe("resnet20"), describe("resnet20", batch=128), describe("resnet20", dtype="float32")
    assert many["activation_bytes"] == 128 * one["activation_bytes"]
    logits = 4 * 10
    assert wide["activation_bytes"] - logits == 2 * (one["activation_bytes"] - logits)
    for key in ("parameters", "macs"):
        assert one[key] == many[key] == wide[key]


def test_other_sizes_classes_and_the_form_for_small_images():
    assert describe("resnet20", image_size=64)["macs"] > 3.9 * describe("resnet20")["macs"]
    assert describe("resnet20")["parameters"] - describe("resnet20", num_classes=5)["parameters"] == 5 * 65
    small = describe("alexnet", small_images=True)
    assert (small["image_size"], small["num_classes"]) == (32, 10)
    assert small["layers"][0].shape == (32, 32, 96)


class Mixed(nn.Module):
    """A bit of everything, called twice where it can be, with work inside of `jit`, `scan` and `cond`."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = conv(8, 3, groups=2, dtype=jnp.float32, name="grouped")(x)
        x = nn.Conv(8, (3, 3), feature_group_count=4, padding="VALID", name="fours")(x)
        x = max_pool(x, 2, 2)
        x = batch_norm(train, dtype=jnp.float32, name="norm")(x)
        twice = nn.Dense(8, name="twice")
        x = twice(nn.relu(twice(x)))
        matrix = jnp.ones((8, 8))
        x = jax.lax.scan(lambda x, _: (jax.jit(jnp.dot)(x, matrix), None), x, None, length=5)[0]
        return jax.lax.cond(x.sum() > 0, lambda x: x @ matrix, lambda x: x, x)


def test_macs_of_groups_of_calls_and_of_products_outside_of_a_layer():
    rows = layers(Mixed(), (10, 12, 4))
    by_hand = {
        "grouped": ("conv 3×3 g2", (10, 12, 8), 3 * 3 * 2 * 8, 10 * 12 * 8 * 3 * 3 * 2),
        "fours": ("conv 3×3 g4", (8, 10, 8), 3 * 3 * 2 * 8 + 8, 8 * 10 * 8 * 3 * 3 * 2),
        "max_pool": ("max pool", (4, 5, 8), 0, 0),
        "norm": ("norm", (4, 5, 8), 16, 0),
    }
    assert {row.name: row[1:5] for row in rows[:4]} == by_hand
    product = 4 * 5 * 8 * 8
    assert [row[:5] for row in rows[4:6]] == [
        ("twice", "dense", (4, 5, 8), 72, product),
        ("twice", "dense", (4, 5, 8), 0, product),  # the parameters are the same
    ]
    assert sum(row.macs for row in rows[6:]) == 6 * product


@pytest.mark.parametrize(("name", "overrides"), [("alexnet", {"width": 0.25}), ("resnet20", {})])
def test_xla_counts_about_twice_as_many_operations(name, overrides):
    model: Any = create_model(name, 10, jnp.float32, small_images=True, **overrides)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    lowered = jax.jit(lambda v, x: model.apply(v, x)["logits"]).lower(variables, images)
    cost: Any = lowered.cost_analysis()
    ours = 2 * total(layers(model, images.shape[1:]), "macs")
    # XLA leaves out products with padding, and counts element by element what is no product.
    assert 0.8 < cost["flops"] / ours < 1.25


def test_images_that_a_model_does_not_take_are_refused():
    with pytest.raises(UserError, match="pixels left"):
        describe("alexnet", image_size=16)
    with pytest.raises(UserError, match="1 or more"):
        describe("resnet20", batch=0)


@pytest.mark.parametrize(("kernel", "pad", "extra"), [(5, 2, 1), (4, 1, 0)])
def test_a_transposed_convolution_costs_as_much_as_the_strided_one(kernel, pad, extra):
    up, down = ConvTranspose(7, kernel, 2, pad, extra), conv(3, kernel, 2, pad=pad, dtype=jnp.float32)
    small, large = jnp.zeros((1, 6, 5, 3)), jnp.zeros((1, 12, 10, 7))
    found = []
    for layer, x in ((up, small), (down, large)):
        made = layer.init(jax.random.key(0), x)
        equations = jax.make_jaxpr(lambda x, layer=layer, made=made: layer.apply(made, x))(x).eqns
        found.append(sum(macs(equation) for equation in equations))
    assert found == [6 * 5 * 3 * 7 * kernel**2] * 2
