"""A config made concrete on a mesh: every function of a run, jitted with its shardings, and the shapes it takes.

Training, evaluation and compilation for machines that are not there all start from `build_program`: the step has no
copy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcnn.config import Config
from jaxcnn.tasks import Classification, create_task
from jaxcnn.tasks.base import Task
from jaxcnn.training import resident
from jaxcnn.training.optimizer import groups, make_optimizer, make_schedule, total_steps
from jaxcnn.training.placement import layout
from jaxcnn.training.sharding import check_batch, over_rows, replicated
from jaxcnn.training.state import TrainState, init_state, init_variables
from jaxcnn.training.step import group_size, make_eval_step, make_train_step

Tree = Any


class Data(Protocol):
    """What a run needs of a data set; `jaxcnn.data.dataset.Dataset` is one.

    Batches are this process's rows: "image" uint8 (n, H, W, C), "label" int32 (n,), "mask" float32 (n,), and what names
    the example, "epoch" and "example" int32 (n,).
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    eval_examples: int
    position: dict[str, Any]
    input: dict[str, Any]

    @property
    def steps_per_epoch(self) -> Fraction | int:
        """Batches in one pass over the training examples."""
        ...

    @property
    def eval_broken(self) -> int:
        """Examples of the last evaluation that this process could not read, and did not count."""
        ...

    def preprocess(self, batch: dict[str, jax.Array], seed: jax.Array | None) -> dict[str, jax.Array]:
        """uint8 images -> what the model takes; random changes only where there is a `seed`."""
        ...

    def train_batches(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches of steps `start` … `stop` - 1."""
        ...

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Every example once."""
        ...

    def complaints(self, epoch: float) -> list[str]:
        """What is to be said of the epochs before `epoch`."""
        ...


@dataclass(frozen=True)
class Program:
    """The parts of a run.

    Attributes:
      total_steps: length of training.
      metrics: names that the state accumulates between two lines of the log.
      state, batch, eval_batch: shapes, dtypes and shardings of the steps' arguments.
      normalised: images that BatchNorm's statistics are over, 0 where there is none.
      init: () -> TrainState on the mesh.
      average_of: (variables) -> a moving average that begins there, {} where it is off.
      train_step: (state, batch) -> (state, loss); the state is donated. With `config.data.resident` what is called a
        batch here and below is the whole data set and which examples are taken of it, in many steps.
      eval_step: (variables, sums, batch) -> sums; the sums are donated.
    """

    mesh: Mesh
    task: Classification
    total_steps: int
    metrics: tuple[str, ...]
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    eval_batch: dict[str, jax.ShapeDtypeStruct]
    normalised: int
    init: Callable[[], TrainState]
    average_of: Callable[[Tree], Tree]
    train_step: Any
    eval_step: Any

    @property
    def variables(self) -> Tree:
        """Shapes of {"params", "batch_stats"}."""
        return {"params": self.state.params, "batch_stats": self.state.batch_stats}


def build_program(config: Config, model: nn.Module, data: Data, mesh: Mesh) -> Program:
    """Put a validated config, its model and its data together on `mesh`; nothing is computed or compiled yet.

    Raises:
      UserError: the batch does not spread over the mesh, or the model does not take the images.
    """
    check_batch(mesh, config.global_batch_size, config.optimizer.accumulate)
    task = create_task(config)
    schedule = make_schedule(config, data.steps_per_epoch)
    params = jax.eval_shape(lambda: init_variables(model, config.seed, data.image_shape))["params"]
    tx = make_optimizer(config, schedule, groups(config, params, Task()))
    metrics = (*task.metrics, "learning_rate", "grad_norm")
    everywhere, rows = replicated(mesh), over_rows(mesh)

    def init() -> TrainState:
        return init_state(model, tx, config.seed, data.image_shape, metrics, config.ema.decay > 0)

    def shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    shapes = jax.eval_shape(init)
    placed = layout(shapes, mesh, config.mesh.placement)
    n, total = config.global_batch_size, total_steps(config, data.steps_per_epoch)
    names = {key: jax.ShapeDtypeStruct((n,), np.int32, sharding=rows) for key in ("label", "epoch", "example")}
    batch = eval_batch = names | {
        "image": jax.ShapeDtypeStruct((n, *data.image_shape), np.uint8, sharding=rows),
        "mask": jax.ShapeDtypeStruct((n,), np.float32, sharding=rows),
    }
    group = group_size(config, mesh.shape["data"])
    step = make_train_step(model, task, tx, schedule, config, data.preprocess, mesh, placed)
    evaluation = make_eval_step(model, task, data.preprocess, mesh)
    if config.data.resident:
        step, evaluation = resident.many_steps(step, mesh), resident.all_batches(evaluation, mesh)
        most, rows = resident.rows_of_tables(config, mesh, total, data.eval_examples)
        batch = resident.feed_shapes(mesh, most, n, data.position["examples"], data.image_shape)
        eval_batch = resident.eval_shapes(mesh, rows, n, data.eval_examples, data.image_shape)
    return Program(
        mesh=mesh,
        task=task,
        total_steps=total,
        metrics=metrics,
        state=jax.tree.map(shape, shapes, placed.state),
        batch=batch,
        eval_batch=eval_batch,
        normalised=n // config.optimizer.accumulate * group // mesh.shape["data"] if shapes.batch_stats else 0,
        init=jax.jit(init, out_shardings=placed.state),
        average_of=jax.jit(lambda x: jax.tree.map(jnp.copy, x if shapes.ema else {}), out_shardings=placed.state.ema),
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(placed.state, everywhere)),
        eval_step=jax.jit(evaluation, donate_argnums=1, out_shardings=everywhere),
    )
