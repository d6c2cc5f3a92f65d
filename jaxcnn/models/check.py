"""The conventions of jaxcnn/models/README.md, enforced on one network by shapes alone: nothing is computed."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError, ModifyScopeVariableError
from flax.traverse_util import flatten_dict

from jaxcnn import UserError
from jaxcnn.models.layers import Classifier, Endpoint, FullyConnected
from jaxcnn.models.sharding import CLASSIFIER

STREAMS = ("dropout", "latent", "sampling")  # the RNG streams that training feeds
_DENSE = (FullyConnected, Classifier, nn.Dense, nn.DenseGeneral)


class NotApplicableError(UserError):
    """The network cannot be traced on images of this shape, so nothing can be said of it."""


class _Trace(NamedTuple):
    """What one mode of a network makes and returns, as shapes; arrays by their path, such as "head/kernel"."""

    params: dict[str, jax.ShapeDtypeStruct]
    state: dict[str, dict[str, jax.ShapeDtypeStruct]]  # the other collections
    outputs: Any
    dense: set[str]  # paths of the fully connected modules
    endpoints: set[str]  # outputs that an Endpoint of the same name gave
    last: dict[str, str]  # "logits", "aux_logits" -> path of the module that gave them, where one did


def check_module(model: nn.Module, who: str, num_classes: int, image_shape: Sequence[int]) -> None:
    """Check a network on images of `image_shape` (H, W, C).

    Args:
      who: the network's name in the errors.

    Raises:
      NotApplicableError: it does not take such images.
      UserError: it breaks a convention; one line says which, and what it must return or be called.
    """
    parameters = inspect.signature(type(model).__call__).parameters
    if "train" not in parameters or parameters["train"].default is not False:
        raise UserError(f"{who}: __call__ has no argument train=False: define __call__(self, images, train=False)")
    evaluation, training = (_trace(model, who, image_shape, train) for train in (False, True))
    for trace, mode in ((evaluation, "evaluation"), (training, "training")):
        _check_outputs(trace, f"{who} in {mode}", num_classes)
    _check_variables(evaluation, training, who)
    _check_names(training, who, num_classes)
    _check_endpoints(model, evaluation, who, image_shape)


def _trace(model: nn.Module, who: str, image_shape: Sequence[int], train: bool) -> _Trace:
    """Trace `init` and `apply` in one mode, as training and evaluation call them."""
    calls: list[tuple[nn.Module, Any]] = []
    facts: dict[str, Any] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            calls.append((context.module, result))
        return result

    def run(images: jax.Array) -> Any:
        key = jax.random.key(0)
        rngs: dict[str, jax.Array] = dict.fromkeys(STREAMS, key)
        variables = model.init(rngs | {"params": key}, images, train=train)
        with nn.intercept_methods(watch):
            if train:
                outputs, _ = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
            else:
                outputs = model.apply(variables, images)
        facts.update(_facts(calls, outputs))  # here, because tracers are compared by identity
        return variables, outputs

    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    mode = "training" if train else "evaluation"
    try:
        variables, outputs = jax.eval_shape(run, images)
    except InvalidRngError as error:
        raise UserError(
            f"{who} draws random numbers in {mode} from a stream that is not there: take one of {', '.join(STREAMS)} "
            f"and in training only, such as nn.Dropout(rate, deterministic=not train): {_line(error)}"
        ) from error
    except ModifyScopeVariableError as error:
        raise UserError(
            f"{who} writes in {mode} to variables that are fixed: keep its state in batch_stats and write in training "
            f"only, such as layers.batch_norm(train, …): {_line(error)}"
        ) from error
    except Exception as error:
        words = f"{who} does not take images of shape {tuple(images.shape)} in {mode}: {_line(error)}"
        raise NotApplicableError(words) from error
    flat: dict[str, Any] = {name: flatten_dict(dict(tree), sep="/") for name, tree in variables.items()}
    return _Trace(flat.pop("params", {}), flat, outputs, **facts)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _facts(calls: Sequence[tuple[nn.Module, Any]], outputs: Any) -> dict[str, Any]:
    """Return what the calls of an `apply`, in the order in which they ended, say about the network."""
    outputs = outputs if isinstance(outputs, Mapping) else {}
    endpoints = {m.path[-1]: y for m, y in calls if isinstance(m, Endpoint)}
    last: dict[str, str] = {}
    for name in ("logits", "aux_logits"):
        for logits in jax.tree.leaves(outputs.get(name)):
            # The first to return this very array is the innermost module; a wrapper returns it again.
            makers = ["/".join(module.path) for module, y in calls if y is logits]
            if makers and last.get(name, "").rpartition("/")[2] in ("", "head"):
                last[name] = makers[0]
    return {
        "dense": {"/".join(module.path) for module, _ in calls if isinstance(module, _DENSE)},
        "endpoints": {name for name, y in endpoints.items() if outputs.get(name) is y},
        "last": last,
    }


def _check_outputs(trace: _Trace, who: str, num_classes: int) -> None:
    outputs = trace.outputs
    due = f'"logits" (N, {num_classes}) float32'
    if not isinstance(outputs, dict) or "logits" not in outputs:
        what = f"a dict of {sorted(outputs)}" if isinstance(outputs, dict) else f"no dict but {_kind(outputs)}"
        raise UserError(f"{who} returns {what}: return a dict with {due}")
    auxiliary = outputs.get("aux_logits", ())
    if not isinstance(auxiliary, tuple):
        raise UserError(f'{who} returns "aux_logits" as {_kind(auxiliary)}: return a tuple of (N, {num_classes})')
    wide = jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32
    for logits in (outputs["logits"], *auxiliary):
        name = '"logits"' if logits is outputs["logits"] else '"aux_logits"'
        shape = getattr(logits, "shape", None)
        if shape != (2, num_classes):
            raise UserError(f"{who} returns {name} {_kind(logits)} for 2 images: they must be (2, {num_classes})")
        if logits.dtype not in (jnp.float32, wide):
            raise UserError(
                f"{who} returns {name} in {logits.dtype}: they must be float32, as jaxcnn.models.layers.Classifier "
                "gives them"
            )


def _kind(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"


def _check_variables(evaluation: _Trace, training: _Trace, who: str) -> None:
    """The same in both modes, float32, and in the two collections that training and checkpoints know."""
    trees = [{"params": trace.params, **trace.state} for trace in (evaluation, training)]
    here, there = ({f"{part}/{k}": _kind(v) for part in tree for k, v in tree[part].items()} for tree in trees)
    if here != there:
        names = sorted(name for name in here | there if here.get(name) != there.get(name))
        raise UserError(
            f"{who}: init makes other variables in training than in evaluation ({', '.join(names[:3])}"
            f"{', …' * (len(names) > 3)}): make the same in both, where only training uses them with "
            "`if train or self.is_initializing()`"
        )
    for collection, arrays in trees[0].items():
        if collection not in ("params", "batch_stats"):
            raise UserError(f"{who} has variables in '{collection}': keep them in params or batch_stats")
        for path, leaf in arrays.items():
            if jnp.promote_types(leaf.dtype, jnp.float32) != leaf.dtype:
                raise UserError(f"{who}: {collection}/{path} is {leaf.dtype}: make it float32 (param_dtype)")


def _check_names(trace: _Trace, who: str, num_classes: int) -> None:
    """Weight decay, sharding and `reset_head` go by names: a layer that they would pass over is an error."""
    for path, leaf in trace.params.items():
        module, _, name = path.rpartition("/")
        if leaf.ndim > 1 and name != "kernel":
            raise UserError(f"{who}: parameter {path} {leaf.shape} would not decay: call it 'kernel'")
        dense = name == "kernel" and (leaf.ndim == 2 or module in trace.dense)
        if dense and not CLASSIFIER.search(path):
            raise UserError(
                f"{who}: the fully connected layer '{module}' would not be sharded over mesh.model: call it 'fc', "
                "'fc1' … or, where it gives the logits, 'head'"
            )
    for output, path in trace.last.items():
        if path.rpartition("/")[2] != "head":
            raise UserError(f"{who}: the layer '{path}' gives \"{output}\", reset_head would keep it: call it 'head'")
    head = trace.params.get("head/kernel")
    if head is None or head.shape[-1] != num_classes:
        has = "has no parameter head/kernel" if head is None else f"has a head/kernel {head.shape}"
        raise UserError(f"{who} {has}: call the last layer, of {num_classes} outputs, 'head'")


def _check_endpoints(model: nn.Module, trace: _Trace, who: str, image_shape: Sequence[int]) -> None:
    """Every endpoint that is promised is there, of its stride and channels, and can be found by its name."""
    endpoints: Any = getattr(model, "endpoints", {})
    try:
        promises = [(name, int(stride), int(channels)) for name, (stride, channels) in endpoints.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{who}: endpoints={endpoints!r}: it must be {{name: (stride, channels)}}") from error
    for name, stride, channels in promises:
        if name not in trace.outputs:
            raise UserError(f"{who} promises the endpoint '{name}' and does not return it: put it into the dict")
        shape: tuple[int, ...] = getattr(trace.outputs[name], "shape", ())
        # Windows without padding lose pixels at the edges: a quarter of the map may be missing, not a half.
        fits = [
            abs(side * stride - pixels) <= max(stride, pixels / 4)
            for side, pixels in zip(shape[1:3], image_shape[:2], strict=False)
        ]
        if len(shape) != 4 or not all(fits) or shape[3] != channels:
            size = tuple(-(-pixels // stride) for pixels in image_shape[:2])
            raise UserError(
                f"{who}: endpoint '{name}' is {shape}, stride {stride} and {channels} channels promise "
                f"{(2, *size, channels)}: correct `endpoints`"
            )
        if name not in trace.endpoints:
            raise UserError(
                f"{who}: endpoint '{name}' comes out of no Endpoint of that name, by which Grad-CAM and remat find it: "
                f'return Endpoint(name="{name}")(x) and go on from it'
            )
