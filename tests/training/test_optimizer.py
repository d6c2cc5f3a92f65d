"""Schedules and update rules against formulas written out in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.tasks.base import Group, Task
from jaxcnn.training.optimizer import (
    describe_groups,
    groups,
    make_optimizer,
    make_schedule,
    merge_params,
    missed_rates,
    split_params,
    total_steps,
)

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


def test_decay_points_that_round_to_one_step_all_count():
    at = rates([99, 100, 199], schedule="step", decay_epochs=(1.995, 2.0, 2.005))
    assert at == pytest.approx([RATE, RATE / 1000, RATE / 1000])


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"warmup_steps": 199}, []),  # the last step has the peak
        ({"warmup_steps": 200}, ["warmup_steps"]),
        ({"warmup_epochs": 4.0}, ["warmup_epochs"]),
        ({"warmup_epochs": 0.01}, ["warmup_epochs=0.01"]),
        ({"warmup_epochs": 0.02}, []),
        ({"schedule": "step", "decay_steps": (51, 150), "warmup_steps": 50}, []),
        ({"schedule": "step", "decay_steps": (50, 150), "warmup_steps": 50}, ["step 50"]),
        ({"schedule": "step", "decay_epochs": (0.001, 1.0)}, ["step 0, with the first"]),
        ({"schedule": "step", "decay_epochs": (1.0, 2.0, 2.001)}, ["one step, 100"]),
        ({"schedule": "step", "decay_steps": (49, 150), "warmup_steps": 50}, ["step 49"]),
        ({"schedule": "step", "decay_steps": (150, 200)}, ["step 200"]),
        ({"schedule": "step", "decay_epochs": (1.0, 3.0), "warmup_epochs": 5.0}, ["warmup_epochs", "step 50"]),
    ],
)
def test_what_the_rate_never_reaches_is_said(keys, named):
    config = tiny_config(steps=0, epochs=4.0, **{f"optimizer__{key}": value for key, value in keys.items()})
    missed = missed_rates(config, SPE)
    assert len(missed) == len(named)
    assert all(name in words for name, words in zip(named, missed, strict=True))


def test_step_has_its_own_factor():
    assert rates([10], schedule="step", decay_steps=(10,), decay_factor=0.5) == pytest.approx([RATE / 2])


@pytest.mark.parametrize(("power", "final"), [(1.0, 0.0), (2.0, 0.1), (0.5, 0.25)])
def test_polynomial_falls_by_its_power_from_the_end_of_the_warm_up(power, final):
    at = [50, 80, 125, 200, 900]
    left = [1 - min(s - 50, 150) / 150 for s in at]
    got = rates(at, schedule="polynomial", warmup_steps=50, power=power, final_scale=final)
    assert got == pytest.approx([RATE * ((1 - final) * x**power + final) for x in left], rel=1e-5)


@pytest.mark.parametrize(
    ("base", "scaling", "factor"), [(0, "linear", 1), (16, "linear", 4), (256, "linear", 0.25), (16, "sqrt", 2)]
)
def test_the_rate_scales_with_the_batch(base, scaling, factor):
    keys = {"optimizer__base_batch_size": base, "optimizer__batch_scaling": scaling, "optimizer__learning_rate": RATE}
    schedule: Any = make_schedule(tiny_config(global_batch_size=64, **keys), SPE)
    assert float(schedule(0)) == pytest.approx(factor * RATE)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "polynomial"])
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


def layerwise(rule: str, kernel: bool, start: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    """Weights by LARS (algorithm 1, η = 0.01) or LAMB (algorithm 2); what is no kernel has neither ratio nor decay."""
    x, v, norm = start, np.zeros_like(start), np.linalg.norm
    for t, g in enumerate(grads, start=1):
        if rule == "lamb":
            direction = adam(grads[:t])[-1] + DECAY * kernel * x
            x = x - RATE * (norm(x) / norm(direction) if kernel else 1) * direction
        else:
            local = 0.01 * norm(x) / (norm(g) + DECAY * norm(x)) if kernel else 1
            v = 0.7 * v + RATE * local * (g + DECAY * kernel * x)
            x = x - v
    return x


def by_hand(rule: str, kernel: bool, start: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    """Weights after all `grads`; each rule is replayed from the start, for its state depends on the weights."""
    if rule in ("lars", "lamb"):
        return layerwise(rule, kernel, start, grads)
    decay, x, seen = DECAY * kernel, start, []
    for g in grads:
        seen.append(g if rule == "adamw" else g + decay * x)
        if rule == "adagrad":
            x = x - RATE * seen[-1] / np.sqrt(0.3 + sum(s**2 for s in seen))
            continue
        if rule == "rmsprop":
            means = [sum(0.1 * 0.9 ** (t - i) * seen[i] ** 2 for i in range(t + 1)) for t in range(len(seen))]
            scaled = [s / (np.sqrt(mean) + 1e-3) for s, mean in zip(seen, means, strict=True)]
            x = x - RATE * sum(0.7 ** (len(seen) - 1 - i) * s for i, s in enumerate(scaled))
            continue
        if rule.startswith("adam"):
            direction = adam(seen)[-1] + (decay * x if rule == "adamw" else 0)
        else:
            trace = sum(0.7 ** (len(seen) - 1 - i) * s for i, s in enumerate(seen))
            direction = seen[-1] + 0.7 * trace if rule == "nesterov" else trace
        x = x - RATE * direction
    return x


@pytest.mark.parametrize("rule", ["adam", "adamw", "sgd", "nesterov", "rmsprop", "adagrad", "lars", "lamb"])
def test_three_updates_are_those_of_the_formula_and_decay_moves_kernels_only(rule):
    numbers = {"b1": 0.8, "b2": 0.95, "epsilon": 1e-3, "momentum": 0.7, "weight_decay": DECAY, "learning_rate": RATE}
    numbers |= {"rms_decay": 0.9, "initial_accumulator": 0.3, "trust_coefficient": 0.01}
    numbers |= {"name": "sgd", "nesterov": "true"} if rule == "nesterov" else {"name": rule}
    config = tiny_config(**{f"optimizer__{k}": v for k, v in numbers.items()})
    tx = make_optimizer(config, make_schedule(config, SPE), groups(config, tree(0), Task()))
    start, grads = tree(0), [tree(seed) for seed in (1, 2, 3)]
    params: Any = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
    state = tx.init(params)
    for grad in grads:
        updates, state = tx.update(jax.tree.map(jnp.float32, grad), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    for layer, leaf in (("conv", "kernel"), ("conv", "bias"), ("norm", "scale")):
        expected = by_hand(rule, leaf == "kernel", start[layer][leaf], [g[layer][leaf] for g in grads])
        np.testing.assert_allclose(params[layer][leaf], expected, rtol=2e-6)


@pytest.mark.parametrize("begin", [0.0, 0.3])
def test_the_second_moment_begins_where_it_is_told_to(begin):
    """Two steps of Adam in float64: v₀ fades by β₂ a step, and the bias correction of zeros goes over all of it."""
    grads = [tree(seed)["conv"]["bias"] for seed in (1, 2)]
    config = tiny_config(optimizer__name="adam", optimizer__b1=0.9, optimizer__b2=0.99, optimizer__epsilon=1e-3,
                         optimizer__initial_second_moment=begin, optimizer__weight_decay=0.0)  # fmt: skip
    rule = make_optimizer(config, lambda _: RATE, {"x": Group()})
    state: Any = rule.init({"x": jnp.zeros_like(grads[0])})
    m, v = 0.0, begin
    for step, grad in enumerate(grads, start=1):
        update: Any
        update, state = rule.update({"x": jnp.asarray(grad)}, state, {"x": jnp.zeros_like(grad)})
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad**2
        expected = -RATE * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.99**step)) + 1e-3)
        np.testing.assert_allclose(update["x"], expected, rtol=1e-4)


def test_adam_is_the_default():
    assert tiny_config().optimizer.name == "adam"


@pytest.mark.parametrize(("factor", "clipped"), [(1.0, False), (100.0, True)])
def test_clipping_scales_a_gradient_to_the_norm_and_leaves_a_shorter_one(factor, clipped):
    numbers = {"name": "sgd", "momentum": 0.0, "learning_rate": 1.0, "clip_norm": 5.0, "weight_decay": DECAY}
    config = tiny_config(**{f"optimizer__{k}": v for k, v in numbers.items()})
    tx = make_optimizer(config, make_schedule(config, SPE), groups(config, tree(0), Task()))
    params, grads = tree(0), jax.tree.map(lambda x: factor * x, tree(1))
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    assert (norm > 5) == clipped
    updates: Any = tx.update(jax.tree.map(jnp.float32, grads), tx.init(params), params)[0]
    scale = 5 / norm if clipped else 1
    np.testing.assert_allclose(updates["conv"]["bias"], -scale * grads["conv"]["bias"], rtol=1e-5)
    decayed = -scale * grads["conv"]["kernel"] - DECAY * params["conv"]["kernel"]  # decay is not clipped
    np.testing.assert_allclose(updates["conv"]["kernel"], decayed, rtol=1e-5)


@pytest.mark.parametrize("rule", ["lars", "lamb", "adagrad", "rmsprop"])
def test_zeros_are_no_fault(rule):
    config = tiny_config(optimizer__name=rule, optimizer__weight_decay=DECAY)
    zeros = jax.tree.map(jnp.zeros_like, tree(0))
    tx = make_optimizer(config, make_schedule(config, SPE), groups(config, zeros, Task()))
    updates, _ = tx.update(zeros, tx.init(zeros), zeros)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(updates))


# Groups of parameters.


def shapes(name: str) -> Any:
    model = create_model(name, num_classes=10)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]


def grouped(params: Any, **optimizer: str) -> tuple[Any, dict[str, Group]]:
    config = tiny_config(**{f"optimizer__{key}": value for key, value in optimizer.items()})
    return config, groups(config, params, Task())


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_what_decays_of_a_network_is_its_matrices_and_filters(name):
    params = shapes(name)
    _, found = grouped(params)
    decayed = [found[jax.tree_util.keystr(path, simple=True, separator="/")].decay
               for path, _ in jax.tree_util.tree_leaves_with_path(params)]  # fmt: skip
    assert decayed == [x.ndim > 1 for x in jax.tree.leaves(params)]
    assert sum(decayed) == {"resnet20": 19 + 1, "resnet50": 53 + 1}[name]


def leaf() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, 3), jnp.float32)


MODULES = {
    "stem_conv": {"kernel": leaf()},
    "stem": {"kernel": leaf()},
    "stage1_block1": {"conv1": {"kernel": leaf()}, "conv10": {"kernel": leaf()}},
    "stage10_block1": {"conv1": {"kernel": leaf(), "bias": leaf()}},
    "head": {"kernel": leaf()},
}


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("stem", ["stem/kernel", "stem_conv/kernel"]),
        ("stage1", ["stage1_block1/conv1/kernel", "stage1_block1/conv10/kernel"]),
        ("stage1_block1/conv1", ["stage1_block1/conv1/kernel"]),
        ("conv1", ["stage10_block1/conv1/bias", "stage10_block1/conv1/kernel", "stage1_block1/conv1/kernel"]),
        ("stage10_block1/conv1/bias", ["stage10_block1/conv1/bias"]),
        ("bias, head", ["head/kernel", "stage10_block1/conv1/bias"]),
        ("", []),
    ],
)
def test_a_name_stands_for_modules_and_their_numbered_parts_and_a_path_for_itself(name, frozen):
    _, found = grouped(MODULES, freeze=name)
    assert sorted(path for path, group in found.items() if group.frozen) == frozen


def test_a_name_after_a_slash_stands_for_modules_of_the_top_level_alone():
    params = {"head": {"kernel": leaf()}, "boxes": {"head": {"kernel": leaf()}}, "header": {"kernel": leaf()}}
    _, found = grouped(params, freeze="/head")
    assert [path for path, group in found.items() if group.frozen] == ["head/kernel"]


@pytest.mark.parametrize(
    ("key", "value", "name", "near"),
    [
        ("freeze", "stem,stge1", "stge1", "stage1"),
        ("freeze", "stag", "stag", "stage1"),
        ("freeze", "stage1_block1/conv", "stage1_block1/conv", "stage1_block1/conv1"),
        ("multipliers", "haed=10", "haed", "head"),
        ("multipliers", "qqqq=10", "qqqq", "head"),
    ],
)
def test_a_name_that_matches_nothing_is_refused_with_names_that_are_near(key, value, name, near):
    with pytest.raises(UserError, match=rf"optimizer\.{key}.*'{name}'.*{near}"):
        grouped(MODULES, **{key: value})


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match="freeze"):
        grouped(MODULES, freeze="stem,stage1,stage10,head")


def test_the_users_names_go_over_the_groups_of_the_task():
    class Halved(Task):
        def parameters(self, path: str) -> Group:
            return Group(multiplier=0.5, decay=path.startswith("head"), frozen=path.startswith("stem"))

    config = tiny_config(optimizer__multipliers="head=10,stage1=3,conv1=4")
    found = groups(config, MODULES, Halved())
    assert found["stem/kernel"] == Group(0.5, False, True)
    assert found["head/kernel"] == Group(10.0, True, False)
    assert found["stage1_block1/conv10/kernel"].multiplier == 3
    assert found["stage1_block1/conv1/kernel"].multiplier == 4  # the last that matches
    assert found["stage10_block1/conv1/bias"].multiplier == 4


def test_trained_and_frozen_parts_come_together_again():
    params = jax.tree.map(np.asarray, tree(0))
    _, found = grouped(params, freeze="norm,conv/bias")
    trained, frozen = split_params(params, found)
    assert jax.tree.map(np.shape, trained) == {"conv": {"kernel": (3, 2)}}
    assert jax.tree.map(np.shape, frozen) == {"conv": {"bias": (2,)}, "norm": {"scale": (2,)}}
    again = merge_params(trained, frozen)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True))


def test_with_nothing_frozen_the_trained_part_is_the_tree_itself():
    params = tree(0)
    _, found = grouped(params)
    trained, frozen = split_params(params, found)
    assert trained is params
    assert frozen == {}
    assert merge_params(trained, frozen) is params


@pytest.mark.parametrize("rule", ["sgd", "adamw", "lars"])
def test_a_multiplier_scales_every_update_of_its_parameters_and_no_other(rule):
    plain, found = grouped(tree(0), name=rule, weight_decay="0.1")
    config, scaled = grouped(tree(0), name=rule, weight_decay="0.1", multipliers="conv=10")
    params: Any = jax.tree.map(jnp.float32, tree(0))
    transforms = [make_optimizer(plain, lambda _: RATE, found), make_optimizer(config, lambda _: RATE, scaled)]
    states = [tx.init(params) for tx in transforms]
    for seed in (1, 2):
        grads = jax.tree.map(jnp.float32, tree(seed))
        updates: list[Any] = [None, None]
        for i, tx in enumerate(transforms):
            updates[i], states[i] = tx.update(grads, states[i], params)
        one, ten = updates
        np.testing.assert_allclose(ten["conv"]["kernel"], 10 * one["conv"]["kernel"], rtol=1e-6)
        np.testing.assert_allclose(ten["conv"]["bias"], 10 * one["conv"]["bias"], rtol=1e-6)
        np.testing.assert_array_equal(ten["norm"]["scale"], one["norm"]["scale"])


def test_frozen_parameters_have_no_optimizer_state():
    config, found = grouped(tree(0), name="adam", freeze="conv")
    trained, _ = split_params(tree(0), found)
    state = make_optimizer(config, lambda _: RATE, found).init(trained)
    assert (
        sum(x.size for x in jax.tree.leaves(state)) == 2 + 2 * 2
    )  # two counts of steps, two moments of the norm's scale


def test_groups_are_described_by_names_that_could_be_given_back():
    _, found = grouped(MODULES, freeze="stem,stage1_block1/conv1", multipliers="head=10,stage10=0.5")
    text = "24 of 42 parameters train; frozen: stem, stage1_block1/conv1; ×0.5: stage10; ×10: head"
    assert describe_groups(found, MODULES) == text
    _, everything = grouped(MODULES)
    assert describe_groups(everything, MODULES) == "all 42 parameters train"


def test_a_network_says_what_trains_of_it():
    params = shapes("resnet20")
    total = sum(x.size for x in jax.tree.leaves(params))
    stem = sum(x.size for name in ("stem_conv", "stem_norm") for x in jax.tree.leaves(params[name]))
    _, found = grouped(params, freeze="stem", multipliers="head=10")
    assert describe_groups(found, params) == (
        f"{total - stem:,} of {total:,} parameters train; frozen: stem; ×10: head"
    )
