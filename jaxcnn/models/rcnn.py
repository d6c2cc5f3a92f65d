"""R-CNN, on any classification network with fully connected layers: Girshick et al., CVPR 2014 (arXiv:1311.2524).

The network sees each proposal by itself, warped to a square window with 16 pixels of context. Linear SVMs score its
features, one for each class, and a ridge regression on pool5 moves its box. `rcnn_alexnet` ("T-Net" in the paper's
journal text) and `rcnn_vgg16` ("O-Net") are rows of `SPECS`:

    warp      each proposal to 224×224×3                   2,000×224×224×3
    trunk     AlexNet or VGG-16, to pool5                  2,000×6×6×256, 2,000×7×7×512
    fc6, fc7  the fine-tuned classifier's                  2,000×4096
    head      margins of the SVMs, 0 for the background    2,000×21
    boxes     a regression for each class, from pool5      2,000×21×4

Its parts are trained one after another: the classifier on windows (`data.windows`), then SVMs and regressions
(`jaxcnn rcnn`), whose weights are those of `head` and `boxes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.models import alexnet, fast_rcnn, vgg
from jaxcnn.models.fast_rcnn import FastRCNN, Regression
from jaxcnn.models.grid import Grid
from jaxcnn.models.layers import Classifier
from jaxcnn.models.sharding import rows_of_a_device
from jaxcnn.warping import warp

FEATURES = ("pool5", "fc6", "fc7")


@dataclass(frozen=True, kw_only=True)
class Spec(fast_rcnn.Spec):
    """One architecture. Its fields are the values of a module's fields of the same names that are None.

    Attributes:
      inclusive: False: with corners as points, overlaps are those of the authors, whose boxes have whole pixels.
      window: side in pixels of the warped windows.
      chunk: windows that are in a device's memory at once.
    """

    inclusive: bool = False
    background: tuple[float, float] = (0.0, 0.5)
    window: int = 224
    chunk: int = 100


SPECS = {
    # The authors' CaffeNet takes 227 pixels without padding, AlexNet 224 with 2 on each side: both have 55×55 outputs.
    "rcnn_alexnet": Spec(backbone="alexnet", chunk=250),
    "rcnn_vgg16": Spec(backbone="vgg16", chunk=50),
}


class RCNN(FastRCNN):
    """A detector of given regions, each of which the network sees by itself.

    It has the outputs of `FastRCNN` but for its maps, and in evaluation "pool5" (N, R, C) and "features" (N, R, F)
    besides, what the regressions and the SVMs are linear functions of; a program that returns neither does not keep
    them. "box_logits" are margins, and so are the "scores" of detections: they may be negative.

    Trained by `jaxcnn train`, it has the losses of Fast R-CNN. The paper's stages are those of `jaxcnn rcnn`.

    Attributes:
      features: what the SVMs see, one of `FEATURES`.
      window: side in pixels of the windows: that of the images that the classifier was fine-tuned on.
      context: pixels of a window around its box, on each side.
      chunk: windows that are in a device's memory at once.
    """

    coder: ClassVar[tuple[float, ...]] = (1.0, 1.0, 1.0, 1.0)
    probabilities: ClassVar[bool] = False
    score_threshold: float = float("-inf")
    detections: int = 300
    features: str = "fc7"
    window: int | None = None
    context: int = 16
    chunk: int | None = None

    @property
    def trunk_fields(self) -> dict[str, Any]:
        """Return no fields: the trunk is the classifier as it was fine-tuned."""
        return {}

    @property
    def endpoints(self) -> dict[str, tuple[int, int]]:
        """Return none: the network has maps of windows, not of the image."""
        return {}

    def trunk(self, name: str | None = None) -> Any:
        """Return the trunk; see `OnTrunk.trunk`.

        Raises:
          UserError: the backbone lacks an override, or the fully connected layers that the features need.
        """
        backbone = self.backbone or self.spec.backbone
        if self.features != "pool5" and backbone not in {**alexnet.MODELS, **vgg.MODELS}:
            raise UserError(
                f"the backbone {backbone} has no {self.features}: set model.overrides.features to pool5, or the "
                "backbone to AlexNet or a VGG"
            )
        if 2 * self.context >= self.setting("window"):
            raise UserError(
                f"model.overrides.context={self.context} leaves no pixel of a window of {self.setting('window')} to "
                "the box: lower it"
            )
        return super().trunk(name)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        sizes: jax.Array | None = None,
        targets: Mapping[str, jax.Array] | None = None,
        proposals: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, Any]:
        """Return the outputs that the class lists; the arguments are those of `FastRCNN`."""
        canvas = images.shape[1], images.shape[2]
        image_sizes = jnp.broadcast_to(jnp.asarray(canvas), (len(images), 2)) if sizes is None else sizes
        images = Grid(sizes).crop(images)
        outputs: dict[str, Any] = self.regions({}, canvas, image_sizes, proposals, None, train)
        if train and targets is not None:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("sampling"), targets["example"])  # (N,)
            outputs |= self.sample_regions(outputs["rois"], outputs["roi_valid"], {**targets, "keys": keys})
        look = partial(_look, images=images, sizes=image_sizes, train=train)
        if train or self.is_initializing():
            found = look(self, outputs["rois"])
        else:
            found = self._in_chunks(look, outputs["rois"])
        outputs |= {name: found[name] for name in ("box_logits", "box_deltas")}
        if not train:
            outputs |= {name: found[name] for name in ("pool5", "features")} | self.detect(outputs, image_sizes)
        return outputs

    def _in_chunks(self, look: Any, rois: jax.Array) -> dict[str, jax.Array]:
        """Return what `look` gives for regions (N, R, 4), with a few regions of each image in memory at once."""
        images, count = rois.shape[:2]
        chunk = min(count, max(1, self.setting("chunk") // rows_of_a_device(rois)))  # regions of an image, K
        chunks = -(-count // chunk)
        # Images stay rows, which devices share; the chunks are one after another: (N, R, 4) -> (chunks, N, K, 4).
        rois = jnp.pad(rois, ((0, 0), (0, chunks * chunk - count), (0, 0)))
        rois = rois.reshape(images, chunks, chunk, 4).swapaxes(0, 1)
        scan = nn.scan(
            lambda network, _, rois: (None, look(network, rois)),
            variable_broadcast=["params", "batch_stats"], split_rngs={"params": False},
        )  # fmt: skip
        _, found = scan(self, None, rois)

        def joined(x: jax.Array) -> jax.Array:  # (chunks, N, K, …) -> (N, R, …)
            return x.swapaxes(0, 1).reshape(images, chunks * chunk, *x.shape[3:])[:, :count]

        return jax.tree.map(joined, found)

    def classify(self, windows: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Return what the class lists of windows (W, side, side, C): "pool5", "features", "box_logits", "box_deltas".

        Raises:
          UserError: `features` is none of `FEATURES`.
        """
        if self.features not in FEATURES:
            raise UserError(f"model.overrides.features={self.features!r}: it must be {' | '.join(FEATURES)}")
        maps = self.trunk("trunk")(windows, train=train)
        x = list(maps.values())[-1].x  # (W, h, w, C), what fc6 takes
        pool5 = x.reshape(len(x), -1)
        layers = FEATURES[1 : FEATURES.index(self.features) + 1]
        features = self.fully_connected(x, train, layers).reshape(len(x), -1)
        logits = Classifier(self.num_classes, self.dtype, nn.initializers.normal(0.01), name="head")(features)
        deltas = Regression(self.num_classes, self.dtype, name="boxes")(pool5)
        return {"pool5": pool5, "features": features, "box_logits": logits, "box_deltas": deltas}

    def scores(self, logits: jax.Array) -> jax.Array:
        """Return the margins as they are, (R, classes)."""
        return logits


def _look(network: RCNN, rois: jax.Array, *, images: jax.Array, sizes: jax.Array, train: bool) -> dict[str, jax.Array]:
    """Return what `RCNN.classify` gives for regions (N, K, 4) of images (N, H, W, C): (N, K, …) each."""
    side, context = network.setting("window"), network.context
    of_image = jax.vmap(lambda image, box, size: warp(image, box, size, side, context), (None, 0, None))
    windows = jax.vmap(of_image)(images, rois, sizes)  # (N, K, side, side, C)
    found = network.classify(windows.reshape(-1, *windows.shape[2:]), train)
    return jax.tree.map(lambda x: x.reshape(*rois.shape[:2], *x.shape[1:]), found)


MODELS = {name: partial(RCNN, spec) for name, spec in SPECS.items()}
