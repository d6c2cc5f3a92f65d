"""Fast R-CNN, on the last map of any classification network: Girshick, ICCV 2015 (arXiv:1504.08083).

The trunk sees the image once. RoI pooling cuts the features of each proposal out of its map, and a head of fully
connected layers classifies the proposal and regresses its box, for every class. Proposals come from outside, such as
selective search. A network is a row of `SPECS`; `fast_rcnn_vgg16` ("L" in the paper) is

    trunk     VGG-16, conv1_1 … conv5_3, stride 16         38×63×512 of 600×1,000 pixels
    RoI pool  maxima over 7×7 bins of each proposal        2,000×7×7×512
    fc6, fc7  with dropout, from the classifier's weights  2,000×4096
    head      softmax over the classes and background      2,000×21
    boxes     a regression for each class                  2,000×21×4

`models.faster_rcnn` replaces the proposals from outside by a network's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.models import boxes as box
from jaxcnn.models.grid import CANVAS, Grid, Map
from jaxcnn.models.layers import Classifier, FullyConnected, at_least_float32, he_normal, widen
from jaxcnn.models.matching import match, sample
from jaxcnn.models.nms import nms
from jaxcnn.models.roi import roi_pool
from jaxcnn.models.trunk import OnTrunk

CODER = (10, 10, 5, 5)  # factors on the targets of the head: the inverse of the authors' standard deviations
POSITIVES = 0.25  # largest share of positives among the sampled regions


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One architecture. Its fields are the values of a module's fields of the same names that are None.

    Attributes:
      inclusive: corners are pixels that belong to the box; see `models.boxes`.
      bins: rows and columns of a region's features.
      min_side: pixels of the shorter side below which a detection is left out.
      background: a region whose highest IoU lies in this interval is background; below it, it is not trained.
      frozen_norm: the trunk's BatchNorm is frozen.
    """

    backbone: str
    inclusive: bool = True
    bins: tuple[int, int] = (7, 7)
    min_side: float = 0.0
    background: tuple[float, float] = (0.1, 0.5)
    box_samples: int = 64
    nms_threshold: float = 0.3
    head_features: int = 4096
    dropout: float = 0.5
    mask_padding: bool = True
    frozen_norm: bool = False
    classes: int = 21
    image_size: int = 600


SPECS = {
    # CaffeNet's pool5, whose place RoI pooling takes, is 6×6.
    "fast_rcnn_alexnet": Spec(backbone="alexnet", bins=(6, 6)),
    "fast_rcnn_vgg16": Spec(backbone="vgg16"),
}


class Regression(nn.Module):
    """Regressions of a box for each class: (R, C) -> (R, classes, 4) float32."""

    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the four numbers of each class, as `boxes.encode` has them."""
        deltas = Classifier(4 * self.classes, self.dtype, nn.initializers.normal(0.001), name="head")(x)
        return deltas.reshape(-1, 4, self.classes).swapaxes(1, 2)  # The classes are last in the layer, as in any head.


class LowRank(nn.Module):
    """A hidden layer whose kernel has a low rank: (N, …) -> (N, features) in `dtype`, before its ReLU.

    Girshick 2015, section 3.1: of W ≈ U Σ Vᵀ the first layer has Σ Vᵀ and no bias, the second U and the bias.
    `weights.low_rank` makes the two kernels of a trained one.
    """

    features: int
    rank: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the two products and the bias."""
        flat, wide = x.reshape(len(x), -1), at_least_float32(self.dtype)  # (N, H · W · C)
        x = nn.Dense(self.rank, False, self.dtype, wide, kernel_init=he_normal, name="fc1")(flat)  # (N, rank)
        return FullyConnected(self.features, self.dtype, name="fc2")(x)


class FastRCNN(OnTrunk):
    """A detector of given regions; boxes are x1, y1, x2, y2 in pixels of the canvas, and class 0 is the background.

    Images (N, H, W, C) and proposals (N, R, 4) -> a dict of the endpoints and

    - "rois" (N, R, 4) and "roi_valid" (N, R) bool, the regions that the head sees;
    - "box_logits" (N, R, classes) and "box_deltas" (N, R, classes, 4);
    - in evaluation "boxes" (N, D, 4), "scores" (N, D) by falling score, "labels" (N, D) int32 and "valid" (N, D) bool;
    - in training with `targets` "roi_labels" (N, R) int32 and "box_targets" (N, R, 4): what the sampled regions should
      give, for the losses (`tasks.detection`), and "roi_objects" (N, R) int32, the object that a positive one matches.

    Attributes:
      num_classes: the background is one of them.
      dropout: rate after fc6 and fc7. None, here and below, stands for the value of the architecture's `Spec`.
      box_samples: regions of an image that are trained; at most a quarter of them are positive.
      background: a region whose highest IoU lies in this interval is background; below it, it is not trained.
      score_threshold: least score of a detection.
      nms_threshold: IoU of the suppression of detections within a class.
      detections: rows for the detections of an image, D.
      head_features: widths of fc6 and fc7.
      fc_ranks: ranks of fc6 and fc7, each of which is a `LowRank` then (0: is not); None: neither is.
      regress: detections have the boxes that the head regresses; False: the proposals as they are (table 6).
      mask_padding: every layer masks the padding of a canvas, so that no output depends on it; else only the image is 0
        there, as in torchvision.
    """

    task: ClassVar[str] = "detection"
    coder: ClassVar[tuple[float, ...]] = CODER  # factors on the regressions
    proposes: ClassVar[bool] = False  # whether the network makes proposals of its own
    probabilities: ClassVar[bool] = True  # whether scores are in 0 … 1; else they are margins, of either sign
    spec: Any  # a `Spec`
    num_classes: int = 21
    dropout: float | None = None
    box_samples: int | None = None
    background: tuple[float, float] | None = None
    score_threshold: float = 0.05
    nms_threshold: float | None = None
    detections: int = 100
    head_features: int | None = None
    fc_ranks: tuple[int, int] | None = None
    regress: bool = True
    mask_padding: bool | None = None

    def setting(self, name: str) -> Any:
        """Return the field `name`, or the architecture's value where it is None."""
        value = getattr(self, name)
        return getattr(self.spec, name) if value is None else value

    @property
    def image_size(self) -> int:
        """Return the shorter side in pixels of the published network's images."""
        return 128 if self.small_images else self.spec.image_size

    @property
    def published_classes(self) -> int:
        """Return the number of classes of the published network, the background included."""
        return self.spec.classes

    @property
    def trunk_fields(self) -> dict[str, Any]:
        """Return the fields of the trunk; its stride is 16 if the trunk can have that."""
        return {"ceil_pool": True, "frozen_norm": self.spec.frozen_norm, "output_stride": 16}

    @property
    def endpoints(self) -> dict[str, tuple[int, int]]:
        """Return {endpoint: (stride in pixels of the image, channels)}, in the order of the forward pass."""
        return self.trunk().endpoints

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        sizes: jax.Array | None = None,
        targets: Mapping[str, jax.Array] | None = None,
        proposals: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, Any]:
        """Return the outputs that the class lists.

        Args:
          images: NHWC floats, each in the upper left corner of the canvas.
          sizes: int32 (N, 2), their heights and widths; None: they fill it.
          targets: objects, "boxes" (N, M, 4), "labels" (N, M) and "valid" (N, M) bool, and "example" int32 (N,). The
            samples are functions of the example and the RNG stream `sampling`.
          proposals: boxes (N, R, 4) to classify; those without an area are padding.
        """
        canvas = images.shape[1], images.shape[2]
        image_sizes = jnp.broadcast_to(jnp.asarray(canvas), (len(images), 2)) if sizes is None else sizes
        grid = Grid(sizes) if self.setting("mask_padding") else CANVAS
        maps = self.trunk("trunk")(Grid(sizes).crop(images), train=train, grid=grid)
        levels = self.levels(maps)
        outputs: dict[str, Any] = {name: (levels.get(name) or maps[name]).x for name in (*self.endpoints, *levels)}
        learnt = targets if train else None
        if learnt is not None:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("sampling"), learnt["example"])  # (N,)
            learnt = {**learnt, "keys": keys}
        outputs |= self.regions(levels, canvas, image_sizes, proposals, learnt, train)
        if learnt is not None:
            outputs |= self.sample_regions(outputs["rois"], outputs["roi_valid"], learnt)
        rois = outputs["rois"]
        outputs["box_logits"], outputs["box_deltas"] = self.box_head(self.pool_regions(levels, rois), train)
        if not train:
            outputs |= self.detect(outputs, image_sizes)
        return outputs | self.mask_outputs(levels, outputs, learnt, train)

    def mask_outputs(
        self,
        levels: Mapping[str, Map],
        outputs: Mapping[str, jax.Array],
        targets: Mapping[str, jax.Array] | None,
        train: bool,
    ) -> dict[str, jax.Array]:
        """Return what a branch of masks gives for the regions in `outputs`; here there is none."""
        return {}

    def levels(self, maps: Mapping[str, Map]) -> dict[str, Map]:
        """Return the maps that the features of regions come from: here the trunk's last endpoint."""
        last = list(self.trunk().endpoints)[-1]
        return {last: maps[last]}

    def regions(
        self,
        levels: Mapping[str, Map],
        canvas: tuple[int, int],
        sizes: jax.Array,
        proposals: jax.Array | None,
        targets: Mapping[str, jax.Array] | None,
        train: bool,
    ) -> dict[str, jax.Array]:
        """Return "rois" (N, R, 4) and "roi_valid" (N, R): the given proposals, within their images.

        Raises:
          UserError: there are no proposals.
        """
        if proposals is None:
            if not self.is_initializing():
                raise UserError(
                    f"{type(self).__name__} has no proposals of its own: pass them as `proposals`, (N, R, 4)"
                )
            proposals = jnp.concatenate([jnp.zeros_like(sizes), sizes[:, ::-1]], 1)[:, None]  # (N, 1, 4), the images
        rois = box.clip(proposals, sizes, self.spec.inclusive)
        return {"rois": rois, "roi_valid": box.area(rois) > 0}

    def sample_regions(
        self, rois: jax.Array, valid: jax.Array, targets: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Return a sample of the regions for training: "rois", "roi_valid", "roi_labels", "box_targets", "roi_objects".

        The shapes are (N, S, 4), bool (N, S), int32 (N, S), (N, S, 4) and int32 (N, S), S = `box_samples` or the number
        of regions if that is less; positives come first. Girshick 2015, section 2.3. The objects themselves are added
        to the regions, so that there are positives from the first step on.
        """
        truth, labels, real = (targets[name] for name in ("boxes", "labels", "valid"))  # (N, M, …)
        rois, valid = jnp.concatenate([rois, box.wide(truth)], 1), jnp.concatenate([valid, real], 1)  # (N, R + M, …)

        def of_image(rois: Any, valid: Any, truth: Any, labels: Any, real: Any, key: jax.Array) -> Any:
            matches = match(
                truth, rois, positive=0.5, negative=self.setting("background"), valid=real, candidates=valid,
                inclusive=self.spec.inclusive,
            )  # fmt: skip
            key = jax.random.fold_in(key, 1)  # The key itself draws the sample of anchors, where there are any.
            index, drawn = sample(matches, key, self.setting("box_samples"), POSITIVES)  # (S,)
            rois, matches = rois[index], matches[index]
            owner, positive = jnp.maximum(matches, 0), drawn & (matches >= 0)
            wanted = box.encode(rois, truth[owner], self.coder, self.spec.inclusive)  # (S, 4)
            return (
                jnp.where(drawn[:, None], rois, 0), drawn, jnp.where(positive, labels[owner], 0),
                jnp.where(positive[:, None], wanted, 0), owner,
            )  # fmt: skip

        drawn = jax.vmap(of_image)(rois, valid, truth, labels, real, targets["keys"])
        return dict(zip(("rois", "roi_valid", "roi_labels", "box_targets", "roi_objects"), drawn, strict=True))

    def pool_regions(self, levels: Mapping[str, Map], rois: jax.Array) -> jax.Array:
        """Return the features of the regions (N, R, 4): (N, R, *bins, C)."""
        ((x, grid),) = levels.values()
        # Pooling does not see beyond the part of the map, (N, 2), that comes from its image; None: it fills the canvas.
        return roi_pool(x, 1 / grid.stride, rois, self.spec.bins, grid.sizes)

    def box_head(self, regions: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Return class scores (N, R, classes) and regressions (N, R, classes, 4) of regions (N, R, *bins, C)."""
        count = regions.shape[:2]
        # Layers are sharded by rows, so each region becomes a row.
        x = self.fully_connected(regions.reshape(-1, *regions.shape[2:]), train)  # (N · R, *bins, C) -> (N · R, F)
        logits = Classifier(self.num_classes, self.dtype, nn.initializers.normal(0.01), name="head")(x)
        deltas = Regression(self.num_classes, self.dtype, name="boxes")(x)
        return logits.reshape(*count, -1), deltas.reshape(*count, -1, 4)

    def fully_connected(self, x: jax.Array, train: bool, layers: Sequence[str] = ("fc6", "fc7")) -> jax.Array:
        """Return what the first of fc6 and fc7 make of maps, or all of them: (R, h, w, C) -> (R, F)."""
        features = self.head_features or widen(self.spec.head_features, self.width or 1)
        for name, rank in zip(layers, self.fc_ranks or (0, 0), strict=False):
            layer = (
                LowRank(features, rank, self.dtype, name=name)
                if rank
                else FullyConnected(features, self.dtype, name=name)
            )
            x = nn.relu(layer(x))
            x = nn.Dropout(self.setting("dropout"), deterministic=not train)(x)
        return x

    def scores(self, logits: jax.Array) -> jax.Array:
        """Return what detections are ranked by: logits (R, classes) -> (R, classes)."""
        return jax.nn.softmax(logits)

    def detect(self, outputs: Mapping[str, jax.Array], sizes: jax.Array) -> dict[str, jax.Array]:
        """Return "boxes" (N, D, 4), "scores", "labels" and "valid" (N, D) of the detections, by falling score.

        Each region gives a box for every class but the background. Boxes of one class suppress each other.
        """
        classes, inclusive = self.num_classes - 1, self.spec.inclusive

        def of_image(rois: jax.Array, valid: jax.Array, logits: jax.Array, deltas: jax.Array, size: jax.Array) -> Any:
            moves = deltas if self.regress else jnp.zeros_like(deltas)
            found = box.decode(rois[:, None], moves, self.coder, inclusive)[:, 1:].reshape(-1, 4)  # (R · classes, 4)
            found, scores = box.clip(found, size, inclusive), self.scores(logits)[:, 1:].ravel()
            labels = jnp.tile(jnp.arange(1, classes + 1), len(rois))  # (R · classes,), as the boxes and scores
            eligible = jnp.repeat(valid, classes) & (scores > self.score_threshold)
            eligible &= box.large_enough(found, self.spec.min_side, inclusive)
            index, present = nms(
                found, scores, self.setting("nms_threshold"), count=self.detections, groups=labels, valid=eligible,
                inclusive=inclusive,
            )  # fmt: skip
            boxes, scores = jnp.where(present[:, None], found[index], 0), jnp.where(present, scores[index], 0)
            return boxes, scores, labels[index], present

        rois, valid, logits, deltas = (outputs[name] for name in ("rois", "roi_valid", "box_logits", "box_deltas"))
        kept = jax.vmap(of_image)(rois, valid, logits, deltas, sizes)
        return dict(zip(("boxes", "scores", "labels", "valid"), kept, strict=True))


MODELS = {name: partial(FastRCNN, spec) for name, spec in SPECS.items()}
