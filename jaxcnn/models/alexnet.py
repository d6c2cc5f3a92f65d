"""AlexNet: "ImageNet Classification with Deep Convolutional Neural Networks", Krizhevsky, Sutskever and Hinton, 2012.

Figure 2 and section 3.5; `alexnet_tv` is the single-column network of "One weird trick for parallelizing convolutional
neural networks", Krizhevsky 2014 (arXiv:1404.5997), as torchvision has it. A network is a row of `SPECS`:

                                   alexnet          alexnet_tv
    images          224×224×3
    conv1   11×11, stride 4         55×55×96         55×55×64
    pool     3×3, stride 2          27×27            27×27
    conv2    5×5                    27×27×256        27×27×192
    pool     3×3, stride 2          13×13            13×13
    conv3    3×3                    13×13×384        13×13×384
    conv4    3×3                    13×13×384        13×13×256
    conv5    3×3                    13×13×256        13×13×256
    pool     3×3, stride 2           6×6              6×6
    fc6, fc7                         4096             4096
    head                             classes          classes

In the paper conv2, conv4 and conv5 see only the half of the channels that lies on their GPU, here two groups; conv1 and
conv2 are followed by response normalisation (section 3.3); and the pooling windows overlap (section 3.4). The paper
says 224 pixels and 55×55 outputs: a padding of 2 makes both true.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxcnn.models.grid import CANVAS, Grid, Map
from jaxcnn.models.layers import Endpoint, Network, classify, conv, widen
from jaxcnn.models.normalization import local_response_norm
from jaxcnn.models.pooling import max_pool


class Spec(NamedTuple):
    """One architecture: channels of conv1 … conv5 and what surrounds them."""

    channels: tuple[int, ...]
    groups: tuple[int, ...] = (1, 1, 1, 1, 1)
    lrn: tuple[int, ...] = ()  # layers that response normalisation follows
    ones: tuple[str, ...] = ()  # layers whose biases begin at 1, which feeds their ReLUs (section 5)
    kernel_init: Any = nn.initializers.normal(0.01)
    dropout_first: bool = False  # before fc6 and fc7 rather than after


SPECS = {
    "alexnet": Spec(
        (96, 256, 384, 384, 256), groups=(1, 2, 1, 2, 2), lrn=(1, 2), ones=("conv2", "conv4", "conv5", "fc6", "fc7")
    ),
    # Weights begin as torch's default does: uniform of variance 1 / (3 fan_in); biases at 0.
    "alexnet_tv": Spec(
        (64, 192, 384, 256, 256),
        kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        dropout_first=True,
    ),
}


class AlexNet(Network):
    """Five convolutions and three fully connected layers.

    Images (N, H, W, C) -> {"logits": (N, num_classes) float32, "stage1", "stage2", "stage3"}: the maps that the three
    pooling layers take. The weights of fc6 fit one image size.

    Attributes:
      dropout: rate in the fully connected layers (section 4.2).
      small_images: conv1 becomes 5×5 with stride 1, all else stays.
      width: factor on all channels.
      dense: for evaluation of larger images, `model.clone(dense=True)`; as in VGG. torchvision would instead pool them
        to the size of training.
      ceil_pool: a pooling window may hang over the edge, as Caffe has it; of 224 pixels none does.
    """

    spec: Spec
    width: float = 1.0
    dense: bool = False
    ceil_pool: bool = False

    @property
    def fc6_window(self) -> int:
        """Return the side in cells of the map that fc6 takes at `image_size`."""
        return 3 if self.small_images else 6

    @property
    def endpoints(self) -> dict[str, tuple[int, int]]:
        """Return {endpoint: (stride in pixels of the image, channels)}, in the order of the forward pass."""
        stride = 1 if self.small_images else 4
        channels = [widen(c, self.width) for c in self.spec.channels]
        return {f"stage{i + 1}": (stride << i, channels[layer]) for i, layer in enumerate((0, 1, 4))}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, grid: Grid = CANVAS) -> dict[str, Any]:
        """Return logits and endpoints of NHWC float images; of a trunk its maps, for images on `grid`."""
        spec, maps = self.spec, dict[str, Map]()

        def init(layer: str) -> dict[str, Any]:
            return {"kernel_init": spec.kernel_init, "bias_init": nn.initializers.constant(float(layer in spec.ones))}

        # Kernel, stride, padding, and the stage that a layer ends.
        first = (5, 1, 2, 1) if self.small_images else (11, 4, 2, 1)
        layers = (first, (5, 1, 2, 2), (3, 1, 1, None), (3, 1, 1, None), (3, 1, 1, 3))
        x = images.astype(self.dtype)
        for i, (kernel, stride, pad, stage) in enumerate(layers, start=1):
            x = conv(
                widen(spec.channels[i - 1], self.width), kernel, stride, pad=pad, groups=spec.groups[i - 1],
                use_bias=True, dtype=self.dtype, name=f"conv{i}", **init(f"conv{i}"),
            )(x)  # fmt: skip
            grid = grid.window(kernel, stride, pad)
            x = grid.crop(nn.relu(x))
            if i in spec.lrn:
                x = local_response_norm(x)
            if stage:
                x = Endpoint(name=f"stage{stage}")(x)
                maps[f"stage{stage}"] = Map(x, grid)
                grid = grid.window(3, 2, ceil=self.ceil_pool)
                x = grid.crop(max_pool(x, window=3, stride=2, ceil=self.ceil_pool))
                maps[f"pool{stage}"] = Map(x, grid)
        if not self.num_classes:
            return maps
        outputs = {name: maps[name].x for name in self.endpoints}
        # 6×6×256 at 224 pixels. fc6 keeps its kernel in that shape, so that larger maps can be convolved with it.
        outputs["logits"] = classify(self, x, train, init, spec.dropout_first)
        return outputs


MODELS = {name: partial(AlexNet, spec) for name, spec in SPECS.items()}
