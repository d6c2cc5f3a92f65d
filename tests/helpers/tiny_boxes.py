"""A detector and images with boxes small enough that a whole run takes a second.

The anchors are the quarters of an image. An object is a bright block that fills a quarter but for its edge, and the
channel that it is bright in is its class.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tiny import Blobs

from jaxcnn.models import boxes as box
from jaxcnn.models.layers import Classifier
from jaxcnn.models.matching import BACKGROUND, match

NAMES = ("background", "red", "green", "blue", "never")
CLASSES = len(NAMES)
M = 6  # objects that a batch has room for


class TinyBoxes(nn.Module):
    """A convolution's mean over each quarter, and linear layers: the outputs of a detector of two stages.

    Every anchor is sampled, and a fixed share of the regions, by the key of the example.
    """

    num_classes: int = CLASSES
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, sizes: Any = None, targets: Any = None, proposals: Any = None, train: bool = False
    ) -> dict[str, Any]:
        n, height, width, _ = images.shape
        sizes = jnp.broadcast_to(jnp.array([height, width]), (n, 2)) if sizes is None else sizes
        quarters = jnp.array([[0, 0, 1, 1], [1, 0, 2, 1], [0, 1, 1, 2], [1, 1, 2, 2]]) / 2
        anchors = quarters * sizes[:, None, jnp.array([1, 0, 1, 0])].astype(jnp.float32)  # (N, 4, 4)
        x, y = jnp.arange(width) + 0.5, jnp.arange(height) + 0.5
        columns = (anchors[..., 0, None] < x) & (x < anchors[..., 2, None])  # (N, 4, W)
        rows = (anchors[..., 1, None] < y) & (y < anchors[..., 3, None])
        inside = (rows[..., :, None] & columns[..., None, :])[..., None]  # (N, 4, H, W, 1)
        mean = jnp.sum(images[:, None] * inside, (2, 3)) / jnp.maximum(inside.sum((2, 3)), 1)  # (N, 4, C)
        x = nn.Dropout(self.dropout, deterministic=not train)(
            nn.relu(nn.Dense(16, dtype=self.dtype, name="trunk")(mean))
        )

        def head(features: int, name: str) -> Any:
            return Classifier(features, self.dtype, name=name)(x.reshape(4 * n, -1)).reshape(n, 4, features)

        found = head(5, "rpn")
        box_logits, box_deltas = head(self.num_classes, "head"), head(4 * self.num_classes, "boxes")
        box_deltas = box_deltas.reshape(n, 4, -1, 4)
        outputs = {"rpn_logits": found[..., 0], "rpn_deltas": found[..., 1:], "rois": anchors}
        outputs |= {"roi_valid": jnp.ones((n, 4), bool), "box_logits": box_logits, "box_deltas": box_deltas}
        if targets is not None:
            return outputs | self.sampled(anchors, targets)
        if train:
            return outputs
        scores = jax.nn.softmax(box_logits)[..., 1:].max(-1)
        labels = 1 + box_logits[..., 1:].argmax(-1)
        deltas = jnp.take_along_axis(box_deltas, labels[..., None, None], 2)[:, :, 0]
        boxes, order = box.decode(anchors, deltas), jnp.argsort(-scores)
        made = {"boxes": boxes, "scores": scores, "labels": labels, "valid": scores > 0.05}
        return outputs | {
            name: jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 1)
            for name, x in made.items()
        }

    def sampled(self, anchors: jax.Array, targets: Any) -> dict[str, jax.Array]:
        """Match and sample as the protocol of detection has it."""

        def of_image(anchors: Any, truth: Any, valid: Any) -> Any:
            return match(truth, anchors, positive=0.5, negative=(0, 0.5), valid=valid)

        matches = jax.vmap(of_image)(anchors, targets["boxes"], targets["valid"])
        owner = jnp.maximum(matches, 0)
        truth = jnp.take_along_axis(targets["boxes"], owner[..., None], 1)
        wanted = jnp.where((matches >= 0)[..., None], box.encode(anchors, truth), 0)
        labels = jnp.where(matches >= 0, jnp.take_along_axis(targets["labels"], owner, 1), 0)
        key = self.make_rng("sampling")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, targets["example"])
        drawn = jax.vmap(lambda key: jax.random.bernoulli(key, 0.7, (4,)))(keys)
        return {
            "rpn_matches": matches, "rpn_targets": wanted, "roi_labels": labels, "box_targets": wanted,
            "roi_valid": drawn | (matches != BACKGROUND), "roi_objects": owner,
        }  # fmt: skip


class Annotations(NamedTuple):
    """What evaluation takes of a source, of images that are stored at twice their size."""

    rows: dict[str, np.ndarray]
    class_names: tuple[str, ...] = NAMES
    category_ids: tuple[int, ...] = (0, 1, 18, 44, 90)

    @property
    def numbers(self) -> list[int]:
        return [7 * example + 3 for example in range(len(self.rows["mask"]))]

    @property
    def pixels(self) -> np.ndarray:
        return self.rows["original_sizes"]

    def truth(self, index: int) -> dict[str, np.ndarray]:
        keep = self.rows["valid"][index]
        found = {name: self.rows[name][index][keep] for name in ("boxes", "labels", "difficult", "crowd")}
        boxes = 2 * found.pop("boxes")
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        return found | {"boxes": boxes, "area": area}


class Blocks(Blobs):
    """Zero to three blocks an image, some of them difficult or a crowd; sizes differ."""

    def __init__(self, *arguments: Any, image_shape: tuple[int, int, int] = (16, 20, 3), **options: Any):
        super().__init__(*arguments, image_shape=image_shape, num_classes=CLASSES, **options)
        self.input = {"image_shape": self.image_shape, "class_names": NAMES}
        self.eval = Annotations(self.rows(1, self.eval_examples))

    def rows(self, seed: int, count: int) -> dict[str, np.ndarray]:
        rng, (height, width, _) = np.random.default_rng(seed), self.image_shape
        sizes = np.stack([2 * rng.integers(side // 2 - 2, side // 2 + 1, count) for side in (height, width)], 1)
        rows: dict[str, np.ndarray] = {
            "image": np.zeros((count, *self.image_shape), np.uint8), "boxes": np.zeros((count, M, 4), np.float32),
            "labels": np.zeros((count, M), np.int32), "valid": np.zeros((count, M), bool),
            "difficult": np.zeros((count, M), bool), "crowd": np.zeros((count, M), bool),
            "sizes": sizes.astype(np.int32), "original_sizes": (2 * sizes).astype(np.int32),
            "mask": np.ones(count, np.float32), "epoch": np.full(count, seed, np.int32),
            "example": np.arange(count, dtype=np.int32),
        }  # fmt: skip
        for i, (h, w) in enumerate(sizes // 2):
            rows["image"][i, : 2 * h, : 2 * w] = rng.integers(0, 60, (2 * h, 2 * w, 3))
            for k, quarter in enumerate(rng.permutation(4)[: rng.integers(0, 4)]):
                top, left, label = quarter // 2 * h, quarter % 2 * w, int(rng.integers(1, 4))
                rows["image"][i, top : top + h - 1, left : left + w - 1, label - 1] += np.uint8(180)
                rows["boxes"][i, k] = left, top, left + w - 1, top + h - 1
                rows["labels"][i, k], rows["valid"][i, k] = label, True
                rows["difficult"][i, k], rows["crowd"][i, k] = rng.random(2) < 0.1
        return rows
