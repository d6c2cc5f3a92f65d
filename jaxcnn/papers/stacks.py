"""Why small filters: a stack of 3×3 filters sees as much as one large filter, for less (VGG, section 2.3)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.models.layers import conv
from jaxcnn.papers.cost import layers, total
from jaxcnn.papers.tabular import Table, count, scaled, size, text


class Stack(nn.Module):
    """`depth` square convolutions of `kernel` pixels on equally many channels, without biases."""

    kernel: int
    depth: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """(N, H, W, channels) -> the same shape."""
        for _ in range(self.depth):
            x = conv(self.channels, self.kernel, dtype=jnp.float32, kernel_init=nn.initializers.ones)(x)
        return x


def receptive_field(kernel: int, depth: int) -> int:
    """Side in pixels of what one output of such a stack depends on: where its gradient is not zero."""
    stack, side = Stack(kernel, depth, 1), 2 * kernel * depth + 1
    image = jnp.zeros((1, side, side, 1))
    variables = stack.init(jax.random.key(0), image)

    def middle(image: jax.Array) -> jax.Array:
        output: Any = stack.apply(variables, image)
        return output[0, side // 2, side // 2, 0]

    return int(np.any(np.asarray(jax.grad(middle)(image)) != 0, axis=(0, 1, 3)).sum())


def stacks() -> Table:
    """The table of the argument: cost and sight of one filter and of the stack that replaces it."""
    channels, pixels, rows = 256, 28, []
    for large, depth in ((5, 2), (7, 3), (9, 4)):
        costs = []
        for kernel, times in ((large, 1), (3, depth)):
            kept = layers(Stack(kernel, times, channels), (pixels, pixels, channels))
            parameters = total(kept, "parameters")
            costs.append(parameters)
            rows.append([
                text(f"{times} of {kernel}×{kernel}"), text(size((receptive_field(kernel, times),) * 2)),
                count(parameters // channels**2), count(parameters), scaled(total(kept, "macs"), 1e6, 1), count(times),
                scaled(parameters / costs[0], 1, 2),
            ])  # fmt: skip
    return Table(
        "stacks", "One large filter against a stack of 3×3 filters that sees as much", 1,
        ("layers", "sees", "per pair", "parameters", "MMACs", "ReLUs", "cost"), rows,
        (f"{channels} channels in and out at {pixels}×{pixels} pixels, no biases. Per pair: weights for each pair of "
         "an input and an output channel. Cost: against the large filter.",
         "VGG, section 2.3: 27C² against 49C² weights for 7×7, and three non-linearities in place of one.",
         "What a stack sees is measured: the pixels on which one output's gradient is not zero."),
    )  # fmt: skip
