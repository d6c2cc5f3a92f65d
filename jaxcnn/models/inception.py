"""The Inception-v3 of the Fréchet Inception distance, with the weights of TensorFlow's graph of 2015-12-05.

Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision" (arXiv:1512.00567); the distance is
that of Heusel et al. 2017 (arXiv:1706.08500). Layers, names and departures from the paper are pytorch-fid's, whose
file of weights, pt_inception-2015-12-05-6726825d.pth, this network takes: averages leave the padding out, and the last
block pools maxima. It gives features alone, so it is no model of the registry.

               299 pixels                          299 pixels
    stem       35×35×192           Mixed_7a        8×8×1280
    Mixed_5…   35×35×288           Mixed_7b, 7c    8×8×2048
    Mixed_6…   17×17×768           pool3           2048
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import UserError

IMAGE_SHAPE = (299, 299, 3)
FEATURES = "pool3"


class Layer(NamedTuple):
    """A convolution without a bias, BatchNorm and ReLU.

    Attributes:
      name: within its block, torch's.
      kernel: (height, width).
      same: whether zeros keep the size; a layer of stride 2 has none.
    """

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    same: bool = True


STEM = (
    Layer("Conv2d_1a_3x3", 32, (3, 3), 2, same=False),
    Layer("Conv2d_2a_3x3", 32, (3, 3), same=False),
    Layer("Conv2d_2b_3x3", 64, (3, 3)),
    "max",
    Layer("Conv2d_3b_1x1", 80),
    Layer("Conv2d_4a_3x3", 192, (3, 3), same=False),
    "max",
)


def _block_a(pooled: int) -> tuple[Any, ...]:
    """Return the branches of a block at 35×35 (figure 5 of the paper)."""
    return (
        (Layer("branch1x1", 64),),
        (Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))),
        (Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3))),
        ("average", Layer("branch_pool", pooled)),
    )


def _block_c(inner: int) -> tuple[Any, ...]:
    """Return the branches of a block at 17×17 (figure 6), its 7×7 kernels as rows and columns."""
    row, column = (1, 7), (7, 1)
    return (
        (Layer("branch1x1", 192),),
        (Layer("branch7x7_1", inner), Layer("branch7x7_2", inner, row), Layer("branch7x7_3", 192, column)),
        (
            Layer("branch7x7dbl_1", inner), Layer("branch7x7dbl_2", inner, column),
            Layer("branch7x7dbl_3", inner, row), Layer("branch7x7dbl_4", inner, column),
            Layer("branch7x7dbl_5", 192, row),
        ),
        ("average", Layer("branch_pool", 192)),
    )  # fmt: skip


def _block_e(pool: str) -> tuple[Any, ...]:
    """Return the branches of a block at 8×8 (figure 7); the layers of an inner tuple lie side by side."""
    row, column = (1, 3), (3, 1)
    return (
        (Layer("branch1x1", 320),),
        (Layer("branch3x3_1", 384), (Layer("branch3x3_2a", 384, row), Layer("branch3x3_2b", 384, column))),
        (
            Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, (3, 3)),
            (Layer("branch3x3dbl_3a", 384, row), Layer("branch3x3dbl_3b", 384, column)),
        ),
        (pool, Layer("branch_pool", 192)),
    )  # fmt: skip


BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        (Layer("branch3x3", 384, (3, 3), 2, same=False),),
        (
            Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)),
            Layer("branch3x3dbl_3", 96, (3, 3), 2, same=False),
        ),
        ("max",),
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        (Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2, same=False)),
        (
            Layer("branch7x7x3_1", 192), Layer("branch7x7x3_2", 192, (1, 7)), Layer("branch7x7x3_3", 192, (7, 1)),
            Layer("branch7x7x3_4", 192, (3, 3), 2, same=False),
        ),
        ("max",),
    ),
    "Mixed_7b": _block_e("average"),
    "Mixed_7c": _block_e("same_max"),  # as TensorFlow's graph has it
}  # fmt: skip


class Inception(nn.Module):
    """Images (N, H, W, 3) in -1 … 1 -> {"pool3": (N, 2048)} and the maps after stem, Mixed_5d, Mixed_6e and Mixed_7c.

    It computes in float32, for evaluation alone.
    """

    endpoints: ClassVar[dict[str, tuple[int, int]]] = {FEATURES: (0, 2048)}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Return the maps by name, and their means over space as "pool3"."""
        outputs = {"stem": _through(STEM, images)}
        x = outputs["stem"]
        for name, branches in BLOCKS.items():
            x = Block(branches, name=name)(x)
            if name in ("Mixed_5d", "Mixed_6e", "Mixed_7c"):
                outputs[name] = x
        return outputs | {FEATURES: x.mean((1, 2))}


class Block(nn.Module):
    """Branches side by side: (N, H, W, C) -> (N, H', W', their channels)."""

    branches: tuple[Any, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the branches' maps, one after another along the channels."""
        return jnp.concatenate([_through(branch, x) for branch in self.branches], axis=-1)


class Unit(nn.Module):
    """One `Layer`: (N, H, W, C) -> (N, H', W', features)."""

    layer: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the map."""
        layer = self.layer
        pads: Any = [((side - 1) // 2,) * 2 if layer.same else (0, 0) for side in layer.kernel]
        x = nn.Conv(layer.features, layer.kernel, layer.stride, padding=pads, use_bias=False, name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


def _through(steps: tuple[Any, ...], x: jax.Array) -> jax.Array:
    """Return a map after layers, poolings and layers side by side, one step after another."""
    around: Any = ((1, 1), (1, 1))
    for step in steps:
        if isinstance(step, Layer):
            x = Unit(step, name=step.name)(x)
        elif isinstance(step, tuple):
            x = jnp.concatenate([_through((layer,), x) for layer in step], axis=-1)
        elif step == "average":
            x = nn.avg_pool(x, (3, 3), padding=around, count_include_pad=False)
        elif step == "same_max":
            x = nn.max_pool(x, (3, 3), padding=around)
        else:
            x = nn.max_pool(x, (3, 3), (2, 2))
    return x


_LEAVES = {
    "conv.weight": ("params", "kernel"), "bn.weight": ("params", "scale"), "bn.bias": ("params", "bias"),
    "bn.running_mean": ("batch_stats", "mean"), "bn.running_var": ("batch_stats", "var"),
}  # fmt: skip


def variables_of(arrays: Mapping[str, np.ndarray], source: str | Path) -> dict[str, Any]:
    """Return the variables of `Inception` from pytorch-fid's state dict; its classifier `fc` is left out.

    Args:
      source: of the arrays, for the error.

    Raises:
      UserError: an array is missing or of another shape.
    """
    wanted = _shapes()
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for unit in _units(wanted["params"]):
        for leaf, (collection, ours) in _LEAVES.items():
            module, key = leaf.partition(".")[0], ".".join((*unit, leaf))
            place, like = variables[collection], wanted[collection]
            for name in (*unit, module):
                place, like = place.setdefault(name, {}), like[name]
            array = arrays.get(key)
            array = array.transpose(2, 3, 1, 0) if array is not None and array.ndim == 4 else array
            if array is None or array.shape != like[ours].shape:
                found = "is not there" if array is None else f"has another shape, {arrays[key].shape}"
                raise UserError(
                    f"{source}: {key} {found}: take pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or a run's "
                    "folder"
                )
            place[ours] = np.asarray(array, np.float32)
    return variables


@cache
def _shapes() -> Any:
    """Return the shapes of the variables, which do not depend on the size of the images."""
    return jax.eval_shape(lambda: Inception().init(jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE))))


def _units(params: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every `Unit`."""
    if "conv" in params:
        return [path]
    return [unit for name, inner in params.items() for unit in _units(inner, (*path, name))]
