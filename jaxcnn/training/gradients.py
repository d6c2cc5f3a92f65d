"""Gradients of an objective over a global batch that is computed in parts: micro-batches, shards, or both.

An objective is a sum of terms, each a sum over the batch divided by a weight. So that parts add up to the batch, each
part divides its sums by the weights of all parts.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.models.check import STREAMS
from jaxcnn.models.fused_norm import fused_norms
from jaxcnn.models.sharding import statistics_over
from jaxcnn.tasks.base import Batch, Sums, Terms

# (variables, batch, rngs) -> terms, sums, new batch_stats
Objective = Callable[[Any, Batch, dict[str, jax.Array]], tuple[Terms, Sums, Any]]


class Partial(NamedTuple):
    """The gradients of a part of the batch, a micro-batch or a shard, with the rest that adds up over parts."""

    grads: Any
    loss: jax.Array
    weights: dict[str, jax.Array]
    sums: Sums


class Keys(NamedTuple):
    """Random keys of one part of a step's batch, which is a shard or a micro-batch.

    Attributes:
      own: key of this part, for dropout and latents, which differ from part to part.
      shared: key of the step. A detector's samples are functions of it and the example, whatever the parts are.
    """

    own: jax.Array
    shared: jax.Array


# (trained params, the other variables, batch, keys, totals) -> Partial, new batch_stats
PartialGradients = Callable[[Any, Any, Batch, Keys, Any], tuple[Partial, Any]]


def same_keys(rng: jax.Array) -> Keys:
    """Return the keys of a batch that is in one part."""
    return Keys(rng, rng)


def streams(keys: Keys) -> dict[str, jax.Array]:
    """Return the key of each stream; the first one's is `keys.own` itself. XLA drops the keys of unused streams."""
    found = {name: jax.random.fold_in(keys.own, i) if i else keys.own for i, name in enumerate(STREAMS)}
    return found | {"sampling": jax.random.fold_in(keys.shared, STREAMS.index("sampling"))}


def partial_gradients(objective: Objective, variables_of: Callable[[Any, Any], Any]) -> PartialGradients:
    """Return the function that differentiates `objective` on a batch, or on a part of one."""

    def compute(trained: Any, others: Any, batch: Batch, keys: Keys, totals: Any) -> tuple[Partial, Any]:
        def value(trained: Any) -> tuple[jax.Array, Any]:
            terms, sums, batch_stats = objective(variables_of(trained, others), batch, streams(keys))
            # A weight of None leaves the sum undivided; else the global total divides it, here or once all is added.
            own = {name: 1.0 if weight is None else weight for name, (_, weight) in terms.items()}
            divisors = jax.lax.stop_gradient(own | totals)
            loss = sum((total / positive(divisors[name]) for name, (total, _) in terms.items()), jnp.zeros(()))
            return loss, ({name: jnp.asarray(w, jnp.result_type(float)) for name, w in own.items()}, sums, batch_stats)

        (loss, (weights, sums, batch_stats)), grads = jax.value_and_grad(value, has_aux=True)(trained)
        return Partial(grads, loss, weights, sums), batch_stats

    return compute


def totals_of_parts(objective: Objective, variables: Any, batch: Batch, declared: Any) -> tuple[dict[str, Any], bool]:
    """Return what divides each term of a part of the batch, and whether all is divided once more by their weight.

    Parts of terms that share one weight are added undivided, so that no weight need be known first.

    Args:
      declared: weights that the task knows from the batch.
    """
    seen: dict[str, Any] = {}

    def survey(variables: Any, batch: Batch) -> None:
        seen.update(objective(variables, batch, streams(same_keys(jax.random.key(0))))[0])

    jax.eval_shape(survey, variables, batch)
    weights = {id(weight): weight for _, weight in seen.values()}
    if not declared and len(weights) == 1 and None not in weights.values():
        return dict.fromkeys(seen, 1.0), True
    return known_weights(objective, variables, batch, seen.keys() - declared.keys()) | declared, False


def known_weights(objective: Objective, variables: Any, batch: Batch, names: Collection[str]) -> dict[str, jax.Array]:
    """Return the terms' global weights, which must not depend on the forward pass; XLA then removes that pass.

    Raises:
      UserError: a weight depends on the forward pass.
    """

    def weights(variables: Any, batch: Batch) -> dict[str, Any]:
        terms, _, _ = objective(variables, batch, streams(same_keys(jax.random.key(0))))
        return {name: 1.0 if terms[name][1] is None else jnp.asarray(terms[name][1]) for name in sorted(names)}

    jaxpr = jax.make_jaxpr(weights)(variables, batch).jaxpr
    reached = set(jaxpr.invars[: len(jax.tree.leaves(variables))])
    for equation in jaxpr.eqns:
        if any(not hasattr(x, "val") and x in reached for x in equation.invars):
            reached.update(equation.outvars)
    if late := [n for n, x in zip(sorted(names), jaxpr.outvars, strict=True) if not hasattr(x, "val") and x in reached]:
        raise UserError(
            f"the weight of {', '.join(late)} depends on the forward pass, so parts of a batch cannot be divided by "
            "its total: set config.optimizer.accumulate=1 and config.norm.scope=global, or let the task declare it by "
            "`weights`"
        )
    return weights(variables, batch)


def accumulated(
    compute: PartialGradients, micro_batches: int, mesh: Mesh, over: tuple[str, ...] = ()
) -> PartialGradients:
    """Return `compute` of a batch in micro-batches, one after another; the parts are added.

    Args:
      mesh: the devices. On CPUs the loop is unrolled: XLA's convolutions are slow in loops there.
      over: axes of the surrounding `shard_map`, which keeps account of what differs from shard to shard.
    """
    if micro_batches == 1:
        return compute
    unroll = mesh.devices.flat[0].platform == "cpu"

    def accumulate(trained: Any, others: Any, batch: Batch, keys: Keys, totals: Any) -> tuple[Partial, Any]:
        # Rows i, i + m, i + 2m … make micro-batch i: each device keeps its own rows, nothing crosses the wire.
        micro = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(carry: Any, xs: Any) -> tuple[Any, None]:
            batch_stats, total = carry
            now = others | {"batch_stats": batch_stats}
            part, batch_stats = compute(trained, now, xs[0], keys._replace(own=xs[1]), totals)
            return (batch_stats, jax.tree.map(jnp.add, total, part)), None

        rngs = jax.random.split(keys.own, micro_batches)
        first = jax.tree.map(lambda x: x[0], micro)
        shapes, _ = jax.eval_shape(compute, trained, others, first, keys, totals)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        zeros = jax.lax.pcast(zeros, over, to="varying") if over else zeros
        (batch_stats, part), _ = jax.lax.scan(body, (others["batch_stats"], zeros), (micro, rngs), unroll=unroll)
        return part, batch_stats

    return accumulate


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Return `function`, traced where layers see the axes of `mesh`."""

    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def fuses_norms(config: Config, model: nn.Module, mesh: Mesh) -> bool:
    """Return whether BatchNorm takes the forms of `models.fused_norm`, which pay on a TPU.

    They work shard by shard, where XLA would send Gram matrices over the wire. Then parameters that are sharded (fsdp)
    would have to be gathered before the step, and dropout would differ from shard to shard: both keep the plain form.
    """
    wanted = config.norm.fused == "auto" and mesh.devices.flat[0].platform == "tpu"
    return wanted and getattr(model, "has_fused_norm", False) and not model.dropout and config.mesh.placement != "fsdp"


def per_shard(
    compute: PartialGradients, micro_batches: int, mesh: Mesh, group: int, fused: bool = False, wire: Any = None
) -> PartialGradients:
    """Return `compute` of each shard, a place along `data`, by itself: the parts are added in one all-reduce.

    Args:
      group: neighbouring shards over which BatchNorm takes its statistics.
      fused: whether networks take the forms of `models.fused_norm`.
      wire: dtype in which the gradients of kernels cross the wire; None: that of the parameters.
    """
    shards = mesh.shape["data"]
    view = Mesh(mesh.devices.reshape(-1, group, mesh.shape["model"]), ("group", "shard", "model"))
    over = ("group", "shard")
    inner = accumulated(compute, micro_batches, mesh, over)

    def of_shard(trained: Any, others: Any, batch: Batch, keys: Keys, totals: Any) -> tuple[Partial, Any]:
        # Gradients of a shard's own copies stay its own; else each would be summed where it arises.
        before = others["batch_stats"]
        trained, others = jax.lax.pcast((trained, others), over, to="varying")
        keys = keys._replace(own=jax.random.fold_in(keys.own, jax.lax.axis_index(over)))
        with statistics_over("shard" if group > 1 else None), fused_norms(fused):
            part, batch_stats = inner(trained, others, batch, keys, totals)
        # Changes are averaged, not values: statistics of a frozen norm stay what they are to the bit.
        changes = jax.tree.map(lambda new, old: (new - old) / shards, batch_stats, before)
        sent = part._replace(grads=jax.tree.map(lambda x: x.astype(wire) if wire and x.ndim > 1 else x, part.grads))
        total, changes = jax.lax.psum((sent, changes), over)
        grads = jax.tree.map(lambda x, own: x.astype(own.dtype), total.grads, part.grads)
        return total._replace(grads=grads), jax.tree.map(jnp.add, before, changes)

    rows, replicated = PartitionSpec(over), PartitionSpec()
    return jax.shard_map(
        of_shard,
        mesh=view,
        in_specs=(replicated, replicated, rows, replicated, replicated),
        out_specs=replicated,
        axis_names=set(over),
    )


def group_size(config: Config, shards: int) -> int:
    """Return over how many places along `data`, of so many shards, BatchNorm takes its statistics together.

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


def positive(weight: Any) -> Any:
    """Return `weight`, and 1 in place of 0, where the sum over nothing is 0 too."""
    return jnp.where(weight > 0, weight, 1.0)
