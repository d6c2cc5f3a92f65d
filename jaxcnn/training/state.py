"""Everything a run needs to resume: TrainState, and its making."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn import UserError

path_name = partial(jax.tree_util.keystr, simple=True, separator="/")  # of a leaf's keys: their names joined by "/"


class TrainState(struct.PyTreeNode):
    """A point of training. Every float leaf is float32, whatever the compute type.

    Attributes:
      step: int32 (), steps taken.
      seed: uint32 (), of every random draw inside the step.
      params, batch_stats: the model's variables.
      opt_state: Optax's.
      ema: moving average of {"params", "batch_stats"}, or {} where it is off.
      metrics: {name: (sum, weight)} since the last line of the log, which then does not depend on where a run was cut.
      fault: {"step", "player", "loss", "grad_norm"} of the first update whose loss, gradient or weights were not
        finite; `no_fault` until then. A state with a fault is never saved, so checkpoints leave this out.
      constants: the task's arrays that no step changes; they are not saved.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    metrics: dict[str, tuple[jax.Array, jax.Array]]
    fault: dict[str, jax.Array] = struct.field(default_factory=dict)
    constants: Any = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluation uses: the moving average of what has one."""
        now = {"params": self.params, "batch_stats": self.batch_stats}
        return overlay(self.ema, now) | ({"constants": self.constants} if self.constants else {})

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        names = {field.name for field in dataclasses.fields(self)} - {"constants", "fault"}
        return {name: getattr(self, name) for name in sorted(names)}


def select(tree: Any, keep: Callable[[str], bool]) -> Any:
    """Return the part of nested dicts whose paths `keep` takes; parts without any are left out."""
    flat = flatten_dict(tree, sep="/", keep_empty_nodes=True)
    return unflatten_dict({path: x for path, x in flat.items() if keep(path)}, sep="/")


def overlay(top: Any, tree: Any) -> Any:
    """Return nested dicts with the values of `top` in place of their own, or besides."""
    if not isinstance(top, dict) or not isinstance(tree, dict):
        return top
    return tree | {key: overlay(value, tree.get(key, {})) for key, value in top.items()}


def zeros_like(shapes: Any) -> Any:
    """Return empty sums of these shapes, in NumPy. Every leaf is an array of its own, for donation takes each once."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def no_fault() -> dict[str, np.ndarray]:
    """Return `TrainState.fault` of a sound state: its step is -1; the player is its index in `task.players`."""
    step, player, number = np.array(-1, np.int32), np.array(0, np.int32), np.array(0, np.float32)
    return {"step": step, "player": player, "loss": number, "grad_norm": number.copy()}


def init_variables(model: nn.Module, seed: int, image_shape: Sequence[int]) -> dict[str, Any]:
    """{"params", "batch_stats"} of `model` for images of `image_shape` (H, W, C), to be traced.

    Raises:
      UserError: the model does not take such images.
    """
    try:
        rngs = {"params": jax.random.key(seed), "latent": jax.random.key(0), "sampling": jax.random.key(0)}
        variables: Any = model.init(rngs, jnp.zeros((1, *image_shape), jnp.float32), train=False)
    except (ValueError, ZeroDivisionError, TypeError) as error:
        raise UserError(f"the model does not take images of {tuple(image_shape)}: {error}") from error
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def init_state(
    variables: dict[str, Any], init_optimizer: Callable[[Any], Any], seed: int, metrics: Any,
    averaged: Callable[[str], bool] | None,
) -> TrainState:  # fmt: skip
    """Return the state of step 0, to be traced: `jit` it with the shardings wanted, or `eval_shape` it.

    Args:
      variables: what `init_variables` gives.
      init_optimizer: (params) -> its state.
      metrics: shapes of the step's metrics.
      averaged: (path) -> whether a variable has a moving average; None: none has.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        **variables,
        opt_state=init_optimizer(variables["params"]),
        ema=jax.tree.map(jnp.copy, select(variables, averaged)) if averaged else {},
        metrics=jax.tree.map(jnp.asarray, zeros_like(metrics)),
        fault=jax.tree.map(jnp.asarray, no_fault()),
    )


def count_params(params: Any) -> int:
    """Number of parameters of a tree of arrays or of their shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the arrays of a tree, or of what a checkpoint says of them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def check_tree(what: str, saved: Any, wanted: Any) -> None:
    """Raise a UserError that lists where the arrays of `saved` (metadata) are not those `wanted` asks for."""
    have, want = shapes_of({key: saved[key] for key in saved if key in wanted}), shapes_of(wanted)
    faults = [
        f"{key} is {have.get(key, 'missing')} where the config needs {want.get(key, 'none')}"
        for key in (want | have)
        if have.get(key) != want.get(key)
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"{what} is of another model or optimizer: {'; '.join(faults[:3])}{more}")
