"""The conventions of README.md, enforced on one network by shapes alone: nothing is computed."""

import inspect
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
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
    """What one mode of a network makes and returns, as shapes."""

    variables: dict[str, Any]  # by path, such as "params/head/kernel"
    outputs: Any
    dense: set[str]  # paths of the fully connected modules
    endpoints: set[str]  # outputs that an Endpoint of the same name gave
    last: list[tuple[str, str]]  # (output, path of the module that gave it) of "logits" and each of "aux_logits"


def check_module(model: nn.Module, who: str, num_classes: int, image_shape: Sequence[int]) -> None:
    """Check a network, called `who` in the errors, on images of `image_shape` (H, W, C).

    Raises:
      NotApplicableError: it does not take such images.
      UserError: it breaks a convention; one line says which, and what it must return or be called.
    """
    parameters = inspect.signature(type(model).__call__).parameters
    train = parameters.get("train")
    if train is None or train.default is not False:
        raise UserError(f"{who} has no argument train=False: define __call__(self, images, train=False)")
    # A network that takes the sizes of images within their canvas gives logits for each of its pixels.
    shape = (*image_shape[:2], num_classes) if "sizes" in parameters else (num_classes,)
    evaluation, training = (_trace(model, who, image_shape, mode) for mode in (False, True))
    modes = {"in evaluation": evaluation, "in training": training}
    # Each generator may take for granted that those before it have found no fault.
    both = _variables(evaluation.variables, training.variables), _decays(training)
    if (task := getattr(model, "task", "")) in ("vae", "gan"):
        check: Any = {"vae": _vae_outputs, "gan": _gan_outputs}[task]
        faults = chain(*(check(trace.outputs, mode, image_shape) for mode, trace in modes.items()), *both)
    else:
        if task == "detection":
            rpn = _proposes(model)
            outputs = (_detector_outputs(trace.outputs, mode, num_classes, rpn) for mode, trace in modes.items())
        else:
            outputs = (_outputs(trace.outputs, mode, shape) for mode, trace in modes.items())
        faults = chain(*outputs, *both, _names(training, num_classes), _endpoints(model, evaluation, image_shape))
    for fault in faults:
        raise UserError(f"{who} {fault}")


def _trace(model: nn.Module, who: str, image_shape: Sequence[int], train: bool) -> _Trace:
    """Trace `init` and `apply` in one mode, as training and evaluation call them."""
    calls: list[tuple[nn.Module, Any]] = []  # in the order in which they ended
    facts: dict[str, Any] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            calls.append((context.module, result))
        return result

    def run(images: jax.Array) -> Any:
        rngs: dict[str, Any] = dict.fromkeys(STREAMS, jax.random.key(0))
        variables = model.init(rngs | {"params": jax.random.key(0)}, images, train=train)
        mutable = ["batch_stats"] if train else []
        with nn.intercept_methods(watch):
            outputs, _ = model.apply(
                variables, images, train=train, mutable=mutable, rngs=rngs if train else {}, **options
            )
        # Tracers are compared by identity here, before they become shapes. The first module to return an array is the
        # innermost; a wrapper returns it again. An array that no module returned is left to the rule of head/kernel.
        named: Any = outputs if isinstance(outputs, dict) else {}
        logits = [(name, x) for name in ("logits", "aux_logits") for x in jax.tree.leaves(named.get(name))]
        facts["last"] = [(name, next((_path(m) for m, y in calls if y is x), "head")) for name, x in logits]
        facts["dense"] = {_path(m) for m, _ in calls if isinstance(m, _DENSE)}
        facts["endpoints"] = {m.name for m, y in calls if isinstance(m, Endpoint) and named.get(m.name) is y}
        return variables, outputs

    mode, images = "training" if train else "evaluation", jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    detector = getattr(model, "task", "") == "detection"
    options: dict[str, Any] = {"targets": _OBJECTS} if detector and train else {}
    if detector and not _proposes(model):
        options["proposals"] = np.zeros((2, 3, 4), np.float32)
    try:
        variables, outputs = jax.eval_shape(run, images)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, InvalidRngError):
            do = f"take one of {', '.join(STREAMS)}, in training only, as nn.Dropout(rate, deterministic=not train)"
            raise UserError(f"{who} draws from a random stream that {mode} does not have: {do}: {reason}") from error
        if isinstance(error, ModifyScopeVariableError):
            do = "keep state in batch_stats and write it in training only, as layers.batch_norm(train, …)"
            raise UserError(f"{who} writes to variables that are fixed in {mode}: {do}: {reason}") from error
        raise NotApplicableError(f"{who} does not take images {images.shape} in {mode}: {reason}") from error
    flat: Any = flatten_dict(dict(variables), sep="/")
    return _Trace(flat, outputs, **facts)


def _path(module: nn.Module) -> str:
    return "/".join(module.path)


def _kind(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"


def _narrow(x: Any) -> bool:
    return jnp.promote_types(x.dtype, jnp.float32) != x.dtype  # float64 is what a network of that type has


def _outputs(outputs: Any, mode: str, shape: tuple[int, ...]) -> Iterator[str]:
    """Yield a fault unless a classifier or segmenter returns a dict with logits of this shape, float32 at least."""
    words = ", ".join(map(str, shape))
    due = f"(N, {words}) float32"
    if not isinstance(outputs, dict) or "logits" not in outputs:
        what = f"a dict of {sorted(outputs)}" if isinstance(outputs, dict) else f"no dict but {_kind(outputs)}"
        yield f'{mode} returns {what}: return a dict with "logits" {due}'
    auxiliary = outputs.get("aux_logits", ())
    if not isinstance(auxiliary, tuple):
        yield f'{mode} returns "aux_logits" as {_kind(auxiliary)}: return a tuple of {due}'
    for name, logits in [("logits", outputs["logits"]), *(("aux_logits", x) for x in auxiliary)]:
        if getattr(logits, "shape", None) != (2, *shape) or _narrow(logits):
            yield (
                f'{mode} returns "{name}" {_kind(logits)} for 2 images: make it (2, {words}) float32, as '
                "layers.Classifier does"
            )


_OBJECTS = {  # targets of a detector: room for one object in each of two images
    "boxes": np.zeros((2, 1, 4), np.float32), "labels": np.zeros((2, 1), np.int32), "valid": np.zeros((2, 1), bool),
    "example": np.arange(2, dtype=np.int32),
}  # fmt: skip
# Outputs of a detector, and the shape of a row of each.
_ANCHORS = {"rpn_logits": (), "rpn_deltas": (4,), "rpn_matches": (), "rpn_targets": (4,)}  # in training
_LEARNT = {"roi_labels": (), "box_targets": (4,)}  # in training, of the regions
_DETECTIONS = {"boxes": (4,), "scores": (), "labels": (), "valid": ()}  # in evaluation


def _proposes(model: Any) -> bool:
    """Return whether a detector has an RPN; one that has none says so, as it must be given proposals."""
    return getattr(model, "proposes", True)


def _detector_outputs(outputs: Any, mode: str, num_classes: int, rpn: bool) -> Iterator[str]:
    """Yield a fault unless a detector returns what its losses are made of, or in evaluation its detections."""
    found = outputs if isinstance(outputs, dict) else {}
    regions = {"box_logits": (num_classes,), "box_deltas": (num_classes, 4), "rois": (4,), "roi_valid": ()}
    learnt = [regions | _LEARNT, _ANCHORS] if rpn else [regions | _LEARNT]
    groups = learnt if mode == "in training" else [regions, _DETECTIONS]
    for group in groups:
        shapes = {name: getattr(found.get(name), "shape", ()) for name in group}
        counts = {shape[:2] for shape in shapes.values()}  # All outputs of a group have the same number of rows.
        if len(counts) > 1 or any(shape != (2, *shape[1:2], *group[name]) for name, shape in shapes.items()):
            words = ", ".join(f'"{name}" (N, R{"".join(f", {n}" for n in row)})' for name, row in group.items())
            yield f"{mode} returns {shapes} for 2 images: return a dict with {words}"
    for name in ("box_logits", "box_deltas", "rois"):
        if _narrow(found[name]):
            yield f'{mode} returns "{name}" in {found[name].dtype}: make it float32, as layers.Classifier does'


def _variables(evaluation: dict[str, Any], training: dict[str, Any]) -> Iterator[str]:
    """Yield a fault unless the variables are the same in both modes, float32, and in the collections of training."""
    here, there = ({(path, _kind(x)) for path, x in variables.items()} for variables in (evaluation, training))
    if differing := sorted({path for path, _ in here ^ there}):
        names = ", ".join(differing[:3]) + ", …" * (len(differing) > 3)
        yield (
            f"makes other variables in training than in evaluation ({names}): make the same in both by `init`, those "
            "of training alone under `if train or self.is_initializing()`"
        )
    for path, x in evaluation.items():
        if path.partition("/")[0] not in ("params", "batch_stats"):
            yield f"has the variable {path}: keep it in params or batch_stats"
        if _narrow(x):
            yield f"has {path} in {x.dtype}: make it float32 (param_dtype)"


def _vae_outputs(outputs: Any, mode: str, image_shape: Sequence[int]) -> Iterator[str]:
    """Yield a fault unless a VAE returns the pixels' logits, and mean and log variance of as many latents each."""
    shapes = {name: getattr(outputs[name], "shape", ()) for name in ("logits", "mean", "logvar") if name in outputs}
    if len(shapes) < 3 or shapes["logits"] != (2, *image_shape) or len({*map(shapes.get, ("mean", "logvar"))}) > 1:
        yield (
            f'{mode} returns {shapes} for 2 images: return "logits" {(2, *image_shape)}, "mean" and "logvar" (2, '
            "latents)"
        )
    for name in shapes:
        if _narrow(outputs[name]):
            yield f'{mode} returns "{name}" in {outputs[name].dtype}: make it float32, as layers.Classifier does'


def _gan_outputs(outputs: Any, mode: str, image_shape: Sequence[int]) -> Iterator[str]:
    """Yield a fault unless a GAN's discriminator returns a logit for each image."""
    logits = outputs.get("logits") if isinstance(outputs, dict) else outputs
    if not isinstance(outputs, dict) or getattr(logits, "shape", None) != (2,) or _narrow(logits):
        yield f'{mode} returns {_kind(logits)} for 2 images: return a dict with "logits" (N,) float32, a logit each'


def _decays(trace: _Trace) -> Iterator[str]:
    """Yield a fault for a matrix that weight decay, which goes by the name, would pass over."""
    for path, x in trace.variables.items():
        collection, _, rest = path.partition("/")
        if collection == "params" and x.ndim > 1 and rest.rpartition("/")[2] != "kernel":
            yield f"has the parameter {rest} {x.shape}, which would not decay: call it 'kernel'"


def _names(trace: _Trace, num_classes: int) -> Iterator[str]:
    """Yield a fault for a layer that sharding or `reset_head`, which go by names, would pass over."""
    for path, x in trace.variables.items():
        module, _, leaf = path.partition("/")[2].rpartition("/")
        if leaf == "kernel" and (x.ndim == 2 or module in trace.dense) and not CLASSIFIER.search(path):
            yield (
                f"has a fully connected layer '{module}', which would not be sharded over mesh.model: call it 'fc', "
                "'fc1' … or, where it gives the logits, 'head'"
            )
    for output, path in trace.last:
        if path.rpartition("/")[2] != "head":
            yield f"has a layer '{path}' that gives \"{output}\" and that reset_head would keep: call it 'head'"
    head = trace.variables.get("params/head/kernel")
    if head is None or head.shape[-1] != num_classes:
        has = "no parameter head/kernel" if head is None else f"a head/kernel {head.shape}"
        yield f"has {has}: call the last layer, of {num_classes} outputs, 'head'"


def _endpoints(model: Any, trace: _Trace, image_shape: Sequence[int]) -> Iterator[str]:
    """Yield a fault for a promised endpoint that is missing, of another shape or type, or not found by its name."""
    endpoints = getattr(model, "endpoints", {})
    sides = [side + 2 * getattr(model, "border", 0) for side in image_shape[:2]]
    try:
        promises = [(name, int(stride), int(channels)) for name, (stride, channels) in endpoints.items()]
    except (AttributeError, TypeError, ValueError):
        promises = []
        yield f"has endpoints={endpoints!r}: make it {{name: (stride, channels)}}"
    for name, stride, channels in promises:
        x = trace.outputs.get(name)
        shape: Any = getattr(x, "shape", ())
        dtype = jnp.dtype(getattr(model, "dtype", None) or jnp.float32)
        # Windows without padding lose pixels at the edges: a quarter of the map may be missing, not a half.
        fits = len(shape) == 4 and all(
            abs(side * stride - pixels) <= max(stride, pixels / 4)
            for side, pixels in zip(shape[1:3], sides, strict=True)
        )
        if x is None or not fits or shape[3] != channels or x.dtype != dtype:
            due = f"{dtype}{[2, *(-(-pixels // stride) for pixels in sides), channels]}"
            found = "nothing" if x is None else _kind(x)
            yield f"returns {found} as endpoint '{name}', where `endpoints` promises {due}: correct either"
        if name not in trace.endpoints:
            yield (
                f"returns an endpoint '{name}' out of no Endpoint of that name, by which Grad-CAM and remat find it: "
                f'return Endpoint(name="{name}")(x) and go on from it'
            )
