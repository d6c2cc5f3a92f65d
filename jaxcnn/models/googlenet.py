"""GoogLeNet: "Going Deeper with Convolutions", Szegedy et al., CVPR 2015 (arXiv:1409.4842).

Table 1. Sizes are rounded up where a pooling window hangs over the edge:

    images      224×224×3
    conv1       7×7, stride 2       112×112×64       stage1
    pool        3×3, stride 2        56×56×64
    conv2       1×1, then 3×3        56×56×192       stage2
    pool        3×3, stride 2        28×28×192
    3a, 3b      inception            28×28×480       stage3
    pool        3×3, stride 2        14×14×480
    4a … 4e     inception            14×14×832       stage4
    pool        3×3, stride 2         7×7×832
    5a, 5b      inception             7×7×1024       stage5
    average pooling, dropout, head

`googlenet` has response normalisation beside the first two pooling layers (Figure 3) and no BatchNorm. `googlenet_tv`
is torchvision's network: BatchNorm after every convolution, 3×3 where the paper has 5×5, and a last pooling of 2×2.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.grid import CANVAS, Grid, Map
from jaxcnn.models.layers import (
    Classifier,
    Endpoint,
    FullyConnected,
    Network,
    batch_norm,
    conv,
    end_of_block,
    widen,
)
from jaxcnn.models.normalization import local_response_norm
from jaxcnn.models.pooling import adaptive_avg_pool, avg_pool, global_avg_pool, max_pool

# Table 1: channels of #1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
AUXILIARY = {"4a": "aux1", "4d": "aux2"}  # section 5: a classifier on top of each, in training only
LAST = {"3b": "stage3", "4e": "stage4", "5b": "stage5"}


class Spec(NamedTuple):
    """One architecture: what differs between the paper's network and torchvision's."""

    norm: bool = False  # BatchNorm in place of biases and response normalisation
    large: int = 5  # kernel of the branch of large filters
    last_pool: int = 3  # window of the pooling before 5a
    dropout: float = 0.4


SPECS = {"googlenet": Spec(), "googlenet_tv": Spec(norm=True, large=3, last_pool=2, dropout=0.2)}


class Unit(nn.Module):
    """Convolution, BatchNorm where the network has it, ReLU. (N, H, W, C) -> (N, ⌈H / stride⌉, …, features)."""

    features: int
    kernel: int
    stride: int = 1
    norm: Any = None
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, grid: Grid = CANVAS) -> jax.Array:
        """Apply it; `train` selects the batch's statistics in BatchNorm, and `grid` is that of the result."""
        x = conv(self.features, self.kernel, self.stride, use_bias=not self.norm, dtype=self.dtype, name="conv")(x)
        if self.norm:
            x = self.norm(train, dtype=self.dtype, name="norm")(x, mask=grid.inside(x))
        return grid.crop(nn.relu(x))


class Inception(nn.Module):
    """Figure 2(b): filters of three sizes and a pooling side by side, 1×1 layers keeping them cheap.

    (N, H, W, C) -> (N, H, W, sum of the four branches' channels).
    """

    channels: tuple[int, ...]  # a row of INCEPTIONS
    large: int
    unit: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, grid: Grid = CANVAS) -> jax.Array:
        """Concatenate the four branches; `grid` is that of `x` and of the result."""
        one, reduce3, three, reduce5, five, project = self.channels
        a = self.unit(one, 1, name="conv1x1")(x, train, grid)
        b = self.unit(reduce3, 1, name="reduce3x3")(x, train, grid)
        b = self.unit(three, 3, name="conv3x3")(b, train, grid)
        c = self.unit(reduce5, 1, name="reduce5x5")(x, train, grid)
        c = self.unit(five, self.large, name="conv5x5")(c, train, grid)
        d = max_pool(x, window=3, stride=1, pad=1)  # the size stays
        d = self.unit(project, 1, name="project")(d, train, grid)
        return end_of_block(jnp.concatenate([a, b, c, d], axis=-1))


class Auxiliary(nn.Module):
    """Section 5, the classifier beside the network: (N, H, W, C) -> logits (N, num_classes) float32.

    Average pooling to 4×4 at 224 pixels, 1×1 convolution to 128 channels, 1024 fully connected, dropout, head.
    """

    num_classes: int
    spec: Spec
    unit: Any
    dropout: float
    width: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Pool, project, classify."""
        # 14×14 -> 4×4. torchvision's pooling makes any image size fit the weights, the paper's windows only one.
        x = adaptive_avg_pool(x, 4) if self.spec.norm else avg_pool(x, window=5, stride=3)
        x = self.unit(widen(128, self.width), 1, name="project")(x, train)
        dtype = x.dtype
        x = nn.relu(FullyConnected(widen(1024, self.width), dtype, name="fc")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Classifier(self.num_classes, dtype, name="head")(x)


class GoogLeNet(Network):
    """Nine inception modules between a convolutional stem and one fully connected layer.

    Images (N, H, W, C) -> {"logits": (N, num_classes) float32, "stage1", … "stage5"}, and in training "aux_logits", the
    logits of the two auxiliary classifiers. The last stage is pooled globally: any image size will do in evaluation. In
    training the weights of the auxiliary classifiers fit the size that they were made for, but in `googlenet_tv`.

    Attributes:
      dropout: rate before the head; None is the architecture's own (0.4, Table 1; torchvision 0.2).
      aux_dropout: rate in the auxiliary classifiers (section 5).
      width: factor on all channels.
      small_images: conv1 becomes 3×3 with stride 1 and the first pooling is left out.
      frozen_norm: for `_tv`: BatchNorm with fixed statistics and affine, kept in `batch_stats` (`FrozenBatchNorm`).
      norm_epsilon: added to the variance in its BatchNorm.
    """

    spec: Spec
    dropout: float | None = None
    aux_dropout: float = 0.7
    width: float = 1.0
    frozen_norm: bool = False
    norm_epsilon: float = 1e-3

    @property
    def endpoints(self) -> dict[str, tuple[int, int]]:
        """Return {endpoint: (stride in pixels of the image, channels)}, in the order of the forward pass."""
        strides = (1, 1, 2, 4, 8) if self.small_images else (2, 4, 8, 16, 32)
        channels = [widen(64, self.width), widen(192, self.width)]
        channels += [sum(self._row(block)[i] for i in (0, 2, 4, 5)) for block in LAST]
        return {f"stage{i + 1}": pair for i, pair in enumerate(zip(strides, channels, strict=True))}

    def _row(self, block: str) -> tuple[int, ...]:
        return tuple(widen(c, self.width) for c in INCEPTIONS[block])

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, grid: Grid = CANVAS) -> dict[str, Any]:
        """Return logits and endpoints of NHWC float images; of a trunk its maps, for images on `grid`."""
        spec, maps = self.spec, dict[str, Map]()
        norm = partial(batch_norm, epsilon=self.norm_epsilon, frozen=self.frozen_norm)
        unit = partial(Unit, norm=norm if spec.norm else None, dtype=self.dtype)
        lrn = (lambda x: x) if spec.norm else local_response_norm

        def endpoint(name: str, x: jax.Array) -> jax.Array:
            maps[name] = Map(Endpoint(name=name)(x), grid)
            return maps[name].x

        def pool(x: jax.Array, window: int = 3) -> Map:  # 112 -> 56 -> 28 -> 14 -> 7: not a pixel is left out
            after = grid.window(window, 2, ceil=True)
            return Map(after.crop(max_pool(x, window, 2, ceil=True)), after)

        kernel, stride = (3, 1) if self.small_images else (7, 2)
        grid = grid.window(kernel, stride, kernel // 2)
        x = unit(widen(64, self.width), kernel, stride, name="conv1")(images.astype(self.dtype), train, grid)
        x = endpoint("stage1", x)
        if not self.small_images:
            x, grid = pool(x)
        x = lrn(x)  # Figure 3: after the first pooling, before the second
        x = unit(widen(64, self.width), 1, name="conv2_reduce")(x, train, grid)
        x = unit(widen(192, self.width), 3, name="conv2")(x, train, grid)
        x, grid = pool(endpoint("stage2", lrn(x)))
        aux_logits = []
        for block in INCEPTIONS:
            x = Inception(self._row(block), spec.large, unit, name=f"inception{block}")(x, train, grid)
            # `init` in evaluation makes the auxiliary parameters too, so that both modes have the same.
            if self.num_classes and block in AUXILIARY and (train or self.is_initializing()):
                auxiliary = Auxiliary(
                    self.num_classes, spec, unit, self.aux_dropout, self.width, name=AUXILIARY[block]
                )  # fmt: skip
                aux_logits.append(auxiliary(x, train))
            if block in LAST:
                x = endpoint(LAST[block], x)
            if block in ("3b", "4e"):
                x, grid = pool(x, window=3 if block == "3b" else spec.last_pool)
        if not self.num_classes:
            return maps
        outputs: dict[str, Any] = {name: maps[name].x for name in self.endpoints}
        if train:
            outputs["aux_logits"] = tuple(aux_logits)
        rate = spec.dropout if self.dropout is None else self.dropout
        x = nn.Dropout(rate, deterministic=not train)(global_avg_pool(x))
        outputs["logits"] = Classifier(self.num_classes, self.dtype, name="head")(x)
        return outputs


MODELS = {name: partial(GoogLeNet, spec) for name, spec in SPECS.items()}
