"""The step: one function of (state, batch), data parallel by the shardings of its arguments."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcnn.config import Config
from jaxcnn.tasks import Classification
from jaxcnn.training.state import TrainState

Batch = dict[str, jax.Array]
# (batch of uint8 images, seed or None in evaluation) -> batch of what the model takes
Preprocess = Callable[[Batch, jax.Array | None], Batch]


def make_train_step(
    model: nn.Module,
    task: Classification,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: Config,
    preprocess: Preprocess,
) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """One update of the weights from one global batch, cut into `optimizer.accumulate` micro-batches.

    The step is written for the whole batch: under `jit` with the batch sharded over `data`, XLA inserts the all-reduces
    of gradients and of BatchNorm's statistics, and one device runs the same code. Every random draw is a function of
    (seed, step).

    Returns:
      (state, batch) -> (state, loss of this step). The loss is no part of the donated state: the host is paced by it.
    """
    micro_batches, decay = config.optimizer.accumulate, config.ema.decay

    def gradients(params: Any, batch_stats: Any, batch: Batch, rng: jax.Array) -> tuple[Any, Any, Any, Any]:
        def objective(params: Any) -> tuple[jax.Array, Any]:
            outputs, updates = model.apply(
                {"params": params, "batch_stats": batch_stats}, batch["image"], train=True,
                mutable=["batch_stats"], rngs={"dropout": rng},
            )  # fmt: skip
            loss, sums = task.loss(outputs, batch)
            return loss, (sums, updates.get("batch_stats", {}))

        (loss, (sums, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, loss, sums, batch_stats

    def accumulated(params: Any, batch_stats: Any, batch: Batch, rng: jax.Array) -> tuple[Any, Any, Any, Any]:
        # Rows i, i + m, i + 2m … make micro-batch i: each device keeps its own rows, nothing crosses the wire.
        micro = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(carry: Any, xs: Any) -> tuple[Any, None]:
            batch_stats, total = carry
            grads, loss, sums, batch_stats = gradients(params, batch_stats, *xs)
            return (batch_stats, jax.tree.map(jnp.add, total, (grads, loss, sums))), None

        rngs = jax.random.split(rng, micro_batches)
        shapes = jax.eval_shape(gradients, params, batch_stats, jax.tree.map(lambda x: x[0], micro), rngs[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[:3])
        (batch_stats, (grads, loss, sums)), _ = jax.lax.scan(body, (batch_stats, zeros), (micro, rngs))
        grads, loss = jax.tree.map(lambda x: x / micro_batches, (grads, loss))
        return grads, loss, sums, batch_stats

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
        batch = preprocess(batch, state.seed)
        compute = accumulated if micro_batches > 1 else gradients
        grads, loss, sums, batch_stats = compute(state.params, state.batch_stats, batch, rng)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        grad_norm = optax.tree.norm(grads)
        sums |= {"learning_rate": (schedule(state.step), 1.0), "grad_norm": (grad_norm, 1.0)}
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_average(state.ema, {"params": params, "batch_stats": batch_stats}, decay, state.step),
            metrics=jax.tree.map(jnp.add, state.metrics, sums),
            fault=_first_fault(state, loss, grad_norm, (params, batch_stats)),
        )
        return state, loss

    return train_step


def _average(ema: Any, new: Any, decay: float, step: jax.Array) -> Any:
    """decay·ema + (1 - decay)·new; the decay rises as (1 + t) / (10 + t), so that the start is forgotten soon."""
    if not ema:
        return ema
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(new, ema, 1 - d)


def _first_fault(state: TrainState, loss: jax.Array, grad_norm: jax.Array, variables: Any) -> dict[str, jax.Array]:
    """Remember the first step that was not finite, on the device: the loop reads it before it saves `variables`."""
    new = {"step": state.step, "loss": loss, "grad_norm": grad_norm}
    sound = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.sum(variables))
    keep = (state.fault["step"] >= 0) | sound
    return jax.tree.map(lambda old, x: jnp.where(keep, old, x), state.fault, new)


def make_eval_step(model: nn.Module, task: Classification, preprocess: Preprocess) -> Callable[[Any, Any, Batch], Any]:
    """(variables, sums so far, batch) -> sums with the batch's examples added; rows of mask 0 count for nothing."""

    def eval_step(variables: Any, sums: Any, batch: Batch) -> Any:
        outputs: Any = model.apply(variables, preprocess(batch, None)["image"], train=False)
        return jax.tree.map(jnp.add, sums, task.loss(outputs, batch)[1])

    return eval_step
