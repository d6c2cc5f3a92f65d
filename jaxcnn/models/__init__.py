"""The registry: `create_model(name)` builds any architecture, `list_models()` names them all."""

import difflib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.models import alexnet, googlenet, resnet, vgg

_REGISTRY = {**alexnet.MODELS, **vgg.MODELS, **googlenet.MODELS, **resnet.MODELS}


def list_models() -> list[str]:
    """Every name that `create_model` takes, sorted."""
    return sorted(_REGISTRY)


def create_model(name: str, num_classes: int = 1000, dtype: Any = jnp.bfloat16, **overrides: Any) -> nn.Module:
    """The Flax module called `name`, computing in `dtype` with float32 parameters.

    `module.apply(variables, images, train=False)` takes NHWC float images and returns a dict: "logits" (N, num_classes)
    in float32, and the endpoints that `module.endpoints` lists with stride and channels.

    Args:
      name: an architecture as its paper publishes it; the suffix `_tv` is torchvision's form where that differs.
      num_classes: outputs of the head.
      dtype: compute type of every convolution and matrix product.
      overrides: further fields of the family's module. All have `dropout` (a rate) and `small_images`, which makes a
        network of 224-pixel images one of 28 to 64 by changing its stem and its head only.

    Raises:
      UserError: an unknown name (the nearest are listed) or override.
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name.lower(), _REGISTRY, n=4, cutoff=0.5)
        raise UserError(
            f"there is no model '{name}': " + ("the nearest are " + ", ".join(near) if near else "see `jaxcnn models`")
        )
    if num_classes < 1:
        raise UserError(f"model {name}: num_classes={num_classes}, it must be 1 or more")
    try:
        return _REGISTRY[name](num_classes=num_classes, dtype=dtype, **overrides)
    except TypeError as error:
        raise UserError(f"model {name}: unknown override among {sorted(overrides)}: {error}") from None
