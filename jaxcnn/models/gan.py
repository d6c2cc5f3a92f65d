"""GANs: "Generative Adversarial Nets", Goodfellow et al. 2014 (arXiv:1406.2661), and DCGAN, Radford, Metz and Chintala
2015, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks" (arXiv:1511.06434).

One module has both players as submodules: called on images in -1 … 1 it gives the discriminator's logits, its method
`generate` makes images of latents. A DCGAN is a row of `SPECS`, its discriminator the generator mirrored:

                      dcgan64 (figure 1)     dcgan64, form="example"    dcgan32
    latents z         100                    100                        100
    project           4×4×1024               4×4×512                    4×4×512
    up1 …             8×8×512                8×8×256                    8×8×256
                      16×16×256              16×16×128                  16×16×128
                      32×32×128              32×32×64                   32×32×C, tanh
                      64×64×C, tanh          64×64×C, tanh
    kernel, stride    5×5, 2                 4×4, 2                     5×5, 2

BatchNorm follows every layer but the generator's last and the discriminator's first and last (section 3); the paper's
projection has it over each of its 16,384 values. No layer has a bias. Weights begin as N(0, 0.02).

`gan_mlp` is the network of the first paper's MNIST experiment, as far as it says: a generator of ReLU layers and a
sigmoid, here stretched to -1 … 1, and a discriminator of maxout layers with dropout, each unit the largest of five.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.models.layers import Classifier, ConvTranspose, FullyConnected, batch_norm, conv

_SMALLEST = 4  # side of the smallest map
_normal = nn.initializers.normal(0.02)


class Spec(NamedTuple):
    """One DCGAN.

    Attributes:
      channels: of the generator's maps, from the smallest on.
      kernel, pad, extra: of each transposed convolution of stride 2, as `ConvTranspose` has them.
      norm_each: whether the projection is normalised value by value, and not channel by channel.
    """

    channels: tuple[int, ...]
    kernel: int = 5
    pad: int = 2
    extra: int = 1
    norm_each: bool = True


SPECS = {
    "dcgan64": {"paper": Spec((1024, 512, 256, 128)), "example": Spec((512, 256, 128, 64), 4, 1, 0, norm_each=False)},
    "dcgan32": {"paper": Spec((512, 256, 128)), "example": Spec((256, 128, 64), 4, 1, 0, norm_each=False)},
}
FORMS = ("paper", "example")


class GAN(nn.Module):
    """What all share: images (N, H, W, C) in -1 … 1 -> {"logits": the discriminator's, (N,) float32}.

    Attributes:
      num_classes: of the data set, which nothing here depends on.
      dtype: compute type of every convolution and matrix product.
      latent: number of latents.
    """

    num_classes: int = 1
    dtype: Any = jnp.bfloat16
    latent: int = 100

    task: ClassVar[str] = "gan"

    @property
    def latent_size(self) -> int:
        """Return the number of latents."""
        return self.latent

    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Return the discriminator's logits; in training BatchNorm is over these images alone."""
        if self.is_mutable_collection("params"):  # by `init`: both players are made
            self.generator(jnp.zeros((len(images), self.latent)), images.shape[1:], train)
        return {"logits": self.discriminator(images, train)}

    def generate(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Return images of latents (N, latent), float32 (N, H, W, C) in -1 … 1."""
        return self.generator(z, self.image_shape(), train)

    def image_shape(self) -> tuple[int, ...]:
        """Return (H, W, C) of the images that the parameters are for."""
        raise NotImplementedError


class DCGAN(GAN):
    """`dcgan64` and `dcgan32`.

    Attributes:
      forms: {form: Spec}, a row of `SPECS`.
      form: "paper", or "example", the geometry of PyTorch's widespread example.
      width: factor on all channels.
    """

    forms: Any = None
    form: str = "paper"
    width: float = 1.0

    image_channels: ClassVar[int] = 3

    @property
    def image_size(self) -> int:
        """Return the side in pixels of the images that the network is for."""
        return _SMALLEST << len(self.forms[self.form].channels)

    def setup(self) -> None:
        """Make the players, whose parameters are `params/generator/…` and `params/discriminator/…`."""
        spec = self.forms[self.form]
        channels = tuple(max(1, round(c * self.width)) for c in spec.channels)
        spec = spec._replace(channels=channels)
        self.generator = Generator(spec, self.dtype)
        self.discriminator = Discriminator(spec, self.dtype)

    def image_shape(self) -> tuple[int, ...]:
        """Return (H, W, C), the channels those of the discriminator's first kernel."""
        channels = self.variables["params"]["discriminator"]["conv1"]["kernel"].shape[2]
        return self.image_size, self.image_size, channels


class Generator(nn.Module):
    """(N, latent) -> (N, H, W, C) in -1 … 1, float32."""

    spec: Spec
    dtype: Any

    @nn.compact
    def __call__(self, z: jax.Array, image_shape: Sequence[int], train: bool) -> jax.Array:
        """Return images."""
        spec, first = self.spec, (_SMALLEST, _SMALLEST, self.spec.channels[0])
        wide = jnp.promote_types(self.dtype, jnp.float32)
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype, param_dtype=wide, kernel_init=_normal)
        x = dense(math.prod(first), name="project")(z)
        x = x if spec.norm_each else x.reshape(-1, *first)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="norm0")(x)).reshape(-1, *first)
        up = partial(
            ConvTranspose, kernel=spec.kernel, stride=2, pad=spec.pad, extra=spec.extra, dtype=self.dtype,
            kernel_init=_normal,
        )  # fmt: skip
        for i, features in enumerate(spec.channels[1:], start=1):
            x = up(features, name=f"up{i}")(x)
            x = nn.relu(batch_norm(train, dtype=self.dtype, name=f"norm{i}")(x))
        return jnp.tanh(up(image_shape[-1], wide=True, name=f"up{len(spec.channels)}")(x))


class Discriminator(nn.Module):
    """(N, H, W, C) in -1 … 1 -> logits (N,) float32."""

    spec: Spec
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Return logits."""
        spec, side = self.spec, _SMALLEST << len(self.spec.channels)
        if images.shape[1:3] != (side, side):
            height, width = images.shape[1:3]
            raise UserError(
                f"model dcgan{side} takes square images of {side} pixels, not {height}×{width}: set "
                f"config.data.image_size={side}, or take another of dcgan32 and dcgan64"
            )
        x = images.astype(self.dtype)
        for i, features in enumerate(reversed(spec.channels), start=1):
            options = {"pad": spec.pad, "dtype": self.dtype, "kernel_init": _normal}
            x = conv(features, spec.kernel, 2, name=f"conv{i}", **options)(x)
            x = batch_norm(train, dtype=self.dtype, name=f"norm{i}")(x) if i > 1 else x
            x = nn.leaky_relu(x, 0.2)
        # (N, 4·4·channels) -> (N, 1); without a bias, as all layers.
        return Product(self.dtype, name="head")(x.reshape(len(x), -1))


class Product(nn.Module):
    """(N, features) -> (N,) float32: a linear layer to one value without a bias, summed in float32."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the products."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        kernel = self.param("kernel", _normal, (x.shape[-1], 1), wide).astype(self.dtype)
        # Products of 16 bits are exact in float32, so that multiplying there and adding is what a matrix unit does.
        return jnp.sum(x.astype(self.dtype).astype(wide) * kernel[:, 0].astype(wide), axis=-1)


class MLP(GAN):
    """`gan_mlp`.

    Attributes:
      hidden: units of the generator's layers.
      maxout: units of the discriminator's layers, of five pieces each.
      dropout: rate after each of the discriminator's layers.
    """

    hidden: Sequence[int] = (1200, 1200)
    maxout: Sequence[int] = (240, 240)
    dropout: Any = 0.5

    image_size: ClassVar[int] = 28
    image_channels: ClassVar[int] = 1

    def setup(self) -> None:
        """Make the players, whose parameters are `params/generator/…` and `params/discriminator/…`."""
        self.generator = MLPGenerator(tuple(self.hidden), self.dtype)
        self.discriminator = MLPDiscriminator(tuple(self.maxout), self.dropout, self.dtype)

    def image_shape(self) -> tuple[int, ...]:
        """Return (H, W, C), those of the kernel of the discriminator's first layer."""
        return self.variables["params"]["discriminator"]["fc1"]["kernel"].shape[:3]


class MLPGenerator(nn.Module):
    """(N, latent) -> (N, H, W, C) in -1 … 1, float32."""

    hidden: Sequence[int]
    dtype: Any

    @nn.compact
    def __call__(self, z: jax.Array, image_shape: Sequence[int], train: bool) -> jax.Array:
        """Return images."""
        x = z
        for i, units in enumerate(self.hidden, start=1):
            x = nn.relu(FullyConnected(units, self.dtype, name=f"fc{i}")(x))
        logits = Classifier(math.prod(image_shape), self.dtype, _normal, name="pixels")(x)
        return 2 * jax.nn.sigmoid(logits).reshape(-1, *image_shape) - 1


class MLPDiscriminator(nn.Module):
    """(N, H, W, C) in -1 … 1 -> logits (N,) float32."""

    maxout: Sequence[int]
    dropout: Any
    dtype: Any
    pieces: ClassVar[int] = 5

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Return logits."""
        x: jax.Array = images
        for i, units in enumerate(self.maxout, start=1):
            x = FullyConnected(units * self.pieces, self.dtype, _normal, name=f"fc{i}")(x)
            x = x.reshape(-1, units, self.pieces).max(-1)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Classifier(1, self.dtype, _normal, name="head")(x)[:, 0]


MODELS = {"gan_mlp": MLP} | {name: partial(DCGAN, forms=forms) for name, forms in SPECS.items()}
