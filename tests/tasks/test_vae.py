"""The VAE's arithmetic against torch's (tests/golden), its likelihoods, its draws, and what is refused."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from pixels import Pixels
from tiny import Stop, assert_same, build, fit, leaves, lines, steps, tiny_config

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.distributed.interrupt import Interrupted
from jaxcnn.models import create_model
from jaxcnn.tasks import vae
from jaxcnn.tasks.base import Images
from jaxcnn.tasks.vae import VAE
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.evaluation import evaluate_rows

GOLDEN = Path(__file__).parents[1] / "golden" / "vae.npz"
LAYERS = {  # ours: torch's
    "encoder/fc1": "enc", "encoder/mean": "mean", "encoder/logvar": "logvar", "decoder/fc1": "dec",
    "decoder/logits": "out",
}  # fmt: skip


@cache
def golden() -> dict[str, Any]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def like_torch(params: Any) -> dict[str, Any]:
    """Parameters, or their gradients, under torch's names and in its layout."""
    flat: Any = flatten_dict(params, sep="/")
    named = {}
    for path, x in flat.items():
        layer, _, leaf = path.rpartition("/")
        named[f"{LAYERS[layer]}.{'weight' if leaf == 'kernel' else 'bias'}"] = np.asarray(x).T
    return named


@pytest.fixture
def exact():
    """The golden network in float64: its module, its variables, and a batch of its images as (6, 4, 5, 1)."""
    with jax.enable_x64(True):
        model = create_model("vae_mlp", dtype=jnp.float64, hidden=(12,), latent=2)
        params: dict[str, Any] = {}
        for ours, theirs in LAYERS.items():
            part, layer = ours.split("/")
            kernel, bias = (jnp.asarray(golden()[f"vae/weights/{theirs}.{leaf}"]).T for leaf in ("weight", "bias"))
            params.setdefault(part, {})[layer] = {"kernel": kernel, "bias": bias}
        batch = {"image": jnp.asarray(golden()["vae/x"]).reshape(6, 4, 5, 1), "mask": jnp.ones(6)}
        yield model, {"params": params}, batch


def task_of(**values: Any) -> VAE:
    return VAE(tiny_config(task__name="vae", task__pixels="fixed", **{f"task__{k}": v for k, v in values.items()}))


def step_of(exact: Any, monkeypatch: pytest.MonkeyPatch, **values: Any) -> tuple[float, Any, Any, Any]:
    """Objective, gradients, outputs and sums of one batch with the golden noise."""
    model, variables, batch = exact
    noise = jnp.asarray(golden()["vae/eps"]).swapaxes(0, 1)  # (6, 50, 2)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: noise[:, : shape[1]].astype(dtype))
    task = task_of(**values)

    def objective(params: Any) -> Any:
        outputs, _ = task.forward(model, {"params": params}, batch, {"latent": jax.random.key(0)}, True)
        terms, sums = task.loss(outputs, batch)
        total: Any = sum(x / weight for x, weight in terms.values() if weight is not None)
        return total, (outputs, sums)

    (value, (outputs, sums)), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    return float(value), grads, outputs, sums


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())


def test_elbo_kl_and_gradients_are_torchs(exact, monkeypatch):
    value, grads, outputs, sums = step_of(exact, monkeypatch)
    assert outputs["mean"].dtype == outputs["log_likelihood"].dtype == jnp.float64
    close(outputs["mean"], golden()["vae/mean"])
    close(outputs["logvar"], golden()["vae/logvar"])
    close(outputs["log_likelihood"][:, 0], golden()["vae/log_likelihood"])
    close(vae.kl_divergence(outputs["mean"], outputs["logvar"]), golden()["vae/kl"])
    close(value, -golden()["vae/elbo"].mean())
    close(sums["elbo"][0] / sums["elbo"][1], golden()["vae/elbo"].mean())
    for name, grad in like_torch(grads).items():
        close(grad, golden()[f"vae/grad_of_minus_mean_elbo/{name}"])


@pytest.mark.parametrize("beta", [0.5, 4])
def test_beta_weighs_the_kl_of_the_objective_and_no_metric(exact, monkeypatch, beta):
    value, _, _, sums = step_of(exact, monkeypatch, beta=float(beta))
    close(value, -golden()[f"vae/beta_{beta}_objective"].mean())
    close(sums["elbo"][0] / sums["elbo"][1], golden()["vae/elbo"].mean())


@pytest.mark.parametrize("k", [1, 5, 50])
def test_bounds_of_importance_weights_and_their_gradients_are_torchs(exact, monkeypatch, k):
    value, grads, outputs, sums = step_of(exact, monkeypatch, objective="iwae", samples=k)
    bound = golden()[f"iwae/k{k}/bound"]
    close(vae.log_mean_exp(outputs["log_weight"]), bound)
    close(outputs["log_weight"].mean(1), golden()[f"iwae/k{k}/mean_of_log_weights"])
    close(value, -bound.mean())
    close(sums["iwae"][0] / sums["iwae"][1], bound.mean())
    for name, grad in like_torch(grads).items():
        close(np.linalg.norm(grad), golden()[f"iwae/k{k}/grad_norm/{name}"])


def estimate(exact: Any, k: int) -> Any:
    model, variables, batch = exact
    keys = jax.random.split(jax.random.key(0), 6)
    return task_of(eval_samples=k).forward(model, variables, batch, {"example": keys}, False)[0]


def test_the_estimate_of_evaluation_converges_to_the_exact_log_px(exact):
    """Its error falls as 1 / sqrt(k); a bound it is in the mean alone."""
    log_px = golden()["vae/log_px"]
    errors = [np.abs(np.asarray(estimate(exact, k)["iwae"]) - log_px).mean() for k in (5, 50_000)]
    assert errors[1] < 0.02 < errors[0]
    found = estimate(exact, 50_000)
    assert (np.asarray(found["elbo"]) < log_px).all()
    close(found["kl"], golden()["vae/kl"])


def test_the_estimate_is_the_same_in_parts_of_any_size(exact, monkeypatch):
    every = estimate(exact, 23)
    monkeypatch.setattr(vae, "_ELEMENTS", 6 * 20 * 5)  # five samples at a time, so that the last part has three
    for name, x in estimate(exact, 23).items():
        np.testing.assert_allclose(x, every[name], rtol=1e-12, err_msg=name)


# The likelihoods.


@settings(deadline=None)
@given(st.floats(-8, 8), st.floats(-9, 3))
def test_the_probabilities_of_256_levels_add_up_to_1(logits, logscale):
    with jax.enable_x64(True):
        x = jnp.arange(256) / jnp.float64(255)
        log_p = vae.discretized_logistic(x, jnp.float64(logits), jnp.float64(logscale))
        assert np.isfinite(log_p).all()
        assert float(jnp.exp(log_p).sum()) == pytest.approx(1, abs=1e-6)


def test_a_logistic_of_float32_is_finite_with_its_gradient_however_narrow_it_is():
    x = jnp.arange(256) / 255
    for logscale in (-30.0, -7.0, 0.0, 10.0):
        value, grads = jax.value_and_grad(lambda *p: vae.discretized_logistic(x, *p).sum(), (0, 1))(0.3, logscale)
        assert np.isfinite(value)
        assert np.isfinite(grads).all()


@settings(deadline=None)
@given(st.floats(-4, 4), st.floats(-7, 1))
def test_the_gaussian_is_scipys(logits, logvar):
    from scipy.stats import norm

    x, mean = np.linspace(0, 1, 7), 1 / (1 + math.exp(-logits))
    with jax.enable_x64(True):
        ours = vae.gaussian(jnp.asarray(x), jnp.float64(logits), jnp.float64(logvar))
    np.testing.assert_allclose(ours, norm.logpdf(x, mean, math.exp(logvar / 2)), rtol=1e-9)


@settings(deadline=None)
@given(st.floats(-30, 30))
def test_the_two_probabilities_of_a_bernoulli_add_up_to_1(logits):
    both = vae.bernoulli(jnp.array([0.0, 1.0]), jnp.float32(logits))
    assert float(jnp.exp(both).sum()) == pytest.approx(1, abs=1e-6)


# Draws, on the tiny spine.


MODEL = create_model("vae_mlp", dtype=jnp.float32, hidden=(8,), latent=3)


def vae_config(**values: Any) -> Config:
    return tiny_config(task__name="vae", **{"task__eval_samples": 7} | values)


@cache
def scored(batch: int, devices: int) -> tuple[dict[str, float], Any]:
    """Scores and rows of 37 examples with the parameters of step 0."""
    data = Pixels(batch)
    program = build(vae_config(global_batch_size=batch, mesh__data=devices), MODEL, data)
    variables = program.init().variables
    return evaluate_rows(
        program.eval_step, variables, data.eval_batches(), task=program.task, mesh=program.mesh, examples=37
    )


@pytest.mark.parametrize(("batch", "devices"), [(5, 1), (16, 8)])
def test_a_score_depends_on_neither_the_batch_nor_the_devices(batch, devices):
    expected, rows = scored(37, 1)
    scores, other = scored(batch, devices)
    assert scores == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(other["mean"], rows["mean"], atol=1e-5)
    assert scores.keys() == {f"eval/{name}" for name in ("elbo", "kl", "iwae", "active_units", "examples")}


def test_training_on_eight_devices_equals_one():
    def run(**values: Any) -> Any:
        data = Pixels(16)
        config = vae_config(optimizer__name="sgd", task__samples=3, task__objective="iwae", **values)
        return steps(build(config, MODEL, data), 3, data)

    (expected, losses), (state, found) = run(), run(mesh__data=8)
    assert found == pytest.approx(losses, rel=1e-5)
    for (path, x), y in zip(leaves(state.params).items(), leaves(expected.params).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_run_resumes_to_the_bit_and_keeps_a_picture_of_every_evaluation(tmp_path):
    made: dict[str, Any] = {"eval_every": 6, "checkpoint_every": 6, "ema__decay": 0.5, "task__output_bias": "mean"}
    fit(vae_config(**made), tmp_path / "one", Pixels(), MODEL)
    with pytest.raises(Interrupted):
        fit(vae_config(**made), tmp_path / "two", Pixels(), MODEL, Stop(7))
    fit(vae_config(**made), tmp_path / "two", Pixels(), MODEL)
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    program = build(vae_config(**made), MODEL, Pixels())
    first, second = (Checkpoints(tmp_path / name, VAE.best).restore(12, program.state) for name in ("one", "two"))
    assert_same(first, second)
    for name in ("00000006.png", "00000012.png"):
        assert (tmp_path / "one/samples" / name).read_bytes() == (tmp_path / "two/samples" / name).read_bytes()
    assert (tmp_path / "one/samples/00000006.png").read_bytes() != (tmp_path / "one/samples/00000012.png").read_bytes()


def observed(epoch: int, example: int, seed: int = 0, train: bool = True) -> np.ndarray:
    """The binary pixels of an image that is half grey, as the network is given them."""
    task = VAE(vae_config(seed=seed))
    batch = {"image": jnp.full((2, 6, 5, 1), 0.5), "epoch": jnp.array([9, epoch]), "example": jnp.array([9, example])}
    rngs = {"example": jax.random.split(jax.random.key(seed), 40)[jnp.array([9, example])]}
    return np.asarray(task._observed(batch, rngs, train)[1])


def test_binary_pixels_are_a_function_of_seed_epoch_and_example():
    first = observed(0, 3)
    assert set(np.unique(first)) == {0, 1}
    np.testing.assert_array_equal(first, observed(0, 3))
    for other in (observed(1, 3), observed(0, 4), observed(0, 3, seed=1), observed(0, 3, train=False)):
        assert (first != other).any()
    np.testing.assert_array_equal(observed(0, 3, train=False), observed(5, 3, train=False))


def test_a_drawn_pixel_is_as_often_1_as_it_is_bright():
    means = jnp.linspace(0, 1, 5)
    batch = {"image": jnp.broadcast_to(means, (2000, 1, 5))[..., None], "epoch": jnp.zeros(2000, int)}
    drawn = VAE(vae_config())._observed(batch | {"example": jnp.arange(2000)}, {}, True)
    np.testing.assert_allclose(drawn.mean((0, 1, 3)), means, atol=0.05)
    np.testing.assert_array_equal(drawn[:, 0, [0, 4], 0].min(0), [0, 1])  # black and white stay what they are


def test_the_output_begins_at_the_training_mean_for_either_network():
    data = Pixels(image_shape=(28, 28, 3))
    mean = np.clip(data.mean_image(), 0.001, 0.999)
    for name, expected in (("vae_mlp", mean.ravel()), ("vae_conv", mean.mean((0, 1)))):
        model = create_model(name, dtype=jnp.float32, latent=2, hidden=(4,))
        program = build(vae_config(task__output_bias="mean"), model, data)
        params = program.init().params
        begun = program.task.initial(params, data)
        bias = begun["decoder"]["logits"]["bias"]
        np.testing.assert_allclose(1 / (1 + np.exp(-bias)), expected, rtol=1e-4)
        assert_same(begun["encoder"], params["encoder"])
    assert VAE(vae_config()).initial(params, data) is params


def test_active_units_are_those_whose_mean_varies_with_the_image():
    means = np.stack([np.arange(10.0), np.zeros(10), np.where(np.arange(10) % 2, 0.05, -0.05)], -1)
    assert VAE(vae_config()).scores({}, {"mean": means})["active_units"] == 1
    assert VAE(vae_config()).scores({}, {"mean": 2.1 * means})["active_units"] == 2
    assert "active_units" not in VAE(vae_config()).scores({}, {})


def test_bits_per_dimension_are_of_levels_alone():
    outputs = {name: jnp.array([-10.0, -30.0, 7.0]) for name in ("elbo", "kl", "iwae")}
    batch = {"image": jnp.zeros((3, 5, 4, 3)), "mask": jnp.array([1.0, 1.0, 0.0])}

    def scores(likelihood: str) -> dict[str, float]:
        task = VAE(vae_config(task__pixels="grey", task__likelihood=likelihood))
        return task.scores(task.measure(outputs, batch), {})

    assert scores("discretized_logistic")["bits_per_dim"] == pytest.approx(20 / (5 * 4 * 3 * math.log(2)))
    assert scores("gaussian") == pytest.approx({"elbo": -20, "kl": -20, "iwae": -20})


# What is refused.


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"likelihood": "gaussian"}, r"config\.task\.pixels=grey"),
        ({"likelihood": "discretized_logistic", "pixels": "fixed"}, r"config\.task\.pixels=grey"),
        ({"objective": "iwae", "beta": 2.0}, r"config\.task\.beta=2"),
    ],
)
def test_keys_that_do_not_go_together_are_named(values, words):
    with pytest.raises(UserError, match=words):
        VAE(vae_config(**{f"task__{key}": value for key, value in values.items()}))


@pytest.mark.parametrize(("pixels", "levels"), [("fixed", 256), ("fresh", 2), ("grey", 2)])
def test_binary_and_grey_data_are_not_taken_for_each_other(pixels, levels):
    task = VAE(vae_config(task__pixels=pixels))
    with pytest.raises(UserError, match=rf"config\.task\.pixels={pixels}"):
        task.targets(Images(1, (28, 28, 1), levels))
    assert task.targets(Images(1, (28, 28, 1), 258 - levels)) == {}


@pytest.mark.parametrize(
    ("likelihood", "scale", "do"),
    [("gaussian", False, r"overrides\.scale=True"), ("bernoulli", True, r"leave model\.overrides\.scale out")],
)
def test_a_likelihood_needs_the_scale_that_it_has(likelihood, scale, do):
    pixels = "grey" if likelihood == "gaussian" else "fresh"
    model = create_model("vae_mlp", latent=2, hidden=(4,), scale=scale)
    with pytest.raises(UserError, match=do):
        build(vae_config(task__likelihood=likelihood, task__pixels=pixels), model, Pixels())


def test_a_network_of_another_task_is_named_with_what_is_missing():
    with pytest.raises(UserError, match=r"has no (method encode|latent_size)"):
        build(vae_config(), None, Pixels())


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="stopped at step 3: the loss is nan"):
        fit(vae_config(), tmp_path, Pixels(damaged=(2,)), MODEL)
