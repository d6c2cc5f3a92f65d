"""Faster R-CNN, on the maps of any classification network: Ren et al., NIPS 2015 (arXiv:1506.01497).

A region proposal network (`models.rpn`) finds boxes that may hold an object. The head of Fast R-CNN (Girshick, ICCV
2015, arXiv:1504.08083) classifies each of them, and regresses its box again, for every class. A network is a row of
`SPECS`; on 600×1,000 pixels `faster_rcnn_vgg16` is

    trunk     VGG-16, conv1_1 … conv5_3, stride 16         38×63×512
    rpn       3×3, 512; nine anchors a cell                21,546 anchors, 300 proposals
    RoI pool  maxima over 7×7 bins of each proposal        300×7×7×512
    fc6, fc7  with dropout, from the classifier's weights  300×4096
    head      softmax over the classes and background      300×21
    boxes     a regression for each class                  300×21×4

The two parts are trained jointly, as in the authors' Python code, where the paper alternates. In
`faster_rcnn_resnet50_fpn_tv`, torchvision's, the maps are a pyramid (`models.fpn`), a cell has three anchors, RoIAlign
takes the place of RoI pooling, the head has 1,024 units and no dropout, and corners are points, not pixels.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.models import boxes as box
from jaxcnn.models import rpn
from jaxcnn.models.anchors import cell_anchors, paper_anchors
from jaxcnn.models.fpn import FPN, levels_of
from jaxcnn.models.grid import CANVAS, Grid, Map
from jaxcnn.models.layers import Classifier, FullyConnected, widen
from jaxcnn.models.matching import match, sample
from jaxcnn.models.nms import nms
from jaxcnn.models.roi import assign_levels, roi_align, roi_pool
from jaxcnn.models.trunk import OnTrunk

BINS = (7, 7)  # rows and columns of a region's features
RATIOS = (0.5, 1, 2)  # height / width of the anchors
CODER = (10, 10, 5, 5)  # factors on the targets of the head: the inverse of the authors' standard deviations


class Spec(NamedTuple):
    """One architecture. Its fields are the values of a module's fields of the same names that are None.

    Attributes:
      pyramid: FPN and RoIAlign; else the trunk's last map and RoI pooling.
      inclusive: corners are pixels that belong to the box; see `models.boxes`.
      border: anchors that cross the border of their image are trained, too.
      rpn_min_side, min_side: pixels of the shorter side below which a proposal, or a detection, is left out. The
        authors' limit is in pixels of the stored image, this one of the resized one.
      anchor_scales: sides of a cell's square anchors, in strides.
      frozen_norm: the trunk's BatchNorm is frozen.
    """

    backbone: str
    pyramid: bool
    inclusive: bool
    border: bool
    rpn_min_side: float
    min_side: float
    anchor_scales: tuple[float, ...]
    rpn_pre_nms: tuple[int, int]
    rpn_post_nms: tuple[int, int]
    box_samples: int
    nms_threshold: float
    head_features: int
    dropout: float
    mask_padding: bool
    frozen_norm: bool
    classes: int
    image_size: int


SPECS = {
    "faster_rcnn_vgg16": Spec(
        "vgg16", pyramid=False, inclusive=True, border=False, rpn_min_side=16, min_side=0, anchor_scales=(8, 16, 32),
        rpn_pre_nms=(12_000, 6_000), rpn_post_nms=(2_000, 300), box_samples=128, nms_threshold=0.3, head_features=4096,
        dropout=0.5, mask_padding=True, frozen_norm=False, classes=21, image_size=600,
    ),
    "faster_rcnn_resnet50_fpn_tv": Spec(
        "resnet50_tv", pyramid=True, inclusive=False, border=True, rpn_min_side=1e-3, min_side=1e-2, anchor_scales=(8,),
        rpn_pre_nms=(2_000, 1_000), rpn_post_nms=(2_000, 1_000), box_samples=512, nms_threshold=0.5, head_features=1024,
        dropout=0.0, mask_padding=False, frozen_norm=True, classes=91, image_size=800,
    ),
}  # fmt: skip


class Regression(nn.Module):
    """Regressions of a box for each class: (R, C) -> (R, classes, 4) float32."""

    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the four numbers of each class, as `boxes.encode` has them."""
        deltas = Classifier(4 * self.classes, self.dtype, nn.initializers.normal(0.001), name="head")(x)
        return deltas.reshape(-1, 4, self.classes).swapaxes(1, 2)  # The classes are last in the layer, as in any head.


class FasterRCNN(OnTrunk):
    """A detector of two stages; boxes are x1, y1, x2, y2 in pixels of the canvas, and class 0 is the background.

    Images (N, H, W, C) -> a dict of the endpoints and

    - "rpn_logits" (N, A) and "rpn_deltas" (N, A, 4), of the anchors in the order of `models.rpn`;
    - "rois" (N, R, 4) and "roi_valid" (N, R) bool, the regions that the head sees;
    - "box_logits" (N, R, classes) and "box_deltas" (N, R, classes, 4);
    - in evaluation "boxes" (N, D, 4), "scores" (N, D) by falling score, "labels" (N, D) int32 and "valid" (N, D) bool;
    - in training with `targets` "rpn_matches" (N, A) int32, "rpn_targets" (N, A, 4), "roi_labels" (N, R) int32 and
      "box_targets" (N, R, 4): what the sampled anchors and regions should give, for the losses (`tasks.detection`).

    Attributes:
      num_classes: the background is one of them.
      dropout: rate after fc6 and fc7. None, here and below, stands for the value of the architecture's `Spec`.
      anchor_scales: sides of a cell's square anchors, in strides of their level.
      rpn_pre_nms, rpn_post_nms: proposals before and after suppression, (in training, in testing).
      rpn_nms_threshold: IoU of that suppression.
      rpn_samples, box_samples: anchors and regions of an image that are trained; at most half and a quarter of them are
        positive.
      score_threshold: least score of a detection.
      nms_threshold: IoU of the suppression of detections within a class.
      detections: rows for the detections of an image, D.
      fpn_channels, head_features: widths of the pyramid, and of fc6 and fc7.
      mask_padding: every layer masks the padding of a canvas, so that no output depends on it; else only the image is 0
        there, as in torchvision.
    """

    task: ClassVar[str] = "detection"
    spec: Spec
    num_classes: int = 21
    dropout: float | None = None
    anchor_scales: tuple[float, ...] | None = None
    rpn_pre_nms: tuple[int, int] | None = None
    rpn_post_nms: tuple[int, int] | None = None
    rpn_nms_threshold: float = 0.7
    rpn_samples: int = 256
    box_samples: int | None = None
    score_threshold: float = 0.05
    nms_threshold: float | None = None
    detections: int = 100
    fpn_channels: int = 256
    head_features: int | None = None
    mask_padding: bool | None = None

    def setting(self, name: str) -> Any:
        """Return the field `name`, or the architecture's value where it is None."""
        value = getattr(self, name)
        return getattr(self.spec, name) if value is None else value

    @property
    def image_size(self) -> int:
        """Return the shorter side in pixels of the published network's images."""
        return 128 if self.small_images else self.spec.image_size

    @property
    def published_classes(self) -> int:
        """Return the number of classes of the published network, the background included."""
        return self.spec.classes

    @property
    def trunk_fields(self) -> dict[str, Any]:
        """Return the fields of the trunk; where one map is used, its stride is 16 if the trunk can have that."""
        one_map = {} if self.spec.pyramid else {"output_stride": 16}
        return {"ceil_pool": True, "frozen_norm": self.spec.frozen_norm} | one_map

    @property
    def endpoints(self) -> dict[str, tuple[int, int]]:
        """Return {endpoint: (stride in pixels of the image, channels)}, in the order of the forward pass."""
        of_trunk = self.trunk().endpoints
        if not self.spec.pyramid:
            return of_trunk
        return of_trunk | {f"p_{name}": (of_trunk[name][0], self.fpn_channels) for name in levels_of(of_trunk)}

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        sizes: jax.Array | None = None,
        targets: Mapping[str, jax.Array] | None = None,
        proposals: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, Any]:
        """Return the outputs that the class lists.

        Args:
          images: NHWC floats, each in the upper left corner of the canvas.
          sizes: int32 (N, 2), their heights and widths; None: they fill it.
          targets: objects, "boxes" (N, M, 4), "labels" (N, M) and "valid" (N, M) bool, and "example" int32 (N,). The
            samples are functions of the example and the RNG stream `sampling`.
          proposals: boxes (N, R, 4) in place of the RPN's; those without an area are padding.
        """
        canvas = images.shape[1], images.shape[2]
        image_sizes = jnp.broadcast_to(jnp.asarray(canvas), (len(images), 2)) if sizes is None else sizes
        masked = self.setting("mask_padding")
        maps = self.trunk("trunk")(Grid(sizes).crop(images), train=train, grid=Grid(sizes) if masked else CANVAS)
        levels = self.levels(maps)
        outputs: dict[str, Any] = {name: (levels.get(name) or maps[name]).x for name in (*self.endpoints, *levels)}

        cells = [self.first_cell_anchors(grid.stride) for _, grid in levels.values()]
        anchors = rpn.make_anchors(list(levels.values()), cells, canvas, masked)
        channels = self.fpn_channels if self.spec.pyramid else widen(512, self.width or 1)
        head = rpn.Head(len(cells[0]), channels, self.dtype, softmax=not self.spec.pyramid, name="rpn")
        logits, deltas = head(list(levels.values()))
        outputs |= {"rpn_logits": logits, "rpn_deltas": deltas}

        if proposals is None:
            rois, valid = self.propose(anchors, logits, deltas, image_sizes, train)
        else:
            rois = box.clip(proposals, image_sizes, self.spec.inclusive)
            valid = box.area(rois) > 0
        if train and targets is not None:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("sampling"), targets["example"])  # (N,)
            outputs["rpn_matches"], outputs["rpn_targets"] = rpn.assign_targets(
                anchors, targets["boxes"], targets["valid"], keys, image_sizes, samples=self.rpn_samples,
                border=self.spec.border, inclusive=self.spec.inclusive,
            )  # fmt: skip
            rois, valid, outputs["roi_labels"], outputs["box_targets"] = self.sample_regions(rois, valid, targets, keys)
        outputs |= {"rois": rois, "roi_valid": valid}
        outputs["box_logits"], outputs["box_deltas"] = self.box_head(self.pool_regions(levels, rois), train)
        if not train:
            outputs |= self.detect(rois, valid, outputs["box_logits"], outputs["box_deltas"], image_sizes)
        return outputs

    def levels(self, maps: Mapping[str, Map]) -> dict[str, Map]:
        """Return the maps that proposals come from: a pyramid, or the trunk's last endpoint."""
        names = self.trunk().endpoints
        if not self.spec.pyramid:
            return {(last := list(names)[-1]): maps[last]}
        return FPN(self.fpn_channels, self.dtype, name="fpn")({name: maps[name] for name in levels_of(names)})

    def first_cell_anchors(self, stride: int) -> np.ndarray:
        """Return the anchors of a level's first cell, (a, 4)."""
        scales = self.setting("anchor_scales")
        if self.spec.inclusive:
            return paper_anchors(scales, RATIOS, stride)
        return cell_anchors([scale * stride for scale in scales], RATIOS)

    def trains_anchors(self, size: tuple[int, int]) -> bool:
        """Return whether an image of (height, width) has room for an anchor that trains: one within its borders."""
        stride = list(self.trunk().endpoints.values())[-1][0]
        corners = self.first_cell_anchors(stride)
        sides = corners[:, 2:] - corners[:, :2] + self.spec.inclusive  # (a, 2), widths and heights
        return self.spec.border or bool((sides <= np.array(size[::-1])).all(1).any())

    def propose(
        self, anchors: rpn.Anchors, logits: jax.Array, deltas: jax.Array, sizes: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Return the RPN's proposals (N, R, 4), and which rows are proposals, bool (N, R); see `rpn.propose`."""
        pre_nms, post_nms = (self.setting(name)[0 if train else 1] for name in ("rpn_pre_nms", "rpn_post_nms"))
        return rpn.propose(
            anchors, logits, deltas, sizes, pre_nms=pre_nms, post_nms=post_nms, threshold=self.rpn_nms_threshold,
            min_side=self.spec.rpn_min_side, inclusive=self.spec.inclusive,
        )  # fmt: skip

    def sample_regions(
        self, rois: jax.Array, valid: jax.Array, targets: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Return a sample of the regions for training, which rows are sampled, their labels, and their targets.

        The shapes are (N, S, 4), bool (N, S), int32 (N, S) and (N, S, 4), S = `box_samples` or the number of regions if
        that is less. Girshick 2015, section 2.3, but background begins at IoU 0, as in the authors' later code. The
        objects themselves are added to the regions, so that there are positives from the first step on.
        """
        truth, labels, real = (targets[name] for name in ("boxes", "labels", "valid"))  # (N, M, …)
        rois, valid = jnp.concatenate([rois, box.wide(truth)], 1), jnp.concatenate([valid, real], 1)  # (N, R + M, …)

        def of_image(rois: Any, valid: Any, truth: Any, labels: Any, real: Any, key: jax.Array) -> Any:
            matches = match(
                truth, rois, positive=0.5, negative=(0.0, 0.5), valid=real, candidates=valid,
                inclusive=self.spec.inclusive,
            )  # fmt: skip
            key = jax.random.fold_in(key, 1)  # The key itself has drawn the sample of anchors.
            index, drawn = sample(matches, key, self.setting("box_samples"), 0.25)  # (S,)
            rois, matches = rois[index], matches[index]
            owner, positive = jnp.maximum(matches, 0), drawn & (matches >= 0)
            wanted = box.encode(rois, truth[owner], CODER, self.spec.inclusive)  # (S, 4)
            return (
                jnp.where(drawn[:, None], rois, 0), drawn, jnp.where(positive, labels[owner], 0),
                jnp.where(positive[:, None], wanted, 0),
            )  # fmt: skip

        return jax.vmap(of_image)(rois, valid, truth, labels, real, keys)

    def pool_regions(self, levels: Mapping[str, Map], rois: jax.Array) -> jax.Array:
        """Return the features of the regions (N, R, 4): (N, R, 7, 7, C)."""
        maps = [level for name, level in levels.items() if name != "p_pool"]  # Only the RPN sees the coarsest level.
        grids = [grid for _, grid in maps]
        # Pooling does not see beyond the part of each map, (N, 2), that comes from its image.
        own = [grid.sizes for grid in grids if grid.sizes is not None]  # none: the maps fill their canvas
        if not self.spec.pyramid:
            return roi_pool(maps[0].x, 1 / grids[0].stride, rois, BINS, own[0] if own else None)
        lowest, highest = (int(math.log2(grid.stride)) for grid in (grids[0], grids[-1]))
        return roi_align(
            [x for x, _ in maps], [1 / grid.stride for grid in grids], rois, BINS,
            levels=assign_levels(rois, lowest, highest), sizes=own or None,
        )  # fmt: skip

    def box_head(self, regions: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Return class scores (N, R, classes) and regressions (N, R, classes, 4) of regions (N, R, 7, 7, C)."""
        count = regions.shape[:2]
        # Layers are sharded by rows, so each region becomes a row.
        x = regions.reshape(-1, *regions.shape[2:])  # (N · R, 7, 7, C)
        features = self.head_features or widen(self.spec.head_features, self.width or 1)
        for name in ("fc6", "fc7"):
            x = nn.relu(FullyConnected(features, self.dtype, name=name)(x))
            x = nn.Dropout(self.setting("dropout"), deterministic=not train)(x)
        logits = Classifier(self.num_classes, self.dtype, nn.initializers.normal(0.01), name="head")(x)
        deltas = Regression(self.num_classes, self.dtype, name="boxes")(x)
        return logits.reshape(*count, -1), deltas.reshape(*count, -1, 4)

    def detect(
        self, rois: jax.Array, valid: jax.Array, logits: jax.Array, deltas: jax.Array, sizes: jax.Array
    ) -> dict[str, jax.Array]:
        """Return "boxes" (N, D, 4), "scores", "labels" and "valid" (N, D) of the detections, by falling score.

        Each region gives a box for every class but the background. Boxes of one class suppress each other.
        """
        classes, inclusive = self.num_classes - 1, self.spec.inclusive

        def of_image(rois: jax.Array, valid: jax.Array, logits: jax.Array, deltas: jax.Array, size: jax.Array) -> Any:
            found = box.decode(rois[:, None], deltas, CODER, inclusive)[:, 1:].reshape(-1, 4)  # (R · classes, 4)
            found, scores = box.clip(found, size, inclusive), jax.nn.softmax(logits)[:, 1:].ravel()
            labels = jnp.tile(jnp.arange(1, classes + 1), len(rois))  # (R · classes,), as the boxes and scores
            eligible = jnp.repeat(valid, classes) & (scores > self.score_threshold)
            eligible &= box.large_enough(found, self.spec.min_side, inclusive)
            index, present = nms(
                found, scores, self.setting("nms_threshold"), count=self.detections, groups=labels, valid=eligible,
                inclusive=inclusive,
            )  # fmt: skip
            boxes, scores = jnp.where(present[:, None], found[index], 0), jnp.where(present, scores[index], 0)
            return boxes, scores, labels[index], present

        kept = jax.vmap(of_image)(rois, valid, logits, deltas, sizes)
        return dict(zip(("boxes", "scores", "labels", "valid"), kept, strict=True))


MODELS = {name: partial(FasterRCNN, spec) for name, spec in SPECS.items()}
