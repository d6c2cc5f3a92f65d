"""What is computed in which type, read off the jaxprs of the networks' own training steps."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pixels import Pixels
from tiny import Blobs, build, tiny_config
from tiny_dense import Patches

from jaxcnn.models import create_model

PRODUCTS = {"conv_general_dilated", "dot_general"}
FORWARD, BACKWARD = 19 + 1, 18 + 19 + 2  # convolutions and the head; no gradient goes to the images
# On a CPU the gradients at the images of two convolutions of stride 2 have four phases each.
PHASES = 2 * 3


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of the jaxprs inside it."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(value)


def operands(jaxpr: Any) -> list[tuple[Any, ...]]:
    """Types of the two operands of each convolution and matrix product."""
    return [tuple(v.aval.dtype.name for v in e.invars) for e in equations(jaxpr) if e.primitive.name in PRODUCTS]


def results(jaxpr: Any) -> list[Any]:
    """Shapes and types of what a jaxpr returns."""
    return [v.aval for v in jaxpr.jaxpr.outvars]


def traced(dtype: str, name: str = "resnet20", side: int = 8, **values: Any) -> tuple[Any, Any]:
    """A network's program and the jaxpr of its training step."""
    config = tiny_config(dtype=dtype, ema__decay=0.9, optimizer__weight_decay=1e-4, optimizer__clip_norm=1.0, **values)
    data = Blobs(augment="pad_crop_flip", image_shape=(side, side, 3))
    overrides = {} if name == "resnet20" else {"width": 0.125, "small_images": True}
    program = build(config, create_model(name, 6, jnp.dtype(dtype), **overrides), data)
    return program, jax.make_jaxpr(program.train_step)(program.state, program.largest_batch)


@pytest.fixture(scope="module")
def half() -> tuple[Any, Any]:
    return traced("bfloat16")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_product_of_the_training_step_has_bfloat16_operands(half, accumulate):
    _, jaxpr = half if accumulate == 1 else traced("bfloat16", optimizer__accumulate=2)
    types = operands(jaxpr)
    # More where the gradient of a kernel is a product for each of its taps; that of the images is asked for, too.
    assert len(types) >= FORWARD + BACKWARD + PHASES
    assert set(types) == {("bfloat16", "bfloat16")}


def test_the_walk_sees_float32_where_there_is_some():
    types = operands(traced("float32")[1])
    assert len(types) == FORWARD + BACKWARD + PHASES
    assert set(types) == {("float32", "float32")}


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "googlenet", "googlenet_tv"])
def test_every_product_of_the_other_families_has_bfloat16_operands_and_their_state_is_float32(name):
    program, jaxpr = traced("bfloat16", name, 32)
    types = operands(jaxpr)
    kernels = sum("kernel" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(program.state.params))
    # Forward, and two gradients of each product but the first. More where a form for each platform is in the jaxpr.
    assert len(types) >= 3 * kernels - 1
    assert set(types) == {("bfloat16", "bfloat16")}
    assert_float32(program, jaxpr)


def test_the_state_goes_in_and_comes_out_in_float32_and_so_does_the_loss(half):
    assert_float32(*half)


def assert_16_bits(program: Any) -> Any:
    """Every product of both steps has operands of 16 bits, and their results are wider; return evaluation's jaxpr."""
    jaxpr = jax.make_jaxpr(program.train_step)(program.state, program.largest_batch)
    assert set(operands(jaxpr)) == {("bfloat16", "bfloat16")}
    assert_float32(program, jaxpr)
    evaluated = jax.make_jaxpr(program.eval_step)(program.variables, program.largest_batch)
    assert set(operands(evaluated)) == {("bfloat16", "bfloat16")}
    assert "bfloat16" not in {x.dtype.name for x in results(evaluated)}
    return evaluated


def assert_float32(program: Any, jaxpr: Any) -> None:
    new, loss = jax.eval_shape(program.train_step, program.state, program.largest_batch)
    assert loss.dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), program.state)
    floats = [x.dtype for x in jax.tree.leaves(program.state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert set(floats) == {np.dtype(np.float32)}
    integers = {x.dtype for x in jax.tree.leaves(program.state)} - set(floats)
    assert integers <= {np.dtype(np.int32), np.dtype(np.uint32)}
    assert {x.dtype for x in results(jaxpr)} <= {np.dtype(np.float32), *integers}


def test_gradients_meet_the_optimizer_in_float32(half):
    """Nothing of the size of a filter is added, scaled or rooted in 16 bits."""
    _, jaxpr = half
    filters = {(3, 3, 16, 16), (3, 3, 32, 32), (3, 3, 64, 64)}
    updates = [e for e in equations(jaxpr) if e.primitive.name in {"sqrt", "div", "integer_pow", "square"}]
    shaped = [e for e in updates if e.outvars[0].aval.shape in filters]
    assert len(shaped) >= 19 - 3
    assert {v.aval.dtype for e in shaped for v in e.outvars} == {np.dtype(np.float32)}


def test_evaluation_computes_in_bfloat16_and_sums_in_float32(half):
    program, _ = half
    jaxpr = jax.make_jaxpr(program.eval_step)(program.variables, program.largest_batch)
    assert operands(jaxpr) == [("bfloat16", "bfloat16")] * FORWARD
    sums, counts = {np.dtype(np.float32)}, {np.dtype(np.int32)}
    assert {x.dtype for x in results(jaxpr)} == sums | counts


def test_logits_are_float32_and_are_not_rounded_to_16_bits_on_the_way():
    model = create_model("resnet20", 6, jnp.bfloat16)
    images = jnp.zeros((2, 8, 8, 3))
    variables: Any = jax.eval_shape(model.init, jax.random.key(0), images)
    outputs: Any = jax.eval_shape(model.apply, variables, images)
    assert outputs["logits"].dtype == jnp.float32
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x)["logits"])(variables, images)  # type: ignore[index]
    last = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    assert [e.outvars[0].aval.dtype for e in last] == [jnp.float32]


@pytest.mark.parametrize("name", ["vae_mlp", "vae_conv"])
def test_every_product_of_a_vae_has_bfloat16_operands_and_its_losses_and_state_are_float32(name):
    config = tiny_config(task__name="vae", dtype="bfloat16", task__samples=2, task__objective="iwae")
    data = Pixels(image_shape=(28, 28, 1))
    program = build(config, create_model(name, dtype=jnp.bfloat16, hidden=(8,), latent=2), data)
    assert {x.dtype for x in results(assert_16_bits(program))} == {np.dtype(np.float32), np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("fcn8s", {"backbone": "vgg11_bn", "width": 0.125}), ("fcn_resnet50_tv", {"backbone": "resnet20"})],
)
def test_every_product_of_a_segmentation_network_has_bfloat16_operands_and_its_losses_and_state_are_float32(
    name, overrides
):
    model: Any = create_model(name, 6, jnp.bfloat16, **overrides)
    config = tiny_config(task__name="segmentation", dtype="bfloat16")
    program = build(config, model, Patches(image_shape=(32, 32, 3)))
    assert {x.dtype for x in results(assert_16_bits(program))} == {np.dtype(np.float32), np.dtype(np.int32)}


@pytest.mark.parametrize(("name", "side"), [("gan_mlp", 8), ("dcgan32", 32)])
def test_every_product_of_a_gan_has_bfloat16_operands_and_its_losses_and_state_are_float32(name, side):
    small: Any = {"hidden": (4,), "maxout": (3,)} if name == "gan_mlp" else {"width": 1 / 64}
    model = create_model(name, dtype=jnp.bfloat16, latent=3, **small)
    config = tiny_config(task__name="gan", dtype="bfloat16", ema__decay=0.9)
    program = build(config, model, Pixels(image_shape=(side, side, 3)))
    jaxpr = jax.make_jaxpr(program.train_step)(program.state, program.largest_batch)
    assert set(operands(jaxpr)) == {("bfloat16", "bfloat16")}
    assert_float32(program, jaxpr)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("faster_rcnn_vgg16", {"backbone": "vgg11_bn", "width": 0.125}),
        ("faster_rcnn_resnet50_fpn_tv", {"backbone": "resnet20", "fpn_channels": 16}),
        ("mask_rcnn_resnet50_fpn_tv", {"backbone": "resnet20", "fpn_channels": 16}),
    ],
)
def test_every_product_of_a_detector_has_bfloat16_operands_and_its_boxes_losses_and_state_are_float32(name, overrides):
    few = {"rpn_pre_nms": (40, 40), "rpn_post_nms": (10, 10), "box_samples": 8, "head_features": 16, "detections": 5}
    model: Any = create_model(name, 6, jnp.bfloat16, **few, **overrides)
    config = tiny_config(task__name="detection", dtype="bfloat16", task__max_boxes=3, model__name=name)
    program = build(config, model, Blobs(image_shape=(64, 64, 3)))
    assert_16_bits(program)
