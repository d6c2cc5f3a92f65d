"""The networks against torchvision's state dicts, outputs, loss and gradients (tests/golden)."""

import zlib
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from golden import COUNT, Shapes, entry, golden, images, norms, shapes_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.weights.files import check_finite
from jaxcnn.weights.torchvision import NAMES, find_network, from_state_dict, new_heads, to_state_dict

slow = pytest.mark.slow


def shapes(name: str, classes: int = 1000) -> Shapes:
    """Torch's shapes of our classifier `name`, in the order of its state dict."""
    heads = ("fc.", "aux1.fc2.", "aux2.fc2.", "classifier.6.")
    found = shapes_of(name.removesuffix("_tv").replace("mask_rcnn", "faster_rcnn"))
    if name.startswith("mask_rcnn"):
        found = found | shapes_of("maskrcnn_resnet50_fpn")
    return {k: (classes, *v[1:]) if k.startswith(heads) else v for k, v in found.items()}


def zeros(name: str) -> dict[str, np.ndarray]:
    """A state dict of `name` that takes no memory."""
    return {k: np.broadcast_to(np.float32(0), s) for k, s in shapes(name).items()}


@cache
def variables(name: str) -> dict[str, Any]:
    return from_state_dict(name, {key: entry(key, shape) for key, shape in shapes(name).items()})


SOME = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("", {}),
        ("", {"criterion.pos_weight": SOME, "val_acc.tp": SOME, "loss_fn.weight": SOME}),
        ("module.", {"n_averaged": np.array(7)}),
        ("module._orig_mod.", {}),
        ("model.", {"loss.weight": SOME, "train_metrics.accuracy.tp": SOME}),
        ("net.module.", {"normalize.mean": SOME}),
        ("backbone.", {"head.weight": SOME, "fc.weight": SOME}),
    ],
)
def test_the_network_is_found_under_its_prefix_and_what_is_beside_it_is_named(prefix, beside):
    network = zeros("resnet18")
    found, left = find_network("resnet18", beside | {prefix + key: value for key, value in network.items()})
    assert found.keys() == network.keys()
    assert all(found[key] is network[key] for key in network)
    assert left == list(beside)


def test_what_is_not_one_network_is_not_made_one():
    small, large = zeros("resnet18"), zeros("resnet34")
    found, left = find_network("resnet18", {f"model.{key}": value for key, value in large.items()})
    assert (found.keys(), left) == (large.keys(), []), "a layer too many is no layer beside"
    with pytest.raises(UserError, match=r"extra \(.*layer1.2.conv1.weight"):
        from_state_dict("resnet18", found)
    extra = small | {"attention.weight": SOME}
    assert find_network("resnet18", extra) == (extra, [])
    twice = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in small.items()}
    assert find_network("resnet18", twice)[0].keys() == small.keys(), "one network under two names"
    with pytest.raises(UserError, match=r"'student\.' and 'teacher\.'"):
        find_network("resnet18", twice | {"teacher.fc.bias": np.ones(1000, np.float32)})
    vgg = zeros("vgg11")
    assert find_network("resnet18", vgg) == (vgg, [])


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "googlenet_tv",
        pytest.param("resnet50_tv", marks=slow),
        pytest.param("alexnet_tv", marks=slow),  # these three: weights of 250 MB to 550 MB
        pytest.param("vgg11", marks=slow),
        pytest.param("vgg16_bn", marks=slow),
    ],
)
def test_evaluation_logits_are_torchvisions(name):
    model: Any = create_model(name, dtype=np.float32)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False)["logits"])(
        variables(name), images(2, 224, 224, 3, seed=0)
    )
    variables.cache_clear()
    expected = golden()[f"{name.removesuffix('_tv')}/logits"]
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def training_step(dtype: str) -> tuple[float, dict[str, float]]:
    """Loss of one step in training mode, and the norm of each parameter's gradient under torch's key."""
    model: Any = create_model("resnet18", dtype=dtype)
    labels = np.array([1, 7, 300, 999], np.int32)

    def objective(params: Any, batch_stats: Any, x: jax.Array) -> jax.Array:
        outputs, _ = model.apply({"params": params, "batch_stats": batch_stats}, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], labels).mean()

    with jax.enable_x64(dtype == "float64"):
        ours, x = jax.tree.map(lambda v: v.astype(dtype), (variables("resnet18"), images(4, 224, 224, 3, seed=1)))
        loss, grads = jax.jit(jax.value_and_grad(objective))(ours["params"], ours["batch_stats"], x)
        grads = to_state_dict("resnet18", {"params": jax.device_get(grads), "batch_stats": ours["batch_stats"]})
    return float(loss), norms(grads)


def deviations(found: dict[str, float]) -> tuple[float, float]:
    """Relative error of all the norms as one vector, and that of the worst among them."""
    expected = {k.removeprefix("resnet18/grad/"): float(v) for k, v in golden().items() if "/grad/" in k}
    assert found.keys() == expected.keys()
    theirs = np.array([expected[k] for k in found])
    errors = np.array(list(found.values())) - theirs
    return float(np.linalg.norm(errors) / np.linalg.norm(theirs)), float(np.max(np.abs(errors) / theirs))


def test_loss_and_gradients_in_float64_are_torchvisions():
    loss, found = training_step("float64")
    _, worst = deviations(found)
    assert loss == pytest.approx(golden()["resnet18/train_loss"], rel=1e-6)  # the head accumulates in float32
    assert worst < 1e-6


def test_loss_and_gradients_in_float32_are_torchvisions_to_rounding():
    """Single norms cannot be had to 1e-4 in float32: rounding flips ReLUs near zero, which the first stage feels.

    Nor are PyTorch's own float32 norms that near to its float64 ones.
    """
    loss, found = training_step("float32")
    together, worst = deviations(found)
    assert loss == pytest.approx(golden()["resnet18/train_loss"], rel=1e-4)
    assert together < 1e-4
    assert worst < 2e-3


def noise(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bits, NaNs among them: what is moved must not be computed with. The counts that we keep none of are 0."""
    if key.endswith(COUNT):
        return np.zeros(shape, np.int64)
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    return np.frombuffer(rng.bytes(4 * int(np.prod(shape))), np.float32).reshape(shape)


def bits(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, str(x.dtype), zlib.crc32(x.tobytes())), tree)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(name=st.sampled_from(["resnet18", "googlenet_tv"]), classes=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_state_dict_goes_there_and_back_bit_for_bit(name, classes, seed):
    state = {k: noise(k, s, seed) for k, s in shapes(name, classes).items()}
    ours = from_state_dict(name, state)
    back = to_state_dict(name, ours)
    assert bits(back) == bits(state)
    assert list(back) == list(state)
    assert bits(from_state_dict(name, back)) == bits(ours)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_takes_a_state_dict_whole_and_gives_it_back_in_its_order(name):
    state = zeros(name)
    back = to_state_dict(name, from_state_dict(name, state))
    assert [(k, v.shape) for k, v in back.items()] == [(k, v.shape) for k, v in state.items()]
    assert {str(v.dtype) for k, v in back.items() if k.endswith(COUNT)} <= {"int64"}


def test_a_layer_over_a_feature_map_is_turned_from_channels_first_to_channels_last():
    state = zeros("alexnet_tv") | {"classifier.1.weight": np.arange(4096 * 9216, dtype=np.float32).reshape(4096, 9216)}
    kernel = from_state_dict("alexnet_tv", state)["params"]["fc6"]["kernel"]
    assert kernel.shape == (6, 6, 256, 4096)
    assert kernel[2, 3, 5, 7] == 7 * 9216 + 5 * 36 + 2 * 6 + 3


def test_a_state_dict_without_the_counts_of_batches_is_whole_too():
    state = {k: v for k, v in zeros("resnet18").items() if not k.endswith(COUNT)}
    assert bits(from_state_dict("resnet18", state)) == bits(from_state_dict("resnet18", zeros("resnet18")))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floating_point_types_become_float32(dtype):
    state = {k: (v + 1.5).astype(dtype) for k, v in zeros("resnet18").items()}
    variables = from_state_dict("resnet18", state)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert float(variables["params"]["head"]["bias"][0]) == 1.5


def refusal(name: str, state: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        from_state_dict(name, state)
    return str(caught.value)


def test_one_error_lists_every_entry_that_does_not_fit():
    state = zeros("resnet18")
    del state["conv1.weight"], state["layer4.1.bn2.running_var"]
    state |= {
        "layer1.2.conv1.weight": np.zeros(3), "fc.weight": np.zeros((512, 1000)), "bn1.bias": np.zeros(63),
        "bn1.running_mean": np.zeros((1, 1, 1, 64, 1)), "bn1.num_batches_tracked": np.zeros(2),
        "layer1.0.bn1.weight": np.zeros(64, np.int32), "layer9.0.bn1.num_batches_tracked": np.zeros(()),
    }  # fmt: skip
    message = refusal("resnet18", state)
    for words in (
        "missing (2): conv1.weight, layer4.1.bn2.running_var;",
        "extra (2): layer1.2.conv1.weight, layer9.0.bn1.num_batches_tracked;",
        "mis-shaped (4): ",
        "bn1.num_batches_tracked (2,) where () is due",
        "not floating-point (1): layer1.0.bn1.weight (int32)",
    ):
        assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_missed_in_one_short_line(name):
    due = [key for key in shapes(name) if not key.endswith(COUNT) and not key.startswith("aux")]
    message = refusal(name, {})
    assert f"missing ({len(due)}): {', '.join(due[:3])}, …" in message
    assert len(message) < 200


@pytest.mark.parametrize("bias", [np.zeros(()), np.zeros((2, 3)), np.zeros(0), None])
def test_a_head_that_does_not_say_how_many_classes_is_listed_as_the_rest(bias):
    state = {"fc.bias": bias} if bias is not None else {}
    message = refusal("resnet18", state | {"conv1.weight": np.zeros((64, 3, 7, 7))})
    # Of 102 entries, conv1.weight is there, and fc.bias of another shape.
    assert ("missing (100): " if bias is not None else "missing (101): ") in message
    assert ("mis-shaped (1): fc.bias" in message) == (bias is not None)


def test_a_network_of_another_shape_is_not_written_as_torchvisions():
    variables = from_state_dict("resnet18", zeros("resnet18"))
    variables["params"]["stem_conv"]["kernel"] = np.zeros((3, 3, 3, 64))
    with pytest.raises(UserError, match=r"params/stem_conv/kernel \(3, 3, 3, 64\) where \(7, 7, 3, 64\) is due"):
        to_state_dict("resnet18", variables)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet50", "resnet50 is our resnet50_tv"),
        ("alexnet", "alexnet is our alexnet_tv"),
        ("vgg16_c", "vgg16_bn"),
        ("nonsense", "`jaxcnn models`"),
    ],
)
def test_a_network_that_torchvision_has_not_names_its_form_or_the_nearest_it_has(name, hint):
    message = refusal(name, {})
    assert f"'{name}'" in message
    assert hint in message


def test_weights_that_are_no_numbers_are_named():
    check_finite({"params": {"a": np.ones(2)}, "batch_stats": {}})
    with pytest.raises(UserError, match=r"not finite \(2\): params/a/b, params/c"):
        check_finite({"params": {"a": {"b": np.array([np.nan, 1])}, "c": np.array(np.inf), "d": np.ones(1)}})


# The CIFAR networks of akamaster/pytorch_resnet_cifar10, written from its description: NumPy, torch's layout.


def port_entry(key: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)


def port_shapes(depth: int) -> Shapes:
    """The port's state dict, in its order."""
    found: Shapes = {"conv1.weight": (16, 3, 3, 3)}

    def norm(name: str, channels: int) -> None:
        found.update({f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")})

    norm("bn1", 16)
    before = 16
    for stage, channels in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            name = f"layer{stage}.{block}"
            for i, received in ((1, before), (2, channels)):
                found[f"{name}.conv{i}.weight"] = (channels, received, 3, 3)
                norm(f"{name}.bn{i}", channels)
            before = channels
    return found | {"linear.weight": (10, 64), "linear.bias": (10,)}


def port_logits(arrays: dict[str, np.ndarray], images: np.ndarray, depth: int) -> np.ndarray:
    """The port's network on images (N, C, H, W): shortcuts take every other pixel and pad channels on both sides."""

    def conv(name: str, x: np.ndarray, stride: int) -> np.ndarray:
        weight = arrays[f"{name}.weight"]
        dimensions = jax.lax.conv_dimension_numbers(x.shape, weight.shape, ("NCHW", "OIHW", "NCHW"))
        left, right = jnp.asarray(x), jnp.asarray(weight)
        y = jax.lax.conv_general_dilated(left, right, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=dimensions)
        return np.asarray(y)

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        scale, bias, mean, var = (
            arrays[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(norm("bn1", conv("conv1", images, 1)), 0)
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = np.maximum(norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)), 0)
            y = norm(f"{name}.bn2", conv(f"{name}.conv2", y, 1))
            if stride == 2:
                quarter = y.shape[1] // 4
                x = np.pad(x[:, :, ::2, ::2], ((0, 0), (quarter, quarter), (0, 0), (0, 0)))
            x = np.maximum(x + y, 0)
    return x.mean((2, 3)) @ arrays["linear.weight"].T + arrays["linear.bias"]


@pytest.mark.parametrize("depth", [20, 32])
def test_the_cifar_ports_weights_give_its_logits_and_come_back_exactly(depth):
    arrays = {key: port_entry(key, shape) for key, shape in port_shapes(depth).items()}
    ours = from_state_dict(f"resnet{depth}", arrays)
    images = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)
    model: Any = create_model(f"resnet{depth}", 10, np.float32)
    logits = model.apply(ours, images)["logits"]
    expected = port_logits(arrays, images.transpose(0, 3, 1, 2), depth)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    back = to_state_dict(f"resnet{depth}", ours)
    assert [key for key in back if not key.endswith(COUNT)] == list(arrays)
    assert all(np.array_equal(back[key], arrays[key]) for key in arrays)


def test_auxiliary_heads_that_are_missing_or_of_other_classes_are_made_new():
    given = zeros("googlenet_tv")
    whole = {"fc.weight": np.ones((7, 1024), np.float32), "fc.bias": np.ones(7, np.float32)}
    assert new_heads("googlenet_tv", given) == []
    for state_dict, classes in (
        ({k: v for k, v in given.items() if not k.startswith("aux")}, 1000),
        (given | whole, 7),  # the head alone was replaced
    ):
        assert new_heads("googlenet_tv", state_dict) == ["aux1", "aux2"]
        ours = from_state_dict("googlenet_tv", state_dict)
        assert ours["params"]["aux1"]["head"]["kernel"].shape[-1] == classes
        assert np.std(ours["params"]["aux2"]["project"]["conv"]["kernel"]) > 0  # initialised, not zero
        assert not ours["params"]["conv1"]["conv"]["kernel"].any()  # the file's
    half = {k: v for k, v in given.items() if not k.startswith("aux1.conv")}
    with pytest.raises(UserError, match=r"aux1\.conv"):  # a head that is there in part is damage
        from_state_dict("googlenet_tv", half)
