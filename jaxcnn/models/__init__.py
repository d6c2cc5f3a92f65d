"""The registry: `create_model(name)` builds any architecture, `list_models()` names them all, `check_model` checks one.

README.md beside this file has the conventions that a network keeps.
"""

import contextlib
import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Collection, Sequence
from numbers import Integral
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.models import fast_rcnn, faster_rcnn, fcn, gan, mask_rcnn, rcnn, vae
from jaxcnn.models.check import NotApplicableError, check_module
from jaxcnn.models.trunk import CLASSIFIERS

_REGISTRY = {
    **CLASSIFIERS, **fcn.MODELS, **rcnn.MODELS, **fast_rcnn.MODELS, **faster_rcnn.MODELS, **mask_rcnn.MODELS,
    **vae.MODELS, **gan.MODELS,
}  # fmt: skip
_TRIAL = 64  # side in pixels of the images that a network of the user's own is tried on, if it names none


# Legal values of the overrides that several families have, and their words.
_RATE: Any = (lambda x: isinstance(x, int | float) and 0 <= x < 1, "at least 0 and less than 1")
_POSITIVE: Any = (lambda x: isinstance(x, int | float) and 0 < x < float("inf"), "more than 0")
_NOT_NEGATIVE: Any = (lambda x: isinstance(x, int | float) and 0 <= x < float("inf"), "0 or more")
_BOOL: Any = (lambda x: isinstance(x, bool), "True or False")
_COUNT: Any = (lambda x: type(x) is int and x > 0, "a whole number, 1 or more")
_COUNTS: Any = (
    lambda x: isinstance(x, tuple | list) and len(x) > 0 and all(type(n) is int and n > 0 for n in x),
    "whole numbers, 1 or more each, such as (200, 200)",
)
_SHARE: Any = (lambda x: isinstance(x, int | float) and 0 <= x <= 1, "0 … 1")
_PAIR: Any = (
    lambda x: _COUNTS[0](x) and len(x) == 2,
    "two whole numbers, of training and of testing, such as (2000, 1000)",
)
_SCALES: Any = (
    lambda x: isinstance(x, tuple | list) and 0 < len(x) < 9 and all(_POSITIVE[0](n) for n in x),
    "one to eight positive numbers, such as (8, 16, 32)",
)
_LEGAL = {
    "dropout": _RATE, "aux_dropout": _RATE, "width": _POSITIVE, "norm_epsilon": _NOT_NEGATIVE,
    "rpn_pre_nms": _PAIR, "rpn_post_nms": _PAIR, "rpn_nms_threshold": _SHARE, "nms_threshold": _SHARE,
    "score_threshold": _SHARE, "rpn_samples": _COUNT, "box_samples": _COUNT, "detections": _COUNT,
    "fc_ranks": (
        lambda x: isinstance(x, tuple | list) and len(x) == 2 and all(type(n) is int and n >= 0 for n in x),
        "the ranks of fc6 and fc7, 0 for a whole layer, such as (1024, 256)",
    ),
    "regress": _BOOL,
    "background": (
        lambda x: isinstance(x, tuple | list) and len(x) == 2 and all(map(_SHARE[0], x)) and x[0] < x[1],
        "an interval of IoU, such as (0.1, 0.5)",
    ),
    "fpn_channels": _COUNT, "head_features": _COUNT, "mask_padding": _BOOL, "anchor_scales": _SCALES,
    "latent": _COUNT, "hidden": _COUNTS, "channels": _COUNT, "scale": _BOOL,
    "maxout": _COUNTS,
    "small_images": _BOOL, "frozen_norm": _BOOL, "ceil_pool": _BOOL,
    "padding": (lambda x: type(x) is int and x >= 0, "a whole number of pixels, 0 or more"),
    "fc6_window": (lambda x: type(x) is int and x >= 1, "a whole number of cells, 1 or more"),
    "output_stride": (lambda x: type(x) is int and x >= 0 and x & (x - 1) == 0, "a power of two, or 0 for none"),
    "enlarging": (lambda x: x in fcn.ENLARGING, " | ".join(fcn.ENLARGING)),
}  # fmt: skip
_FORMS = {"vae_mlp": tuple(vae.FORMS), "dcgan64": gan.FORMS, "dcgan32": gan.FORMS}  # values of the override `form`


def list_models() -> list[str]:
    """Return every name of the registry, sorted."""
    return sorted(_REGISTRY)


def create_model(name: str, num_classes: int = 1000, dtype: Any = jnp.bfloat16, **overrides: Any) -> nn.Module:
    """Return the Flax module called `name`, computing in `dtype` with float32 parameters.

    `module.apply(variables, images, train=False)` takes NHWC float images and returns a dict: "logits" (N, num_classes)
    in float32, and the endpoints that `module.endpoints` lists with stride and channels; of a VAE "logits" (N, H, W, C)
    of the pixels, "mean" and "logvar" (N, latents). A segmentation network's
    `apply(variables, images, sizes=None, train=False)` returns logits (N, H, W, num_classes); `sizes` (N, 2) are the
    heights and widths of images that a canvas has padded at the bottom and the right.

    Args:
      name: an architecture as its paper publishes it; the suffix `_tv` is torchvision's form where that differs. Or a
        network of the user's own, "module:Class", imported from Python's path or else from the current folder. That is
        code of the user's: importing it executes it, and it is executed only where this name is given.
      num_classes: outputs of the head.
      dtype: compute type of every convolution and matrix product.
      overrides: further fields of the module. All of ours have `dropout` (a rate) and `small_images`, which makes a
        network of 224-pixel images one of 28 to 64 by changing its stem and its head only; those with BatchNorm have
        `frozen_norm` and `norm_epsilon`; segmentation networks have `backbone`, a classification network's name.

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
    fields = [field.name for field in dataclasses.fields(getattr(network, "func", network))]  # no ClassVar
    known = [key for key in fields if key not in ("spec", "forms", "num_classes", "dtype", "parent", "name")]
    if "backbone" in overrides and (backbone := str(overrides["backbone"])) not in CLASSIFIERS and "backbone" in known:
        near = _nearest(backbone.lower(), CLASSIFIERS, "see `jaxcnn models`")
        raise UserError(f"model {name}: backbone={backbone!r} is no classification network: {near}")
    for key, value in overrides.items():
        if key not in known:
            raise UserError(f"model {name} has no override '{key}': " + _nearest(key, known, f"it has {known}"))
        if not own and key in _LEGAL and not _LEGAL[key][0](value):
            raise UserError(f"model {name}: {key}={value!r}, it must be {_LEGAL[key][1]}")
        if not own and key == "form" and value not in _FORMS[name]:
            raise UserError(f"model {name}: form={value!r}, it must be {' | '.join(_FORMS[name])}")
    try:
        module = network(num_classes=num_classes, dtype=dtype, **overrides)
    except TypeError as error:
        raise UserError(
            f"model {name}: {error}: it must have the fields num_classes and dtype, and a value for every other, by "
            "default or by config.model.overrides"
        ) from error
    if own:
        # Images of this size may not suit it; training checks it on those of its data.
        with contextlib.suppress(NotApplicableError):
            check_model(module)
    elif {"frozen_norm", "norm_epsilon"} & overrides.keys() and not getattr(module.spec, "norm", True):
        raise UserError(f"model {name} has no BatchNorm: leave out frozen_norm and norm_epsilon")
    elif hasattr(module, "trunk"):
        module.trunk()  # which says what of the overrides the backbone lacks
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
    module: Any = create_model(model, num_classes or 1000, dtype, **overrides) if isinstance(model, str) else model
    if not isinstance(module, nn.Module):
        raise UserError(f"{model!r} is no network: give a name of `jaxcnn models` or a flax.linen.Module that is built")
    who = f"model {model if isinstance(model, str) else type(model).__name__}"
    num_classes = num_classes or getattr(module, "num_classes", None)
    if num_classes is None:
        raise UserError(f"{who} has no field num_classes: define it")
    side = getattr(module, "image_size", None) or _TRIAL
    if not isinstance(side, int) or side < 1:
        raise UserError(f"{who} has image_size={side!r}: make it a side in pixels, or None")
    check_module(module, who, num_classes, image_shape or (side, side, 3))


def _own_class(name: str) -> type[nn.Module]:
    """Import "module:Class", a network of the user's own."""
    path, _, attribute = name.partition(":")
    if not all(word.isidentifier() for word in [*path.split("."), attribute]):
        raise UserError(f"model '{name}' is no module:Class, such as my_module:TinyNet for TinyNet in my_module.py")
    here = os.getcwd()
    added = [here] if here not in sys.path else []
    sys.path += added  # last, so that a file of this folder stands in for no installed package
    try:
        importlib.invalidate_caches()  # the file may be newer than Python's listing of its folder
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}."):
            reason = "there is no such module: start where it is, or set PYTHONPATH"
        raise UserError(f"model {name}: cannot import '{path}' from Python's path or {here}: {reason}") from error
    finally:
        for folder in added:
            sys.path.remove(folder)
    found = getattr(module, attribute, None)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    classes = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, nn.Module)]
    own = [x.__name__ for x in classes if x.__module__ == path]  # not those that it imports
    what = "there is no" if found is None else "no flax.linen.Module is the"
    where = f"{path} ({getattr(module, '__file__', 'built in')})"
    raise UserError(f"model {name}: {what} '{attribute}' in {where}: its networks are {', '.join(own) or 'none'}")


def _nearest(word: str, words: Collection[str], otherwise: str) -> str:
    near = difflib.get_close_matches(word, words, n=4, cutoff=0.5)
    return "the nearest are " + ", ".join(near) if near else otherwise
