"""The step: one function of (state, batch), parallel by the shardings of its arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxcnn.config import Config
from jaxcnn.tasks.base import Batch, Group, Sums, Task, Terms
from jaxcnn.training.gradients import (
    Objective,
    accumulated,
    fuses_norms,
    group_size,
    on_mesh,
    partial_gradients,
    per_shard,
    positive,
    same_keys,
    streams,
    totals_of_parts,
)
from jaxcnn.training.optimizer import merge_params, split_params
from jaxcnn.training.sharding import Layout
from jaxcnn.training.state import TrainState, select

# (batch of uint8 images, seed or None in evaluation) -> batch of what the model takes
Preprocess = Callable[[Batch, jax.Array | None], Batch]
_EVALUATION = 0x6576616C  # folded into the seed for the draws of evaluation, which training must not share


class Gradients(NamedTuple):
    """The gradients of an objective over the global batch, and what its forward pass gives besides."""

    grads: Any
    loss: jax.Array
    sums: Sums
    batch_stats: Any


@dataclass(frozen=True)
class StepParts:
    """What a step is made of; `Task.make_step` builds an unusual one from `gradients` and `update`.

    Attributes:
      groups: optimizer group of each parameter, by its path.
      optimizers: one for each of `task.players`.
    """

    model: nn.Module
    task: Task
    groups: dict[str, Group]
    optimizers: dict[str, optax.GradientTransformation]
    schedule: optax.Schedule
    config: Config
    mesh: Mesh
    layout: Layout | None = None  # None while the shapes of the state are not known yet

    def objective(self, variables: Any, batch: Batch, rngs: dict[str, jax.Array]) -> tuple[Terms, Sums, Any]:
        """Apply the model and the task's loss: the objective of every task without players of its own."""

        def forward(variables: Any, batch: Batch, rngs: dict[str, jax.Array]) -> Any:
            return self.task.forward(self.model, variables, batch, rngs, True)

        if self.config.remat == "block":
            forward = jax.checkpoint(forward, policy=jax.checkpoint_policies.save_only_these_names("block"))
        outputs, updates = forward(variables, batch, rngs)
        return *self.task.loss(outputs, batch), updates.get("batch_stats", {})

    def gradients(
        self, objective: Objective | None = None, player: str = ""
    ) -> Callable[[TrainState, Batch], Gradients]:
        """Return (state, batch) -> the gradients of `objective` with respect to the parameters of `player` that train.

        The objective is the sum over its terms of global sum / global weight, whatever the micro-batches
        (`optimizer.accumulate`), shards and devices are. Under `jit`, with the batch sharded by rows, XLA inserts the
        all-reduces of gradients and BatchNorm's statistics; with BatchNorm over less than the batch (`norm.scope`)
        gradients are those of a shard, and cross the wire once.

        Args:
          objective: (variables, batch, rngs) -> terms, sums, new batch_stats; default: the model and the task's loss.
          player: a top-level part of `params`; "" for all of them.

        Raises:
          UserError: micro-batches or shards would need a weight before the forward pass that gives it.
        """
        objective = objective or self.objective
        micro_batches, shards = self.config.optimizer.accumulate, self.mesh.shape["data"]
        group = group_size(self.config, shards)
        fused = fuses_norms(self.config, self.model, self.mesh)
        compute = partial_gradients(objective, self.variables)
        by_shard = group < shards or fused
        if by_shard:
            # Where XLA adds the shards of the plain form, it adds gradients of kernels as they leave the products.
            wire = self.model.dtype if fused and group == shards > 1 else None
            compute = per_shard(compute, micro_batches, self.mesh, group, fused, wire)
        else:
            compute = on_mesh(accumulated(compute, micro_batches, self.mesh), self.mesh)

        def gradients(state: TrainState, batch: Batch) -> Gradients:
            trained, frozen = self.split(state.params, player)
            rest = {"params": frozen, "batch_stats": state.batch_stats, "constants": state.constants}
            rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
            if player:
                rng = jax.random.fold_in(rng, 1 + self.task.players.index(player))
            totals, later = self.task.weights(batch), False
            if micro_batches > 1 or by_shard:
                totals, later = totals_of_parts(objective, self.variables(trained, rest), batch, totals)
            part, batch_stats = compute(trained, rest, batch, same_keys(rng), totals)
            grads, loss = part.grads, part.loss
            if later:
                weight = positive(next(iter(part.weights.values())))
                grads, loss = jax.tree.map(lambda x: x / weight, (grads, loss))
            return Gradients(grads, loss, part.sums, batch_stats)

        return gradients

    def update(self, player: str, state: TrainState, result: Gradients) -> TrainState:
        """Return the state after the optimizer of `player` has taken a step; its sums join the metrics of the log."""
        trained, rest = self.split(state.params, player)
        # Where the optimizer's state is sharded, each device updates its part, and the parameters are gathered.
        grads = self._placed(result.grads, lambda layout: self.split(layout.gradients, player)[0])
        before = state.opt_state[player] if player else state.opt_state
        updates, after = self.optimizers[player].update(grads, before, trained)
        params = self.variables(optax.apply_updates(trained, updates), {"params": rest})["params"]
        params = self._placed(params, lambda layout: layout.state.params)
        grad_norm = optax.tree.norm(grads)
        prefix = f"{player}_" if player else ""
        # The objective is logged as "loss", unless the task has a loss of its own to show.
        sums = {f"{prefix}loss": (result.loss, 1.0)} | result.sums | {
            f"{prefix}learning_rate": (self.schedule(state.step), 1.0), f"{prefix}grad_norm": (grad_norm, 1.0)
        }  # fmt: skip
        return state.replace(
            params=params,
            batch_stats=result.batch_stats,
            opt_state=state.opt_state | {player: after} if player else after,
            metrics=state.metrics | {name: _added(state.metrics.get(name), pair) for name, pair in sums.items()},
            fault=_first_fault(
                state, self.task.players.index(player), result.loss, grad_norm, (params, result.batch_stats)
            ),
        )

    def _placed(self, tree: Any, shardings: Callable[[Layout], Any]) -> Any:
        return jax.lax.with_sharding_constraint(tree, shardings(self.layout)) if self.layout else tree

    def init_optimizers(self, params: Any) -> Any:
        """Return the state of each player's optimizer, of its parameters that train."""
        states = {player: tx.init(self.split(params, player)[0]) for player, tx in self.optimizers.items()}
        return states.get("", states)

    def split(self, params: Any, player: str) -> tuple[Any, Any]:
        """Return the parameters of `player` that train, and all others."""
        if not player:
            return split_params(params, self.groups)
        trained, frozen = split_params({player: params[player]}, self.groups)
        return trained, {key: value for key, value in params.items() if key != player} | frozen

    @staticmethod
    def variables(trained: Any, others: Any) -> Any:
        """Return all variables of the model: the trained parameters put back among the others."""
        constants = {"constants": others["constants"]} if others.get("constants") else {}
        rest = {key: value for key, value in others.items() if key not in ("params", "constants")}
        return {"params": merge_params(trained, others["params"])} | rest | constants


def make_train_step(parts: StepParts, preprocess: Preprocess) -> Callable[[TrainState, Batch], Any]:
    """Return one update from one global batch, (state, batch) -> (state, loss of this step).

    Every random draw is a function of (seed, step), and of the shard where there are shards. The loss is no part of
    the donated state: the host is paced by it.
    """

    gradients = parts.gradients()

    def one_player(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        result = gradients(state, batch)
        return parts.update("", state, result), result.loss

    step = parts.task.make_step(parts) or one_player

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        new, loss = step(state, preprocess(batch, state.seed))
        variables = {"params": new.params, "batch_stats": new.batch_stats}
        ema = _average(state.ema, select(variables, parts.task.averaged), parts.config.ema.decay, state.step)
        return new.replace(step=state.step + 1, ema=ema), loss

    return train_step


def metric_shapes(parts: StepParts, preprocess: Preprocess, state: TrainState, batch: Any) -> Any:
    """Return names and shapes of the sums that a step adds to the metrics, traced on shapes alone.

    Args:
      state: shapes of a state without metrics.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if state.constants:
        variables |= {"constants": state.constants}

    def sums_of(state: TrainState, variables: Any, batch: Batch) -> Any:
        batch = preprocess(batch, state.seed)
        if step := parts.task.make_step(parts):
            return step(state, batch)[0].metrics
        # One player: the forward pass tells all, and the gradients need not be traced.
        sums = parts.objective(variables, batch, streams(same_keys(jax.random.key(0))))[1]
        return dict.fromkeys(("loss", "learning_rate", "grad_norm"), (jnp.zeros(()), jnp.zeros(()))) | sums

    return jax.eval_shape(sums_of, state, variables, batch)


def _added(total: Any, pair: Any) -> Any:
    return pair if total is None else jax.tree.map(jnp.add, total, pair)


def _average(ema: Any, new: Any, decay: float, step: jax.Array) -> Any:
    """decay·ema + (1 - decay)·new; the decay rises as (1 + t) / (10 + t), so that the start is forgotten soon."""
    if not ema:
        return ema
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    # By the difference, so that values that do not change keep their bits: those of frozen norms.
    return jax.tree.map(lambda old, x: old + (1 - d) * (x - old), ema, new)


def _first_fault(
    state: TrainState, player: int, loss: jax.Array, grad_norm: jax.Array, variables: Any
) -> dict[str, jax.Array]:
    """Remember the first update that was not finite, on the device: the loop reads it before it saves `variables`."""
    new = {"step": state.step, "player": jnp.int32(player), "loss": loss, "grad_norm": grad_norm}
    sound = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.sum(variables))
    keep = (state.fault["step"] >= 0) | sound
    return jax.tree.map(lambda old, x: jnp.where(keep, old, x), state.fault, new)


def make_eval_step(
    model: nn.Module, task: Task, preprocess: Preprocess, seed: int, mesh: Mesh, per_example: bool = False
) -> Callable[[Any, Batch], dict[str, Any]]:
    """Return (variables, batch) -> {"examples", "sums", "rows"} of the batch; rows of mask 0 count for nothing.

    Each is stacked over a leading axis of one batch, as resident data evaluates several in a call.

    Args:
      per_example: add what `Task.per_example` gives to the rows.
    """

    def eval_step(variables: Any, batch: Batch) -> dict[str, Any]:
        root = jax.random.fold_in(jax.random.key(seed), _EVALUATION)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(root, batch["example"])  # (N,): one draw an example, for ever
        batch = preprocess(batch, None)
        outputs, _ = task.forward(model, variables, batch, {"example": keys}, False)
        return measured(task, outputs, batch, per_example)

    return on_mesh(eval_step, mesh)


def measured(task: Task, outputs: Any, batch: Batch, per_example: bool = False) -> dict[str, Any]:
    """Return what the host adds up over the batches of an evaluation, with a leading axis of one batch."""
    rows = task.collect(outputs, batch)
    if per_example:
        rows = (rows or {}) | task.per_example(outputs, batch)
    named_rows = {} if rows is None else rows | {"example": batch["example"], "mask": batch["mask"]}
    counted = {"examples": jnp.sum(batch["mask"] > 0, dtype=jnp.int32), "sums": task.measure(outputs, batch)}
    return jax.tree.map(lambda x: jnp.asarray(x)[None], counted | {"rows": named_rows})
