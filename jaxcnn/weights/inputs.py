"""What weights expect of an image, its size and the statistics it is normalised with: published ones, and a file's."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors

from jaxcnn import UserError
from jaxcnn.safe_files import MAX_JSON, parse_json, printable, read_bytes

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def input_of(name: str, class_names: Sequence[str]) -> dict[str, Any]:
    """The input of torchvision's weights for our model `name`, as a checkpoint keeps it: all but "resize" are a run's.

    Returns:
      "image_shape" (H, W, C), "mean" and "std" per channel of pixels in 0 … 1, "class_names", and "resize": the
      shorter side in pixels before the centre is cropped to the shape.
    """
    mean, std = _MEAN, _STD
    if name == "googlenet_tv":
        # Ported from TensorFlow, which took pixels in -1 … 1: torchvision builds it with transform_input=True, which
        # undoes ImageNet's normalisation for this one.
        mean = std = (0.5, 0.5, 0.5)
    return {
        "image_shape": (224, 224, 3), "mean": mean, "std": std, "class_names": tuple(class_names), "resize": 256,
    }  # fmt: skip


def checked_input(given: Any, num_classes: Any) -> dict[str, Any]:
    """The "input" that a checkpoint or a file of weights keeps, as `input_of` gives it; names without escapes.

    Raises:
      ValueError: it is none for a network of `num_classes`; which part is wrong.
    """
    if not isinstance(given, dict):
        raise ValueError("there is no 'input'")
    shape, mean, std, names = (given.get(key, ()) for key in ("image_shape", "mean", "std", "class_names"))
    if not _numbers(shape, 3, int) or not all(0 < n < 2**16 for n in shape):
        raise ValueError("'image_shape' is not (H, W, C)")
    if not all(_numbers(values, shape[2], int | float) for values in (mean, std)) or min(std) <= 0:
        raise ValueError(f"'mean' and 'std' are not {shape[2]} numbers each")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("'class_names' are no names")
    if type(num_classes) is not int or not 0 < len(names) == num_classes:
        raise ValueError(f"there are {len(names)} 'class_names', of another number of classes")
    if "resize" in given and not (_numbers([given["resize"]], 1, int) and 0 < given["resize"] < 2**16):
        raise ValueError("'resize' is no number of pixels")
    return given | {"class_names": [printable(name) for name in names]}


def exported(file: Path, name: str, classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config and the "input" that `jaxcnn weights export` wrote into `file`; ({}, {}) of any other file.

    Args:
      name, classes: of the network; those of another network are left out.
    """
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            about = opened.metadata() or {}
        given, config = checked_input(parse_json(about["input"]), classes), parse_json(about["config"])
        if config["model.name"] == name:
            return config, given
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError):
        pass
    return {}, {}


def read_names(path: Path, classes: int) -> tuple[str, ...]:
    """Return the names of the classes in `path`, one a line.

    Raises:
      UserError: there are not as many as `classes`, or the file cannot be read.
    """
    try:
        names = read_bytes(path, MAX_JSON).decode("utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        reason = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        raise UserError(f"cannot read the names {path}: {reason}") from error
    if len(names) != classes:
        raise UserError(f"{path} has {len(names)} lines, but the network {classes} classes: give one name a line")
    return tuple(printable(name.strip()) for name in names)


def _numbers(values: Any, count: int, kind: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(v, kind) and not isinstance(v, bool) and abs(v) < 2**53 and math.isfinite(v) for v in values)
    )
