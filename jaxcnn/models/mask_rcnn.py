"""Mask R-CNN, in torchvision's form: He et al., ICCV 2017 (arXiv:1703.06870).

Faster R-CNN on a pyramid with one more branch (section 3): for each region it says, class by class, which of 28 × 28
cells belong to the object. Classes do not compete, as the loss is that of the region's own class alone. A network is a
row of `SPECS`; in training 128 regions of an image have masks, in testing its 100 detections:

    RoIAlign     from the level that fits, sampling ratio 2   100×14×14×256
    conv1 … 4    3×3, ReLU (figure 4, right)                  100×14×14×256
    conv5        transposed, 2×2 of stride 2, ReLU            100×28×28×256
    head         1×1 to the classes, a sigmoid of each        100×28×28×91
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.models import faster_rcnn
from jaxcnn.models.fast_rcnn import POSITIVES
from jaxcnn.models.faster_rcnn import FasterRCNN, align_regions
from jaxcnn.models.grid import Map
from jaxcnn.models.layers import Classifier, ConvTranspose, conv
from jaxcnn.models.mask_targets import project

BINS = (14, 14)  # Rows and columns of a region's features.
SIDE = 28  # A mask has 28×28 cells.

SPECS = {"mask_rcnn_resnet50_fpn_tv": faster_rcnn.SPECS["faster_rcnn_resnet50_fpn_tv"]}


class MaskHead(nn.Module):
    """The mask branch: features of regions (R, 14, 14, C) -> logits (R, 28, 28, classes) float32."""

    classes: int
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return a logit of each class for each cell."""
        for i in (1, 2, 3, 4):
            x = nn.relu(conv(self.channels, 3, dtype=self.dtype, use_bias=True, name=f"conv{i}")(x))
        x = nn.relu(ConvTranspose(self.channels, 2, 2, 0, use_bias=True, dtype=self.dtype, name="conv5")(x))
        return Classifier(self.classes, self.dtype, name="head")(x)


class MaskRCNN(FasterRCNN):
    """A detector that says which part of each box is the object. The outputs of `FasterRCNN`, and

    - in evaluation "masks" (N, D, 28, 28) float32, the probability that a cell of the box belongs to the object;
    - in training with `targets`, which need "masks" uint8 (N, M, G, G) (`models.mask_targets`), "mask_logits" and
      "mask_targets" (N, P, 28, 28), of the first P regions: the positive ones are among these, at most a quarter of
      `box_samples`; the other rows are padding, whose "roi_labels" are 0.
    """

    gives_masks: ClassVar[bool] = True

    def mask_outputs(
        self,
        levels: Mapping[str, Map],
        outputs: Mapping[str, jax.Array],
        targets: Mapping[str, jax.Array] | None,
        train: bool,
    ) -> dict[str, jax.Array]:
        """Return the outputs that the class adds.

        Raises:
          UserError: the targets have no masks.
        """
        head = MaskHead(self.num_classes, self.fpn_channels, self.dtype, name="mask")

        def logits_of(boxes: jax.Array, labels: jax.Array) -> jax.Array:
            """Return the logits of each region's own class, (N, R, 28, 28)."""
            x = align_regions(levels, boxes, BINS)  # (N, R, 14, 14, C)
            # Layers are sharded by rows, so each region becomes a row. Of 128 regions and 91 classes the logits take
            # 37 MB an image, before each region's own class is taken out of them.
            logits = head(x.reshape(-1, *x.shape[2:]))  # (N · R, 28, 28, classes)
            own = jnp.take_along_axis(logits, labels.reshape(-1, 1, 1, 1), axis=3)
            return own.reshape(*labels.shape, SIDE, SIDE)

        if not train:
            masks = nn.sigmoid(logits_of(outputs["boxes"], outputs["labels"]))
            return {"masks": jnp.where(outputs["valid"][..., None, None], masks, 0)}
        if targets is None:
            if self.is_initializing():
                logits_of(outputs["rois"][:, :1], jnp.zeros((len(outputs["rois"]), 1), jnp.int32))
            return {}
        if "masks" not in targets:
            raise UserError('Mask R-CNN learns from masks, and `targets` have none: add "masks" (N, M, G, G)')
        # A sample has its positives first, so that a fixed number of rows holds all of them.
        rows = slice(max(1, int(POSITIVES * self.setting("box_samples"))))
        rois, labels, objects = (outputs[name][:, rows] for name in ("rois", "roi_labels", "roi_objects"))

        def of_image(masks: jax.Array, boxes: jax.Array, rois: jax.Array, objects: jax.Array) -> jax.Array:
            return project(masks[objects], boxes[objects], rois, SIDE)

        wanted = jax.vmap(of_image)(targets["masks"], targets["boxes"], rois, objects)
        return {"mask_logits": logits_of(rois, labels), "mask_targets": wanted}


MODELS = {name: partial(MaskRCNN, spec) for name, spec in SPECS.items()}
