"""Greedy non-maximum suppression, of fixed shapes and without a loop over boxes.

The matrix of all overlaps of N boxes would take 4 · N² bytes: 576 MB an image for Faster R-CNN's 12,000. Here boxes
come in blocks of B by falling score, and each is compared with the at most K boxes kept so far and with its own block,
which takes 4 · B · (K + B) bytes: 2.3 MB for K = 2,000. The loop ends when K are kept.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.models import boxes as box

BLOCK = 256


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float,
    *,
    count: int | None = None,
    groups: jax.Array | None = None,
    valid: jax.Array | None = None,
    inclusive: bool = False,
    block: int = BLOCK,
) -> tuple[jax.Array, jax.Array]:
    """Keep each box that no kept box of a higher score overlaps by more than `threshold`.

    Returns indices int32 (count,) by falling score, and bool (count,), which of them there are; the indices of the rest
    are 0. Equal scores keep the order of the boxes. It is for one image: `jax.vmap` makes a batch of it. No gradient
    passes through the choice; it reaches the boxes and scores that the caller picks by the indices.

    Args:
      boxes, scores: (N, 4) and (N,).
      threshold: IoU; boxes that overlap by exactly this much both stay, and so do boxes without area.
      count: how many to keep at most; None: N.
      groups: int (N,), classes or levels: only boxes of the same group suppress each other. None: all are of one.
      valid: bool (N,), which boxes are not padding; None: all.
      block: boxes in a block.
    """
    number = len(boxes)
    count = number if count is None else count
    boxes, scores = lax.stop_gradient((box.wide(boxes), scores))
    groups = jnp.zeros(number, jnp.int32) if groups is None else groups
    valid = jnp.ones(number, bool) if valid is None else valid

    # By falling score, stable; the padding lies behind, together with what fills the last block.
    blocks = max(1, -(-number // block))
    fill = blocks * block - number
    order = jnp.lexsort((-scores, ~valid))  # (N,)
    sorted_boxes, sorted_groups, alive = (
        jnp.pad(x[order], [(0, fill)] + [(0, 0)] * (x.ndim - 1)) for x in (boxes, groups, valid)
    )

    def suppresses(a: Any, b: Any) -> jax.Array:  # (boxes (N, 4), groups (N,)), …(M…) -> bool (N, M)
        return (box.iou(a[0], b[0], inclusive) > threshold) & (a[1][:, None] == b[1])

    def more(state: Any) -> jax.Array:
        step, _, found = state
        return (step < blocks) & (found < count) & alive[jnp.minimum(step, blocks - 1) * block]

    def add_block(state: Any) -> Any:
        step, kept, found = state
        first = step * block
        own = [lax.dynamic_slice_in_dim(x, first, block) for x in (sorted_boxes, sorted_groups)]
        # Slots of `kept` that are still empty point to box 0, and suppress nothing.
        by_kept = suppresses((sorted_boxes[kept], sorted_groups[kept]), own) & (jnp.arange(count) < found)[:, None]
        open_ = lax.dynamic_slice_in_dim(alive, first, block) & ~by_kept.any(0)  # (B,)
        keep = _greedy(suppresses(own, own), open_)
        # The n-th box kept of all goes to slot n; a slot beyond the last one is dropped.
        slot = jnp.where(keep, found + jnp.cumsum(keep, dtype=jnp.int32) - 1, count)
        kept = kept.at[slot].set(first + jnp.arange(block, dtype=jnp.int32), mode="drop")
        return step + 1, kept, found + keep.sum(dtype=jnp.int32)

    start = jnp.int32(0), jnp.zeros(count, jnp.int32), jnp.int32(0)
    _, kept, found = lax.while_loop(more, add_block, start)
    present = jnp.arange(count) < found
    order = jnp.pad(order, (0, fill)).astype(jnp.int32)
    return jnp.where(present, order[kept], 0), present


def _greedy(suppresses: jax.Array, candidates: jax.Array) -> jax.Array:
    """Return which of the candidates, bool (B,) in order, stay: those that no earlier one that stays suppresses.

    Args:
      suppresses: bool (B, B), whether the box of the row suppresses that of the column.
    """
    earlier = jnp.triu(suppresses, 1)

    # Box j is settled once all before it are, so each round settles at least one more link of every chain of boxes that
    # suppress one another. What no round changes is the greedy choice, as only that agrees with itself.
    def again(state: Any) -> Any:
        keep, _ = state
        new = candidates & ~(earlier & keep[:, None]).any(0)
        return new, (new != keep).any()

    return lax.while_loop(lambda state: state[1], again, (candidates, candidates.any()))[0]
