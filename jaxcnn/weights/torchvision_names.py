"""PyTorch's names of our modules, family by family, and the order of its channels where that is not ours."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxcnn.models import alexnet, faster_rcnn, fcn, googlenet, mask_rcnn, resnet, vgg

Modules = Iterator[tuple[str, str]]  # ours, torch's
Orders = dict[str, dict[int, np.ndarray]]  # our module -> {axis of its arrays: torch's index of each of our channels}


def modules_of(name: str) -> list[tuple[str, str]]:
    """Return (our module, torch's) in the order of torch's state dict; the network `name` may lack some."""
    return next(list(walk(specs[name])) for specs, walk in _FAMILIES if name in specs)


def _alexnet(spec: alexnet.Spec) -> Modules:
    """Yield the names; `features` counts convolutions, their ReLUs and the pooling after conv1, conv2 and conv5."""
    index = 0
    for i in range(1, len(spec.channels) + 1):
        yield f"conv{i}", f"features.{index}"
        index += 3 if i in (1, 2) else 2
    yield from (("fc6", "classifier.1"), ("fc7", "classifier.4"), ("head", "classifier.6"))


def _vgg(spec: vgg.Spec) -> Modules:
    """Yield the names; `features` counts convolutions, BatchNorms, ReLUs and poolings."""
    index = 0
    for stage, kernels in enumerate(spec.stages, start=1):
        for i in range(1, len(kernels) + 1):
            yield f"stage{stage}_conv{i}", f"features.{index}"
            yield f"stage{stage}_norm{i}", f"features.{index + 1}"  # where there are norms
            index += 3 if spec.norm else 2
        index += 1
    yield from (("fc6", "classifier.0"), ("fc7", "classifier.3"), ("head", "classifier.6"))


def _googlenet(_: googlenet.Spec) -> Modules:
    units = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
    branches = {
        "conv1x1": "branch1", "reduce3x3": "branch2.0", "conv3x3": "branch2.1",
        "reduce5x5": "branch3.0", "conv5x5": "branch3.1", "project": "branch4.1",
    }  # fmt: skip
    for block in googlenet.INCEPTIONS:
        units |= {f"inception{block}/{ours}": f"inception{block}.{theirs}" for ours, theirs in branches.items()}
    for ours, theirs in units.items():
        yield f"{ours}/conv", f"{theirs}.conv"
        yield f"{ours}/norm", f"{theirs}.bn"
    for aux in googlenet.AUXILIARY.values():
        yield f"{aux}/project/conv", f"{aux}.conv.conv"
        yield f"{aux}/project/norm", f"{aux}.conv.bn"
        yield f"{aux}/fc", f"{aux}.fc1"
        yield f"{aux}/head", f"{aux}.fc2"
    yield "head", "fc"


def _resnet(spec: resnet.Spec) -> Modules:
    yield from (("stem_conv", "conv1"), ("stem_norm", "bn1"))
    for stage, blocks in enumerate(spec.blocks, start=1):
        for block in range(blocks):
            ours, theirs = f"stage{stage}_block{block + 1}", f"layer{stage}.{block}"
            for i in range(1, 4 if spec.bottleneck else 3):
                yield f"{ours}/conv{i}", f"{theirs}.conv{i}"
                yield f"{ours}/norm{i}", f"{theirs}.bn{i}"
            yield f"{ours}/shortcut_conv", f"{theirs}.downsample.0"  # where there is a projection
            yield f"{ours}/shortcut_norm", f"{theirs}.downsample.1"
    yield "head", "linear" if spec.cifar else "fc"


def _fcn(spec: fcn.Spec | fcn.SpecTv) -> Modules:
    """Yield the names of torchvision's backbone and heads, or those of Caffe's layers."""
    if isinstance(spec, fcn.SpecTv):
        for ours, theirs in _resnet(resnet.SPECS[spec.backbone]):
            if ours != "head":
                yield f"trunk/{ours}", f"backbone.{theirs}"
        for ours, theirs in (("", "classifier"), ("aux/", "aux_classifier")):
            yield f"{ours}hidden/conv", f"{theirs}.0"
            yield f"{ours}hidden/norm", f"{theirs}.1"
            yield f"{ours}head", f"{theirs}.4"
        return
    for stage, kernels in enumerate(vgg.SPECS[spec.backbone].stages, start=1):
        for i in range(1, len(kernels) + 1):
            yield f"trunk/stage{stage}_conv{i}", f"conv{stage}_{i}"
    yield from (("fc6", "fc6"), ("fc7", "fc7"), ("head", "score_fr"))
    for stage in (4, 3)[: len(spec.skips)]:
        yield f"score_pool{stage}/head", f"score_pool{stage}"


def _rcnn(spec: faster_rcnn.Spec) -> Modules:
    """Yield the names of a detector's layers: backbone, pyramid, RPN and box head."""
    for ours, theirs in _resnet(resnet.SPECS[spec.backbone]):
        if ours != "head":
            yield f"trunk/{ours}", f"backbone.body.{theirs}"
    stages = range(len(resnet.SPECS[spec.backbone].blocks))
    yield from ((f"fpn/lateral_stage{i + 1}", f"backbone.fpn.inner_blocks.{i}.0") for i in stages)
    yield from ((f"fpn/output_stage{i + 1}", f"backbone.fpn.layer_blocks.{i}.0") for i in stages)
    yield from (("rpn/conv", "rpn.head.conv.0.0"), ("rpn/objectness", "rpn.head.cls_logits"))
    yield "rpn/deltas", "rpn.head.bbox_pred"
    yield from ((name, f"roi_heads.box_head.{name}") for name in ("fc6", "fc7"))
    yield from (("head", "roi_heads.box_predictor.cls_score"), ("boxes/head", "roi_heads.box_predictor.bbox_pred"))


def _mask_rcnn(spec: faster_rcnn.Spec) -> Modules:
    """Yield the names of a detector's layers, and those of its masks."""
    yield from _rcnn(spec)
    yield from ((f"mask/conv{i + 1}", f"roi_heads.mask_head.{i}.0") for i in range(4))
    yield from ((f"mask/{ours}", f"roi_heads.mask_predictor.{theirs}") for ours, theirs in _PREDICTOR.items())


_PREDICTOR = {"conv5": "conv5_mask", "head": "mask_fcn_logits"}
TRANSPOSED = {"mask/conv5"}  # whose kernels torch keeps as (in, out, height, width), and turned by 180°
POINTWISE = {"mask/head"}  # fully connected layers of ours that are 1×1 convolutions in torch

_FAMILIES: Any = (
    (alexnet.SPECS, _alexnet), (vgg.SPECS, _vgg), (googlenet.SPECS, _googlenet), (resnet.SPECS, _resnet),
    (fcn.SPECS, _fcn), (faster_rcnn.SPECS, _rcnn), (mask_rcnn.SPECS, _mask_rcnn),
)  # fmt: skip


def rcnn_orders(num_classes: int) -> Orders:
    """Return torch's order of the regressions: class by class, each with its four; ours is coordinate by coordinate."""
    return {"boxes/head": {-1: np.arange(4 * num_classes).reshape(num_classes, 4).T.ravel()}}


def cifar_orders(spec: resnet.Spec) -> Orders:
    """Return the port's order of the channels that shortcuts carry; those within a block are as ours.

    A stage of C channels gets P from the one before: the port puts them after C/4 zeros, we put them first.
    """
    orders: Orders = {}
    carried = np.arange(16)  # of the stem
    for stage, blocks in enumerate(spec.blocks, start=1):
        received, channels = carried, 16 << (stage - 1)
        if stage > 1:
            inside = channels // 4 + received
            carried = np.concatenate([inside, np.setdiff1d(np.arange(channels), inside)])
        for block in range(1, blocks + 1):
            name = f"stage{stage}_block{block}"
            # Kernels are (height, width, in, out); vectors of a norm have one axis, the last.
            orders[f"{name}/conv1"] = {-2: received if block == 1 else carried}
            orders[f"{name}/conv2"] = orders[f"{name}/norm2"] = {-1: carried}
    orders["head"] = {-2: carried}
    return orders
