"""Explain a class by the pixels that speak for it: Grad-CAM, Selvaraju et al., ICCV 2017 (arXiv:1610.02391)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.models.layers import Endpoint
from jaxcnn.models.resizing import resize


def grad_cam(model: Any, variables: Any, images: jax.Array, classes: jax.Array | None = None) -> jax.Array:
    """Return how much each pixel of images (N, H, W, C) speaks for a class: float32 (N, H, W) in 0 … 1.

    Each image's map reaches 1 at its strongest pixel, or is zero where nothing speaks for the class. It is taken from
    the model's last endpoint A: equation 1 averages d logit / d A over space to a weight per channel, equation 2 is
    ReLU(Σ weight · A), here scaled up bilinearly to the image.

    Args:
      model: a network of the registry, or any with `endpoints`, "logits" and `Endpoint` modules.
      images: as the model takes them.
      variables: its weights; the statistics of BatchNorm are used, not the batch's, so that images do not mix.
      classes: int (N,), the class to explain; None: the likeliest of each image.

    Raises:
      UserError: the model has no endpoint, or puts the last one through no `Endpoint` module.
    """
    name = next(reversed(getattr(model, "endpoints", {})), "")
    if not name:
        raise UserError(f"{type(model).__name__} names no endpoints: Grad-CAM needs a feature map")
    features = jax.eval_shape(lambda: model.apply(variables, images)[name])

    def logit(delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the sum of the logits explained when `delta` is added to the endpoint, and the endpoint."""
        met = []

        def add(function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            y = function(*args, **kwargs)
            if not (isinstance(context.module, Endpoint) and context.module.name == name):
                return y
            met.append(name)
            return y + delta.astype(y.dtype)

        with nn.intercept_methods(add):
            outputs = model.apply(variables, images)
        if not met:
            raise UserError(f"{type(model).__name__} has no Endpoint '{name}': see jaxcnn/models/layers.py")
        logits = outputs["logits"]
        chosen = jnp.argmax(logits, axis=-1) if classes is None else classes
        return jnp.take_along_axis(logits, chosen[:, None], axis=-1).sum(), outputs[name]

    # In float32, whatever the network computes in: sums over space are taken of these.
    gradients, activations = jax.grad(logit, has_aux=True)(jnp.zeros(features.shape, jnp.float32))
    weights = gradients.mean(axis=(1, 2))
    maps = jax.nn.relu(jnp.einsum("nhwc,nc->nhw", activations.astype(jnp.float32), weights))
    size = images.shape[1], images.shape[2]
    maps = resize(maps[..., None], size, aligned_corners=False, antialias=False)[..., 0]
    peaks = maps.max(axis=(1, 2), keepdims=True)
    return maps / jnp.where(peaks > 0, peaks, 1)
