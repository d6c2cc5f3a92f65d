"""Faster R-CNN, on the maps of any classification network: Ren et al., NIPS 2015 (arXiv:1506.01497).

A region proposal network (`models.rpn`) finds boxes that may hold an object. The head of Fast R-CNN
(`models.fast_rcnn`) classifies each of them, and regresses its box again, for every class. A network is a row of
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
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np

from jaxcnn.models import fast_rcnn, rpn
from jaxcnn.models.anchors import cell_anchors, paper_anchors
from jaxcnn.models.fast_rcnn import FastRCNN
from jaxcnn.models.fpn import FPN, levels_of
from jaxcnn.models.grid import Map
from jaxcnn.models.layers import widen
from jaxcnn.models.roi import assign_levels, roi_align

RATIOS = (0.5, 1, 2)  # height / width of the anchors


@dataclass(frozen=True, kw_only=True)
class Spec(fast_rcnn.Spec):
    """One architecture. Its fields are the values of a module's fields of the same names that are None.

    Attributes:
      pyramid: FPN and RoIAlign; else the trunk's last map and RoI pooling.
      border: anchors that cross the border of their image are trained, too.
      rpn_min_side: pixels of the shorter side below which a proposal is left out. The authors' limit is in pixels of
        the stored image, this one of the resized one.
      anchor_scales: sides of a cell's square anchors, in strides.
    """

    pyramid: bool = False
    border: bool = False
    background: tuple[float, float] = (0.0, 0.5)  # as in the authors' later code
    box_samples: int = 128
    rpn_min_side: float = 16.0
    anchor_scales: tuple[float, ...] = (8, 16, 32)
    rpn_pre_nms: tuple[int, int] = (12_000, 6_000)
    rpn_post_nms: tuple[int, int] = (2_000, 300)


SPECS = {
    "faster_rcnn_vgg16": Spec(backbone="vgg16"),
    "faster_rcnn_resnet50_fpn_tv": Spec(
        backbone="resnet50_tv", pyramid=True, inclusive=False, border=True, rpn_min_side=1e-3, min_side=1e-2,
        anchor_scales=(8,), rpn_pre_nms=(2_000, 1_000), rpn_post_nms=(2_000, 1_000), box_samples=512,
        nms_threshold=0.5, head_features=1024, dropout=0.0, mask_padding=False, frozen_norm=True, classes=91,
        image_size=800,
    ),
}  # fmt: skip


class FasterRCNN(FastRCNN):
    """A detector that makes its own proposals. The outputs of `FastRCNN`, its class lists them, and

    - "rpn_logits" (N, A) and "rpn_deltas" (N, A, 4), of the anchors in the order of `models.rpn`;
    - in training with `targets` "rpn_matches" (N, A) int32 and "rpn_targets" (N, A, 4): what the sampled anchors should
      give, for the losses (`tasks.detection`).

    Given `proposals` replace the network's own, and those without an area are padding.

    Attributes:
      anchor_scales: sides of a cell's square anchors, in strides of their level. None, here and below, stands for the
        value of the architecture's `Spec`.
      rpn_pre_nms, rpn_post_nms: proposals before and after suppression, (in training, in testing).
      rpn_nms_threshold: IoU of that suppression.
      rpn_samples: anchors of an image that are trained; at most half of them are positive.
      fpn_channels: width of the pyramid.
    """

    proposes: ClassVar[bool] = True
    anchor_scales: tuple[float, ...] | None = None
    rpn_pre_nms: tuple[int, int] | None = None
    rpn_post_nms: tuple[int, int] | None = None
    rpn_nms_threshold: float = 0.7
    rpn_samples: int = 256
    fpn_channels: int = 256

    @property
    def trunk_fields(self) -> dict[str, Any]:
        """Return the fields of the trunk; where one map is used, its stride is 16 if the trunk can have that."""
        fields = super().trunk_fields
        return {name: x for name, x in fields.items() if not (self.spec.pyramid and name == "output_stride")}

    @property
    def endpoints(self) -> dict[str, tuple[int, int]]:
        """Return {endpoint: (stride in pixels of the image, channels)}, in the order of the forward pass."""
        of_trunk = self.trunk().endpoints
        if not self.spec.pyramid:
            return of_trunk
        return of_trunk | {f"p_{name}": (of_trunk[name][0], self.fpn_channels) for name in levels_of(of_trunk)}

    def levels(self, maps: Mapping[str, Map]) -> dict[str, Map]:
        """Return the maps that proposals come from: a pyramid, or the trunk's last endpoint."""
        if not self.spec.pyramid:
            return super().levels(maps)
        names = levels_of(self.trunk().endpoints)
        return FPN(self.fpn_channels, self.dtype, name="fpn")({name: maps[name] for name in names})

    def regions(
        self,
        levels: Mapping[str, Map],
        canvas: tuple[int, int],
        sizes: jax.Array,
        proposals: jax.Array | None,
        targets: Mapping[str, jax.Array] | None,
        train: bool,
    ) -> dict[str, jax.Array]:
        """Return "rois" and "roi_valid", the RPN's proposals or the given ones, and the RPN's outputs."""
        cells = [self.first_cell_anchors(grid.stride) for _, grid in levels.values()]
        anchors = rpn.make_anchors(list(levels.values()), cells, canvas, self.setting("mask_padding"))
        channels = self.fpn_channels if self.spec.pyramid else widen(512, self.width or 1)
        head = rpn.Head(len(cells[0]), channels, self.dtype, softmax=not self.spec.pyramid, name="rpn")
        logits, deltas = head(list(levels.values()))
        outputs = {"rpn_logits": logits, "rpn_deltas": deltas}
        if targets is not None:
            outputs["rpn_matches"], outputs["rpn_targets"] = rpn.assign_targets(
                anchors, targets["boxes"], targets["valid"], targets["keys"], sizes, samples=self.rpn_samples,
                border=self.spec.border, inclusive=self.spec.inclusive,
            )  # fmt: skip
        if proposals is not None:
            return outputs | super().regions(levels, canvas, sizes, proposals, targets, train)
        rois, valid = self.propose(anchors, logits, deltas, sizes, train)
        return outputs | {"rois": rois, "roi_valid": valid}

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

    def pool_regions(self, levels: Mapping[str, Map], rois: jax.Array) -> jax.Array:
        """Return the features of the regions (N, R, 4): (N, R, 7, 7, C)."""
        if not self.spec.pyramid:
            return super().pool_regions(levels, rois)
        return align_regions(levels, rois, self.spec.bins)


def align_regions(levels: Mapping[str, Map], rois: jax.Array, bins: tuple[int, int]) -> jax.Array:
    """Return the features (N, R, *bins, C) of regions (N, R, 4), each from the pyramid's level that fits its size."""
    maps = [level for name, level in levels.items() if name != "p_pool"]  # Only the RPN sees the coarsest level.
    grids = [grid for _, grid in maps]
    # Pooling does not see beyond the part of each map, (N, 2), that comes from its image.
    own = [grid.sizes for grid in grids if grid.sizes is not None]  # none: the maps fill their canvas
    lowest, highest = (int(math.log2(grid.stride)) for grid in (grids[0], grids[-1]))
    return roi_align(
        [x for x, _ in maps], [1 / grid.stride for grid in grids], rois, bins,
        levels=assign_levels(rois, lowest, highest), sizes=own or None,
    )  # fmt: skip


MODELS = {name: partial(FasterRCNN, spec) for name, spec in SPECS.items()}
