"""torchvision's state dicts to our variables and back, exactly. The residual networks; the other families are to come.

Torch keeps a convolution as (out, in, height, width) and a linear layer as (out, in); Flax as (height, width, in, out)
and (in, out). The mapping is derived from our own parameter tree, so an entry can neither be forgotten nor invented.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn import UserError
from jaxcnn.models import create_model

# torchvision's architecture, under our name. (Its resnet50 and deeper stride in the 3×3: our `_tv`.)
NAMES = ("resnet18", "resnet34", "resnet50_tv", "resnet101_tv", "resnet152_tv")

_MODULES = (
    (r"stem_conv", "conv1"),
    (r"stem_norm", "bn1"),
    (r"head", "fc"),
    (r"stage(\d)_block(\d+)/conv(\d)", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.conv{m[3]}"),
    (r"stage(\d)_block(\d+)/norm(\d)", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.bn{m[3]}"),
    (r"stage(\d)_block(\d+)/shortcut_conv", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.downsample.0"),
    (r"stage(\d)_block(\d+)/shortcut_norm", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.downsample.1"),
)
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _entries(name: str, num_classes: int) -> dict[tuple[str, ...], tuple[str, tuple[int, ...]]]:
    """Our variable's path -> (torch's key, our shape)."""
    if name not in NAMES:
        raise UserError(f"torchvision has no weights for '{name}': these it has are {', '.join(NAMES)}")
    model = create_model(name, num_classes)
    shapes: Any = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))
    entries = {}
    flat: Any = flatten_dict(shapes)
    for path, leaf in flat.items():
        module = "/".join(path[1:-1])
        key = next(re.sub(pattern, to, module) for pattern, to in _MODULES if re.fullmatch(pattern, module))
        entries[path] = (f"{key}.{_LEAVES[path[-1]]}", leaf.shape)
    return entries


def _to_flax(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T if x.ndim == 2 else x


def _to_torch(x: np.ndarray) -> np.ndarray:
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T if x.ndim == 2 else x


def from_state_dict(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} of our model `name` from a state dict of arrays under torchvision's keys.

    Raises:
      UserError: an unknown name, or one message that lists every missing, extra and mis-shaped entry.
    """
    head = state_dict.get("fc.bias")
    entries = _entries(name, 1000 if head is None else len(head))
    arrays = {k: np.asarray(v) for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}
    wanted = dict(entries.values())
    faults = [f"missing {key}" for key in wanted.keys() - arrays.keys()]
    faults += [f"extra {key}" for key in arrays.keys() - wanted.keys()]
    for key in wanted.keys() & arrays.keys():
        if _to_flax(arrays[key]).shape != wanted[key]:
            faults.append(f"{key} of shape {arrays[key].shape} where {_to_torch(np.empty(wanted[key])).shape} is due")
    if faults:
        raise UserError(f"state dict does not fit {name}: " + "; ".join(sorted(faults)))
    return unflatten_dict({path: _to_flax(arrays[key]) for path, (key, _) in entries.items()})


def to_state_dict(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_state_dict`: arrays under torchvision's keys."""
    flat: Any = flatten_dict(dict(variables))
    entries = _entries(name, len(flat["params", "head", "bias"]))
    return {key: _to_torch(np.asarray(flat[path])) for path, (key, _) in entries.items()}
