"""Where the state lies on the mesh: the one place where that is decided, by named rules.

    classifier   the features of fully connected layers over `model`, if that axis is longer than 1: data parallel
                 convolutions and a model parallel classifier (Krizhevsky 2014, arXiv:1404.5997)
    zero1        optimizer state and moving average over `data`, besides (Rajbhandari et al. 2020, section 5.1)
    fsdp         the parameters, too (section 5.3): gathered where they are used, or the activations where XLA finds
                 that cheaper

All else is whole on each device. What does not divide by an axis is not cut along it. The rows of a batch are cut over
all devices (`mesh.over_rows`); within the step, fully connected layers gather those of their `model` neighbours.
"""

import math
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.training.state import TrainState, path_name

Tree = Any
CLASSIFIER = re.compile(r"(^|/)(fc\d*|head)/(kernel|bias)$")
SMALLEST = 2**12  # elements of what is cut over `data`: gathering less costs more than it saves


class Layout(NamedTuple):
    """Shardings of a TrainState, leaf by leaf, and of the gradients, which lie as the optimizer's state does."""

    state: TrainState
    gradients: Tree


def layout(state: TrainState, mesh: Mesh, placement: str) -> Layout:
    """The layout of a state of these shapes.

    Args:
      placement: `config.mesh.placement`, "replicated", "zero1" or "fsdp".
    """

    def place(tree: Tree, over_data: bool) -> Tree:
        def sharding(path: Any, x: Any) -> NamedSharding:
            return NamedSharding(mesh, spec(path_name(path), x.shape, mesh, over_data))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    cut, whole = placement in ("zero1", "fsdp"), NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda _: whole, state).replace(
        params=place(state.params, placement == "fsdp"),
        opt_state=place(state.opt_state, cut),
        ema=place(state.ema, cut),
    )
    return Layout(placed, place(state.params, cut))


def spec(path: str, shape: tuple[int, ...], mesh: Mesh, over_data: bool) -> PartitionSpec:
    """The axes that the dimensions of one array are cut over.

    Over `data` it is the largest dimension that divides and is free, of equal ones the last.

    Args:
      path: the array's names joined by "/".
    """
    axes: list[str | None] = [None] * len(shape)
    if CLASSIFIER.search(path) and mesh.shape["model"] > 1 and shape[-1] % mesh.shape["model"] == 0:
        axes[-1] = "model"
    parts = mesh.shape["data"]
    fits = [(n, i) for i, n in enumerate(shape) if axes[i] is None and n % parts == 0]
    if over_data and parts > 1 and fits and math.prod(shape) >= SMALLEST:
        axes[max(fits)[1]] = "data"
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()


def describe(state: TrainState) -> list[str]:
    """Lines that say how each part of a placed state lies, and what each device holds of it in bytes."""
    lines = []
    for part in ("params", "opt_state", "ema"):
        by_spec: dict[str, list[tuple[str, Any]]] = {}
        for path, x in jax.tree_util.tree_leaves_with_path(getattr(state, part)):
            by_spec.setdefault(_words(x.sharding.spec), []).append((path_name(path), x))
        for words, arrays in by_spec.items():
            total = sum(x.size * x.dtype.itemsize for _, x in arrays)
            held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for _, x in arrays)
            names = ", ".join(name for name, _ in arrays[:2]) + (", …" if len(arrays) > 2 else "")
            lines.append(f"{part:<9}  {words:<22} {held / 1e6:9.3f} of {total / 1e6:.3f} MB: {len(arrays)}, {names}")
    return lines


def _words(spec: PartitionSpec) -> str:
    """("data", None) -> "data × -", () -> "whole"."""
    return " × ".join(axis or "-" for axis in spec) or "whole"
