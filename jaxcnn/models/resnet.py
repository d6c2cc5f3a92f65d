"""ResNet: "Deep Residual Learning for Image Recognition", He, Zhang, Ren and Sun, CVPR 2016 (arXiv:1512.03385).

Table 1 gives the ImageNet networks, section 4.2 those for CIFAR. A network is a row of `SPECS`:

    ImageNet, 224×224×3                        CIFAR, 32×32×3
    stem    7×7, 64, stride 2    112×112       stem    3×3, 16             32×32
    pool    3×3 max, stride 2     56×56
    stage1  64 (256)              56×56        stage1  16                  32×32
    stage2  128 (512)             28×28        stage2  32                  16×16
    stage3  256 (1024)            14×14        stage3  64                    8×8
    stage4  512 (2048)              7×7
    global average pool, fully connected

(channels of bottleneck networks in brackets). Shortcuts, section 4.1: A, identity, zero-padded where the channels grow;
B, projections there and identity elsewhere; C, projections everywhere. The plain networks have none.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.convolution import convolve
from jaxcnn.models.fused_norm import FusedNorm, is_fused, norm_of_product, norm_relu_pool
from jaxcnn.models.grid import CANVAS, Grid, Map
from jaxcnn.models.layers import Classifier, Endpoint, Network, batch_norm, conv, end_of_block, he_normal
from jaxcnn.models.normalization import at_least_float32
from jaxcnn.models.pooling import global_avg_pool, max_pool
from jaxcnn.models.sharding import platform, statistics_axis


class Spec(NamedTuple):
    """One architecture: blocks in each stage and what they are made of."""

    blocks: tuple[int, ...]
    bottleneck: bool = False
    shortcut: str = "B"  # A, B, C, or "" for a plain network
    stride_in: str = "conv1"  # bottleneck: the layer that strides; conv2 (the 3×3) is torchvision's form
    cifar: bool = False


def _cifar(depth: int, shortcut: str = "A") -> Spec:
    return Spec(((depth - 2) // 6,) * 3, shortcut=shortcut, cifar=True)  # depth = 6n + 2


SPECS = {
    "resnet18": Spec((2, 2, 2, 2)),
    "resnet18_a": Spec((2, 2, 2, 2), shortcut="A"),
    "resnet34": Spec((3, 4, 6, 3)),
    "resnet34_a": Spec((3, 4, 6, 3), shortcut="A"),
    "resnet34_c": Spec((3, 4, 6, 3), shortcut="C"),
    "resnet50": Spec((3, 4, 6, 3), bottleneck=True),
    "resnet101": Spec((3, 4, 23, 3), bottleneck=True),
    "resnet152": Spec((3, 8, 36, 3), bottleneck=True),
    "resnet50_tv": Spec((3, 4, 6, 3), bottleneck=True, stride_in="conv2"),
    "resnet101_tv": Spec((3, 4, 23, 3), bottleneck=True, stride_in="conv2"),
    "resnet152_tv": Spec((3, 8, 36, 3), bottleneck=True, stride_in="conv2"),
    "plain18": Spec((2, 2, 2, 2), shortcut=""),
    "plain34": Spec((3, 4, 6, 3), shortcut=""),
    **{f"resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"plain{depth}": _cifar(depth, shortcut="") for depth in (20, 32, 44, 56)},
}


class Kernel(nn.Module):
    """The parameter of a convolution that another module computes."""

    shape: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self) -> jax.Array:
        """Return the kernel (height, width, C, features), float32 at least."""
        return self.param("kernel", he_normal, self.shape, at_least_float32(self.dtype))


SCANNED = 18  # blocks a stage, from which an accelerator runs them as a loop: resnet110's


class Block(nn.Module):
    """y = ReLU(F(x) + x), equation 1, where F is two 3×3 convolutions or a 1×1, 3×3, 1×1 bottleneck (Figure 5).

    (N, H, W, C) -> (N, H / stride, W / stride, 4·width if bottleneck else width), in `dtype`. The 3×3 convolutions are
    dilated by `dilation`.
    """

    width: int
    stride: int
    spec: Spec
    dtype: Any
    norm: Any = batch_norm
    dilation: int = 1
    fused_epsilon: float | None = None  # in place of `norm`, BatchNorm by `models.fused_norm` where that has a form

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, grid: Grid = CANVAS) -> jax.Array:
        """Apply the block; `train` selects the batch's statistics in BatchNorm, and `grid` is that of `x`."""
        norm = partial(self.norm, train, dtype=self.dtype)
        layers = [(self.width, 3, self.stride), (self.width, 3, 1)]
        if self.spec.bottleneck:
            first, second = (self.stride, 1) if self.spec.stride_in == "conv1" else (1, self.stride)
            layers = [(self.width, 1, first), (self.width, 3, second), (4 * self.width, 1, 1)]
        y, fused = x, self.fused_epsilon is not None and self.spec.bottleneck
        for i, (features, kernel, stride) in enumerate(layers, start=1):
            if fused and i == len(layers):
                return end_of_block(self.fused(y, features, i, self.shortcut(x, features, norm, grid)))
            dilation = self.dilation if kernel > 1 else 1
            y = conv(features, kernel, stride, dilation=dilation, dtype=self.dtype, name=f"conv{i}")(y)
            grid = grid.window(1, stride)  # the padding keeps the first cell where it was
            y = norm(name=f"norm{i}")(y, mask=grid.inside(y))
            if i < len(layers):  # the last ReLU follows the addition
                y = grid.crop(nn.relu(y))
        if self.spec.shortcut:
            y += self.shortcut(x, y.shape[-1], norm, grid)
        return end_of_block(grid.crop(nn.relu(y)))

    def fused(self, x: jax.Array, features: int, layer: int | str, residual: jax.Array | None) -> jax.Array:
        """Return BatchNorm of a 1×1 convolution, and after a block's last layer the sum and the ReLU: one kernel."""
        conv, norm = (f"conv{layer}", f"norm{layer}") if isinstance(layer, int) else (f"{layer}_conv", f"{layer}_norm")
        kernel = Kernel((1, 1, x.shape[-1], features), self.dtype, name=conv)()[0, 0]
        rest = residual, self.fused_epsilon, statistics_axis(), residual is not None
        form: Any = lambda scale, bias: norm_of_product(x, kernel, scale, bias, *rest)  # noqa: E731
        return FusedNorm(features, self.dtype, name=norm)(form)

    def shortcut(self, x: jax.Array, features: int, norm: Any, grid: Grid) -> jax.Array:
        """Return what is added to F(x): `x` itself where the shapes agree, else option A, B or C of section 4.1."""
        grows = self.stride > 1 or x.shape[-1] != features
        if self.spec.shortcut == "C" or (grows and self.spec.shortcut == "B"):
            if self.fused_epsilon is not None and self.spec.bottleneck and self.stride == 1:
                return self.fused(x, features, "shortcut", None)
            x = conv(features, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            return norm(name="shortcut_norm")(x, mask=grid.inside(x))
        if grows:  # option A: every other pixel, and zeros for the channels that x has not
            x = x[:, :: self.stride, :: self.stride]
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))
        return x


class ResNet(Network):
    """A residual (or plain) network.

    Images (N, H, W, C) -> {"logits": (N, num_classes) float32, "stem", "stage1", …: (N, H / stride, W / stride, C')}
    with the strides and channels C' that `endpoints` says. The last stage is pooled globally: any image size will do.

    Attributes:
      dropout: rate before the head; the paper uses none (section 3.4).
      small_images: the stem becomes 3×3 with stride 1, without pooling, as section 4.2 has it for
        CIFAR. The networks of that section are so already.
      frozen_norm: BatchNorm with fixed statistics and affine, kept in `batch_stats` (`normalization.FrozenBatchNorm`).
      norm_epsilon: added to the variance in BatchNorm.
      output_stride: largest stride, 8 say: later stages are dilated in place of striding further, so that their weights
        see the same pixels on a finer grid (torchvision's `replace_stride_with_dilation`); 0: none.
    """

    spec: Spec
    dropout: float = 0.0
    frozen_norm: bool = False
    norm_epsilon: float = 1e-5
    output_stride: int = 0

    @property
    def image_size(self) -> int:
        """Return the side in pixels of the images: the networks of section 4.2 are for small ones."""
        return 32 if self._small_stem else 224

    @property
    def _small_stem(self) -> bool:
        return self.spec.cifar or self.small_images

    @property
    def endpoints(self) -> dict[str, tuple[int, int]]:
        """Return {endpoint: (stride in pixels of the image, channels)}, in the order of the forward pass."""
        base, growth = 16 if self.spec.cifar else 64, 4 if self.spec.bottleneck else 1
        stem, total = (1, 1) if self._small_stem else (2, 4)
        found = {"stem": (stem, base)}
        for i, (stride, *_) in enumerate(self._stages()):
            total *= stride
            found[f"stage{i + 1}"] = total, (base * growth) << i
        return found

    def _stages(self) -> list[tuple[int, int, int]]:
        """Return for each stage the stride and the dilation of its first block, and the dilation of the others."""
        stages, total, dilation = [], 1 if self._small_stem else 4, 1
        for stage in range(len(self.spec.blocks)):
            stride, before = 2 if stage else 1, dilation  # stage1 follows the stem, which has strided already
            if self.output_stride and total * stride > self.output_stride:
                # The blocks skip the cells that striding would leave out; the first still sees those before them.
                stride, dilation = 1, dilation * stride
            total *= stride
            stages.append((stride, before, dilation))
        return stages

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, grid: Grid = CANVAS) -> dict[str, Any]:
        """Return logits and endpoints of NHWC float images; of a trunk its maps, for images on `grid`."""
        maps: dict[str, Map] = {}
        norm = partial(batch_norm, epsilon=self.norm_epsilon, frozen=self.frozen_norm)
        # Statistics of masked cells have no such form.
        fused = train and is_fused() and self.has_fused_norm and grid.sizes is None
        base, (kernel, stride) = 16 if self.spec.cifar else 64, (3, 1) if self._small_stem else (7, 2)
        x, grid = images.astype(self.dtype), grid.window(kernel, stride, kernel // 2)
        if fused:
            x, maps["stem"] = self.fused_stem(x, grid)
            grid = grid.window(3, 2, pad=1)
        else:
            x = conv(base, kernel, stride, dtype=self.dtype, name="stem_conv")(x)
            x = grid.crop(nn.relu(norm(train, dtype=self.dtype, name="stem_norm")(x, mask=grid.inside(x))))
            x = Endpoint(name="stem")(x)
            maps["stem"] = Map(x, grid)
            if not self._small_stem:
                grid = grid.window(3, 2, pad=1)
                x = grid.crop(max_pool(x, window=3, stride=2, pad=1))
        # From stage2 on: half the side, twice the channels.
        for stage, (blocks, (first, *dilations)) in enumerate(
            zip(self.spec.blocks, self._stages(), strict=True), start=1
        ):
            make = partial(Block, base << (stage - 1), spec=self.spec, dtype=self.dtype, norm=norm)
            if fused:
                make = partial(make, fused_epsilon=self.norm_epsilon)
            names = [f"stage{stage}_block{block}" for block in range(1, blocks + 1)]
            x = make(first, dilation=dilations[0], name=names[0])(x, train, grid)
            grid = grid.window(1, first)
            if self._scanned and not self.is_initializing():
                x = self._scan(make(1, dilation=dilations[1], parent=None), names[1:], x, train, grid)
            else:
                for name in names[1:]:
                    x = make(1, dilation=dilations[1], name=name)(x, train, grid)
            x = Endpoint(name=f"stage{stage}")(x)
            maps[f"stage{stage}"] = Map(x, grid)
        if not self.num_classes:
            return maps
        outputs: dict[str, Any] = {name: maps[name].x for name in self.endpoints}
        x = nn.Dropout(self.dropout, deterministic=not train)(global_avg_pool(x))
        outputs["logits"] = Classifier(self.num_classes, self.dtype, name="head")(x)
        return outputs

    @property
    def has_fused_norm(self) -> bool:
        """Return whether training may take the forms of `models.fused_norm`: for bottlenecks, and norms that train."""
        return self.spec.bottleneck and not self._small_stem and not self.frozen_norm

    def fused_stem(self, images: jax.Array, grid: Grid) -> tuple[jax.Array, Map]:
        """Return the pooled stem, and the map of it that is pooled, which XLA leaves out where nobody asks for it."""
        kernel = Kernel((7, 7, images.shape[-1], 64), self.dtype, name="stem_conv")()
        found: dict[str, jax.Array] = {}

        def pooled(scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            sign = jax.lax.stop_gradient(jnp.where(scale < 0, -1, 1).astype(scale.dtype))
            y = convolve(
                images, (kernel * sign).astype(self.dtype), (2, 2), ((3, 3), (3, 3)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            normalize: Any = norm_relu_pool
            x, mean, var = normalize(y, scale * sign, bias, self.norm_epsilon, statistics_axis())
            inverse = jax.lax.rsqrt(var + self.norm_epsilon)
            found["stem"] = nn.relu((y - mean) * (inverse * scale * sign) + bias).astype(self.dtype)
            return x, mean * sign, var

        x = FusedNorm(64, self.dtype, name="stem_norm")(pooled)
        return x, Map(Endpoint(name="stem")(found["stem"]), grid)

    @property
    def _scanned(self) -> bool:
        """Return whether the equal blocks of a stage are one loop, which shortens compilation: only of many small ones.

        On a CPU XLA runs the operations of a loop on one core, many times slower; elsewhere a loop copies the weights
        once a step, which is much for the wide blocks of an ImageNet network.
        """
        return self.spec.cifar and min(self.spec.blocks) >= SCANNED and platform() in ("gpu", "tpu")

    def _scan(self, block: Block, names: list[str], x: jax.Array, train: bool, grid: Grid) -> jax.Array:
        """Apply blocks of one kind in turn, each with the variables of its name, by a loop over the stacked variables.

        Parameters, statistics and their names are those of separate blocks.
        """
        collections = {key: tree for key, tree in self.variables.items() if key in ("params", "batch_stats")}
        each = [{key: tree[name] for key, tree in collections.items()} for name in names]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

        def body(x: jax.Array, variables: Any) -> Any:
            return block.apply(variables, x, train, grid, mutable=["batch_stats"])

        x, new = jax.lax.scan(body, x, stacked)
        if self.is_mutable_collection("batch_stats"):
            for i, name in enumerate(names):
                self.put_variable("batch_stats", name, jax.tree.map(lambda leaf, i=i: leaf[i], new["batch_stats"]))
        return x


MODELS = {name: partial(ResNet, spec) for name, spec in SPECS.items()}
