"""Which boxes a detector learns from: match them to the objects of their image, then draw a balanced sample.

Both are for one image, of fixed shapes with masks; `jax.vmap` makes a batch of it. No gradient passes through either.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.models import boxes as box

BACKGROUND, IGNORED = -1, -2
_TIE = 1e-6  # relative: 8 to 16 roundings of float32


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
    """Return for each box the object that it overlaps most, `BACKGROUND` or `IGNORED`: int32 (A,).

    Ren et al. 2015, section 3.1.2; Girshick 2015, section 2.3. Where XLA does not fuse them into what follows, the
    overlaps are an array of 4 · G · A bytes: 107 MB an image for 100 objects and 268,000 anchors, which is about what a
    pyramid has on 800×1,344 pixels.

    Args:
      truth: objects (G, 4).
      boxes: anchors or proposals (A, 4).
      positive: a box is an object's from this IoU on.
      negative: (from, below): it is background where its best IoU lies there. Fast R-CNN's paper begins at 0.1.
      low_quality: the boxes that overlap an object most, all that tie included, are positive below the threshold, too.
        Such a box is assigned to the object that it overlaps most, which may be another one, as in the authors' code
        and torchvision. Unlike there, an object that no box overlaps has no such boxes; there it has all of them.
      valid: bool (G,), which objects are not padding; None: all.
      candidates: bool (A,), the boxes that take part; the others are ignored. None: all.
    """
    if not len(truth):  # there is no maximum over nothing
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
    matches: jax.Array, key: Any, count: int, positive_fraction: float, names: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Draw boxes at random, positives up to their share and background for the rest.

    Girshick 2015, section 2.3; Ren et al. 2015, section 3.1.3. Returns indices int32 (S,), positives first, and bool
    (S,), which of them are drawn: fewer than `count` if there are not enough boxes of both kinds; S is `count`, or A
    where that is less. An index that is not drawn has no meaning. No box is drawn twice.

    Args:
      matches: what `match` returns, (A,).
      key: JAX's random key of this image. With `fold_in(fold_in(key(seed), step), example)` the sample is a function
        of these three, whatever the batch and the number of devices.
      positive_fraction: the largest share of positives, of `count`.
      names: int32 (A,), a number of each box that does not depend on the canvas, nor does then the sample; None: its
        place, so that ignored boxes behind the others do not change the sample.
    """
    if not len(matches):
        return jnp.zeros(0, jnp.int32), jnp.zeros(0, bool)
    if names is None:
        bits = jax.random.bits(key, matches.shape, jnp.uint32)
    else:
        bits = jax.vmap(lambda name: jax.random.bits(jax.random.fold_in(key, name), (), jnp.uint32))(names)
    draw = (bits >> 1).astype(jnp.int32)  # (A,), never negative
    is_positive, is_background = matches >= 0, matches == BACKGROUND
    most, count = int(count * positive_fraction), min(count, len(matches))
    positives = jnp.minimum(is_positive.sum(dtype=jnp.int32), most)
    backgrounds = jnp.minimum(is_background.sum(dtype=jnp.int32), count - positives)
    slot = jnp.arange(count)
    first = _largest(jnp.where(is_positive, draw, -1), slot)
    second = _largest(jnp.where(is_background, draw, -1), slot - positives)
    return jnp.where(slot < positives, first, second), slot < positives + backgrounds


def _largest(values: jax.Array, rank: jax.Array) -> jax.Array:
    """Return the indices of the values (A,) with these ranks (count,), 0 the largest; any index beyond 0 … A - 1."""
    index = lax.top_k(values, min(len(rank), len(values)))[1]
    return index[jnp.clip(rank, 0, len(index) - 1)]
