"""The papers' test protocols on the device: the network's answers to many views of an image, averaged."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.tasks import Classification

Batch = dict[str, jax.Array]


def densely(model: nn.Module) -> nn.Module:
    """`model` for images larger than it was made for, with the same variables (VGG, section 3.2).

    Networks with fully connected layers over a map have a `dense` form. The others average their last map, and their
    head is linear: they give the average of the class scores as they are.
    """
    return model.clone(dense=True) if hasattr(model, "dense") else model


def make_views_step(
    model: nn.Module,
    task: Classification,
    preprocess: Callable[[jax.Array], jax.Array],
    pixels: int,
    mirrored: bool,
) -> Callable[[Any, Any, Batch], Any]:
    """(variables, sums so far, batch) -> sums with the batch's examples added, scored by the mean of their softmaxes.

    An example's loss is -log of the mean probability of its class. All is added in float32 logarithms, so that one view
    gives what ordinary evaluation gives, and no probability is lost to underflow.

    Args:
      preprocess: uint8 images -> what the model takes.
      pixels: of an ordinary global batch. Views go through the network in parts that are no larger, or of one each.
      mirrored: count each view a second time, mirrored left to right.
    """

    def log_probabilities(variables: Any, views: jax.Array) -> jax.Array:
        """uint8 (n, views, H, W, C) -> float32 (views, n, classes)."""
        if mirrored:
            views = jnp.concatenate([views, views[..., ::-1, :]], axis=1)
        n, count, *image = views.shape
        fitting = [k for k in range(1, count + 1) if count % k == 0 and k * n * image[0] * image[1] <= pixels]
        together = max(fitting, default=1)
        parts = views.reshape(n, count // together, together, *image).swapaxes(0, 1)

        def classify(part: jax.Array) -> jax.Array:
            outputs: Any = model.apply(variables, preprocess(part.reshape(n * together, *image)), train=False)
            logs = jax.nn.log_softmax(outputs["logits"])
            return logs.reshape(n, together, -1).swapaxes(0, 1)

        return jax.lax.map(classify, parts).reshape(count, n, -1)

    def views_step(variables: Any, sums: Any, batch: Batch) -> Any:
        names = sorted(name for name in batch if name.startswith("views"))
        logs = jnp.concatenate([log_probabilities(variables, batch[name]) for name in names])
        mean = jax.nn.logsumexp(logs, axis=0) - jnp.log(len(logs))
        return jax.tree.map(jnp.add, sums, task.loss({"logits": mean}, batch)[1])

    return views_step
