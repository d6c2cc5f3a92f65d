"""Optax from a config: the schedule, the optimizer, and how each parameter is treated (its group).

A group is found by the parameter's path: the task says the default, `optimizer.freeze` and `optimizer.multipliers` go
over it.
"""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn import UserError
from jaxcnn.config import Config, factors_of, names_of
from jaxcnn.tasks.base import Group
from jaxcnn.training.state import count_params, path_name

Tree = Any
Groups = Mapping[str, Group]  # path of a parameter, such as "head/kernel" -> its group


def total_steps(config: Config, steps_per_epoch: Fraction | int) -> int:
    """Return the length of training in steps; the last epoch is never cut short."""
    return config.steps or math.ceil(round(config.epochs * float(steps_per_epoch), 6))


def peak_rate(config: Config) -> float:
    """Return `optimizer.learning_rate`, scaled from `optimizer.base_batch_size` to this config's batch.

    Linear: Goyal et al. 2017, section 2.1. Square root: Krizhevsky 2014 (arXiv 1404.5997), section 3.2.
    """
    optimizer = config.optimizer
    if not optimizer.base_batch_size:
        return optimizer.learning_rate
    ratio = config.global_batch_size / optimizer.base_batch_size
    return optimizer.learning_rate * (ratio if optimizer.batch_scaling == "linear" else math.sqrt(ratio))


def make_schedule(config: Config, steps_per_epoch: Fraction | int) -> optax.Schedule:
    """Return the learning rate as a function of the step: linear warm-up from 0, then `optimizer.schedule`."""
    optimizer, peak = config.optimizer, peak_rate(config)
    warmup = _warmup(config, steps_per_epoch)
    rest = max(1, total_steps(config, steps_per_epoch) - warmup)
    if optimizer.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=optimizer.final_scale)
    elif optimizer.schedule == "polynomial":
        after = optax.polynomial_schedule(peak, peak * optimizer.final_scale, optimizer.power, rest)
    elif optimizer.schedule == "step":
        # Boundaries count from the start of training, as papers give them, not from the end of the warm-up. Two points
        # may round to one step: each multiplies.
        points = Counter(_decay_points(config, steps_per_epoch))
        scales = {step - warmup: optimizer.decay_factor**count for step, count in points.items()}
        after = optax.piecewise_constant_schedule(peak, scales)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _warmup(config: Config, steps_per_epoch: Fraction | int) -> int:
    """Return the steps of the warm-up."""
    return config.optimizer.warmup_steps or round(config.optimizer.warmup_epochs * float(steps_per_epoch))


def _decay_points(config: Config, steps_per_epoch: Fraction | int) -> list[int]:
    """Return the steps at which schedule=step multiplies the rate; [] for the other schedules."""
    steps, epochs = config.optimizer.decay_steps, config.optimizer.decay_epochs
    return [round(step) for step in steps] or [round(epoch * float(steps_per_epoch)) for epoch in epochs]


def missed_rates(config: Config, steps_per_epoch: Fraction | int) -> list[str]:
    """Return a sentence for each part of the schedule that this run is too short to reach, or too coarse to have.

    Such a run is no mistake where it is a trial, cut by --config.steps; a score of it says nothing of the schedule.
    """
    optimizer, total = config.optimizer, total_steps(config, steps_per_epoch)
    warmup, points = _warmup(config, steps_per_epoch), _decay_points(config, steps_per_epoch)
    missed = []
    if warmup >= total:
        missed.append(
            f"the warm-up of {warmup:,} steps is as long as the training of {total:,} or longer, so the rate never "
            f"reaches {peak_rate(config):g}: shorten optimizer.warmup_epochs or .warmup_steps"
        )
    elif optimizer.warmup_epochs and not warmup:
        missed.append(
            f"optimizer.warmup_epochs={optimizer.warmup_epochs:g} is less than half a step, so there is no warm-up: "
            "lengthen it, or set it to 0"
        )
    if early := [step for step in points if step <= warmup]:
        where, shorten = (
            (f"within the warm-up of {warmup:,} steps", ", or shorten the warm-up")
            if warmup
            else ("with the first one", "")
        )
        missed.append(
            f"the rate decays at step {early[0]:,}, {where}, and never reaches {peak_rate(config):g}: "
            f"decay later{shorten}"
        )
    if shared := [(step, count) for step, count in Counter(points).items() if count > 1 and warmup < step < total]:
        missed.append(
            f"{shared[0][1]} points of decay are one step, {shared[0][0]:,}, where the rate falls by all of them: "
            "write one of them, or set them further apart"
        )
    if late := [step for step in points if step >= total]:
        missed.append(
            f"the rate does not decay at step {late[0]:,}: training ends at {total:,}; train longer, or decay earlier"
        )
    return missed


def groups(config: Config, params: Tree, task: Any) -> dict[str, Group]:
    """Return the group of each parameter: that of `task.parameters(path)`, with the config's names over it.

    A name without "/" stands for the modules of that name, with or without "_…" behind it: "stem" for `stem_conv` and
    "stage1" for `stage1_block2`, but not for `stage10_block1`. A name with "/" is consecutive parts of a path, to the
    letter, such as "stage1_block1/conv1". Of several multipliers the last that matches a parameter applies.

    Args:
      params: the model's parameters or their shapes, as nested dicts.

    Raises:
      UserError: a name matches no parameter, or none is left to train.
    """
    found: dict[str, Group] = {path: task.parameters(path) for path in flatten_dict(params, sep="/")}
    optimizer = config.optimizer
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("multipliers", name, {"multiplier": factor}) for name, factor in factors_of(optimizer.multipliers).items()
    ]
    changes += [("freeze", name, {"frozen": True}) for name in names_of(optimizer.freeze)]
    for key, name, change in changes:
        paths = [path for path in found if _matches(name, path)]
        if not paths:
            raise _unknown_name(key, name, found)
        found |= {path: found[path]._replace(**change) for path in paths}
    if found and all(group.frozen for group in found.values()):
        raise UserError(f"config.optimizer.freeze={optimizer.freeze!r} leaves no parameter to train: freeze fewer")
    return found


def _matches(name: str, path: str) -> bool:
    if name.startswith("/"):  # a module at the top level: "/head" is not "boxes/head"
        return f"/{path}/".startswith(f"{name}/")
    if "/" in name:
        return f"/{name}/" in f"/{path}/"
    return any(part == name or part.startswith(f"{name}_") for part in path.split("/"))


def _unknown_name(key: str, name: str, paths: Mapping[str, Any]) -> UserError:
    """Return the error for a name in `optimizer.freeze` or `.multipliers` that matches no parameter."""
    parts = dict.fromkeys(part for path in paths for part in path.split("/")[:-1])
    known = list(dict.fromkeys([*(part.partition("_")[0] for part in parts), *parts]))
    if "/" in name:
        known = list(dict.fromkeys(path.rpartition("/")[0] for path in paths))
    near = difflib.get_close_matches(name, known, n=5) or known[:8]
    return UserError(f"config.optimizer.{key}: no parameter is named '{name[:300]}'; there are {', '.join(near)}, …")


def split_params(params: Tree, groups: Groups) -> tuple[Tree, Tree]:
    """Return the (trained, frozen) parts of a tree of the parameters' structure: itself and {} where none is frozen."""
    flat = flatten_dict(params, sep="/")
    frozen = {path: x for path, x in flat.items() if groups[path].frozen}
    if not frozen:
        return params, {}
    return (
        unflatten_dict({path: x for path, x in flat.items() if path not in frozen}, sep="/"),
        unflatten_dict(frozen, sep="/"),
    )


def merge_params(trained: Tree, frozen: Tree) -> Tree:
    """Return the tree that `split_params` took apart."""
    if not frozen:
        return trained
    return unflatten_dict(flatten_dict(trained, sep="/") | flatten_dict(frozen, sep="/"), sep="/")


def make_optimizer(config: Config, schedule: optax.Schedule, groups: Groups) -> optax.GradientTransformation:
    """Return clipping, then `optimizer.name` at `schedule`, for a tree of trained parameters whose paths `groups` has.

    Weight decay touches what the groups decay. AdamW (Loshchilov and Hutter 2019) and LAMB decouple it; the others add
    it to the gradient (L2). LARS and LAMB leave the rest out of their trust ratio, too, as their authors' code does.
    Where a multiplier is not 1 it scales the parameter's whole update.
    """
    optimizer = config.optimizer

    def decayed(params: Tree) -> Tree:
        return _by_path(lambda group, _: group.decay, groups, params)

    decay = optax.add_decayed_weights(optimizer.weight_decay, mask=decayed)
    adam = _beginning_at(
        optimizer.initial_second_moment, optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.epsilon)
    )
    momentum = optax.trace(optimizer.momentum, optimizer.nesterov)
    rate = optax.scale_by_learning_rate(schedule)
    rules = {
        "adam": [decay, adam, rate],
        "adamw": [adam, decay, rate],
        "sgd": [decay, momentum, rate],
        # Tieleman and Hinton 2012, lecture 6.5; ε is outside of the root, as in PyTorch.
        "rmsprop": [
            decay, optax.scale_by_rms(optimizer.rms_decay, optimizer.epsilon, eps_in_sqrt=False), momentum, rate,
        ],
        # Duchi et al. 2011, figure 1 with δ = 0: a parameter that had no gradient yet stays where it is.
        "adagrad": [decay, optax.scale_by_rss(optimizer.initial_accumulator, eps=0.0), rate],
        # You, Gitman and Ginsburg 2017, algorithm 1: the rate is inside of the momentum.
        "lars": [
            optax.masked(_lars_ratio(optimizer.trust_coefficient, optimizer.weight_decay), decayed), rate, momentum,
        ],
        # You et al. 2020, algorithm 2.
        "lamb": [adam, decay, optax.masked(optax.scale_by_trust_ratio(), decayed), rate],
    }  # fmt: skip
    clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    chain = [*clip, *rules[optimizer.name]]
    if any(group.multiplier != 1 for group in groups.values() if not group.frozen):
        # The last link scales the updates; it has no state, and momentum before it is linear in the rate.
        chain.append(optax.stateless(lambda updates, _: _by_path(_multiplied, groups, updates)))
    return optax.chain(*chain)


def _beginning_at(value: float, adam: Any) -> optax.GradientTransformation:
    """Return Adam with a second moment that begins at `value`, which makes its first steps small.

    Above 0 they depend on the scale of the gradient, which Adam's do not otherwise.
    """

    def init(params: Tree) -> Any:
        state = adam.init(params)
        return state._replace(nu=jax.tree.map(lambda x: jnp.full_like(x, value), state.nu))

    return optax.GradientTransformation(init, adam.update) if value else adam


def _by_path(function: Callable[[Group, Any], Any], groups: Groups, tree: Tree) -> Tree:
    return jax.tree_util.tree_map_with_path(lambda path, x: function(groups[path_name(path)], x), tree)


def _multiplied(group: Group, update: jax.Array) -> jax.Array:
    return update if group.multiplier == 1 else group.multiplier * update


def _lars_ratio(trust: float, decay: float) -> optax.GradientTransformation:
    """Return g -> η |w| / (|g| + β |w|) · (g + β w), layer by layer; Optax's own ratio divides by |g + β w|."""

    def update(gradients: Tree, params: Tree) -> Tree:
        def scaled(g: jax.Array, w: jax.Array) -> jax.Array:
            g_norm, w_norm = jnp.linalg.norm(g.ravel()), jnp.linalg.norm(w.ravel())
            ratio = trust * w_norm / (g_norm + decay * w_norm)
            return jnp.where((w_norm > 0) & (g_norm > 0), ratio, 1.0) * (g + decay * w)  # as their code where one is 0

        return jax.tree.map(scaled, gradients, params)

    return optax.stateless(update)


def describe_groups(groups: Groups, params: Tree) -> str:
    """Return how many parameters train and which are treated otherwise, for the lines at the start of a run.

    Such as "23,454,912 of 23,508,032 parameters train; frozen: stem, stage1; ×10: head".
    """
    sizes = {path: count_params(x) for path, x in flatten_dict(params, sep="/").items()}
    total, frozen = sum(sizes.values()), {path for path in sizes if groups[path].frozen}
    trained = total - sum(sizes[path] for path in frozen)
    words = [f"all {total:,} parameters train" if not frozen else f"{trained:,} of {total:,} parameters train"]
    if frozen:
        words.append(f"frozen: {', '.join(_names(frozen, sizes))}")
    for factor in sorted({groups[path].multiplier for path in sizes.keys() - frozen} - {1.0}):
        scaled = {path for path in sizes if groups[path].multiplier == factor} - frozen
        words.append(f"×{factor:g}: {', '.join(_names(scaled, sizes))}")
    return "; ".join(words)


def _names(chosen: set[str], paths: Mapping[str, Any]) -> list[str]:
    """Return the shortest names, as `optimizer.freeze` takes them, that stand for `chosen` and no other parameters."""
    names: list[str] = []
    for path in paths:
        if path not in chosen or any(_matches(name, path) for name in names):
            continue
        parts = path.split("/")
        candidates = [parts[0].partition("_")[0], *("/".join(parts[:end]) for end in range(1, len(parts) + 1))]
        fits = (name for name in candidates if all(other in chosen for other in paths if _matches(name, other)))
        names.append(next(fits, path))
    return names
