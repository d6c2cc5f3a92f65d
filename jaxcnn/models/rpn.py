"""RPN: "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", Ren et al., NIPS 2015.

arXiv:1506.01497, section 3.1. At each cell of a map, or of each level of a pyramid, it scores the anchors there as
objects or background, and regresses boxes from them. The best boxes that do not overlap are the proposals. `Head` is
the network; `propose` turns its outputs into proposals; `assign_targets` says which anchors it learns from, and what.

Arrays over anchors are (N, A, …), in the order of levels from fine to coarse, rows, columns, and anchors of a cell.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.models import boxes as box
from jaxcnn.models.anchors import spread
from jaxcnn.models.grid import Map
from jaxcnn.models.layers import Pointwise, conv
from jaxcnn.models.matching import IGNORED, match, sample
from jaxcnn.models.nms import nms


class Head(nn.Module):
    """Scores and regressions of the anchors of each cell: a 3×3 convolution and two of 1×1, shared by all levels.

    Attributes:
      anchors: number of anchors of a cell.
      channels: width of the hidden layer.
      softmax: the layer has two scores an anchor, background and object, for the paper's softmax. Their difference is
        the logit: softmax over two classes is the sigmoid of it.
    """

    anchors: int
    channels: int
    dtype: Any
    softmax: bool = False

    @nn.compact
    def __call__(self, levels: Sequence[Map]) -> tuple[jax.Array, jax.Array]:
        """Return logits (N, A) and deltas (N, A, 4) of all levels, float32."""
        init = nn.initializers.normal(0.01)  # section 3.1.3
        hidden = conv(self.channels, 3, use_bias=True, kernel_init=init, dtype=self.dtype, name="conv")
        scores = Pointwise(self.anchors * (1 + self.softmax), self.dtype, init, name="objectness")
        regress = Pointwise(4 * self.anchors, self.dtype, init, name="deltas")
        logits, deltas = [], []
        for x, _ in levels:
            x = nn.relu(hidden(x))
            score = scores(x)
            if self.softmax:
                # Channels are in Caffe's order: the background scores of all a anchors come first.
                background, objects = jnp.split(score, 2, -1)  # (N, H, W, a) each
                score = objects - background
            logits.append(score.reshape(len(x), -1))  # (N, H · W · a)
            deltas.append(regress(x).reshape(len(x), -1, 4))
        return jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1)


class Anchors(NamedTuple):
    """The anchors of a batch's images.

    Attributes:
      boxes: float32 (A, 4), the same for all images.
      inside: bool (N, A), which of them lie at cells of the image, not of the padding of its canvas; None: all.
      counts: number of anchors of each level.
      ids: int32 (A,), a number of each anchor by level, row, column and shape, which does not depend on the canvas.
    """

    boxes: jax.Array
    inside: jax.Array | None
    counts: tuple[int, ...]
    ids: jax.Array


def make_anchors(levels: Sequence[Map], cells: Sequence[np.ndarray], canvas: tuple[int, int], exact: bool) -> Anchors:
    """Return the anchors of all levels.

    Args:
      cells: the anchors of each level's first cell, float32 (a, 4).
      canvas: height and width of the images with their padding.
      exact: cells lie one stride apart; else canvas // cells pixels, torchvision's, which depends on the canvas.
    """
    boxes, ids = [], []
    for number, ((x, grid), cell) in enumerate(zip(levels, cells, strict=True)):
        rows, columns = x.shape[1:3]
        stride = (grid.stride, grid.stride) if exact else (canvas[0] // rows, canvas[1] // columns)
        boxes.append(spread(cell, (rows, columns), stride))
        # An id has 11 bits for the row, 11 for the column, 5 for the anchor of the cell and 4 for the level.
        place = jnp.arange(rows)[:, None] << 20 | jnp.arange(columns) << 9
        ids.append((place[..., None] | jnp.arange(len(cell)) << 4 | number).ravel())
    inside = None
    if levels[0].grid.sizes is not None:
        masks = [jnp.repeat(grid.inside(x).reshape(len(x), -1), len(cell), 1)  # type: ignore[union-attr]
                 for (x, grid), cell in zip(levels, cells, strict=True)]  # fmt: skip
        inside = jnp.concatenate(masks, 1)
    counts = tuple(len(level) for level in boxes)
    return Anchors(jnp.concatenate(boxes), inside, counts, jnp.concatenate(ids).astype(jnp.int32))


def propose(
    anchors: Anchors,
    logits: jax.Array,
    deltas: jax.Array,
    sizes: jax.Array,
    *,
    pre_nms: int,
    post_nms: int,
    threshold: float,
    min_side: float,
    inclusive: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return the proposals by falling score, (N, post_nms, 4), and which rows are proposals, bool (N, post_nms).

    Section 3.3. On a pyramid, boxes of different levels do not suppress each other, as in torchvision. Proposals have
    no gradient.

    Args:
      logits, deltas: (N, A) and (N, A, 4).
      sizes: heights and widths of the images, (N, 2), to which boxes are clipped.
      pre_nms: boxes of each level that enter suppression, at most: those of the highest scores.
      post_nms: proposals of an image, at most.
      threshold: IoU above which the box of the higher score suppresses the other.
      min_side: pixels; a box with a shorter side is left out.
    """
    logits, deltas = lax.stop_gradient((logits, deltas))
    inside = jnp.ones(logits.shape, bool) if anchors.inside is None else anchors.inside

    def of_image(logits: jax.Array, deltas: jax.Array, inside: jax.Array, size: jax.Array) -> Any:
        scores = jnp.where(inside, logits, -jnp.inf)
        chosen, groups, start = [], [], 0
        for level, count in enumerate(anchors.counts):
            best = lax.top_k(scores[start : start + count], min(pre_nms, count))[1]
            chosen.append(start + best)
            groups.append(jnp.full(len(best), level))
            start += count
        index = jnp.concatenate(chosen)  # places in (A,) of the best anchors of all levels
        boxes = box.clip(box.decode(anchors.boxes[index], deltas[index], inclusive=inclusive), size, inclusive)
        valid = inside[index] & box.large_enough(boxes, min_side, inclusive)
        keep, present = nms(
            boxes, scores[index], threshold, count=post_nms, groups=jnp.concatenate(groups), valid=valid,
            inclusive=inclusive,
        )  # fmt: skip
        return jnp.where(present[:, None], boxes[keep], 0), present

    return jax.vmap(of_image)(logits, deltas, inside, sizes)


def assign_targets(
    anchors: Anchors,
    truth: jax.Array,
    valid: jax.Array,
    keys: jax.Array,
    sizes: jax.Array,
    *,
    samples: int,
    border: bool,
    inclusive: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return the matches of the sampled anchors, int32 (N, A), and their regression targets, (N, A, 4).

    Section 3.1.2: an anchor is positive if its IoU with an object is 0.7 or more, or the highest of that object;
    background if it is below 0.3 with all. At most half of a sample is positive (section 3.1.3). Anchors outside of the
    sample are `matching.IGNORED`; targets are 0 but for positives.

    Args:
      truth, valid: boxes of the objects (N, M, 4), and which rows are objects, bool (N, M).
      keys: random keys of the images (N,).
      sizes: heights and widths of the images, (N, 2).
      samples: anchors drawn from each image.
      border: whether anchors that cross the border of the image take part; in the paper they do not (section 3.1.3).
    """
    inside = jnp.ones((len(truth), len(anchors.boxes)), bool) if anchors.inside is None else anchors.inside

    def of_image(truth: jax.Array, valid: jax.Array, key: jax.Array, size: jax.Array, inside: jax.Array) -> Any:
        candidates = inside if border else inside & box.inside(anchors.boxes, size, inclusive)
        matches = match(
            truth, anchors.boxes, positive=0.7, negative=(0.0, 0.3), low_quality=True, valid=valid,
            candidates=candidates, inclusive=inclusive,
        )  # fmt: skip
        index, drawn = sample(matches, key, samples, 0.5, anchors.ids)
        sampled = jnp.zeros(len(matches), bool).at[index].max(drawn)  # (A,)
        matches = jnp.where(sampled, matches, IGNORED)
        wanted = box.encode(anchors.boxes, truth[jnp.maximum(matches, 0)], inclusive=inclusive)
        return matches, jnp.where(matches[:, None] >= 0, wanted, 0)

    return jax.vmap(of_image)(truth, valid, keys, sizes, inside)
