"""PyTorch's state dicts to our variables and back, exactly: torchvision's, and those of two other sources.

Torch keeps a convolution as (out, in, height, width) and a linear layer as (out, in), over a feature map as (out,
in·height·width); Flax as (height, width, in, out) and (in, out). A family's modules are walked in torchvision's order;
shapes are our own network's, so an entry can neither be forgotten nor invented.

FCN's networks on VGG-16 have the names of the layers in the authors' Caffe files, and no interpolation kernels.

The port is akamaster/pytorch_resnet_cifar10. Its shortcut A pads zero channels on both sides of those that a block
gets, ours on one: the same network with its channels in another order.
"""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn import UserError
from jaxcnn.models import create_model, fcn, googlenet, resnet
from jaxcnn.models.normalization import match_norms
from jaxcnn.weights.files import Shape, fit
from jaxcnn.weights.torchvision_names import POINTWISE, TRANSPOSED, cifar_orders, modules_of, rcnn_orders

# torchvision's architectures, in its order and under our names: `_tv` is its form where that is not the paper's.
NAMES = (
    "alexnet_tv",
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    "googlenet_tv",
    *("resnet18", "resnet34", "resnet50_tv", "resnet101_tv", "resnet152_tv"),
    *("fcn_resnet50_tv", "fcn_resnet101_tv"),
    *("faster_rcnn_resnet50_fpn_tv", "mask_rcnn_resnet50_fpn_tv"),
)

# Networks of Long et al. under the names of the authors' layers.
CAFFE_NAMES = ("fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce")

# Networks of He et al., section 4.2, under the port's names.
CIFAR_NAMES = tuple(name for name, spec in resnet.SPECS.items() if spec.cifar and spec.shortcut == "A")

SEGMENTATION_NAMES = (*CAFFE_NAMES, "fcn_resnet50_tv", "fcn_resnet101_tv")
DETECTION_NAMES = ("faster_rcnn_resnet50_fpn_tv", "mask_rcnn_resnet50_fpn_tv")

_NAMED = (*NAMES, *CAFFE_NAMES, *CIFAR_NAMES)
# Auxiliary heads, which only training uses and files may lack: our module, torch's, and torch's layer of the classes.
_AUXILIARY = {
    **dict.fromkeys(("googlenet_tv",), tuple((aux, aux, f"{aux}.fc2") for aux in googlenet.AUXILIARY.values())),
    **dict.fromkeys(("fcn_resnet50_tv", "fcn_resnet101_tv"), (("aux", "aux_classifier", "aux_classifier.4"),)),
}

# Collection and leaf of ours, leaf of torch's, in the order of its state dicts.
_LEAVES = (
    ("params", "kernel", "weight"),
    ("params", "scale", "weight"),
    ("params", "bias", "bias"),
    ("batch_stats", "scale", "weight"),  # of a frozen norm
    ("batch_stats", "bias", "bias"),
    ("batch_stats", "mean", "running_mean"),
    ("batch_stats", "var", "running_var"),
)
_COUNT = "num_batches_tracked"  # of BatchNorm's, from torch 0.4.1 on; we keep no such count
# Since torchvision published its weights, it has moved these layers of a detector into blocks: old name, new name.
_MOVED = (
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)
# Modules that a LightningModule has beside its layers, where it is the network itself.
_BESIDE = re.compile(r"loss|criterion|metric|accuracy|(^|_)acc($|_)", re.IGNORECASE)


class Entry(NamedTuple):
    """One array: our path and shape, torch's shape, and the order of the channels on some axes of ours.

    That of a transposed convolution has the places of input and output exchanged in torch, and is turned by 180°.
    """

    path: str
    shape: Shape
    torch_shape: Shape
    orders: dict[int, np.ndarray]
    transposed: bool = False


def input_of(name: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what PyTorch's weights for our model `name` expect of an image, as a checkpoint keeps it.

    Returns:
      "image_shape" (H, W, C), "mean" and "std" per channel of pixels in 0 … 1, "class_names", and "resize": the
      shorter side in pixels before the centre is cropped to the shape. A run's own has all but "resize". A segmentation
      network's has "min_size" instead: the shorter side of images that it sees all of (0: each image's own). A
      detector's also has "max_size", the limit of the longer side, and "canvas_multiple", whose multiples the sides of
      padded images are.
    """
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if name in CAFFE_NAMES:
        # Caffe's pixels are 0 … 255, of which a mean is taken off: red, green, blue here, in its own files blue first.
        mean, std = tuple(x / 255 for x in (122.679, 116.669, 104.007)), (1 / 255,) * 3
    if name in SEGMENTATION_NAMES:
        side = 520 if name in NAMES else 500
        about = {"image_shape": (side, side, 3), "mean": mean, "std": std, "class_names": tuple(class_names)}
        return about | {"min_size": side if name in NAMES else 0}
    if name in DETECTION_NAMES:
        sides = {"min_size": 800, "max_size": 1333, "canvas_multiple": 32}
        return {"image_shape": (800, 1088, 3), "mean": mean, "std": std, "class_names": tuple(class_names)} | sides
    if name in CIFAR_NAMES:  # The port normalises CIFAR-10 by ImageNet's statistics.
        return {"image_shape": (32, 32, 3), "mean": mean, "std": std, "class_names": tuple(class_names)}
    if name == "googlenet_tv":
        # Ported from TensorFlow, which took pixels in -1 … 1: torchvision builds it with transform_input=True, which
        # undoes ImageNet's normalisation for this one.
        mean = std = (0.5, 0.5, 0.5)
    names = tuple(class_names)
    return {"image_shape": (224, 224, 3), "mean": mean, "std": std, "class_names": names, "resize": 256}


def _modules(name: str) -> list[tuple[str, str]]:
    """Return (our module, torch's) in the order of torch's state dict; this network may lack some."""
    if name not in _NAMED:
        near = difflib.get_close_matches(name, _NAMED, n=4, cutoff=0.5)
        theirs = f"the nearest that are: {', '.join(near)}" if near else "`jaxcnn models` lists all networks"
        if f"{name}_tv" in NAMES:
            theirs = f"torchvision's {name} is our {name}_tv"
        raise UserError(f"PyTorch's weights are not read for '{name}': {theirs}")
    return modules_of(name)


@cache
def _entries(name: str, num_classes: int) -> dict[str, Entry | None]:
    """Return {torch's key: our array} in the order of its state dict; None stands for a count."""
    modules, model, entries = _modules(name), create_model(name, num_classes), {}
    orders = cifar_orders(resnet.SPECS[name]) if name in CIFAR_NAMES else {}
    orders |= rcnn_orders(num_classes) if name in DETECTION_NAMES else {}
    images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), np.float32)
    ours: Any = flatten_dict(dict(jax.eval_shape(model.init, jax.random.key(0), images)), sep="/")
    for module, torch_module in modules:
        for collection, leaf, torch_leaf in _LEAVES:
            path = f"{collection}/{module}/{leaf}"
            if path in ours:
                shape = ours.pop(path).shape
                order = {axis: o for axis, o in orders.get(module, {}).items() if -axis <= len(shape)}
                torch_shape = _torch_shape(module, shape, name in fcn.SPECS or module in POINTWISE)
                if transposed := module in TRANSPOSED and len(shape) == 4:
                    torch_shape = (*shape[2:], *shape[:2])
                entries[f"{torch_module}.{torch_leaf}"] = Entry(path, shape, torch_shape, order, transposed)
                # The count is the last entry of a BatchNorm; a detector's frozen ones have none.
                if leaf == "var" and name not in DETECTION_NAMES:
                    entries[f"{torch_module}.{_COUNT}"] = None
    assert not ours, f"torch's names of {list(ours)} are not known"
    return entries


def _torch_shape(module: str, shape: Shape, convolutional: bool) -> Shape:
    """Return torch's shape of ours; in a fully convolutional network a layer like `fc6` is a convolution there."""
    if len(shape) == 1:
        return shape
    if convolutional:
        return (*shape[:-3:-1], *(shape[:2] if len(shape) == 4 else (1, 1)))
    if module.rpartition("/")[2].startswith(("fc", "head")):
        return shape[-1], int(np.prod(shape[:-1]))
    height, width, channels, features = shape
    return features, channels, height, width


def _to_flax(x: np.ndarray, entry: Entry) -> np.ndarray:
    if entry.transposed:
        return np.ascontiguousarray(x[:, :, ::-1, ::-1].transpose(2, 3, 0, 1))
    if len(entry.shape) == 4:
        height, width, channels, features = entry.shape
        x = x.reshape(features, channels, height, width).transpose(2, 3, 1, 0)
    else:
        x = x.reshape(entry.shape[::-1]).T
    for axis, order in entry.orders.items():
        x = np.take(x, order, axis)
    return x


def _to_torch(x: np.ndarray, entry: Entry) -> np.ndarray:
    if entry.transposed:
        return np.ascontiguousarray(x[::-1, ::-1].transpose(2, 3, 0, 1))
    for axis, order in entry.orders.items():
        x = np.take(x, np.argsort(order), axis)
    return (x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T).reshape(entry.torch_shape)


def _classes(name: str, state_dict: Mapping[str, Any]) -> int:
    """Return the outputs of the head in `state_dict`, or 1,000 where it does not say."""
    head = dict(_modules(name))["head"]
    for leaf, rank in (("bias", 1), ("weight", 2)):
        shape = np.shape(state_dict.get(f"{head}.{leaf}", 0))
        if len(shape) == rank and shape[0]:
            return shape[0]
    return 1000


def find_network(name: str, state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the entries of our model `name` under its own names, and the keys of all others.

    They are those below the prefix that has all of the network: a wrapper's, such as "module." or "_orig_mod.", or that
    of a LightningModule's field, such as "model.". Those below it that the network lacks are among them, for
    `from_state_dict` to refuse.

    Raises:
      UserError: an unknown name, or two prefixes have all of the network, with other values.
    """
    state_dict = _moved(name, state_dict)
    heads = tuple(f"{theirs}." for _, theirs, _ in _AUXILIARY.get(name, ()))
    wanted = {key for key, entry in _entries(name, 1000).items() if entry and not key.startswith(heads or "-")}
    counts = Counter(
        key[:start] for key in state_dict for start in (0, *(dot.end() for dot in re.finditer(r"\.", key)))
        if key[start:] in wanted
    )  # fmt: skip
    most = max(counts.values(), default=0)
    if 2 * most <= len(wanted):  # It is another network, for `from_state_dict` to say.
        return dict(state_dict), []
    first, *others = (
        {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        for prefix in counts if counts[prefix] == most
    )  # fmt: skip
    prefix, *more = (prefix for prefix in counts if counts[prefix] == most)
    if any(
        key not in other or not np.array_equal(first[key], other[key])
        for other in others
        for key in first.keys() & wanted
    ):
        raise UserError(f"the weights have {name} under '{prefix}' and '{more[0]}': save one of them alone")
    beside = {key for key in first if not prefix and _BESIDE.search(key.partition(".")[0])}
    left = [key for key in state_dict if not key.startswith(prefix) or key in beside]
    return {key: value for key, value in first.items() if key not in beside}, left


def _moved(name: str, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entries under torchvision's present names."""
    if name in DETECTION_NAMES:
        for old, new in _MOVED:
            state_dict = {old.sub(new, str(key)): value for key, value in state_dict.items()}
    return state_dict


def new_heads(name: str, state_dict: Mapping[str, Any]) -> list[str]:
    """Return the auxiliary heads that `from_state_dict` makes new: those not in `state_dict`, or of other classes.

    torchvision's googlenet(weights=…) drops them unless it is given aux_logits=True; only training uses them.
    """
    classes = _classes(name, state_dict)
    return [
        theirs
        for _, theirs, head in _AUXILIARY.get(name, ())
        if not any(str(key).startswith(f"{theirs}.") for key in state_dict)
        or np.shape(state_dict.get(f"{head}.bias", 0)) not in ((), (classes,))
    ]


def from_state_dict(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables {"params", "batch_stats"} of our model `name` from arrays under torch's keys.

    The arrays, of any floating-point type, become float32; those that are already may share memory with the result.
    The number of classes is that of the head. BatchNorm's `num_batches_tracked` may be there or not, and is dropped;
    the auxiliary heads that `new_heads` names are initialised.

    Raises:
      UserError: an unknown name, or one message that says which entries are missing, extra, of another shape or of no
        floating-point type.
    """
    state_dict = _moved(name, state_dict)
    classes, made = _classes(name, state_dict), tuple(f"{head}." for head in new_heads(name, state_dict))
    entries = {key: entry for key, entry in _entries(name, classes).items() if not key.startswith(made or "-")}
    arrays = {key: entry for key, entry in entries.items() if entry}
    given = {
        key: value
        for key, value in state_dict.items()
        # A network's only scalars are its counts; others are of a wrapper, such as AveragedModel's n_averaged.
        if not str(key).startswith(made or "-") and (np.ndim(value) or str(key).endswith((_COUNT, ".weight", ".bias")))
    }
    found = fit(name, given, {key: entry.torch_shape for key, entry in arrays.items()}, entries.keys() - arrays.keys())
    flat = {entry.path: _to_flax(found[key], entry) for key, entry in arrays.items()}
    if made:
        flat |= _initial(
            name, classes, {entry.path for entry in _entries(name, classes).values() if entry} - flat.keys()
        )
    return {"params": {}, "batch_stats": {}} | unflatten_dict(flat, sep="/")


def _initial(name: str, classes: int, paths: Collection[str]) -> dict[str, np.ndarray]:
    """Return these arrays of a network that is initialised by seed 0; XLA computes no others."""
    model = create_model(name, classes)

    def make() -> dict[str, Any]:
        variables = model.init(jax.random.key(0), np.zeros((1, model.image_size, model.image_size, 3), np.float32))
        flat: Any = flatten_dict(dict(variables), sep="/")
        return {path: flat[path] for path in paths}

    return jax.device_get(jax.jit(make)())


def to_state_dict(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return arrays under torch's keys and in its order: the inverse of `from_state_dict`.

    BatchNorm's `num_batches_tracked`, which we keep no count of, is zero.

    Raises:
      UserError: an unknown name, or one message that says which variables are not as in torch's network.
    """
    flat: Any = flatten_dict(dict(variables), sep="/")
    head = np.shape(flat.get("params/head/bias"))
    entries = _entries(name, head[0] if len(head) == 1 and head[0] else 1000)
    if name in DETECTION_NAMES:  # A run may have trained its norms; the file has frozen ones.
        flat = flatten_dict(match_norms(variables, {entry.path: () for entry in entries.values() if entry}), sep="/")
    arrays = fit(name, flat, {entry.path: entry.shape for entry in entries.values() if entry})
    return {
        key: _to_torch(arrays[entry.path], entry) if entry else np.zeros((), np.int64) for key, entry in entries.items()
    }
