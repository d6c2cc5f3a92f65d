"""The losses of a two-stage detector, divided as in the paper, its authors' Python port or torchvision.

Implementations of Faster R-CNN divide its losses differently, and a learning rate belongs to one of these forms:

    form         mean over                 RPN: β, box loss divided by    λ    head: β
    torchvision  the batch's samples       1/9  sampled anchors           1    1/9
    port         each image's samples,     1/9  sampled anchors           1    1
                 then the images
    paper        the same                  1    positions of anchors      10   1

The paper (Ren et al. 2015, equation 1) counts about 2,400 positions in an image of 600×1000 pixels: the cells of a map
of stride 16. Here positions are counted at stride 16 for all networks, in the image and not in its canvas. In all forms
the box losses are sums over positives, and that of the head is divided by the sampled regions (Girshick 2015,
equation 1). That of Mask R-CNN's masks is the mean over the cells of positives (He et al. 2017, section 3).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcnn.models.matching import IGNORED
from jaxcnn.tasks.base import Terms

_CELL = 16 * 16  # pixels of the image for each position of anchors in the paper


class Form(NamedTuple):
    """How the losses are divided.

    Attributes:
      by_image: the objective is the mean over images of each image's mean; else the mean over the batch's samples.
      rpn_beta, box_beta: where smooth L1 turns from square to linear, in units of the regression's targets.
      rpn_weight: λ, the factor on the box loss of the RPN.
      by_positions: the box loss of the RPN is divided by the positions of anchors, not by the sampled anchors.
    """

    by_image: bool
    rpn_beta: float
    box_beta: float
    rpn_weight: float = 1.0
    by_positions: bool = False


FORMS = {
    "torchvision": Form(False, 1 / 9, 1 / 9),
    "port": Form(True, 1 / 9, 1.0),  # its σ of 3 is β = 1/σ²
    "paper": Form(True, 1.0, 1.0, 10.0, by_positions=True),
}


def detection_terms(
    outputs: Mapping[str, jax.Array], present: jax.Array, sizes: jax.Array, form: Form, rpn_weight: float = 0.0
) -> Terms:
    """Return the terms "objectness", "rpn_box", "classifier" and "box" of the objective, and "mask" if there are masks.

    Args:
      outputs: the model's in training: for A anchors "rpn_logits" and "rpn_matches" (N, A), "rpn_deltas" and
        "rpn_targets" (N, A, 4); for R regions "roi_valid" and "roi_labels" (N, R), "box_logits" (N, R, C), "box_deltas"
        (N, R, C, 4) and "box_targets" (N, R, 4). With masks "mask_logits" and "mask_targets" (N, P, m, m), of the first
        P regions, which all positives are among.
      present: bool (N,), the rows that count. Nothing of the others enters the losses, not even a NaN.
      sizes: int (N, 2), height and width of each image in pixels.
      rpn_weight: λ; 0: that of the form.
    """
    matches = outputs["rpn_matches"]
    anchors = (matches != IGNORED) & present[:, None]  # (N, A), those in the sample
    found = (matches >= 0) & present[:, None]
    logits = jnp.where(anchors, outputs["rpn_logits"], 0)
    objectness = optax.sigmoid_binary_cross_entropy(logits, found.astype(logits.dtype))
    rpn_box = smooth_l1(outputs["rpn_deltas"], outputs["rpn_targets"], found, form.rpn_beta)

    rois, labels = outputs["roi_valid"] & present[:, None], outputs["roi_labels"]  # (N, R)
    logits = jnp.where(rois[..., None], outputs["box_logits"], 0)
    classifier = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    # A region has regressions for all classes; those of its own class are trained.
    deltas = jnp.take_along_axis(outputs["box_deltas"], labels[..., None, None], axis=2)[:, :, 0]  # (N, R, 4)
    box = smooth_l1(deltas, outputs["box_targets"], rois & (labels > 0), form.box_beta)

    images = present.sum(dtype=logits.dtype)
    sampled, regions = (chosen.sum(1, dtype=logits.dtype) for chosen in (anchors, rois))  # (N,)
    positions = sizes.prod(-1).astype(logits.dtype) / _CELL if form.by_positions else sampled

    def term(losses: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (sum, weight) of losses (N, n), divided by the counts (N,) of their images or of all."""
        of_images = losses.sum(1)
        if form.by_image:
            return jnp.sum(of_images / jnp.maximum(counts, 1)), images
        return of_images.sum(), counts.sum()

    terms: Terms = {
        "objectness": term(jnp.where(anchors, objectness, 0), sampled),
        "rpn_box": term((rpn_weight or form.rpn_weight) * rpn_box, positions),
        "classifier": term(jnp.where(rois, classifier, 0), regions),
        "box": term(box, regions),
    }
    if "mask_logits" in outputs:
        masked = (rois & (labels > 0))[:, : outputs["mask_logits"].shape[1]]  # (N, P)
        logits = jnp.where(masked[..., None, None], outputs["mask_logits"], 0)
        mask = optax.sigmoid_binary_cross_entropy(logits, outputs["mask_targets"].astype(logits.dtype)).mean((2, 3))
        terms["mask"] = term(jnp.where(masked, mask, 0), masked.sum(1, dtype=logits.dtype))
    return terms


def smooth_l1(values: jax.Array, targets: jax.Array, counted: jax.Array, beta: float) -> jax.Array:
    """Return x² / 2β where |x| < β, else |x| - β / 2, summed over the last axis: (…,); 0 where not `counted`.

    Girshick 2015, equation 3, where β is 1.

    Args:
      values, targets: (…, 4); x is their difference.
      counted: bool (…,).
    """
    # Zeros replace x before the square: if they replaced the loss, the gradient would still be NaN where x is.
    error = jnp.where(counted[..., None], values - targets, 0)
    return (optax.huber_loss(error, delta=beta) / beta).sum(-1)
