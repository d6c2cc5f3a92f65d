"""Optax from a config: the optimizer, its schedule, weight decay, clipping."""

import math
from fractions import Fraction
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn.config import Config


def total_steps(config: Config, steps_per_epoch: Fraction | int) -> int:
    """Length of training in steps, from whichever of `steps` and `epochs` is set; the last epoch is taken whole."""
    return config.steps or math.ceil(round(config.epochs * float(steps_per_epoch), 6))


def make_schedule(config: Config, steps_per_epoch: Fraction | int) -> optax.Schedule:
    """Learning rate as a function of the step: linear warm-up from 0, then constant, step or cosine."""
    optimizer = config.optimizer
    total = total_steps(config, steps_per_epoch)
    peak = optimizer.learning_rate
    warmup = optimizer.warmup_steps or round(optimizer.warmup_epochs * float(steps_per_epoch))
    if optimizer.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, total - warmup), alpha=optimizer.final_scale)
    elif optimizer.schedule == "step":
        steps = [round(s) for s in optimizer.decay_steps] or [
            round(e * float(steps_per_epoch)) for e in optimizer.decay_epochs
        ]
        # Boundaries count from the start of training, as papers give them, not from the end of the warm-up.
        after = optax.piecewise_constant_schedule(peak, {s - warmup: optimizer.decay_factor for s in steps})
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def kernels_only(params: Any) -> Any:
    """True for the kernels of convolutions and linear layers, False for biases and the norms' scales."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def groups(config: Config, params: Any, task: Any) -> dict[str, Any]:
    """Return the optimizer group of each parameter."""
    return {path: task.parameters(path) for path in flatten_dict(params, sep="/")}


def make_optimizer(config: Config, schedule: optax.Schedule, groups: Any) -> optax.GradientTransformation:
    """Clipping, then Adam, AdamW or SGD at `schedule`.

    Adam and SGD add the weight decay to the gradient (L2); AdamW decouples it (Loshchilov and Hutter 2019).
    """
    optimizer = config.optimizer
    decay = optax.add_decayed_weights(optimizer.weight_decay, mask=kernels_only)
    adam = optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.epsilon)
    rules = {
        "adam": [decay, adam],
        "adamw": [adam, decay],
        "sgd": [decay, optax.trace(optimizer.momentum, optimizer.nesterov)],
    }
    clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    return optax.chain(*clip, *rules[optimizer.name], optax.scale_by_learning_rate(schedule))


def split_params(params: Any, groups: Any) -> tuple[Any, Any]:
    """Return the parameters that train, and the frozen ones."""
    frozen = {path for path, group in groups.items() if group.frozen}
    if not frozen:
        return params, {}
    flat = flatten_dict(params, sep="/")
    trained = {path: x for path, x in flat.items() if path not in frozen}
    rest = {path: x for path, x in flat.items() if path in frozen}
    return unflatten_dict(trained, sep="/"), unflatten_dict(rest, sep="/")


def merge_params(trained: Any, frozen: Any) -> Any:
    """Return the parameters put back together."""
    if not frozen:
        return trained
    return unflatten_dict(flatten_dict(trained, sep="/") | flatten_dict(frozen, sep="/"), sep="/")
