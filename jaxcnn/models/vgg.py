"""VGG: "Very Deep Convolutional Networks for Large-Scale Image Recognition", Simonyan and Zisserman, ICLR 2015.

arXiv:1409.1556. A network is a row of `SPECS`, a column of the paper's Table 1:

    images   224×224×3
    stage1   224×224×64        2×2 max pooling, stride 2, after each stage
    stage2   112×112×128
    stage3    56×56×256
    stage4    28×28×512
    stage5    14×14×512
    pool       7×7
    fc6, fc7   4096
    head       classes

Every convolution is 3×3 with stride 1, but for the 1×1 ones of configuration C, and followed by ReLU. Two 3×3 layers
see 5×5 pixels, four see 9×9, with fewer weights and more non-linearities (section 2.3; `jaxcnn tables stacks`).
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxcnn import UserError
from jaxcnn.models.grid import CANVAS, Grid, Map
from jaxcnn.models.layers import Endpoint, Network, batch_norm, classify, conv, he_normal, widen
from jaxcnn.models.normalization import local_response_norm
from jaxcnn.models.pooling import max_pool

CHANNELS = (64, 128, 256, 512, 512)


class Spec(NamedTuple):
    """One architecture: the kernel sizes of each stage's convolutions."""

    stages: tuple[tuple[int, ...], ...]
    lrn: bool = False  # response normalisation after the first convolution, with the constants of AlexNet
    norm: bool = False  # BatchNorm after every convolution, as torchvision's `_bn`; the biases stay


# Columns A to E of Table 1: stages of 64, 128, 256, 512 and 512 channels.
_A = ((3,), (3,), (3, 3), (3, 3), (3, 3))
_B = ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3))
_C = ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1))
_D = ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
_E = ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3))
SPECS = {
    "vgg11": Spec(_A),
    "vgg11_lrn": Spec(_A, lrn=True),
    "vgg13": Spec(_B),
    "vgg16_c": Spec(_C),
    "vgg16": Spec(_D),
    "vgg19": Spec(_E),
    "vgg11_bn": Spec(_A, norm=True),
    "vgg13_bn": Spec(_B, norm=True),
    "vgg16_bn": Spec(_D, norm=True),
    "vgg19_bn": Spec(_E, norm=True),
}

# Kernels, by the override `init_scheme`. He's Gaussian trains every depth from scratch. The paper's own, section 3.1,
# is a Gaussian of variance 0.01 for network A, whose weights the deeper ones then begin from.
INITS = {"he": he_normal, "paper": nn.initializers.normal(0.1)}


class VGG(Network):
    """Five stages of convolutions and three fully connected layers.

    Images (N, H, W, C) -> {"logits": (N, num_classes) float32, "stage1", … "stage5"}: the maps that the five pooling
    layers take. The weights of fc6 fit one image size.

    Attributes:
      dropout: rate after fc6 and fc7 (section 3.1).
      small_images: the last pooling is left out, all else stays.
      width: factor on all channels.
      init_scheme: "he" or "paper", see `INITS`.
      dense: for evaluation, `model.clone(dense=True)`: images may be larger than those of training. The fully connected
        layers are convolutions, with the same variables, and their map of class scores is averaged (section 3.2).
      frozen_norm: for `_bn`: BatchNorm with fixed statistics and affine, kept in `batch_stats` (`FrozenBatchNorm`).
      norm_epsilon: added to the variance in its BatchNorm.
      ceil_pool: a pooling window may hang over the edge, as Caffe has it; of 224 pixels none does.
    """

    spec: Spec
    width: float = 1.0
    init_scheme: str = "he"
    dense: bool = False
    frozen_norm: bool = False
    norm_epsilon: float = 1e-5
    ceil_pool: bool = False

    @property
    def fc6_window(self) -> int:
        """Return the side in cells of the map that fc6 takes at `image_size`."""
        return 2 if self.small_images else 7

    @property
    def endpoints(self) -> dict[str, tuple[int, int]]:
        """Return {endpoint: (stride in pixels of the image, channels)}, in the order of the forward pass."""
        return {f"stage{i + 1}": (1 << i, widen(c, self.width)) for i, c in enumerate(CHANNELS)}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, grid: Grid = CANVAS) -> dict[str, Any]:
        """Return logits and endpoints of NHWC float images; of a trunk its maps, for images on `grid`."""
        if self.init_scheme not in INITS:
            raise UserError(f"model.overrides.init_scheme={self.init_scheme!r}: it must be {' | '.join(INITS)}")
        kernel_init, maps = INITS[self.init_scheme], dict[str, Map]()
        norm = partial(batch_norm, train, dtype=self.dtype, epsilon=self.norm_epsilon, frozen=self.frozen_norm)
        x = images.astype(self.dtype)
        for stage, (kernels, channels) in enumerate(zip(self.spec.stages, CHANNELS, strict=True), start=1):
            for i, kernel in enumerate(kernels, start=1):
                x = conv(
                    widen(channels, self.width), kernel, use_bias=True, kernel_init=kernel_init, dtype=self.dtype,
                    name=f"stage{stage}_conv{i}",
                )(x)  # fmt: skip
                grid = grid.window(kernel, pad=kernel // 2)
                if self.spec.norm:
                    x = norm(name=f"stage{stage}_norm{i}")(x, mask=grid.inside(x))
                x = grid.crop(nn.relu(x))
                if self.spec.lrn and stage == i == 1:
                    x = local_response_norm(x)
            x = Endpoint(name=f"stage{stage}")(x)
            maps[f"stage{stage}"] = Map(x, grid)
            if stage < len(CHANNELS) or not self.small_images:  # stage5 of a 32-pixel image is 2×2 already
                grid = grid.window(2, 2, ceil=self.ceil_pool)
                x = grid.crop(max_pool(x, window=2, stride=2, ceil=self.ceil_pool))
                maps[f"pool{stage}"] = Map(x, grid)
        if not self.num_classes:
            return maps
        outputs = {name: maps[name].x for name in self.endpoints}
        # 7×7×512 at 224 pixels. fc6 keeps its kernel in that shape, so that larger maps can be convolved with it.
        outputs["logits"] = classify(self, x, train, lambda _: {"kernel_init": kernel_init})
        return outputs


MODELS = {name: partial(VGG, spec) for name, spec in SPECS.items()}
