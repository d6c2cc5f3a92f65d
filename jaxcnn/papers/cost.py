"""What a network costs, counted from the code: its program is traced on shapes alone, and nothing is computed."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.models.check import STREAMS

# Named scopes of `models.layers` that are rows of their own, though no module: what has no parameters has no name else.
SCOPES = {"max_pool": "max pool", "avg_pool": "avg pool", "global_avg_pool": "global pool", "lrn": "LRN"}
PROPOSALS = 2000  # regions of an image, about as many as selective search finds, that Fast R-CNN is counted with

Path = tuple[str, ...]


class Layer(NamedTuple):
    """A convolution, fully connected layer, norm or pooling, bias included; ReLUs, sums and joins are no rows."""

    name: str  # path of the module, such as "stage1_block1/conv1"
    kind: str  # "conv 7×7/2" (kernel, stride), "conv 5×5 g2" (two groups), "dense", "norm", "max pool" …
    shape: tuple[int, ...]  # (H, W, C) or (C,) of the output for one image
    parameters: int  # trainable numbers; 0 where a module is called again
    macs: int  # multiply-accumulates for one image, of convolutions and matrix products; padding counts as pixels
    activation_bytes: int  # the output of a whole batch, in the type that the code gives it


def layers(model: nn.Module, image_shape: Sequence[int], batch: int = 1, train: bool = False) -> list[Layer]:
    """Return the layers of `model` in their order of execution, for `batch` images of `image_shape` (H, W, C).

    Args:
      train: trace the training mode: GoogLeNet then has its auxiliary classifiers.

    Raises:
      UserError: the model does not take such images.
    """
    jaxpr, params = _trace(model, image_shape, train)
    sizes: dict[Path, int] = {}
    flat: Any = flatten_dict(params)
    for path, leaf in flat.items():
        sizes[path[:-1]] = sizes.get(path[:-1], 0) + math.prod(leaf.shape)
    runs = _runs(jaxpr, sizes)
    paths = [path for path, _ in runs]
    rows, seen = [], dict.fromkeys(paths, 0)
    for path, equations in runs:
        seen[path] += 1
        # A network pools several times in one place: number those.
        number = str(seen[path]) if path[-1] in SCOPES and paths.count(path) > 1 else ""
        output: Any = equations[-1][0].outvars[0].aval
        rows.append(Layer(
            "/".join(path) + number, _kind(path, [equation for equation, _ in equations]), tuple(output.shape[1:]),
            parameters=sizes.get(path, 0) if seen[path] == 1 else 0,
            macs=sum(times * macs(equation) for equation, times in equations),
            activation_bytes=math.prod(output.shape[1:]) * output.dtype.itemsize * batch,
        ))  # fmt: skip
    return rows


def _trace(model: nn.Module, image_shape: Sequence[int], train: bool) -> tuple[Jaxpr, Any]:
    """Trace the program for one image, and return the shapes of the parameters that it uses.

    `apply` on no variables makes those that it meets, so that one trace gives both: a deep network takes seconds. Other
    than `init` it makes no more than those: none of auxiliary classifiers in evaluation.
    """

    given: Any = {} if getattr(model, "proposes", True) else {"proposals": jnp.zeros((1, PROPOSALS, 4))}

    def forward(images: jax.Array) -> Any:
        rngs = {"params": jax.random.key(0)} | {name: jax.random.key(1) for name in STREAMS}
        return model.apply({}, images, train=train, rngs=rngs, mutable=["params", "batch_stats"], **given)

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        jaxpr, (_, variables) = jax.make_jaxpr(forward, return_shape=True)(images)
    except (ValueError, ZeroDivisionError, TypeError) as error:
        raise UserError(f"the model does not take images of {tuple(image_shape)}: {error}") from error
    return jaxpr.jaxpr, variables["params"]


def _runs(jaxpr: Jaxpr, modules: dict[Path, int]) -> list[tuple[Path, list[tuple[JaxprEqn, int]]]]:
    """Return (path of a layer, its equations, each with the times it runs), in order, without what is in no layer."""
    runs: list[tuple[Path, list[tuple[JaxprEqn, int]]]] = []
    inside = False
    for equation, scope, times in _equations(jaxpr):
        path = scope[1:]  # the first is the model's own class
        ends = (path[:i] for i in range(len(path), 0, -1))
        layer = next((end for end in ends if end in modules or end[-1] in SCOPES), None)
        if layer is None and macs(equation):
            layer = path or ("(no name)",)  # a product outside of any layer is work all the same
        if layer:
            if not (inside and runs[-1][0] == layer):
                runs.append((layer, []))
            runs[-1][1].append((equation, times))
        inside = layer is not None
    # What all rounds of a loop share, such as the type of a kernel, comes before it: without products it is no layer.
    looped = {path for path, equations in runs if equations[0][1] > 1}

    def is_layer(path: Path, equations: list[tuple[JaxprEqn, int]]) -> bool:
        return path not in looped or equations[0][1] > 1 or any(macs(equation) for equation, _ in equations)

    return [run for run in runs if is_layer(*run)]


def _equations(jaxpr: Jaxpr, scope: Path = (), times: int = 1) -> Iterator[tuple[JaxprEqn, Path, int]]:
    """Yield every equation with the names of the scopes around it; what a call holds comes before the call itself."""
    for equation in jaxpr.eqns:
        # Flax names a scope after each module, and "module.method" after a method: the module is the one above it.
        names = str(equation.source_info.name_stack).split("/")
        here = scope + tuple(name for name in names if name and "." not in name)
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        inside = list(jaxprs_in_params(equation.params))
        if equation.primitive.name == "cond":  # one branch runs: of a choice by platform the default, which comes last
            inside = inside[-1:]
        for inner in inside:
            yield from _equations(inner, here, times * repeats)
        yield equation, here, times


def macs(equation: JaxprEqn) -> int:
    """Return the multiply-accumulates of one equation: outputs times the products summed into each; 0 for all else.

    A transposed convolution has those of the convolution that it transposes: zeros between its pixels do not count.
    """
    name = equation.primitive.name
    if name not in ("conv_general_dilated", "dot_general"):
        return 0
    operands: list[Any] = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    left, right, output = (operand.shape for operand in operands)
    numbers = equation.params["dimension_numbers"]
    if name == "dot_general":
        (contracted, _), _ = numbers
        return math.prod(output) * math.prod(left[axis] for axis in contracted)
    terms = math.prod(right) // right[numbers.rhs_spec[0]]  # the kernel's input channels are those of one group
    if max(equation.params["lhs_dilation"]) == 1:
        return math.prod(output) * terms
    rows, features, sides = output[numbers.out_spec[0]], output[numbers.out_spec[1]], numbers.lhs_spec[2:]
    return rows * features * math.prod(left[side] for side in sides) * terms


def _kind(path: Path, equations: list[JaxprEqn]) -> str:
    if path[-1] in SCOPES:
        return SCOPES[path[-1]]
    if path[-1].startswith("enlarge"):  # with a learnt kernel; it is sums and no product, like one that is fixed
        return "enlarge"
    convolutions = [equation for equation in equations if equation.primitive.name == "conv_general_dilated"]
    if not convolutions:
        return "dense" if any(map(macs, equations)) else "norm"
    first = convolutions[0]
    kernel: Any = first.invars[1].aval
    sides = [kernel.shape[axis] for axis in first.params["dimension_numbers"].rhs_spec[2:]]
    stride = max(first.params["window_strides"])
    groups = len(convolutions) * first.params["feature_group_count"]
    words = "conv " + "×".join(map(str, sides))
    return words + (f"/{stride}" if stride > 1 else "") + (f" g{groups}" if groups > 1 else "")


def total(rows: Sequence[Layer], what: str) -> int:
    """Return the sum of one attribute of `rows`, such as "macs"."""
    return sum(getattr(row, what) for row in rows)


def describe(
    name: str, *, batch: int = 1, dtype: str = "bfloat16", image_size: int = 0, num_classes: int = 0,
    small_images: bool = False, train: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the model `name` in numbers; by default with its paper's image size and classes.

    "layers" is the list of `layers`, "macs" and "activation_bytes" sum it. "parameters" are those of evaluation,
    whatever `train` is, and "aux_parameters" are of the classifiers that exist in training only.

    Raises:
      UserError: an unknown name, or a size that the model does not take.
    """
    overrides = {"small_images": True} if small_images else {}
    published: Any = create_model(name, **overrides)
    size = image_size or getattr(published, "image_size", 0) or 224  # a user's network may have neither
    classes = num_classes or getattr(published, "published_classes", 1000)
    if batch < 1 or size < 1:
        raise UserError(f"a batch of {batch} images of {size}×{size}: both must be 1 or more")
    model: Any = create_model(name, classes, jnp.dtype(dtype), **overrides)
    auxiliary = hasattr(model, "aux_dropout")  # an override of models whose training has classifiers of its own
    image = (size, size, getattr(model, "image_channels", 3))
    evaluated = layers(model, image, batch)
    trained = layers(model, image, batch, train=True) if auxiliary or train else evaluated
    rows, parameters = trained if train else evaluated, total(evaluated, "parameters")
    return {
        "name": name, "parameters": parameters, "aux_parameters": total(trained, "parameters") - parameters,
        "macs": total(rows, "macs"), "activation_bytes": total(rows, "activation_bytes"), "num_classes": classes,
        "image_size": size, "channels": image[-1], "batch": batch, "dtype": dtype, "layers": rows,
        "endpoints": getattr(model, "endpoints", {}),
    }  # fmt: skip


@functools.cache
def paper_layers(name: str, train: bool = False) -> tuple[Layer, ...]:
    """Return the layers of `describe`, for one image in bfloat16 of the model as its paper has it."""
    return tuple(describe(name, train=train)["layers"])
