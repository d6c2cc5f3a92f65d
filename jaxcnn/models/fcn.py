"""FCN: "Fully Convolutional Networks for Semantic Segmentation", Long, Shelhamer and Darrell, CVPR 2015.

arXiv:1411.4038, and its longer version of 2017 (arXiv:1605.06211). A classifier scores every place of an image: its
fully connected layers become convolutions with the same weights, and its coarse map of class scores is enlarged to the
image (section 3). Skips add the scores of finer maps (figure 3). A network is a row of `SPECS`; on VGG-16:

    images                  500×500×3
    padded by 99            698×698×3
    pool3   stride 8         88×88×256
    pool4   stride 16        44×44×512
    pool5   stride 32        22×22×512
    fc6     7×7, no padding  16×16×4096
    fc7     1×1              16×16×4096
    head    1×1              16×16×classes   32s: enlarged 32 times
    score_pool4, 1×1         34×34×classes   + the scores above, enlarged twice; 16s: enlarged 16 times
    score_pool3, 1×1         70×70×classes   + the scores above, enlarged twice; 8s: enlarged 8 times

fc6 takes 96 pixels off each side, for which the images are padded by 100, one of them in conv1_1. What the authors cut
out of larger maps follows from where the cells lie (`models.grid`): it begins in row and column 19 of the result (32s);
5 of pool4 and 27 of the result (16s); 5 of pool4, 9 of pool3 and 31 (8s); 18 (AlexNet, whose kernel has 63 pixels).

`fcn_resnet50_tv` and `fcn_resnet101_tv` are torchvision's: output stride 8 by dilation, no padding, no skips, a head of
two convolutions, and in training a second one on stage3.
"""

from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.grid import Grid, Map
from jaxcnn.models.layers import Classifier, FullyConnected, batch_norm, conv, widen
from jaxcnn.models.resizing import Enlarge, resize
from jaxcnn.models.trunk import OnTrunk


class Spec(NamedTuple):
    """One architecture of the paper."""

    backbone: str
    skips: tuple[float, ...] = ()  # factors on the maps of half, then a quarter of the last stride, before their scores
    padding: int = 99  # pixels around the images: with those of the first convolution 100


class SpecTv(NamedTuple):
    """One architecture of torchvision."""

    backbone: str


SPECS = {
    "fcn32s": Spec("vgg16"),
    "fcn16s": Spec("vgg16", skips=(1.0,)),
    "fcn8s": Spec("vgg16", skips=(1.0, 1.0)),
    "fcn8s_atonce": Spec("vgg16", skips=(0.01, 0.0001)),
    "fcn32s_alexnet": Spec("alexnet", padding=98),
    "fcn32s_googlenet": Spec("googlenet", padding=97),
    "fcn_resnet50_tv": SpecTv("resnet50_tv"),
    "fcn_resnet101_tv": SpecTv("resnet101_tv"),
}

# Which enlarging layers learn, by the override `enlarging`: none in the released nets and the paper of 2017, all but
# the last in that of 2015 (section 4.3). They begin bilinear, one kernel a class.
ENLARGING = ("fixed", "learnt", "all_learnt")


class Segmenter(OnTrunk):
    """Base of the networks for segmentation, whose endpoints are those of their trunk."""

    task: ClassVar[str] = "segmentation"
    spec: Any

    @property
    def published_classes(self) -> int:
        """Return the number of classes of the published networks: VOC's 20, and background."""
        return 21

    @property
    def endpoints(self) -> dict[str, tuple[int, int]]:
        """Return {endpoint: (stride in pixels of the image, channels)}, in the order of the forward pass."""
        return self.trunk().endpoints


class Score(nn.Module):
    """Class scores of each cell of a map times `factor`, (N, H, W, C) -> (N, H, W, num_classes) float32.

    The weights begin at zero: a skip changes nothing until it has learnt to (section 4.2).
    """

    num_classes: int
    dtype: Any
    factor: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the map and score it."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)) * self.factor
        return Classifier(self.num_classes, self.dtype, nn.initializers.zeros_init(), name="head")(x)


class FCN(Segmenter):
    """The paper's networks: a classifier's scores, enlarged and added to those of finer maps.

    Images (N, H, W, C) of any size -> {"logits": (N, H, W, num_classes) float32, "scores": a tuple of the score maps
    (N, h, w, num_classes) from coarse to fine, the last of which is enlarged to the logits, and the backbone's
    endpoints, of the padded images}.

    Attributes:
      dropout: rate after fc6 and fc7.
      padding: pixels of zeros around the images; None: the architecture's own.
      fc6_window: side of the map that the classifier's fc6 took; None: that of its own image size.
      enlarging: "fixed", "learnt" or "all_learnt", see `ENLARGING`.
    """

    spec: Spec
    padding: int | None = None
    fc6_window: int | None = None
    enlarging: str = "fixed"

    @property
    def trunk_fields(self) -> dict[str, Any]:
        """Return the form of pooling: Caffe's."""
        return {"ceil_pool": True}

    @property
    def image_size(self) -> int:
        """Return the side in pixels of the images that Table 1 measures the networks on."""
        return 64 if self.small_images else 500

    @property
    def border(self) -> int:
        """Return the pixels of zeros on each side of the images that the endpoints are of."""
        return self.spec.padding if self.padding is None else self.padding

    @nn.compact
    def __call__(self, images: jax.Array, sizes: jax.Array | None = None, train: bool = False) -> dict[str, Any]:
        """Return logits, scores and endpoints.

        Args:
          images: NHWC floats, each in the upper left corner of the canvas.
          sizes: int32 (N, 2), their heights and widths; None: they fill it. Beyond them the logits are zero.
        """
        grid, pad = Grid(sizes), self.border
        x = jnp.pad(grid.crop(images), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        maps = self.trunk("trunk")(x, train=train, grid=grid.padded(pad))
        scores = [self.score(list(maps.values())[-1], train)]
        for factor in self.spec.skips:
            scores.append(self.fuse(scores[-1], maps, factor))
        enlarged = self.enlarge(scores[-1], grid, self.enlarging == "all_learnt")
        outputs = {name: maps[name].x for name in self.endpoints}
        outputs["scores"] = tuple(x for x, _ in scores)
        outputs["logits"] = grid.crop(enlarged.cut(grid, images.shape[1:3]))
        return outputs

    def score(self, last: Map, train: bool) -> Map:
        """Return the class scores of the last map, by the classifier's fully connected layers where it has them."""
        x, grid = last
        if own := getattr(self.trunk(), "fc6_window", 0):
            side, features = self.fc6_window or own, widen(4096, self.width or 1)
            for name, window in (("fc6", (side, side)), ("fc7", ())):
                x = nn.relu(FullyConnected(features, self.dtype, window=window, name=name)(x))
                grid = grid.window(side) if window else grid
                x = nn.Dropout(self.dropout, deterministic=not train)(grid.crop(x))
        x = Classifier(self.num_classes, self.dtype, nn.initializers.zeros_init(), name="head")(x)
        return Map(grid.crop(x), grid)

    def fuse(self, scores: Map, maps: dict[str, Map], factor: float) -> Map:
        """Return the scores enlarged twice, plus those of the map of that stride."""
        stride = scores.grid.stride // 2
        name, fine = next(found for found in maps.items() if found[1].grid.stride == stride)
        x, grid = self.enlarge(scores, fine.grid, self.enlarging != "fixed")
        # Beyond the edge of the finer map there are no scores, not even their bias.
        skip = fine.grid.crop(Score(self.num_classes, self.dtype, factor, name=f"score_{name}")(fine.x))
        return Map(grid.crop(x + Map(skip, fine.grid).cut(grid, x.shape[1:3])), grid)

    def enlarge(self, scores: Map, onto: Grid, learnt: bool) -> Map:
        """Return the scores by a transposed convolution on cells of the stride of `onto`, not yet cut to it."""
        factor = scores.grid.stride // onto.stride
        place = (scores.grid.centre - onto.centre) / onto.stride  # of the first score, in cells of `onto`
        # An odd kernel puts a score into a cell, an even one between two: 64 pixels for VGG, 63 for AlexNet.
        size = 2 * factor - (place == int(place))
        x = Enlarge(factor, size, learnt, name=f"enlarge_stride{scores.grid.stride}")(scores.x)
        grid = scores.grid.enlarged(factor, size)
        return Map(grid.crop(x), grid)


class Hidden(nn.Module):
    """What torchvision's head begins with: 3×3 convolution, BatchNorm, ReLU, dropout, to a quarter of the channels."""

    dtype: Any
    norm: Any
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
        """Return (N, H, W, C / 4) of (N, H, W, C), whose `grid` it keeps."""
        x = conv(x.shape[-1] // 4, 3, dtype=self.dtype, name="conv")(x)
        x = self.norm(train, dtype=self.dtype, name="norm")(x, mask=grid.inside(x))
        return nn.Dropout(self.dropout, deterministic=not train)(grid.crop(nn.relu(x)))


class Auxiliary(nn.Module):
    """The head in training alone: (N, H, W, C) -> scores (N, H, W, num_classes) float32."""

    num_classes: int
    hidden: Any

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
        """Score the map."""
        x = self.hidden(name="hidden")(x, grid, train)
        return Classifier(self.num_classes, x.dtype, name="head")(x)


class DilatedFCN(Segmenter):
    """torchvision's networks: a head on the last endpoint of a dilated backbone, resized to the image.

    Images (N, H, W, C) of any size -> {"logits": (N, H, W, num_classes) float32, "scores": a tuple of the map that they
    are resized from, the backbone's endpoints, and in training "aux_logits": a tuple of the logits of the endpoint
    before the last}.

    Attributes:
      dropout: rate before the scores.
      aux_dropout: the same in the auxiliary head.
      output_stride: of the last endpoints of a ResNet.
    """

    spec: SpecTv
    dropout: float = 0.1
    aux_dropout: float = 0.1
    output_stride: int = 8

    @property
    def image_size(self) -> int:
        """Return the side in pixels of torchvision's images."""
        return 64 if self.small_images else 520

    @property
    def trunk_fields(self) -> dict[str, Any]:
        """Return the stride that dilation keeps."""
        return {"output_stride": self.output_stride}

    @nn.compact
    def __call__(self, images: jax.Array, sizes: jax.Array | None = None, train: bool = False) -> dict[str, Any]:
        """Return logits, scores and endpoints.

        Args:
          images: NHWC floats, each in the upper left corner of the canvas.
          sizes: int32 (N, 2), their heights and widths; None: they fill it. Beyond them the logits are zero.
        """
        image = Grid(sizes)
        maps = self.trunk("trunk")(image.crop(images), train=train, grid=image)
        epsilon = 1e-5 if self.norm_epsilon is None else self.norm_epsilon
        norm = partial(batch_norm, epsilon=epsilon, frozen=bool(self.frozen_norm))
        hidden = partial(Hidden, self.dtype, norm)

        def enlarged(x: jax.Array, grid: Grid) -> jax.Array:
            size = images.shape[1], images.shape[2]
            x = resize(x, size, aligned_corners=False, antialias=False, sizes=grid.sizes, to=sizes)
            return image.crop(x)

        names = list(self.endpoints)
        outputs = {name: maps[name].x for name in names}
        x, grid = maps[names[-1]]
        x = hidden(self.dropout, name="hidden")(x, grid, train)
        x = grid.crop(Classifier(self.num_classes, self.dtype, name="head")(x))
        outputs |= {"scores": (x,), "logits": enlarged(x, grid)}
        if train or self.is_initializing():
            x, grid = maps[names[-2]]
            x = Auxiliary(self.num_classes, partial(hidden, self.aux_dropout), name="aux")(x, grid, train)
            if train:
                outputs["aux_logits"] = (enlarged(x, grid),)
        return outputs


def classifier_of(config: Any) -> str:
    """Return the name of the classification network that an experiment's network is, or is on."""
    name = config.model.name
    return config.model.overrides.get("backbone") or (SPECS[name].backbone if name in SPECS else name)


MODELS = {name: partial(FCN if isinstance(spec, Spec) else DilatedFCN, spec) for name, spec in SPECS.items()}
