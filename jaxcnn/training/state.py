"""TrainState: all that a run is. What is not in it, a restart forgets."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

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
      fault: {"step", "loss", "grad_norm"} of the first step whose loss or gradient was not finite; -1 while none was.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    metrics: dict[str, tuple[jax.Array, jax.Array]]
    fault: dict[str, jax.Array]

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluation uses: the moving average where there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def zero_metrics(names: Iterable[str]) -> dict[str, Any]:
    """Empty sums (0, 0) under `names`, in NumPy. Every leaf is an array of its own, for donation takes each once."""
    return {name: (np.zeros((), np.float32), np.zeros((), np.float32)) for name in names}


def init_variables(model: nn.Module, seed: int, image_shape: Sequence[int]) -> dict[str, Any]:
    """{"params", "batch_stats"} of `model` for images of `image_shape` (H, W, C), to be traced.

    Raises:
      UserError: the model does not take such images.
    """
    try:
        variables: Any = model.init(jax.random.key(seed), jnp.zeros((1, *image_shape), jnp.float32), train=False)
    except (ValueError, ZeroDivisionError, TypeError) as error:
        raise UserError(f"the model does not take images of {tuple(image_shape)}: {error}") from error
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: int,
    image_shape: Sequence[int],
    metrics: Iterable[str],
    ema: bool,
) -> TrainState:
    """The state of step 0, to be traced: `jit` it with the shardings wanted, or `eval_shape` it.

    Args:
      image_shape: (H, W, C) of the images that the model is given.
      metrics: names of the step's metrics.
      ema: whether to keep a moving average of the variables.
    """
    variables = init_variables(model, seed, image_shape)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        **variables,
        opt_state=tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, variables) if ema else {},
        metrics=jax.tree.map(jnp.asarray, zero_metrics(metrics)),
        fault={"step": jnp.full((), -1, jnp.int32), "loss": jnp.zeros(()), "grad_norm": jnp.zeros(())},
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
