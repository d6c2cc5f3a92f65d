"""What a network costs, counted from the code without computing anything."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.models import create_model
from jaxcnn.training.state import count_params


def describe(name: str) -> dict[str, Any]:
    """Parameters and endpoints of `name` at its paper's image size and number of classes (CIFAR-10 or ImageNet)."""
    size: int = create_model(name).image_size  # type: ignore[attr-defined]
    num_classes = 10 if size == 32 else 1000
    model = create_model(name, num_classes)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {
        "name": name,
        "parameters": count_params(variables["params"]),
        "num_classes": num_classes,
        "image_size": size,
        "endpoints": model.endpoints,
    }
