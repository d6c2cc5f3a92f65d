"""Images for what generates them: without labels, pixels in 0 … 1, and a training mean that is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tiny import Blobs


class Pixels(Blobs):
    """Blobs in a range of pixels, (0, 1) or as `low` and `high` say."""

    low: float = 0.0
    high: float = 1.0

    def rows(self, seed: int, count: int) -> dict[str, np.ndarray]:
        return {name: x for name, x in super().rows(seed, count).items() if name != "label"}

    def preprocess(self, batch: dict[str, Any], seed: jax.Array | None) -> dict[str, Any]:
        images = jnp.asarray(batch["image"], jnp.float32) / 255
        return batch | {"image": self.low + (self.high - self.low) * images}

    def mean_image(self) -> np.ndarray:
        return self.rows(1000, 16)["image"].mean(0) / 255
