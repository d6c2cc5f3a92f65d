"""Schedules and update rules against formulas written out in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from jaxcnn.models import create_model
from jaxcnn.training.optimizer import kernels_only, make_optimizer, make_schedule, total_steps

SPE = 50  # steps an epoch
RATE, DECAY = 0.1, 0.02


def rates(at: list[int], **optimizer: Any) -> list[float]:
    keys = {f"optimizer__{k}": v for k, v in optimizer.items()}
    schedule: Any = make_schedule(tiny_config(steps=0, epochs=4.0, optimizer__learning_rate=RATE, **keys), SPE)
    return [float(schedule(step)) for step in at]


def test_constant_is_the_peak_from_the_first_step_on():
    assert rates([0, 1, 199, 1000], schedule="constant") == pytest.approx([RATE] * 4)


def test_warm_up_rises_linearly_from_zero_to_the_peak():
    at = rates([0, 1, 50, 99, 100, 101], schedule="constant", warmup_epochs=2.0)
    assert at == pytest.approx([0, RATE / 100, RATE / 2, RATE * 0.99, RATE, RATE], rel=1e-5)


def test_cosine_falls_from_the_end_of_the_warm_up_to_its_last_rate_at_the_end():
    at = [50, 80, 125, 200, 900]
    half = [(1 + np.cos(np.pi * min(s - 50, 150) / 150)) / 2 for s in at]
    assert rates(at, schedule="cosine", warmup_steps=50) == pytest.approx([RATE * h for h in half], abs=1e-8)
    scaled = rates(at, schedule="cosine", warmup_steps=50, final_scale=0.25)
    assert scaled == pytest.approx([RATE * (0.75 * h + 0.25) for h in half])


@pytest.mark.parametrize("warmup", [0, 30, 120])
def test_step_multiplies_at_steps_counted_from_the_start_of_training_warm_up_or_not(warmup):
    at = rates([119, 120, 179, 180, 199], schedule="step", decay_steps=(120, 180), warmup_steps=warmup)
    first = RATE if warmup < 120 else RATE * 119 / 120
    assert at == pytest.approx([first, RATE / 10, RATE / 10, RATE / 100, RATE / 100])


def test_step_has_its_own_factor():
    assert rates([10], schedule="step", decay_steps=(10,), decay_factor=0.5) == pytest.approx([RATE / 2])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_epochs_and_steps_say_the_same(schedule):
    in_epochs = {"decay_epochs": (1.5, 3.0)} if schedule == "step" else {}
    in_steps = {"decay_steps": (75, 150)} if schedule == "step" else {}
    at = list(range(0, 220, 5))
    in_epochs = rates(at, schedule=schedule, warmup_epochs=0.5, **in_epochs)
    in_steps = rates(at, schedule=schedule, warmup_steps=25, **in_steps)
    assert in_epochs == in_steps
    assert len(set(in_steps)) > 5


def test_a_cosine_that_is_all_warm_up_ends_at_the_peak():
    assert rates([100, 200], schedule="cosine", warmup_steps=200) == pytest.approx([RATE / 2, RATE])


@pytest.mark.parametrize(("length", "steps"), [({"steps": 7}, 7), ({"epochs": 1.5}, 75), ({"epochs": 0.001}, 1)])
def test_the_length_is_in_steps_or_epochs(length, steps):
    assert total_steps(tiny_config(**{"steps": 0} | length), SPE) == steps


def tree(seed: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    kernel, bias, scale = (rng.normal(size=shape) for shape in ((3, 2), 2, 2))
    return {"conv": {"kernel": kernel, "bias": bias}, "norm": {"scale": scale}}


def adam(grads: list[np.ndarray]) -> list[np.ndarray]:
    m = v = np.zeros_like(grads[0])
    directions = []
    for t, g in enumerate(grads, start=1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        directions.append((m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3))
    return directions


def by_hand(rule: str, kernel: bool, start: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    """Weights after all `grads`; each rule is replayed from the start, for its state depends on the weights."""
    decay, x, seen = DECAY * kernel, start, []
    for g in grads:
        seen.append(g if rule == "adamw" else g + decay * x)
        if rule.startswith("adam"):
            direction = adam(seen)[-1] + (decay * x if rule == "adamw" else 0)
        else:
            trace = sum(0.7 ** (len(seen) - 1 - i) * s for i, s in enumerate(seen))
            direction = seen[-1] + 0.7 * trace if rule == "nesterov" else trace
        x = x - RATE * direction
    return x


@pytest.mark.parametrize("rule", ["adam", "adamw", "sgd", "nesterov"])
def test_three_updates_are_those_of_the_formula_and_decay_moves_kernels_only(rule):
    numbers = {"b1": 0.8, "b2": 0.95, "epsilon": 1e-3, "momentum": 0.7, "weight_decay": DECAY, "learning_rate": RATE}
    numbers |= {"name": "sgd", "nesterov": "true"} if rule == "nesterov" else {"name": rule}
    config = tiny_config(**{f"optimizer__{k}": v for k, v in numbers.items()})
    tx = make_optimizer(config, make_schedule(config, SPE))
    start, grads = tree(0), [tree(seed) for seed in (1, 2, 3)]
    params: Any = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
    state = tx.init(params)
    for grad in grads:
        updates, state = tx.update(jax.tree.map(jnp.float32, grad), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    for layer, leaf in (("conv", "kernel"), ("conv", "bias"), ("norm", "scale")):
        expected = by_hand(rule, leaf == "kernel", start[layer][leaf], [g[layer][leaf] for g in grads])
        np.testing.assert_allclose(params[layer][leaf], expected, rtol=2e-6)


def test_adam_is_the_default():
    assert tiny_config().optimizer.name == "adam"


@pytest.mark.parametrize(("factor", "clipped"), [(1.0, False), (100.0, True)])
def test_clipping_scales_a_gradient_to_the_norm_and_leaves_a_shorter_one(factor, clipped):
    numbers = {"name": "sgd", "momentum": 0.0, "learning_rate": 1.0, "clip_norm": 5.0, "weight_decay": DECAY}
    config = tiny_config(**{f"optimizer__{k}": v for k, v in numbers.items()})
    tx = make_optimizer(config, make_schedule(config, SPE))
    params, grads = tree(0), jax.tree.map(lambda x: factor * x, tree(1))
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    assert (norm > 5) == clipped
    updates: Any = tx.update(jax.tree.map(jnp.float32, grads), tx.init(params), params)[0]
    scale = 5 / norm if clipped else 1
    np.testing.assert_allclose(updates["conv"]["bias"], -scale * grads["conv"]["bias"], rtol=1e-5)
    decayed = -scale * grads["conv"]["kernel"] - DECAY * params["conv"]["kernel"]  # decay is not clipped
    np.testing.assert_allclose(updates["conv"]["kernel"], decayed, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_what_decays_of_a_network_is_its_matrices_and_filters(name):
    model = create_model(name, num_classes=10)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    decayed = jax.tree.leaves(kernels_only(params))
    assert decayed == [x.ndim > 1 for x in jax.tree.leaves(params)]
    assert sum(decayed) == {"resnet20": 19 + 1, "resnet50": 53 + 1}[name]
