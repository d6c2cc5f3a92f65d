"""The registry: `create_model(name)` builds any architecture, `list_models()` names them all, `check_model` checks one.

README.md beside this file has the conventions that a network keeps.
"""

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Collection, Sequence
from numbers import Integral
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.models import alexnet, googlenet, resnet, vgg
from jaxcnn.models.check import NotApplicableError, check_module

_REGISTRY = {**alexnet.MODELS, **vgg.MODELS, **googlenet.MODELS, **resnet.MODELS}
_TRIAL = 64  # side in pixels of the images that a network of the user's own is tried on, if it names none


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < float("inf")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


# Legal values of the overrides that several families have, and their words.
_OVERRIDES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dropout": (_is_rate, "at least 0 and less than 1"),
    "aux_dropout": (_is_rate, "at least 0 and less than 1"),
    "width": (_is_positive, "more than 0"),
    "small_images": (_is_bool, "True or False"),
    "frozen_norm": (_is_bool, "True or False"),
    "norm_epsilon": (_is_positive, "more than 0"),
}


def list_models() -> list[str]:
    """Return every name of the registry, sorted."""
    return sorted(_REGISTRY)


def create_model(name: str, num_classes: int = 1000, dtype: Any = jnp.bfloat16, **overrides: Any) -> nn.Module:
    """Return the Flax module called `name`, computing in `dtype` with float32 parameters.

    `module.apply(variables, images, train=False)` takes NHWC float images and returns a dict: "logits" (N, num_classes)
    in float32, and the endpoints that `module.endpoints` lists with stride and channels.

    Args:
      name: an architecture as its paper publishes it; the suffix `_tv` is torchvision's form where that differs. Or a
        network of the user's own, "module:Class", imported from Python's path or else from the current folder. That is
        code of the user's: importing it executes it, and it is executed only where this name is given.
      num_classes: outputs of the head.
      dtype: compute type of every convolution and matrix product.
      overrides: further fields of the module. All of ours have `dropout` (a rate) and `small_images`, which makes a
        network of 224-pixel images one of 28 to 64 by changing its stem and its head only; those with BatchNorm have
        `frozen_norm` and `norm_epsilon`.

    Raises:
      UserError: an unknown name or override (the nearest are listed), or an illegal value; of a network of the user's
        own, no such module or class, or one that breaks the conventions.
    """
    name = str(name)
    own = ":" in name
    if not own and name not in _REGISTRY:
        raise UserError(f"there is no model '{name}': " + _nearest(name.lower(), _REGISTRY, "see `jaxcnn models`"))
    if not isinstance(num_classes, Integral) or num_classes < 1:
        raise UserError(f"model {name}: num_classes={num_classes}, it must be a whole number, 1 or more")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"model {name}: dtype={dtype} is no floating-point type: bfloat16 or float32")
    network: Any = _own_class(name) if own else _REGISTRY[name]
    fields = getattr(network, "func", network).__dataclass_fields__.keys()
    known = [key for key in fields if key not in ("spec", "num_classes", "dtype", "parent", "name")]
    _check_overrides(name, overrides, known, {} if own else _OVERRIDES)
    try:
        module = network(num_classes=num_classes, dtype=dtype, **overrides)
    except TypeError as error:  # a field without a default
        raise UserError(f"model {name}: {error}: set it by config.model.overrides or give it a default") from error
    if own:
        # The shape of the images is not known here. A network that does not take these is checked in training.
        with contextlib.suppress(NotApplicableError):
            check_model(module)
    elif {"frozen_norm", "norm_epsilon"} & overrides.keys() and not getattr(module.spec, "norm", True):
        raise UserError(f"model {name} has no BatchNorm: leave out frozen_norm and norm_epsilon")
    return module


def check_model(
    model: str | nn.Module,
    num_classes: int | None = None,
    image_shape: Sequence[int] | None = None,
    dtype: Any = jnp.bfloat16,
    **overrides: Any,
) -> None:
    """Check that a network keeps the conventions of README.md, by shapes alone.

    Args:
      model: a name as `create_model` takes it, with its `dtype` and `overrides`, or a module that is built.
      num_classes: outputs of the head; None: the module's own `num_classes`, 1000 of a name.
      image_shape: (H, W, C) of the images; None: colour images of the module's `image_size`, or of 64 pixels.

    Raises:
      UserError: one line, what is wrong and what it must return or be called.
    """
    if isinstance(model, str):
        module, who = create_model(model, num_classes or 1000, dtype, **overrides), f"model {model}"
    elif isinstance(model, nn.Module):
        module, who = model, f"model {type(model).__name__}"
    else:
        raise UserError(f"{model!r} is no network: give a name of `jaxcnn models` or a flax.linen.Module that is built")
    num_classes = num_classes or getattr(module, "num_classes", None)
    if num_classes is None:
        raise UserError(f"{who} has no field num_classes: define it")
    side = getattr(module, "image_size", None) or _TRIAL
    check_module(module, who, num_classes, image_shape or (side, side, 3))


def _check_overrides(name: str, overrides: dict[str, Any], known: Sequence[str], legal: dict[str, Any]) -> None:
    for key, value in overrides.items():
        if key not in known:
            raise UserError(f"model {name} has no override '{key}': " + _nearest(key, known, f"it has {known}"))
        if key in legal and not legal[key][0](value):
            raise UserError(f"model {name}: {key}={value!r}, it must be {legal[key][1]}")


def _own_class(name: str) -> type[nn.Module]:
    """Import "module:Class", a network of the user's own."""
    path, _, attribute = name.partition(":")
    if not all(word.isidentifier() for word in [*path.split("."), attribute]):
        raise UserError(f"model '{name}' is no module:Class, such as my_module:TinyNet for TinyNet in my_module.py")
    module = _import(name, path)
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        own = [key for key, x in vars(module).items() if isinstance(x, type) and issubclass(x, nn.Module)]
        own = [key for key in own if vars(module)[key].__module__ == path]  # not those that it imports
        what = "there is no" if found is None else "no flax.linen.Module is the"
        where = f"{path} ({getattr(module, '__file__', 'built in')})"
        raise UserError(f"model {name}: {what} '{attribute}' in {where}: its networks are {', '.join(own) or 'none'}")
    for field, declaration in (("num_classes", "int"), ("dtype", "Any = jnp.bfloat16")):
        if field not in found.__dataclass_fields__:
            raise UserError(f"model {name}: {attribute} has no field {field}: define `{field}: {declaration}`")
    return found


def _import(name: str, path: str) -> Any:
    """Import the module `path` of the model `name`, from the current folder where Python's path has none."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)  # last, so that a file of this folder stands in for no installed package
    try:
        importlib.invalidate_caches()  # the file may be newer than Python's listing of its folder
        return importlib.import_module(path)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}."):
            raise UserError(
                f"model {name}: there is no module '{path}' on Python's path nor in {here}: start where it is, or set "
                "PYTHONPATH"
            ) from error
        words = " ".join(str(error).split())
        raise UserError(f"model {name}: importing '{path}' fails with {type(error).__name__}: {words}") from error
    finally:
        if added:
            sys.path.remove(here)


def _nearest(word: str, words: Collection[str], otherwise: str) -> str:
    near = difflib.get_close_matches(word, words, n=4, cutoff=0.5)
    return "the nearest are " + ", ".join(near) if near else otherwise
