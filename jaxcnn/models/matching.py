"""The boxes that a detector learns from: matched to the objects of their image, then sampled with a balance.

Both functions are for one image, of fixed shapes with masks; `jax.vmap` makes a batch of it. Neither has a gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.models import boxes as box

BACKGROUND, IGNORED = -1, -2  # in place of the index of an object
_TIE = 1e-6  # relative difference of overlaps that count as equal: 8 to 16 roundings of float32


def match(
    truth: jax.Array,
    boxes: jax.Array,
    *,
    positive: float,
    negative: tuple[float, float],
    low_quality: bool = False,
    valid: jax.Array | None = None,
    candidates: jax.Array | None = None,
    inclusive: bool = False,
) -> jax.Array:
    """Return the index of the object that each box overlaps most, `BACKGROUND` or `IGNORED`: int32 (A,).

    Ren et al. 2015, section 3.1.2; Girshick 2015, section 2.3. Unless XLA fuses them into later operations, the
    overlaps are an array of 4 · G · A bytes: 107 MB an image for 100 objects and 268,000 anchors, about the number of a
    pyramid on 800×1,344 pixels.

    Args:
      truth: objects (G, 4).
      boxes: anchors or proposals (A, 4).
      positive: a box with an IoU of at least this much with an object is matched to it.
      negative: (from, below): a box is background if its highest IoU lies in this range. Fast R-CNN's begins at 0.1.
      low_quality: the boxes that overlap an object most, all that tie included, are positive below the threshold, too.
        Such a box is matched to the object that it overlaps most, which may be another one, as in the authors' code
        and torchvision. Unlike there, an object that no box overlaps has no such boxes; there it has all boxes.
      valid: bool (G,), which objects are not padding; None: all.
      candidates: bool (A,), the boxes that take part; the others are ignored. None: all.
    """
    if not len(truth):  # An empty axis has no maximum: one padding object stands for it.
        truth, valid = jnp.zeros((1, 4), boxes.dtype), jnp.zeros(1, bool)
    takes_part = jnp.ones(len(boxes), bool) if candidates is None else candidates
    both = takes_part if valid is None else takes_part & valid[:, None]
    overlap = lax.stop_gradient(jnp.where(both, box.iou(truth, boxes, inclusive), 0))  # (G, A)
    best, owner = overlap.max(0), overlap.argmax(0)  # (A,)
    chosen = best >= positive
    if low_quality:
        most = overlap.max(1, keepdims=True, initial=0)  # (G, 1)
        # XLA may compute the overlaps again for this use, and round them differently: ties are equal to within that.
        chosen |= ((overlap >= most * (1 - _TIE)) & (most > 0)).any(0)
    background = (negative[0] <= best) & (best < negative[1])
    matches = jnp.where(chosen, owner, jnp.where(background, BACKGROUND, IGNORED))
    return jnp.where(takes_part, matches, IGNORED).astype(jnp.int32)


def sample(
    matches: jax.Array, key: Any, count: int, positive_fraction: float, ids: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Draw boxes at random without replacement: positives up to their share, background for the rest.

    Girshick 2015, section 2.3; Ren et al. 2015, section 3.1.3. Returns indices int32 (S,), positives first, and bool
    (S,), which rows are drawn: fewer than `count` if there are not enough boxes of both kinds. S is the smaller of
    `count` and A. The index of a row that is not drawn has no meaning.

    Args:
      matches: what `match` returns, (A,).
      key: JAX's random key of this image. With `fold_in(fold_in(key(seed), step), example)` the sample is a function
        of these three, whatever the batch and the number of devices.
      positive_fraction: the largest share of positives in `count`.
      ids: int32 (A,), a number of each box from which its random number is made. If it does not depend on the canvas,
        neither does the sample. None: its position, so that ignored boxes behind the others do not change the sample.
    """
    if not len(matches):
        return jnp.zeros(0, jnp.int32), jnp.zeros(0, bool)
    if ids is None:
        bits = jax.random.bits(key, matches.shape, jnp.uint32)
    else:
        bits = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (), jnp.uint32))(ids)
    # The boxes with the largest random numbers are drawn; -1 stands below all of those.
    draw = (bits >> 1).astype(jnp.int32)  # (A,), 0 or more
    is_positive, is_background = matches >= 0, matches == BACKGROUND
    most, count = int(count * positive_fraction), min(count, len(matches))
    positives = jnp.minimum(is_positive.sum(dtype=jnp.int32), most)
    backgrounds = jnp.minimum(is_background.sum(dtype=jnp.int32), count - positives)
    slot = jnp.arange(count)  # (S,): positives take the first slots, background those after them
    first = _largest(jnp.where(is_positive, draw, -1), slot)
    second = _largest(jnp.where(is_background, draw, -1), slot - positives)
    return jnp.where(slot < positives, first, second), slot < positives + backgrounds


def _largest(values: jax.Array, rank: jax.Array) -> jax.Array:
    """Return the indices of the values (A,) that have these ranks (S,), 0 the largest; any index for another rank."""
    index = lax.top_k(values, min(len(rank), len(values)))[1]
    return index[jnp.clip(rank, 0, len(index) - 1)]
