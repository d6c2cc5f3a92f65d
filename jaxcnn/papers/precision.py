"""What computing in bfloat16 costs in precision: the logits of a fresh network against the same one in float32."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import UserError
from jaxcnn.models import create_model, list_models
from jaxcnn.papers.tabular import Table, count, scaled, text

IMAGES = 4


class Errors(NamedTuple):
    """Relative errors of logits: the largest difference over the largest logit, the mean over the mean."""

    largest: float
    mean: float


def errors(name: str, seed: int = 0) -> Errors:
    """bfloat16 against float32 for the model `name`, both with the same float32 weights, drawn from `seed`.

    Four images of Gaussian noise; BatchNorm uses the statistics of the four, as in training: those of a fresh network,
    mean 0 and variance 1, let the activations of deep ones grow without bound. There is no dropout.
    """
    size: int = create_model(name).image_size  # type: ignore[attr-defined]
    classes = 10 if size == 32 else 1000
    images = jnp.asarray(np.random.default_rng(seed).standard_normal((IMAGES, size, size, 3), np.float32))
    exact = create_model(name, classes, jnp.float32, dropout=0.0)
    variables = jax.jit(exact.init)(jax.random.key(seed), images[:1])

    def logits(dtype: Any) -> np.ndarray:
        model = create_model(name, classes, dtype, dropout=0.0)

        @jax.jit
        def apply(variables: Any, images: jax.Array) -> jax.Array:
            rngs = {"dropout": jax.random.key(seed)}  # of GoogLeNet's auxiliary classifiers, whose logits are left out
            outputs: Any = model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
            return outputs[0]["logits"]

        return np.asarray(apply(variables, images), np.float64)

    reference = logits(jnp.float32)
    difference = np.abs(logits(jnp.bfloat16) - reference)
    reference = np.abs(reference)
    return Errors(float(difference.max() / reference.max()), float(difference.mean() / reference.mean()))


def precision(
    names: Sequence[str] | None = None, seed: int = 0, report: Callable[[str], Any] = lambda name: None
) -> Table:
    """The table of `errors` of the models `names`, by default all but the one of 1,202 layers, which takes long.

    Args:
      report: is told each name when its turn comes.

    Raises:
      UserError: an unknown name.
    """
    for name in names or ():
        create_model(name)
    if seed < 0:
        raise UserError(f"--seed {seed}: it must be 0 or more")
    rows = []
    for name in names or [name for name in list_models() if name != "resnet1202"]:
        report(name)
        model: Any = create_model(name)
        largest, mean = errors(name, seed)
        rows.append([text(name), count(model.image_size), scaled(largest, 0.01, 3), scaled(mean, 0.01, 3)])
        jax.clear_caches()  # the largest hold gigabytes: let go of each before the next
    return Table(
        "precision", "bfloat16 against float32: relative error of the logits", 1,
        ("network", "pixels", "largest %", "mean %"), rows,
        ("Largest: the largest difference over the largest logit. Mean: the mean difference over the mean logit; both "
         f"of absolute values, over {IMAGES} images of Gaussian noise and all classes.",
         f"Fresh weights of seed {seed}, the same for both; BatchNorm with the statistics of the {IMAGES} images, no "
         f"dropout. Computed on {jax.default_backend()}.",
         "bfloat16 keeps 8 binary digits: one rounding is off by up to 0.39 %."),
    )  # fmt: skip
