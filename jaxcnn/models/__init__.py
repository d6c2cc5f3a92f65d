"""The registry: `create_model(name)` builds any architecture, `list_models()` names them all."""

import difflib
from collections.abc import Callable, Collection
from numbers import Integral
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.models import alexnet, googlenet, resnet, vgg

_REGISTRY = {**alexnet.MODELS, **vgg.MODELS, **googlenet.MODELS, **resnet.MODELS}


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1


# Legal values of the overrides that several families have, and their words.
_OVERRIDES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dropout": (_is_rate, "at least 0 and less than 1"),
    "aux_dropout": (_is_rate, "at least 0 and less than 1"),
    "width": (lambda value: isinstance(value, int | float) and 0 < value < float("inf"), "more than 0"),
    "small_images": (lambda value: isinstance(value, bool), "True or False"),
}


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
      UserError: an unknown name or override (the nearest are listed), or an illegal value.
    """
    if name not in _REGISTRY:
        raise UserError(f"there is no model '{name}': " + _nearest(str(name).lower(), _REGISTRY, "see `jaxcnn models`"))
    if not isinstance(num_classes, Integral) or num_classes < 1:
        raise UserError(f"model {name}: num_classes={num_classes}, it must be a whole number, 1 or more")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"model {name}: dtype={dtype} is no floating-point type: bfloat16 or float32")
    network = _REGISTRY[name]
    fields = getattr(network, "func", network).__dataclass_fields__.keys()
    known = [key for key in fields if key not in ("spec", "num_classes", "dtype", "parent", "name")]
    for key, value in overrides.items():
        if key not in known:
            raise UserError(f"model {name} has no override '{key}': " + _nearest(key, known, f"it has {known}"))
        accepts, words = _OVERRIDES.get(key, (lambda value: True, ""))
        if not accepts(value):
            raise UserError(f"model {name}: {key}={value!r}, it must be {words}")
    return network(num_classes=num_classes, dtype=dtype, **overrides)


def _nearest(word: str, words: Collection[str], otherwise: str) -> str:
    near = difflib.get_close_matches(word, words, n=4, cutoff=0.5)
    return "the nearest are " + ", ".join(near) if near else otherwise
