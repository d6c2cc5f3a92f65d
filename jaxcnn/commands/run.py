"""A finished or running run, opened from its folder: config, data, model and the weights of one checkpoint.

Not a command: what `evaluate` and `predict` share.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import Config, from_json
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.pipeline import Slice
from jaxcnn.models import create_model
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.mesh import make_mesh
from jaxcnn.training.program import Program, build_program


@dataclass(frozen=True)
class Run:
    """What `open_run` gives; `step` is that of the checkpoint, `variables` its weights."""

    config: Config
    data: Dataset
    model: nn.Module
    program: Program
    step: int
    variables: Any

    @cached_property
    def _apply(self) -> Any:
        def probabilities(variables: Any, images: jax.Array) -> jax.Array:
            return jax.nn.softmax(
                self.model.apply(variables, self.data.preprocess(images, None), train=False)["logits"]
            )

        return jax.jit(probabilities)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (N, H, W, C) -> probabilities (N, classes)."""
        return np.asarray(self._apply(self.variables, images))


def open_run(workdir: Path, checkpoint: str, overrides: list[tuple[str, str]]) -> Run:
    """Open the run in `workdir` at a checkpoint: "best", "last" or a step.

    Raises:
      UserError: the folder is no run, the checkpoint is missing or does not fit the config, or the data is missing.
    """
    config = from_json(workdir / "config.json", overrides)
    data = Dataset(config, Slice(jax.process_index(), jax.process_count()))
    model = create_model(config.model.name, data.num_classes, jnp.dtype(config.dtype), **config.model.overrides)
    program = build_program(config, model, data, make_mesh(config.mesh.data, config.mesh.model))
    checkpoints = Checkpoints(workdir, f"eval/{program.task.best}")
    step = checkpoints.resolve(checkpoint)
    return Run(config, data, model, program, step, checkpoints.restore_variables(step, program.variables))
