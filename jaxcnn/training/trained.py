"""A run opened from its folder: its config, its network and the weights of one checkpoint. What several commands share.

The data set need not be there: a checkpoint knows the shape, the normalisation and the class names of its images.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.configfile import from_json
from jaxcnn.data.images.augment_device import normalize
from jaxcnn.models import create_model
from jaxcnn.tasks import create_task
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.sharding import make_mesh, replicated
from jaxcnn.training.state import init_variables
from jaxcnn.weights.inputs import checked_input


class Run(NamedTuple):
    """What `open_run` gives.

    Attributes:
      step: of the checkpoint.
      variables: its weights, replicated over `mesh`.
      input: "image_shape", "mean", "std" and "class_names" of the images it was trained on.
    """

    config: Config
    mesh: Mesh
    model: nn.Module
    step: int
    variables: Any
    input: dict[str, Any]


def classifier(model: nn.Module, given: dict[str, Any]) -> Callable[[Any, Any], jax.Array]:
    """A program of (variables, uint8 images (N, H, W, C)) -> float32 probabilities (N, classes).

    Args:
      given: what a checkpoint keeps of its images: "mean" and "std".
    """

    @jax.jit
    def probabilities(variables: Any, images: jax.Array) -> jax.Array:
        outputs: Any = model.apply(variables, normalize(images, given["mean"], given["std"]))
        return jax.nn.softmax(outputs["logits"])

    return probabilities


def open_run(workdir: Path, checkpoint: str, overrides: list[tuple[str, str]]) -> Run:
    """Open the run in `workdir` at a checkpoint: "best", "last" or a step.

    Raises:
      UserError: the folder is no run, or the checkpoint is missing, unreadable or not of the config's model.
    """
    # How the training was spread over devices says nothing of where it is opened.
    alone = {"mesh.data": "-1", "mesh.model": "1", "mesh.placement": "replicated", "norm.scope": "global"}
    anywhere = [*alone.items(), ("optimizer.accumulate", "1")]
    config = from_json(workdir / "config.json", [*anywhere, *overrides])
    mesh = make_mesh(config.mesh.data, config.mesh.model)
    checkpoints = Checkpoints(workdir, create_task(config).best)
    step = checkpoints.resolve(checkpoint)
    info = checkpoints.info(step)
    try:
        info = info if isinstance(info, dict) else {}
        given = checked_input(info.get("input"), info.get("num_classes"))
    except ValueError as error:
        raise UserError(f"checkpoint {step} of {workdir} is damaged: of its 'info', {error}") from error
    model = create_model(config.model.name, info["num_classes"], jnp.dtype(config.dtype), **config.model.overrides)
    shapes = jax.eval_shape(lambda: init_variables(model, 0, given["image_shape"]))
    sharding = replicated(mesh)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
    return Run(config, mesh, model, step, checkpoints.restore_variables(step, like), given)
