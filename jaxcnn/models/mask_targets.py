"""What a mask should be in a region: objects' masks as a batch holds them, brought onto the regions matched to them.

A batch holds each mask as `CELLS` × `CELLS` values over the box of its object and `config.MASK_MARGIN` pixels around
it, 255 where the cell lies in the object, so that its size depends on neither image nor canvas. Both steps, from the
mask to the cells (`data.images.object_masks`) and from the cells to a region, are RoIAlign as torchvision takes it of
the whole mask. On objects of COCO at 800 pixels the values differ from torchvision's by 0.0016 in the mean, by less
than 0.031 in 99 % of them, and 0.09 % lie on the other side of 0.5; with 56 cells it would be 0.006, 0.083 and 0.16 %.
The masks of 100 objects on a canvas of 800×1,344 would take 108 MB an image, these take 1.25 MB.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.config import MASK_MARGIN
from jaxcnn.models import boxes as box

CELLS = 112  # four for each of the 28 of a target
_SAMPLES = 4  # along each side of a bin, at most: one for each cell of a region that is as large as its object


def project(masks: jax.Array, boxes: jax.Array, rois: jax.Array, size: int) -> jax.Array:
    """Return the part of each object's mask that lies in a region, float32 (R, size, size) in 0 … 1.

    He et al. 2017, section 3; as torchvision's `project_masks_on_boxes`, values between 0 and 1 stay.

    Args:
      masks: uint8 (R, G, G), each the cells of an object's mask.
      boxes: the boxes of these objects, (R, 4).
      rois: the regions, (R, 4).
    """
    boxes, rois = lax.stop_gradient((box.wide(boxes), box.wide(rois)))
    low, high = boxes[:, :2] - MASK_MARGIN, boxes[:, 2:] + MASK_MARGIN  # (R, 2) as x, y: what the cells cover
    per_pixel = masks.shape[-1] / (high - low)
    weights = partial(_weights, bins=size, cells=masks.shape[-1])
    columns, rows = (
        weights(
            (rois[:, axis] - low[:, axis]) * per_pixel[:, axis], rois[:, axis + 2] - rois[:, axis], per_pixel[:, axis]
        )
        for axis in (0, 1)
    )  # (R, size, G) each
    # Sums of products, which XLA fuses, not matrix products: a TPU would round their operands to 16 bits.
    across = jnp.sum(rows[..., None] * (masks / jnp.float32(255))[:, None], 2)  # (R, size, G)
    return jnp.sum(across[:, :, None] * columns[:, None], 3)


def _weights(start: jax.Array, side: jax.Array, per_pixel: jax.Array, *, bins: int, cells: int) -> jax.Array:
    """Return how much each cell counts in the mean over each bin, along one axis: (R, bins, cells).

    Args:
      start: where the regions begin, in cells, (R,).
      side: how long they are, in pixels, (R,).
      per_pixel: cells of a pixel, (R,).
    """
    # torchvision's samples: ⌈pixels of a bin⌉, and no side is shorter than a pixel. Where there are more pixels, the
    # cells are means over several of them.
    side = jnp.maximum(side, 1)
    count = jnp.clip(jnp.ceil(side / bins), 1, _SAMPLES)[:, None, None]  # (R, 1, 1)
    sample = jnp.arange(_SAMPLES)
    place = (jnp.arange(bins)[:, None] + (sample + 0.5) / count) / bins  # (R, bins, samples) as a share of the side
    place = start[:, None, None] + place * (side * per_pixel)[:, None, None] - 0.5  # 0 is the middle of the first cell
    near = jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(cells)), 0)  # linear interpolation, 0 outside
    return jnp.sum(jnp.where((sample < count)[..., None], near, 0), 2) / count
