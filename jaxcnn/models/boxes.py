"""Box arithmetic: areas, overlaps, regression targets and their inverse, clipping; in float32 at least.

A box is x1, y1, x2, y2 in pixels. Two conventions differ in how wide it is:

- x2 - x1, corners as points: torchvision's, and the default here;
- x2 - x1 + 1, corners as pixels that belong to the box (`inclusive=True`): that of VOC, and of the authors' code of
  R-CNN (Girshick et al. 2014), Fast R-CNN and Faster R-CNN.

Shapes are fixed, so some boxes of an array are padding: the caller's mask says which. Results and gradients are finite
for every box with finite coordinates, one without area included.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

# exp(dw) may enlarge a box to 1,000 pixels at a stride of 16 and no further: torchvision's and Detectron's limit.
SCALE_LIMIT = math.log(1000 / 16)
# Sides at or below this count as none, and areas at or below its square: the gradient of 1 / x is -1 / x², which
# overflows in float32 below 1e-19.
_LEAST = 1e-6


def wide(x: Any) -> jax.Array:
    """Return `x` as float32, or as float64 if that is its type."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def area(boxes: jax.Array, inclusive: bool = False) -> jax.Array:
    """Return areas in pixels²: (…, 4) -> (…); 0 where the corners are in the wrong order."""
    boxes = wide(boxes)
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2] + inclusive, 0)  # (…, 2)
    return sides[..., 0] * sides[..., 1]


def iou(a: jax.Array, b: jax.Array, inclusive: bool = False) -> jax.Array:
    """Return intersection over union of all pairs: (…, N, 4), (…, M, 4) -> (…, N, M); 0 where no box has an area."""
    shared, union = _overlap(a, b, inclusive)
    return _ratio(shared, union)


def giou(a: jax.Array, b: jax.Array, inclusive: bool = False) -> jax.Array:
    """Return generalised IoU of all pairs: (…, N, 4), (…, M, 4) -> (…, N, M), within -1 … 1.

    Rezatofighi et al. 2019, algorithm 1: IoU minus the part of the smallest enclosing box that neither covers.
    """
    shared, union = _overlap(a, b, inclusive)
    a, b = wide(a)[..., :, None, :], wide(b)[..., None, :, :]
    corners = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    enclosing = area(jnp.concatenate(corners, -1), inclusive)  # (…, N, M)
    return _ratio(shared, union) - _ratio(enclosing - union, enclosing)


def _overlap(a: jax.Array, b: jax.Array, inclusive: bool) -> tuple[jax.Array, jax.Array]:
    """Return the areas of intersection and union of all pairs, (…, N, M) each."""
    areas = area(a, inclusive)[..., :, None] + area(b, inclusive)[..., None, :]
    a, b = wide(a)[..., :, None, :], wide(b)[..., None, :, :]
    # One axis after the other keeps the pairs innermost, (…, N, M), and never makes an array (…, N, M, 2).
    width, height = (
        jnp.maximum(jnp.minimum(a[..., i + 2], b[..., i + 2]) - jnp.maximum(a[..., i], b[..., i]) + inclusive, 0)
        for i in (0, 1)
    )
    return width * height, areas - width * height


def _ratio(part: jax.Array, total: jax.Array) -> jax.Array:
    """Return part / total, and 0 with a gradient of 0 where the total is 0."""
    some = total > _LEAST**2
    # The inner choice keeps the division, and so its gradient, finite where the outer one drops it.
    return jnp.where(some, part / jnp.where(some, total, 1), 0)


def to_centre(boxes: jax.Array, inclusive: bool = False) -> tuple[jax.Array, jax.Array]:
    """Return centres (…, 2) as x, y, and sides (…, 2) as width, height, of boxes (…, 4)."""
    boxes = wide(boxes)
    sides = boxes[..., 2:] - boxes[..., :2] + inclusive
    return boxes[..., :2] + sides / 2, sides


def encode(boxes: jax.Array, truth: jax.Array, weights: Any = (1, 1, 1, 1), inclusive: bool = False) -> jax.Array:
    """Return the regression targets that move each box to its ground truth: (…, 4), (…, 4) -> (…, 4).

    Girshick et al. 2014, appendix C: ((x' - x) / w, (y' - y) / h, log(w' / w), log(h' / h)) · weights, where x, y are
    centres. If a side of either box is 0, all four are 0: the caller must leave such a pair out of the loss.

    Args:
      weights: a factor for each of the four, the inverse of the standard deviations by which the authors normalise.
    """
    (centre, sides), (target, wanted) = to_centre(boxes, inclusive), to_centre(truth, inclusive)
    sound = ((sides > _LEAST) & (wanted > _LEAST)).all(-1, keepdims=True)
    sides, wanted = jnp.where(sound, sides, 1), jnp.where(sound, wanted, 1)
    deltas = jnp.concatenate([(target - centre) / sides, jnp.log(wanted / sides)], -1)
    return jnp.where(sound, deltas, 0) * jnp.asarray(weights, deltas.dtype)


def decode(
    boxes: jax.Array,
    deltas: jax.Array,
    weights: Any = (1, 1, 1, 1),
    inclusive: bool = False,
    limit: float = SCALE_LIMIT,
) -> jax.Array:
    """Return the boxes moved by `deltas`, the inverse of `encode`: (…, 4), (…, 4) -> (…, 4).

    Both are broadcast: boxes (N, 1, 4) and deltas (N, classes, 4) give a box for each class.

    Args:
      inclusive: the new x2 is centre + width / 2 all the same, without - 1, as in the authors' code, although that
        makes a box one pixel wider than what was encoded.
      limit: upper bound of the two logarithms; `math.inf` is the authors' form, which overflows for large ones.
    """
    centre, sides = to_centre(boxes, inclusive)
    deltas = wide(deltas)
    deltas = deltas / jnp.asarray(weights, deltas.dtype)
    centre = centre + deltas[..., :2] * sides
    half = jnp.exp(jnp.minimum(deltas[..., 2:], limit)) * sides / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def clip(boxes: jax.Array, size: Any, inclusive: bool = False) -> jax.Array:
    """Return boxes (…, N, 4) clipped to their images.

    Args:
      size: height and width in pixels, two numbers or an array (…, 2). The largest coordinates are these, or one less
        where corners are pixels.
    """
    boxes = wide(boxes)
    edge = jnp.asarray(size, boxes.dtype)[..., [1, 0, 1, 0]] - inclusive  # (…, 4) as x, y, x, y
    return jnp.clip(boxes, 0, edge[..., None, :])


def large_enough(boxes: jax.Array, side: float, inclusive: bool = False) -> jax.Array:
    """Return which boxes have both sides of at least `side` pixels: (…, 4) -> bool (…)."""
    return (to_centre(boxes, inclusive)[1] >= side).all(-1)


def inside(boxes: jax.Array, size: Any, inclusive: bool = False) -> jax.Array:
    """Return which boxes lie inside of their image and do not cross its border: (…, N, 4) -> bool (…, N).

    Ren et al. 2015, section 3.3, train on such anchors only.

    Args:
      size: height and width in pixels, two numbers or an array (…, 2).
    """
    return (clip(boxes, size, inclusive) == wide(boxes)).all(-1)
