"""Export a trained network as one StableHLO program (`jax.export`) with its weights and normalisation inside."""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from jaxcnn import UserError
from jaxcnn.safe_files import write_atomically
from jaxcnn.training.trained import TrainedModel


def write_program(network: TrainedModel, file: Path, platforms: Sequence[str]) -> Path:
    """Write `network` to `file`, and beside it FILE.json with what is needed to use it; return the latter's path.

    The program takes uint8 images (n, H, W, C), n being any number, and returns the arrays of `TrainedModel.outputs`.

    Args:
      platforms: of cpu, cuda, tpu and rocm; the program is lowered for each of them.

    Raises:
      UserError: the network cannot be traced for any number of images, or a file cannot be written.
    """
    height, width, channels = network.input["image_shape"]
    (n,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, height, width, channels), jnp.uint8)
    variables = jax.device_get(network.variables)
    try:
        exported = export.export(jax.jit(lambda x: network.forward(variables, x)), platforms=platforms)(images)
    except Exception as error:  # of a network of the user's own: whatever its code does with a symbol
        reason = str(error).strip().partition("\n")[0][:300]
        raise UserError(
            f"{network.config.model.name} cannot be exported for any number of images ({reason}): in the network, take "
            "x.shape[0] or -1 for it, and no len(x)"
        ) from error
    about = file.with_name(f"{file.name}.json")  # a run's own files have other names
    write_atomically(file, bytes(exported.serialize()))
    write_atomically(about, json.dumps(_about(network, exported), indent=1) + "\n")
    return about


def _about(network: TrainedModel, exported: export.Exported) -> dict[str, Any]:
    """Return what the user of the program must know: its images, its outputs, and the names of the classes."""
    given, size = network.input, network.input["image_shape"][:2]
    if "resize" in given:
        fit = f"resize the shorter side to {given['resize']} pixels with antialiasing (bilinear), cut the centre out"
    else:
        fit = "scale the largest centred part of this aspect to the size with antialiasing (bilinear)"
    return {
        "model": network.config.model.name,
        "step": network.step,
        "dtype": network.config.dtype,
        "platforms": list(exported.platforms),
        "images": {
            "shape": ["n", *given["image_shape"]], "dtype": "uint8", "size": size, "resize": given.get("resize"),
            "before": f"decode, turn upright, {fit}",
            "inside": {"scale": 1 / 255, "mean": list(given["mean"]), "std": list(given["std"])},
        },
        "outputs": _shapes(exported),
        "class_names": list(given["class_names"]),
        "jax": importlib.metadata.version("jax"),
        "calling_convention_version": exported.calling_convention_version,
    }  # fmt: skip


def _shapes(exported: export.Exported) -> dict[str, Any]:
    """Return {output: its shape and type}."""
    outputs: Any = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {name: {"shape": [str(d) if not isinstance(d, int) else d for d in x.shape], "dtype": str(x.dtype)}
            for name, x in outputs.items()}  # fmt: skip
