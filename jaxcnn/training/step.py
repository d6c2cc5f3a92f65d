"""The step: one function of (state, batch), parallel by the shardings of its arguments."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.models.sharding import statistics_over
from jaxcnn.tasks import Classification
from jaxcnn.training.placement import Layout
from jaxcnn.training.state import TrainState

Batch = dict[str, jax.Array]
# (batch of uint8 images, seed or None in evaluation) -> batch of what the model takes
Preprocess = Callable[[Batch, jax.Array | None], Batch]
# (params, batch_stats, batch, rng) -> gradients, loss, sums of the metrics, new batch_stats
Gradients = Callable[[Any, Any, Batch, jax.Array], tuple[Any, jax.Array, Any, Any]]


def make_train_step(
    model: nn.Module,
    task: Classification,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: Config,
    preprocess: Preprocess,
    mesh: Mesh,
    layout: Layout,
) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """One update of the weights from one global batch, cut into `optimizer.accumulate` micro-batches.

    The step is written for the whole batch: under `jit`, with the batch cut over the devices, XLA inserts all-reduces
    of gradients and of BatchNorm's statistics, and one device runs the same code. With BatchNorm over less than the
    batch (`norm.scope`) the gradients are those of a shard, and cross the wire once. Every random draw is a function of
    (seed, step), and there of the shard.

    Returns:
      (state, batch) -> (state, loss of this step). The loss is no part of the donated state: the host is paced by it.
    """
    gradients, micro_batches = gradients_of(model, task, config.remat), config.optimizer.accumulate
    group = group_size(config, mesh.shape["data"])
    if group == mesh.shape["data"]:
        compute = on_mesh(accumulated(gradients, micro_batches), mesh)
    else:
        compute = per_shard(gradients, micro_batches, mesh, group)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
        batch = preprocess(batch, state.seed)
        grads, loss, sums, batch_stats = compute(state.params, state.batch_stats, batch, rng)
        # Where the optimizer's state is cut, each device updates its part, and the parameters are gathered.
        grads = jax.lax.with_sharding_constraint(grads, layout.gradients)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params = jax.lax.with_sharding_constraint(params, layout.state.params)
        grad_norm = optax.tree.norm(grads)
        sums |= {"learning_rate": (schedule(state.step), 1.0), "grad_norm": (grad_norm, 1.0)}
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_average(state.ema, {"params": params, "batch_stats": batch_stats}, config.ema.decay, state.step),
            metrics=jax.tree.map(jnp.add, state.metrics, sums),
            fault=_first_fault(state, loss, grad_norm, (params, batch_stats)),
        )
        return state, loss

    return train_step


def gradients_of(model: nn.Module, task: Classification, remat: str) -> Gradients:
    """The gradients of the loss of a batch, with what the forward pass gives besides."""

    def forward(variables: Any, images: jax.Array, rng: jax.Array) -> Any:
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": rng})

    if remat == "block":
        forward = jax.checkpoint(forward, policy=jax.checkpoint_policies.save_only_these_names("block"))

    def gradients(params: Any, batch_stats: Any, batch: Batch, rng: jax.Array) -> tuple[Any, jax.Array, Any, Any]:
        def objective(params: Any) -> tuple[jax.Array, Any]:
            outputs, updates = forward({"params": params, "batch_stats": batch_stats}, batch["image"], rng)
            loss, sums = task.loss(outputs, batch)
            return loss, (sums, updates.get("batch_stats", {}))

        (loss, (sums, new)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, loss, sums, new

    return gradients


def accumulated(gradients: Gradients, micro_batches: int, over: tuple[str, ...] = ()) -> Gradients:
    """The same of a batch in parts, one after another: mean gradients and loss, summed metrics.

    Args:
      over: axes of the surrounding `shard_map`, which keeps account of what differs from shard to shard.
    """
    if micro_batches == 1:
        return gradients

    def accumulate(params: Any, batch_stats: Any, batch: Batch, rng: jax.Array) -> tuple[Any, jax.Array, Any, Any]:
        # Rows i, i + m, i + 2m … make micro-batch i: each device keeps its own rows, nothing crosses the wire.
        micro = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(carry: Any, xs: Any) -> tuple[Any, None]:
            batch_stats, total = carry
            grads, loss, sums, batch_stats = gradients(params, batch_stats, *xs)
            return (batch_stats, jax.tree.map(jnp.add, total, (grads, loss, sums))), None

        rngs = jax.random.split(rng, micro_batches)
        shapes = jax.eval_shape(gradients, params, batch_stats, jax.tree.map(lambda x: x[0], micro), rngs[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[:3])
        zeros = jax.lax.pcast(zeros, over, to="varying") if over else zeros
        (batch_stats, (grads, loss, sums)), _ = jax.lax.scan(body, (batch_stats, zeros), (micro, rngs))
        grads, loss = jax.tree.map(lambda x: x / micro_batches, (grads, loss))
        return grads, loss, sums, batch_stats

    return accumulate


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function`, traced where layers see the axes of `mesh`."""

    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def per_shard(gradients: Gradients, micro_batches: int, mesh: Mesh, group: int) -> Gradients:
    """`gradients` of each shard, a place along `data`, by itself: their means and sums in one all-reduce.

    Args:
      group: neighbouring shards over which BatchNorm takes its statistics.
    """
    shards = mesh.shape["data"]
    view = Mesh(mesh.devices.reshape(-1, group, mesh.shape["model"]), ("group", "shard", "model"))
    over = ("group", "shard")
    compute = accumulated(gradients, micro_batches, over)

    def of_shard(params: Any, batch_stats: Any, batch: Batch, rng: jax.Array) -> tuple[Any, jax.Array, Any, Any]:
        # Of copies of one's own the gradients are one's own, too; else each would be summed where it arises.
        params, batch_stats = jax.lax.pcast((params, batch_stats), over, to="varying")
        rng = jax.random.fold_in(rng, jax.lax.axis_index(over))
        with statistics_over("shard" if group > 1 else None):
            grads, loss, sums, batch_stats = compute(params, batch_stats, batch, rng)
        shares = jax.tree.map(lambda x: x / shards, (grads, loss, batch_stats))
        (grads, loss, batch_stats), sums = jax.lax.psum((shares, sums), over)
        return grads, loss, sums, batch_stats

    rows, whole = PartitionSpec(over), PartitionSpec()
    return jax.shard_map(
        of_shard, mesh=view, in_specs=(whole, whole, rows, whole), out_specs=whole, axis_names=set(over)
    )


def group_size(config: Config, shards: int) -> int:
    """Places along `data`, of so many, over which BatchNorm takes its statistics together.

    Raises:
      UserError: they do not come in groups of `norm.group`.
    """
    size = {"global": shards, "group": config.norm.group, "shard": 1}[config.norm.scope]
    if shards % size:
        raise UserError(
            f"config.norm.group={size} does not divide the {shards} places along mesh.data: take a divisor, or "
            "config.norm.scope=shard or global"
        )
    return size


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


def make_eval_step(
    model: nn.Module, task: Classification, preprocess: Preprocess, mesh: Mesh
) -> Callable[[Any, Any, Batch], Any]:
    """(variables, sums so far, batch) -> sums with the batch's examples added; rows of mask 0 count for nothing."""

    def eval_step(variables: Any, sums: Any, batch: Batch) -> Any:
        outputs: Any = model.apply(variables, preprocess(batch, None)["image"], train=False)
        return jax.tree.map(jnp.add, sums, task.loss(outputs, batch)[1])

    return on_mesh(eval_step, mesh)
