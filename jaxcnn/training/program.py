"""Build a config's program on a mesh: every function of a run, jitted with its shardings, and the shapes it takes.

Training, evaluation and compilation for devices that are not here all start from `build_program`: the step has no copy.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.models import convolution, inception
from jaxcnn.tasks import create_task
from jaxcnn.tasks.base import Features, Group, Images, Task
from jaxcnn.training import resident
from jaxcnn.training.gradients import group_size
from jaxcnn.training.optimizer import groups as optimizer_groups
from jaxcnn.training.optimizer import make_optimizer, make_schedule, total_steps
from jaxcnn.training.sharding import check_batch, layout, on_all, over_rows, replicated
from jaxcnn.training.state import TrainState, init_state, init_variables, select, shapes_of
from jaxcnn.training.step import StepParts, make_eval_step, make_train_step, metric_shapes
from jaxcnn.weights.files import read_state_dict

Tree = Any
Bucket = tuple[int, int]  # (H, W) of the images of a batch
# XLA has it since jaxlib 0.12; jaxlib 0.10 takes it and rewrites nothing.
_ONEDNN = "xla_cpu_experimental_onednn_custom_call"
WEIGHTS = (".pth", ".pt", ".safetensors")  # endings of files that are no run's folder
SAMPLES = 64  # images that training draws at each evaluation


class Data(Protocol):
    """What a run needs of a data set; `jaxcnn.data.dataset.Dataset` is one.

    A weighted loss of segmentation also asks for `class_frequencies`.

    Batches are this process's rows: "image" uint8 (n, H, W, C), the task's targets (n, …), "mask" float32 (n,), and the
    names of the examples, "epoch" and "example" int32 (n,). H and W are those of one of the buckets.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    buckets: tuple[Bucket, ...]
    eval_buckets: tuple[Bucket, ...]
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


class ByBucket:
    """A step compiled for each bucket; a batch of another shape is an error.

    Args:
      programs: {bucket: compiled step}.
    """

    def __init__(self, programs: dict[Bucket, Any]):
        self.programs = programs

    def __call__(self, first: Tree, batch: dict[str, jax.Array]) -> Any:
        """Run the step of the batch's bucket on a state, or on variables."""
        images = batch["examples"]["image"] if "examples" in batch else batch["image"]
        return self.programs[images.shape[1], images.shape[2]](first, batch)


@dataclass(frozen=True)
class Program:
    """The parts of a run.

    Attributes:
      total_steps: length of training.
      groups: optimizer group of each parameter, by its path.
      metrics: shapes of the sums that the state accumulates between two lines of the log.
      state: shapes, dtypes and shardings of the state.
      batch, eval_batch: {bucket (H, W): shapes, dtypes and shardings of a batch}.
      normalised: images that BatchNorm's statistics are over, 0 where there is none.
      compiler_options: of XLA, which `compile_training` and `compile_evaluation` give it.
      init: () -> TrainState on the mesh.
      constants: () -> the task's constants on the mesh, which no checkpoint holds.
      average_of: (variables) -> a moving average that begins there, {} where it is off.
      train_step: (state, batch) -> (state, loss); the state is donated. With `config.data.resident` what is called a
        batch here and below is all examples and which of them to take, in many steps.
      eval_step: (variables, batch) -> {"examples", "sums", "rows"}, stacked over the batches of a call.
      samples: (variables) -> images of fixed latents, uint8 (SAMPLES, H, W, C); None where the task generates none.
    """

    mesh: Mesh
    task: Task
    total_steps: int
    groups: dict[str, Group]
    metrics: Tree
    state: TrainState
    batch: dict[Bucket, dict[str, jax.ShapeDtypeStruct]]
    eval_batch: dict[Bucket, dict[str, jax.ShapeDtypeStruct]]
    normalised: int
    compiler_options: dict[str, bool]
    init: Callable[[], TrainState]
    constants: Callable[[], Tree]
    average_of: Callable[[Tree], Tree]
    train_step: Any
    eval_step: Any
    samples: Any

    @property
    def variables(self) -> Tree:
        """Shapes of {"params", "batch_stats"}."""
        return {"params": self.state.params, "batch_stats": self.state.batch_stats}

    @property
    def largest_batch(self) -> dict[str, Any]:
        """Shapes of the batch of the bucket with the most pixels."""
        return self.batch[max(self.batch, key=lambda bucket: bucket[0] * bucket[1])]

    def compile_training(self) -> ByBucket:
        """Return the training step compiled for every bucket, before the first batch is read."""
        return ByBucket({key: self.compiled(self.lower(batch)) for key, batch in self.batch.items()})

    def compile_evaluation(self) -> ByBucket:
        """Return the evaluation step compiled for every bucket."""
        lower = partial(self.eval_step.lower, self.state.variables)
        return ByBucket({key: self.compiled(lower(batch)) for key, batch in self.eval_batch.items()})

    def lower(self, batch: dict[str, Any]) -> Any:
        """Return the training step lowered for batches of these shapes."""
        return self.train_step.lower(self.state, batch)

    def compiled(self, lowered: Any) -> Any:
        """Compile a lowered step with XLA's options: were they of `jit`, no jaxpr could be made of the step."""
        executable = lowered.compile(compiler_options=self.compiler_options)
        if _ONEDNN not in self.compiler_options or _onednn_is_right(executable.as_text()):
            return executable
        return lowered.compile(compiler_options=self.compiler_options | {_ONEDNN: False})


def build_program(config: Config, model: nn.Module, data: Data, mesh: Mesh, per_example: bool = False) -> Program:
    """Put a validated config, its model and its data together on `mesh`; nothing is computed or compiled yet.

    Args:
      per_example: whether evaluation gives the rows of `Task.per_example` too.

    Raises:
      UserError: the batch does not spread over the mesh, or the model does not take the images.
    """
    check_batch(mesh, config.global_batch_size, config.optimizer.accumulate)
    task = create_task(config)
    task.prepare(data)
    if task.features:
        task.use_features(feature_network(task.features))
    n, total = config.global_batch_size, total_steps(config, data.steps_per_epoch)
    batch, eval_batch = (
        {(h, w): batch_shapes(task, data, (h, w), n, mesh) for h, w in buckets}
        for buckets in (data.buckets, data.eval_buckets)
    )
    variables = jax.eval_shape(lambda: init_variables(model, config.seed, data.image_shape))
    check_shapes(model, config, data, variables)
    groups = optimizer_groups(config, variables["params"], task)
    schedule = make_schedule(config, data.steps_per_epoch)
    optimizers = {player: make_optimizer(config, schedule, groups) for player in task.players}
    parts = StepParts(model, task, groups, optimizers, schedule, config, mesh)
    averaged = task.averaged if config.ema.decay else None
    start = partial(init_state, init_optimizer=parts.init_optimizers, seed=config.seed, averaged=averaged)

    def constants() -> Tree:
        return jax.tree.map(partial(on_all, mesh), dict(task.constants))  # new arrays each time: the state is donated

    shapes = jax.eval_shape(partial(start, metrics={}), variables)
    shapes = shapes.replace(constants=jax.eval_shape(lambda: dict(task.constants)))
    metrics = metric_shapes(parts, data.preprocess, shapes, next(iter(batch.values())))
    shapes = shapes.replace(metrics=metrics)
    placed = layout(shapes, mesh, config.mesh.placement)
    everywhere = replicated(mesh)
    step = make_train_step(replace(parts, layout=placed), data.preprocess)
    evaluation = make_eval_step(model, task, data.preprocess, config.seed, mesh, per_example)
    if config.data.resident:
        step, evaluation = resident.many_steps(step, mesh), resident.all_batches(evaluation, mesh)
        most, rows = resident.rows_of_tables(config, mesh, total, data.eval_examples)
        one, eval_one = (one_example(task, data, size) for size in (data.buckets[0], data.eval_buckets[0]))
        batch = {data.buckets[0]: resident.feed_shapes(mesh, most, n, data.position["examples"], one)}
        eval_batch = {data.eval_buckets[0]: resident.eval_shapes(mesh, rows, n, data.eval_examples, eval_one)}
    group = group_size(config, mesh.shape["data"])
    options = compiler_options(config, mesh.devices.flat[0].platform)
    initial = jax.jit(
        lambda: start(init_variables(model, config.seed, data.image_shape), metrics=metrics),
        out_shardings=placed.state.replace(constants={}),
    )
    state = jax.tree.map(with_sharding, shapes, placed.state)
    return Program(
        mesh=mesh,
        task=task,
        total_steps=total,
        groups=groups,
        metrics=metrics,
        state=state,
        batch=batch,
        eval_batch=eval_batch,
        normalised=n // config.optimizer.accumulate * group // mesh.shape["data"] if shapes.batch_stats else 0,
        compiler_options=options,
        init=lambda: initial().replace(constants=constants()),
        constants=constants,
        average_of=jax.jit(
            lambda x: jax.tree.map(jnp.copy, select(x, task.averaged) if shapes.ema else {}),
            out_shardings=placed.state.ema,
        ),
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(placed.state, everywhere)),
        eval_step=jax.jit(
            evaluation, out_shardings={"examples": everywhere, "sums": everywhere, "rows": over_rows(mesh, axis=1)}
        ),
        samples=make_samples(model, task, config.seed, (*data.eval_buckets[0], data.image_shape[-1]), mesh),
    )


def feature_network(folder: str) -> Features:
    """Return the network of a run at its last checkpoint, or the Inception network of a file of weights.

    Raises:
      UserError: as of `open_run`, or the file is not that network's.
    """
    if folder.endswith(WEIGHTS):
        variables = inception.variables_of(read_state_dict(Path(folder)), folder)
        given = {"image_shape": inception.IMAGE_SHAPE, "mean": (0.5,) * 3, "std": (0.5,) * 3}  # pixels in -1 … 1
        return Features(f"Inception-v3 (pytorch-fid), weights {folder}", inception.Inception(), variables, given)
    from jaxcnn.training.trained import open_run  # which imports this module

    run = open_run(folder)
    variables = jax.tree.map(np.asarray, jax.device_get(run.variables))
    return Features(f"{run.config.model.name} at step {run.step} of {folder}", run.model, variables, run.input)


def make_samples(model: nn.Module, task: Task, seed: int, image_shape: Sequence[int], mesh: Mesh) -> Any:
    """Return (variables) -> uint8 images of the same SAMPLES latents each time; None where nothing is generated."""
    key = jax.random.key(seed)
    if jax.eval_shape(lambda: task.latents(model, key, SAMPLES)) is None:
        return None

    def samples(variables: Tree) -> jax.Array:
        z: Any = task.latents(model, key, SAMPLES)
        images = task.generate(model, variables, z, image_shape)
        return jnp.rint(255 * images).astype(jnp.uint8)

    return jax.jit(samples, out_shardings=replicated(mesh))


def compiler_options(config: Config, platform: str) -> dict[str, bool]:
    """Return XLA's options for the programs of a config; a GPU alone heeds `deterministic`, a CPU alone `onednn`.

    They go with each program, unlike XLA_FLAGS, which XLA reads once: in a notebook it may have done so long before.

    Args:
      platform: of the devices: "cpu", "gpu" or "tpu".
    """
    options = {"xla_gpu_deterministic_ops": True} if config.deterministic else {}
    if platform == "cpu" and config.onednn and config.dtype == "bfloat16" and _is_known(_ONEDNN):
        options[_ONEDNN] = True
    return options


def _onednn_is_right(text: str) -> bool:
    """Return whether oneDNN computes every convolution of a compiled program rightly; our own are made so that it does.

    A convolution in a user's network, or the gradient of a dilated one, may be of another form.
    """
    kernels = re.findall(r'__onednn\$convolution.*?"shape":\["\d+","(\d+)","(\d+)"', text)
    return all(convolution.onednn_is_right(int(width), int(channels)) for width, channels in kernels)


@cache
def _is_known(option: str) -> bool:
    """Return whether this XLA has an option for its CPU programs: it refuses to compile with one that it has not."""
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda: 0, compiler_options={option: True}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def check_shapes(model: nn.Module, config: Config, data: Data, variables: Tree) -> None:
    """Raise a UserError unless the model has the same variables for images of every bucket."""
    channels = data.image_shape[-1]
    for height, width in {*data.buckets, *data.eval_buckets} - {data.image_shape[:2]}:
        other = jax.eval_shape(lambda size=(height, width, channels): init_variables(model, config.seed, size))
        if shapes_of(other) != shapes_of(variables):
            raise UserError(
                f"model {config.model.name} has other parameters for images of {height}×{width} than of "
                f"{data.image_shape[0]}×{data.image_shape[1]}: set config.data.eval_size=0 and one size in "
                "config.data.buckets, or take a network that pools globally"
            )


def one_example(task: Task, data: Data, bucket: Bucket) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of an image of one bucket, uint8, and of the task's targets."""
    image_shape = (*bucket, data.image_shape[-1])
    image = {"image": jax.ShapeDtypeStruct(image_shape, np.uint8)}
    return image | task.targets(Images(data.num_classes, image_shape))


def batch_shapes(task: Task, data: Data, bucket: Bucket, rows: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the global batch of one bucket: examples, their mask and their names."""
    one = one_example(task, data, bucket) | {"mask": jax.ShapeDtypeStruct((), np.float32)}
    one |= {name: jax.ShapeDtypeStruct((), np.int32) for name in ("epoch", "example")}
    return {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype, sharding=over_rows(mesh)) for name, x in one.items()}


def with_sharding(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and type of an array that lies so."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
