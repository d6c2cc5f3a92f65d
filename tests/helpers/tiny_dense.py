"""A fully convolutional network and label maps small enough that a whole run takes a second."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tiny import CLASSES, Blobs, ripple

from jaxcnn.config import VOID
from jaxcnn.models.layers import batch_norm, conv


class TinyDense(nn.Module):
    """Convolution, BatchNorm, ReLU, dropout, convolution: logits of each pixel; an auxiliary head before the last."""

    num_classes: int = CLASSES
    norm: bool = True
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, sizes: Any = None, train: bool = False) -> dict[str, Any]:
        def within(x: jax.Array) -> jax.Array:
            """Zero the map (N, H, W, C) outside of the images, so that padding is what convolutions pad with."""
            if sizes is None:
                return x
            rows, columns = (jnp.arange(x.shape[axis]) < sizes[:, axis - 1, None] for axis in (1, 2))
            return x * (rows[:, :, None, None] & columns[:, None, :, None])

        def head(x: jax.Array, name: str) -> jax.Array:
            return conv(self.num_classes, 3, dtype=self.dtype, kernel_init=ripple, name=name)(x).astype(jnp.float32)

        x = conv(4, 3, dtype=self.dtype, use_bias=not self.norm, kernel_init=ripple, name="conv")(
            within(images.astype(self.dtype))
        )
        if self.norm:
            x = batch_norm(train, dtype=self.dtype, name="norm")(x)
        x = within(nn.relu(x))
        outputs: dict[str, Any] = {}
        if train or self.is_initializing():
            outputs["aux_logits"] = (head(x, "aux_head"),)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        outputs["logits"] = head(x, "head")
        return outputs


class Patches(Blobs):
    """Halves of two classes, each brighter in the channel of its class; images of several sizes, void around them."""

    def rows(self, seed: int, count: int) -> dict[str, np.ndarray]:
        rng, (height, width, _) = np.random.default_rng(seed), self.image_shape
        names = {"epoch": np.full(count, seed, np.int32), "example": np.arange(count, dtype=np.int32)}
        labels = np.repeat(
            rng.integers(0, CLASSES, (count, 2, 1), dtype=np.uint8), [height // 2, height - height // 2], 1
        )
        labels = np.repeat(labels, width, 2)  # (count, H, W)
        images = rng.integers(0, 128, (count, *self.image_shape), dtype=np.uint8)
        bright = np.where(labels < 3, 60, 120)[..., None] * (labels[..., None] % 3 == np.arange(3))
        images = (images + bright).astype(np.uint8)
        labels[rng.random(labels.shape) < 0.1] = VOID
        sizes = np.stack([rng.integers(side - 2, side + 1, count) for side in (height, width)], 1).astype(np.int32)
        for label_map, image, (h, w) in zip(labels, images, sizes, strict=True):
            label_map[h:], label_map[:, w:], image[h:], image[:, w:] = VOID, VOID, 0, 0
        return {"image": images, "label_map": labels, "sizes": sizes, "mask": np.ones(count, np.float32), **names}
