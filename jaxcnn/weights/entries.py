"""Named arrays held against a network's variables, and our own names for these, such as "params/head/kernel"."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn import UserError

Shape = tuple[int, ...]


def variable_shapes(model: nn.Module, image_shape: Sequence[int]) -> dict[str, Shape]:
    """Path -> shape of every variable of `model` for images of `image_shape` (H, W, C); nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    try:
        variables: Any = jax.eval_shape(model.init, jax.random.key(0), image)
    except (ValueError, ZeroDivisionError, TypeError) as error:
        raise UserError(f"the model does not take images of {tuple(image_shape)}: {error}") from error
    return {path: leaf.shape for path, leaf in _flat(variables).items()}


def fit(
    what: str, arrays: Mapping[str, Any], wanted: Mapping[str, Shape], counts: Collection[str] = (), hint: str = ""
) -> dict[str, np.ndarray]:
    """The `arrays` that `wanted` names, in its order, as float32: not copied where they are that already.

    Args:
      what: of what the shapes are, for the error.
      counts: names that may be there besides, of shape (), and are dropped.
      hint: how to mend it, for the error.

    Raises:
      UserError: one message with every entry that is missing, extra, of another shape, or of no floating-point type.
    """
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    shapes = {key: array.shape for key, array in arrays.items()}
    due = dict.fromkeys(counts, ()) | dict(wanted)
    # JAX's issubdtype knows bfloat16.
    others = [key for key in wanted if key in arrays and not jnp.issubdtype(arrays[key].dtype, np.floating)]
    faults = {
        "missing": [key for key in wanted if key not in shapes],
        "extra": [key for key in shapes if key not in due],
        "mis-shaped": [f"{k} {shapes[k]} where {due[k]} is due" for k in due if shapes.get(k, due[k]) != due[k]],
        "not floating-point": [f"{key} ({arrays[key].dtype})" for key in others],
    }
    if any(faults.values()):
        words = "; ".join(f"{kind} ({len(keys)}): {', '.join(keys)}" for kind, keys in faults.items() if keys)
        raise UserError(f"the weights do not fit {what}: {words}{hint and f'. {hint}'}")
    with np.errstate(over="ignore", invalid="ignore"):  # of float64: what becomes infinite is for `check_finite`
        return {key: arrays[key].astype(np.float32, copy=False) for key in wanted}


def check_finite(variables: Mapping[str, Any]) -> None:
    """Raise a UserError that names every variable with a NaN or an infinity in it."""
    bad = [path for path, value in _flat(variables).items() if not np.isfinite(value).all()]
    if bad:
        raise UserError(f"weights that are not finite ({len(bad)}): {', '.join(bad)}; fetch or train them again")


def from_paths(model: nn.Module, image_shape: Sequence[int], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} of `model` from arrays under the paths that `to_paths` gives.

    Raises:
      UserError: as `fit`.
    """
    fitted = fit("the network", arrays, variable_shapes(model, image_shape))
    return {"params": {}, "batch_stats": {}} | unflatten_dict({tuple(k.split("/")): v for k, v in fitted.items()})


def to_paths(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The variables by path: {"params/head/kernel": …}."""
    return {path: np.asarray(value) for path, value in _flat(variables).items()}


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    flat: Any = flatten_dict(dict(variables), sep="/")
    return flat
