"""The golden outputs under tests/golden, and the weights that they were computed with."""

import gzip
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden"
COUNT = "num_batches_tracked"
NO_GRADIENT = ("running_mean", "running_var", COUNT)
Shapes = dict[str, tuple[int, ...]]


@cache
def golden(file: str = "torchvision.npz") -> dict[str, Any]:
    with np.load(FOLDER / file) as arrays:
        return dict(arrays)


@cache
def _all_shapes() -> dict[str, dict[str, list[int]]]:
    files = (FOLDER / f"{source}_shapes.json.gz" for source in ("torchvision", "segmentation", "detection"))
    return {name: found for file in files for name, found in json.loads(gzip.decompress(file.read_bytes())).items()}


def shapes_of(name: str) -> Shapes:
    """Torch's shapes of a network of torch's `name`, in the order of its state dict."""
    return {key: tuple(shape) for key, shape in _all_shapes()[name].items()}


def entry(key: str, shape: tuple[int, ...], deviation: float | None = None) -> Any:
    """One entry of the state dict that the outputs were computed with; kernels are He's unless `deviation` is set."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    normal = rng.standard_normal(shape).astype(np.float32) if shape else np.float32(0)
    if key.endswith(COUNT):
        return np.zeros(shape, np.int64)
    if key.endswith(("running_mean", "bias")):
        return 0.1 * normal
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(normal)
    if len(shape) == 1:
        return 1 + 0.1 * normal
    return normal * np.float32(np.sqrt(2 / np.prod(shape[1:])) if deviation is None else deviation)


def images(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def norms(gradients: dict[str, np.ndarray]) -> dict[str, float]:
    """The L2 norm of each gradient of a state dict's."""
    wide = {key: x.astype(np.float64) for key, x in gradients.items() if not key.endswith(NO_GRADIENT)}
    return {key: float(np.linalg.norm(x)) for key, x in wide.items()}
