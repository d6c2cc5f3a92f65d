"""Segmentation networks against torch: state dicts in and out, logits, loss, gradients, statistics (tests/golden)."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import COUNT, Shapes, entry, golden, images, norms, shapes_of
from nets import quick

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.models.fused_norm import fused_norms
from jaxcnn.models.normalization import match_norms
from jaxcnn.weights.torchvision import CAFFE_NAMES, find_network, from_state_dict, new_heads, to_state_dict

slow = pytest.mark.slow
TORCHVISION = ("fcn_resnet50_tv", "fcn_resnet101_tv")


def shapes(name: str) -> Shapes:
    """The shapes of our network's state dict: torchvision's, or with Caffe's names."""
    if name in TORCHVISION:
        return shapes_of(name.removesuffix("_tv"))
    lacking = {"fcn32s": ("score_pool",), "fcn16s": ("score_pool3.",)}.get(name, ("-",))
    return {key: shape for key, shape in shapes_of("fcn8s_vgg16").items() if not key.startswith(lacking)}


@cache
def variables(name: str) -> Any:
    return from_state_dict(name, {key: entry(key, shape) for key, shape in shapes(name).items()})


def zeros(name: str) -> dict[str, np.ndarray]:
    """A state dict of `name` that takes no memory."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes(name).items()}


def assert_near(found: Any, name: str, tolerance: float = 1e-4) -> None:
    """Both arrays agree to this part of the largest magnitude."""
    expected = golden("segmentation.npz")[name]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max(), name


FUSED = {"fcn16s": "fcn16s_fuse_pool4", "fcn8s": "fcn8s_fuse_pool3", "fcn8s_atonce": "fcn8s_atonce_fuse_pool3"}


@pytest.mark.parametrize(
    "name",
    ["fcn8s_atonce", *(pytest.param(name, marks=slow) for name in CAFFE_NAMES[:3])],  # weights of 540 MB
)
def test_logits_and_score_maps_are_those_of_the_released_geometry(name):
    model: Any = create_model(name, 21, jnp.float32)
    outputs = quick(model.apply)(variables(name), images(1, 64, 80, 3, seed=15))
    variables.cache_clear()
    assert_near(outputs["logits"][:, ::8, ::8], f"{name}/logits")
    assert_near(outputs["scores"][0], "scores/score_fr")
    if name in FUSED:
        last = outputs["scores"][-1]
        assert_near(last if name == "fcn16s" else last[:, ::3, ::3], f"scores/{FUSED[name]}")


def test_evaluation_and_auxiliary_logits_are_torchvisions():
    # Frozen norms in training mode: what evaluation computes, auxiliary head included.
    model: Any = create_model("fcn_resnet50_tv", 21, jnp.float32, frozen_norm=True, dropout=0.0, aux_dropout=0.0)
    x = images(2, 96, 128, 3, seed=10)
    frozen = match_norms(variables("fcn_resnet50_tv"), jax.eval_shape(model.init, jax.random.key(0), x))
    outputs = quick(lambda v, x: model.apply(v, x, train=True))(frozen, x)
    assert_near(outputs["logits"][:, ::16, ::16], "fcn_resnet50/out")
    assert_near(outputs["aux_logits"][0][:, ::16, ::16], "fcn_resnet50/aux")
    counts = np.bincount(np.asarray(outputs["logits"].argmax(-1)).ravel(), minlength=21)
    np.testing.assert_array_equal(counts, golden("segmentation.npz")["fcn_resnet50/out_argmax_counts"])


def labels() -> np.ndarray:
    rng = np.random.default_rng(12)
    drawn = rng.integers(0, 21, (2, 64, 96))
    drawn[rng.random((2, 64, 96)) < 0.1] = 255
    return drawn


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=slow)])  # True: the form of a TPU, on a CPU
def test_loss_gradients_and_statistics_of_a_training_step_are_torchvisions(fused):
    name, y, x = "fcn_resnet50_tv", labels(), images(2, 64, 96, 3, seed=11)
    model: Any = create_model(name, 21, jnp.float32, dropout=0.0, aux_dropout=0.0)
    before, counted = variables(name), y != 255

    def entropy(logits: jax.Array) -> jax.Array:
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), np.where(counted, y, 0)[..., None], -1)
        return -(found[..., 0] * counted).sum() / counted.sum()

    def objective(params: Any) -> Any:
        outputs, new = model.apply(before | {"params": params}, x, train=True, mutable=["batch_stats"])
        terms = entropy(outputs["logits"]), entropy(outputs["aux_logits"][0])
        return terms[0] + 0.5 * terms[1], (terms, new["batch_stats"])

    with fused_norms(fused):
        (loss, (terms, statistics)), gradients = quick(jax.value_and_grad(objective, has_aux=True))(before["params"])
    theirs = {k.removeprefix("fcn_resnet50/"): v for k, v in golden("segmentation.npz").items()}
    assert loss == pytest.approx(theirs["train_loss"], rel=1e-4)
    assert terms == pytest.approx([float(theirs[f"train_loss_{head}"]) for head in ("out", "aux")], rel=1e-4)
    found = norms(to_state_dict(name, before | {"params": jax.device_get(gradients)}))
    errors = np.abs(np.array(list(found.values())) / theirs["grads"] - 1)
    assert np.median(errors) < 5e-3
    assert errors.max() < 3e-2
    after = to_state_dict(name, before | {"batch_stats": jax.device_get(statistics)})
    cells = {"backbone.bn1": 2 * 32 * 48}  # the others see a map of stride 8
    for key in (key.removeprefix("after/") for key in theirs if key.startswith("after/")):
        moved = after[key][:64]
        if key.endswith("var"):
            # torch's running variance divides by one cell less than the batch has, Flax's by as many.
            n = cells.get(key.rpartition(".")[0], 2 * 8 * 12)
            old = 0.9 * entry(key, shapes(name)[key])[:64]
            moved = old + (moved - old) * n / (n - 1)
        assert_near(moved, f"fcn_resnet50/after/{key}")


@pytest.mark.parametrize("name", [*CAFFE_NAMES, *TORCHVISION])
def test_a_state_dict_is_taken_whole_and_given_back_in_its_order(name):
    state = zeros(name)
    back = to_state_dict(name, from_state_dict(name, state))
    assert [(k, v.shape) for k, v in back.items()] == [(k, v.shape) for k, v in state.items()]


def test_values_go_there_and_back_bit_for_bit_and_into_their_places():
    rng = np.random.default_rng(0)
    state = zeros("fcn_resnet50_tv")
    for key in ("classifier.0.weight", "classifier.4.weight", "aux_classifier.4.bias", "aux_classifier.1.running_var"):
        state[key] = rng.standard_normal(state[key].shape).astype(np.float32)
    ours = from_state_dict("fcn_resnet50_tv", state)
    back = to_state_dict("fcn_resnet50_tv", ours)
    assert all(np.array_equal(back[key], state[key]) for key in state)
    np.testing.assert_array_equal(ours["params"]["head"]["kernel"], state["classifier.4.weight"][:, :, 0, 0].T)
    hidden = ours["params"]["hidden"]["conv"]["kernel"]
    np.testing.assert_array_equal(hidden, state["classifier.0.weight"].transpose(2, 3, 1, 0))


def test_a_convolution_that_was_fully_connected_keeps_its_window():
    state = zeros("fcn32s")
    state["fc6.weight"] = state["fc6.weight"].copy()
    state["fc6.weight"][7, 5, 2, 3] = 1
    ours = from_state_dict("fcn32s", state)["params"]
    assert ours["fc6"]["kernel"].shape == (7, 7, 512, 4096)
    assert np.argwhere(ours["fc6"]["kernel"]).tolist() == [[2, 3, 5, 7]]
    assert ours["fc7"]["kernel"].shape == (4096, 4096)


def test_weights_without_the_auxiliary_head_or_of_other_classes_have_a_new_one():
    name, state = "fcn_resnet50_tv", zeros("fcn_resnet50_tv")
    without = {key: x for key, x in state.items() if not key.startswith("aux_classifier.")}
    found, left = find_network(name, {f"module.{key}": x for key, x in without.items()} | {"epoch": np.zeros(3)})
    assert (found.keys(), left) == (without.keys(), ["epoch"])
    assert new_heads(name, state) == []
    assert new_heads(name, without) == ["aux_classifier"]
    other = state | {"classifier.4.weight": np.zeros((5, 512, 1, 1)), "classifier.4.bias": np.zeros(5)}
    assert new_heads(name, other) == ["aux_classifier"]
    made = from_state_dict(name, other)["params"]["aux"]
    assert made["head"]["kernel"].shape == (256, 5)
    assert np.any(made["hidden"]["conv"]["kernel"])


@pytest.mark.parametrize("name", ["fcn8s", "fcn_resnet50_tv"])
def test_what_does_not_fit_is_named_in_one_line(name):
    state = zeros(name)
    first = next(iter(state))
    del state[first]
    with pytest.raises(UserError, match=rf"the weights do not fit {name}: missing \(1\): {first}") as caught:
        from_state_dict(name, state)
    assert "\n" not in str(caught.value)
    assert not any(key.endswith(COUNT) for key in shapes("fcn8s"))
    wrong = zeros(name) | {first: np.zeros((1, *shapes(name)[first]))}
    with pytest.raises(UserError, match=r"mis-shaped \(1\): "):
        from_state_dict(name, wrong)
