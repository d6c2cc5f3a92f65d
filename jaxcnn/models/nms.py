"""Greedy non-maximum suppression, with fixed shapes and a loop over blocks of boxes, not over boxes.

The matrix of all overlaps of N boxes would take 4 · N² bytes: 576 MB an image for Faster R-CNN's 12,000. Here boxes
are taken by falling score in blocks of B, and a block is compared with itself and with the boxes kept so far, K at
most. That takes 4 · B · (K + B) bytes: 2.3 MB for K = 2,000. The loop ends when K are kept.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.models import boxes as box
from jaxcnn.models.sharding import vary_as

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

    Returns indices int32 (count,) by falling score, and bool (count,), which rows hold a kept box; the others are 0.
    Boxes of equal score keep their order. The function is for one image: `jax.vmap` makes a batch of it. No gradient
    passes through the choice; it reaches the boxes and scores that the caller picks by the indices.

    Args:
      boxes, scores: (N, 4) and (N,).
      threshold: IoU; boxes that overlap by exactly this much both stay, and so do boxes without area.
      count: how many to keep at most; None: N.
      groups: int (N,), classes or levels: only boxes of the same group suppress each other. None: all are one group.
      valid: bool (N,), which boxes are not padding; None: all.
      block: boxes in a block.
    """
    number = len(boxes)
    count = number if count is None else count
    boxes, scores = lax.stop_gradient((box.wide(boxes), scores))
    groups = jnp.zeros(number, jnp.int32) if groups is None else groups
    valid = jnp.ones(number, bool) if valid is None else valid

    # Boxes are sorted by falling score, stably; padding comes last, with the rows that fill the last block. A row is a
    # box and its group. The group of padding is NaN, which equals no group.
    blocks = max(1, -(-number // block))
    order = jnp.lexsort((-scores, ~valid))  # (N,)
    rows = jnp.concatenate([boxes, jnp.where(valid, groups, jnp.nan)[:, None]], 1, dtype=boxes.dtype)[order]  # (N, 5)
    rows = jnp.pad(rows, ((0, blocks * block - number), (0, 0)), constant_values=jnp.nan)

    def overlap(a: jax.Array, b: jax.Array) -> jax.Array:  # rows (N, 5), (M, 5) -> bool (N, M)
        return (box.iou(a[:, :4], b[:, :4], inclusive) > threshold) & (a[:, 4, None] == b[:, 4])

    def more(state: Any) -> jax.Array:
        step, _, _, found = state
        first = rows[jnp.minimum(step, blocks - 1) * block, 4]
        return (step < blocks) & (found < count) & (first == first)

    def add_block(state: Any) -> Any:
        step, kept, kept_rows, found = state
        own = lax.dynamic_slice_in_dim(rows, step * block, block)  # (B, 5)
        # The overlaps are (B, K), as XLA's CPU compiler takes ten times longer for a maximum along columns.
        candidates = (own[:, 4] == own[:, 4]) & ~overlap(own, kept_rows).any(1)  # (B,)
        keep = _greedy(overlap(own, own), candidates)
        # Each kept box goes to the next free slot; a slot beyond the last one is dropped.
        slot = jnp.where(keep, found + jnp.cumsum(keep, dtype=jnp.int32) - 1, count)
        kept = kept.at[slot].set(step * block + jnp.arange(block, dtype=jnp.int32), mode="drop")
        kept_rows = kept_rows.at[slot].set(own, mode="drop")
        return step + 1, kept, kept_rows, found + keep.sum(dtype=jnp.int32)

    start = jnp.int32(0), jnp.zeros(count, jnp.int32), jnp.full((count, 5), jnp.nan, rows.dtype), jnp.int32(0)
    _, kept, _, found = lax.while_loop(more, add_block, vary_as(rows, start))
    present = jnp.arange(count) < found
    order = jnp.pad(order, (0, blocks * block - number)).astype(jnp.int32)
    return jnp.where(present, order[kept], 0), present


def _greedy(overlap: jax.Array, candidates: jax.Array) -> jax.Array:
    """Return which candidates, bool (B,) in order, are kept: those that overlap with no earlier one that is kept.

    Args:
      overlap: bool (B, B), symmetric.
    """
    earlier = jnp.tril(overlap, -1)  # (B, B): whether the box of the row overlaps with the earlier one of the column

    # A box is settled once all earlier boxes that overlap it are, so each round settles at least one more box of every
    # chain of overlapping boxes. A round that changes nothing has found the greedy choice: no other is consistent.
    def again(state: Any) -> Any:
        keep, _ = state
        new = candidates & ~(earlier & keep).any(1)
        return new, (new != keep).any()

    return lax.while_loop(lambda state: state[1], again, (candidates, candidates.any()))[0]
