"""Images out of a network that generates: from its prior, between two draws, over its latents, of given images.

Pictures are uint8 (H, W, C) arrays of images side by side, so that a pixel of theirs is a pixel of an image.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxcnn import UserError
from jaxcnn.safe_files import write_atomically

if TYPE_CHECKING:
    from jaxcnn.training.trained import TrainedModel

_CHUNK = 256  # images that are generated at once


def tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """Return uint8 images (N, H, W, C), N a multiple of `columns`, as one picture, row by row."""
    n, height, width, channels = images.shape
    grid = images.reshape(n // columns, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(n // columns * height, columns * width, channels)


def write_picture(picture: np.ndarray, out: Path) -> None:
    """Write uint8 (H, W, C), grey or in colour, as PNG or in the format of the ending."""
    image, file = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture), io.BytesIO()
    image.save(file, Image.registered_extensions().get(out.suffix.lower(), "PNG"))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, file.getvalue())


def draw(run: "TrainedModel", rows: int, columns: int, seed: int, limit: float | None = None) -> np.ndarray:
    """Return a picture of rows × columns draws from the prior.

    Args:
      limit: largest magnitude of a latent; None: the prior's own.
    """
    return tiled(_generate(run, _latents(run, rows * columns, seed, limit)), columns)


def interpolate(run: "TrainedModel", rows: int, columns: int, seed: int, limit: float | None = None) -> np.ndarray:
    """Return a picture whose rows go from one draw from the prior to another in equal, straight steps."""
    begin, end = np.split(np.asarray(_latents(run, 2 * rows, seed, limit)), 2)
    share = np.linspace(0, 1, columns, dtype=begin.dtype).reshape(columns, *[1] * (begin.ndim - 1))
    between = (1 - share) * begin[:, None] + share * end[:, None]  # (rows, columns, …)
    return tiled(_generate(run, between.reshape(-1, *begin.shape[1:])), columns)


def manifold(run: "TrainedModel", rows: int, columns: int) -> np.ndarray:
    """Return a picture of two latents, each at equal steps of its probability (VAE paper, figure 4 and appendix A).

    Raises:
      UserError: the network has another number of latents.
    """
    found = jax.eval_shape(lambda: _latents(run, 1, 0)).shape[1:]
    if found != (2,):
        raise UserError(f"{run.source} has latents of shape {found}: --manifold needs two, model.overrides.latent=2")
    # Gaussian quantiles in the middle of equal parts: the second latent rises upwards, the first to the right.
    first, second = (np.asarray(jax.scipy.special.ndtri((jnp.arange(n) + 0.5) / n)) for n in (columns, rows))
    grid = np.stack(np.meshgrid(first, second[::-1]), axis=-1).reshape(-1, 2)
    return tiled(_generate(run, grid), columns)


def reconstruct(run: "TrainedModel", rows: int, columns: int) -> np.ndarray:
    """Return a picture of images of the evaluation set and under each row of them a row of their reconstructions."""
    count = -(-rows // 2) * columns
    images = run.examples(count)["image"]
    if len(images) < count:
        raise UserError(f"--grid needs {count} images, a batch of the evaluation set has {len(images)}: take fewer")
    outputs = run.outputs(images)
    if "reconstruction" not in outputs:
        raise UserError(f"{run.source} reconstructs no images: --reconstruct goes with VAEs")
    both = np.stack([images, _uint8(outputs["reconstruction"])])  # (2, count, H, W, C)
    by_row = both.reshape(2, -1, columns, *images.shape[1:]).swapaxes(0, 1)
    return tiled(by_row.reshape(-1, *images.shape[1:]), columns)


def _latents(run: "TrainedModel", count: int, seed: int, limit: float | None = None) -> Any:
    z = run.task.latents(run.model, jax.random.key(seed), count, limit)
    if z is None:
        raise UserError(f"{run.source} is a run of task.name={run.config.task.name}, which generates no images")
    return z


def _generate(run: "TrainedModel", z: Any) -> np.ndarray:
    """Return the images of latents, uint8 (N, H, W, C)."""
    shape = tuple(run.input["image_shape"])
    program = jax.jit(lambda variables, z: run.task.generate(run.model, variables, z, shape))
    variables = jax.device_put(run.variables, jax.local_devices()[0])
    parts = [jnp.asarray(z[i : i + _CHUNK]) for i in range(0, len(z), _CHUNK)]
    return np.concatenate([_uint8(program(variables, part)) for part in parts])


def _uint8(images: Any) -> np.ndarray:
    return np.rint(255 * np.asarray(images, np.float32)).astype(np.uint8)
