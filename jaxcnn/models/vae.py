"""VAE: "Auto-Encoding Variational Bayes", Kingma and Welling 2013 (arXiv:1312.6114).

An encoder gives the mean and the logarithm of the variance of q(z|x), a Gaussian over the latents z; a decoder gives
the distribution p(x|z) of each pixel. `vae_mlp` has fully connected layers and takes images of any size. Its override
`form` picks a row of `FORMS`:

                      kingma                    burda
    images            H×W×C                     H×W×C
    encoder fc1 …     500, tanh                 200, 200, tanh
    mean, logvar      20                        50
    decoder fc1 …     500, tanh                 200, 200, tanh
    logits            H×W×C                     H×W×C

`kingma` is section 5 with appendix C (MNIST; Frey faces take `hidden=(200,)` and `scale=True`), its weights drawn from
N(0, 0.01), which is read as the deviation. `burda` is the network of one stochastic layer of "Importance Weighted
Autoencoders", Burda, Grosse and Salakhutdinov 2015 (arXiv:1509.00519), section 5, with Glorot's initialisation.

`vae_conv` halves square images of 28 to 64 pixels to 5 … 8 by 4×4 convolutions of stride 2, and mirrors them:

                      28 pixels                 64 pixels
    encoder conv1     14×14×32                  32×32×32
            conv2     7×7×64                    16×16×64
            conv3                               8×8×128
            fc1       256                       256
    mean, logvar      32                        32
    decoder fc1       256                       256
            fc2       7×7×64                    8×8×128
            up1                                 16×16×64
            up2       14×14×32                  32×32×32
    logits            28×28×C                   64×64×C
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.models.layers import Classifier, ConvTranspose, FullyConnected, conv, he_normal

Outputs = dict[str, jax.Array]
SIDES = (28, 64)  # of the images of vae_conv, in pixels
_SMALLEST = 8  # side of the smallest map of vae_conv, at most


class Form(NamedTuple):
    """One architecture.

    Attributes:
      hidden: units of the encoder's fully connected layers, which the decoder mirrors.
      latent: number of latents.
      kernel_init: initializer of all kernels.
    """

    hidden: tuple[int, ...]
    latent: int
    kernel_init: Any


FORMS = {
    "kingma": Form((500,), 20, nn.initializers.normal(0.01)),
    "burda": Form((200, 200), 50, nn.initializers.glorot_uniform()),
}
CONVOLUTIONAL = Form((256,), 32, he_normal)


class VAE(nn.Module):
    """What both networks share: images (N, H, W, C) in 0 … 1 -> the outputs of `decode`, "mean" and "logvar".

    Attributes:
      num_classes: of the data set, which nothing here depends on.
      dtype: compute type of every convolution and matrix product; all outputs are float32.
      hidden: units of the fully connected layers; None: those of the form.
      latent: number of latents; None: that of the form.
      scale: whether the decoder also gives a "logscale" of each pixel, as Gaussian and logistic likelihoods need.
    """

    num_classes: int = 1
    dtype: Any = jnp.bfloat16
    hidden: Sequence[int] | None = None
    latent: int | None = None
    scale: bool = False

    task: ClassVar[str] = "vae"
    image_size: ClassVar[int] = 28
    image_channels: ClassVar[int] = 1

    @property
    def table_row(self) -> Form:
        """Return the architecture that `hidden` and `latent` change."""
        raise NotImplementedError

    @property
    def latent_size(self) -> int:
        """Return the number of latents."""
        return self.latent or self.table_row.latent

    def setup(self) -> None:
        """Make encoder and decoder, whose parameters are `params/encoder/…` and `params/decoder/…`."""
        row = self.table_row
        hidden = tuple(self.hidden or row.hidden)
        kinds = self.layers()
        self.encoder = kinds[0](hidden, self.latent_size, row.kernel_init, self.dtype)
        self.decoder = kinds[1](hidden[::-1], self.scale, row.kernel_init, self.dtype)

    def layers(self) -> tuple[Any, Any]:
        """Return the classes of encoder and decoder."""
        raise NotImplementedError

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and logarithm of the variance of q(z|x), (N, latent) each, of images (N, H, W, C)."""
        return self.encoder(images)

    def decode(self, z: jax.Array, image_shape: Sequence[int]) -> Outputs:
        """Return the parameters of p(x|z) of each pixel, (N, H, W, C) each, for latents (N, latent).

        "logits": the logit of the pixel's mean in 0 … 1. "logscale", where the network has it: log σ² of a Gaussian,
        or log s of a logistic distribution.

        Args:
          image_shape: (H, W, C), that of the images that the parameters were made for.
        """
        return self.decoder(z, tuple(image_shape))

    def __call__(self, images: jax.Array, train: bool = False) -> Outputs:
        """Return what `decode` gives of one sample of q(z|x), in evaluation of its mean; with "mean" and "logvar".

        The noise of the sample comes from the RNG stream `latent`.
        """
        mean, logvar = self.encode(images)
        z = mean
        if train:
            z += jnp.exp(logvar / 2) * jax.random.normal(self.make_rng("latent"), mean.shape, mean.dtype)
        return {"mean": mean, "logvar": logvar} | self.decode(z, images.shape[1:])


class MLP(VAE):
    """`vae_mlp`.

    Attributes:
      form: a row of `FORMS`.
    """

    form: str = "kingma"

    @property
    def table_row(self) -> Form:
        """Return the row that `form` names."""
        return FORMS[self.form]

    def layers(self) -> tuple[Any, Any]:
        """Return the classes of encoder and decoder."""
        return MLPEncoder, MLPDecoder


class Convolutional(VAE):
    """`vae_conv`.

    Attributes:
      channels: of the first convolution; each further one doubles them.
    """

    channels: int = 32

    @property
    def table_row(self) -> Form:
        """Return the one architecture that there is."""
        return CONVOLUTIONAL

    def layers(self) -> tuple[Any, Any]:
        """Return the classes of encoder and decoder."""
        first = self.channels
        return partial(ConvEncoder, first), partial(ConvDecoder, first)


def _posterior(x: jax.Array, latent: int, kernel_init: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return the two linear layers on top of an encoder: (N, features) -> mean and logvar, (N, latent) float32."""
    mean, logvar = (Classifier(latent, dtype, kernel_init, name=name)(x) for name in ("mean", "logvar"))
    return mean, logvar


class MLPEncoder(nn.Module):
    """(N, H, W, C) -> mean, logvar (N, latent)."""

    hidden: Sequence[int]
    latent: int
    kernel_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and logvar."""
        x = images.reshape(len(images), -1)  # (N, H·W·C)
        for i, units in enumerate(self.hidden, start=1):
            x = nn.tanh(FullyConnected(units, self.dtype, self.kernel_init, name=f"fc{i}")(x))
        return _posterior(x, self.latent, self.kernel_init, self.dtype)


class MLPDecoder(nn.Module):
    """(N, latent) -> "logits" and, if `scale`, "logscale": (N, H, W, C) float32."""

    hidden: Sequence[int]
    scale: bool
    kernel_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, z: jax.Array, image_shape: tuple[int, ...]) -> Outputs:
        """Return the parameters of the pixels."""
        x, pixels = z, math.prod(image_shape)
        for i, units in enumerate(self.hidden, start=1):
            x = nn.tanh(FullyConnected(units, self.dtype, self.kernel_init, name=f"fc{i}")(x))
        return {
            name: Classifier(pixels, self.dtype, self.kernel_init, name=name)(x).reshape(-1, *image_shape)
            for name in ("logits", "logscale")[: 1 + self.scale]
        }


def halvings(image_shape: Sequence[int]) -> int:
    """Return how often the convolutions of `vae_conv` halve images of (H, W, C).

    Raises:
      UserError: it cannot be built for such images.
    """
    height, width = image_shape[:2]
    times = max(0, math.ceil(math.log2(height / _SMALLEST)))
    if height != width or not SIDES[0] <= height <= SIDES[1] or height % 2**times:
        sides = [n for n in range(SIDES[0], SIDES[1] + 1) if n % 2 ** math.ceil(math.log2(n / _SMALLEST)) == 0]
        raise UserError(
            f"model vae_conv takes square images of {', '.join(map(str, sides))} pixels, not {height}×{width}: set "
            "config.data.image_size to one of them, or take vae_mlp, which takes any"
        )
    return times


class ConvEncoder(nn.Module):
    """(N, H, W, C) -> mean, logvar (N, latent)."""

    first: int
    hidden: Sequence[int]
    latent: int
    kernel_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and logvar."""
        x, options = images.astype(self.dtype), {"use_bias": True, "dtype": self.dtype}
        for i in range(halvings(images.shape[1:])):
            x = nn.relu(conv(self.first << i, 4, 2, pad=1, name=f"conv{i + 1}", **options)(x))
        for i, units in enumerate(self.hidden, start=1):
            x = nn.relu(FullyConnected(units, self.dtype, self.kernel_init, name=f"fc{i}")(x))
        return _posterior(x, self.latent, self.kernel_init, self.dtype)


class ConvDecoder(nn.Module):
    """(N, latent) -> "logits" and, if `scale`, "logscale": (N, H, W, C) float32."""

    first: int
    hidden: Sequence[int]
    scale: bool
    kernel_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, z: jax.Array, image_shape: tuple[int, ...]) -> Outputs:
        """Return the parameters of the pixels."""
        times, (height, width, channels) = halvings(image_shape), image_shape
        small = (height >> times, width >> times, self.first << times - 1)
        x = z
        for i, units in enumerate((*self.hidden, math.prod(small)), start=1):
            x = nn.relu(FullyConnected(units, self.dtype, self.kernel_init, name=f"fc{i}")(x))
        x = x.reshape(-1, *small)
        for i in range(1, times):
            features = self.first << times - 1 - i
            x = nn.relu(ConvTranspose(features, 4, 2, 1, use_bias=True, dtype=self.dtype, name=f"up{i}")(x))
        return {
            name: ConvTranspose(channels, 4, 2, 1, use_bias=True, dtype=self.dtype, wide=True, name=name)(x)
            for name in ("logits", "logscale")[: 1 + self.scale]
        }


MODELS = {"vae_mlp": MLP, "vae_conv": Convolutional}
