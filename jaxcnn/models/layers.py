"""Layers that the families share: convolution, BatchNorm, fully connected layers, the classifier head. All are NHWC.

Parameters and statistics are float32 whatever the compute type (float64 if that is the compute type).

Padding is explicit and symmetric, as torch's: XLA's SAME pads a strided layer on one side only, which moves features by
a pixel and would break parity with published weights.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxcnn import UserError
from jaxcnn.models.convolution import convolve, convolve_transposed
from jaxcnn.models.normalization import BatchNormOfACPU, Dtype, FrozenBatchNorm, at_least_float32
from jaxcnn.models.sharding import model_parallel, place, platform, statistics_axis

# He et al. 2015, equation 10: zero-mean Gaussian of variance 2 / fan_in. Not truncated, as `he_normal` would be.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def widen(channels: int, width: float) -> int:
    """Return `channels` times the override `width`, as a multiple of 8 (at least 8), so that groups still divide."""
    return max(1, round(channels * width / 8)) * 8


def end_of_block(x: jax.Array) -> jax.Array:
    """Return `x`, named so that `config.remat` keeps it for the backward pass and recomputes what lies between."""
    return checkpoint_name(x, "block")


class Network(nn.Module):
    """What the networks of the registry share. A module of `SPECS` row `spec` has fields of its own besides.

    Attributes:
      num_classes: outputs of the head; 0: there is none, and the network is the trunk of another (`models.trunk`). It
        then takes the grid of its images, and returns {name: Map} of its endpoints and of what else a head starts from.
      dtype: compute type of every convolution and matrix product.
      dropout: rate before, or in, the classifier.
      small_images: the form for images of 28 to 64 pixels, which changes stem and head only.
    """

    task: ClassVar[str] = "classification"  # that a network is for
    spec: Any
    num_classes: int = 1000
    dtype: Dtype = jnp.bfloat16
    dropout: Any = 0.5
    small_images: bool = False

    @property
    def image_size(self) -> int:
        """Return the side in pixels of the images that the network is meant for."""
        return 32 if self.small_images else 224

    @property
    def published_classes(self) -> int:
        """Return the number of classes that the published network tells apart: ImageNet's, or CIFAR-10's."""
        return 10 if self.image_size == 32 else 1000


class Endpoint(nn.Module):
    """Identity whose module name is a feature map's name; Grad-CAM intercepts it and differentiates by its output."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x`."""
        return end_of_block(x)


def conv(
    features: int, kernel: int, stride: int = 1, *, dtype: Dtype, pad: int | None = None, groups: int = 1,
    dilation: int = 1, **kwargs: Any,
) -> nn.Module:  # fmt: skip
    """Return a square convolution, padded by dilation · (kernel - 1) // 2 unless `pad` says otherwise.

    (N, H, W, C) -> (N, ceil(H / stride), ceil(W / stride), features) for odd kernels.

    Args:
      groups: each of so many equal parts of the output channels sees only its part of the input channels.
      dilation: cells between those that the kernel sees.
      kwargs: further fields of `Conv`; without them it has no bias, and He's Gaussian for its weights.
    """
    pad = dilation * (kernel - 1) // 2 if pad is None else pad
    return Conv(features, kernel, stride, pad, groups, dilation, dtype, **kwargs)


class Conv(nn.Module):
    """Square convolution with parameters named as those of `nn.Conv`: (N, H, W, C) -> (N, H', W', features)."""

    features: int
    kernel: int
    stride: int
    pad: int
    groups: int
    dilation: int
    dtype: Dtype
    use_bias: bool = False
    kernel_init: Callable[..., Any] = he_normal
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the convolution in `dtype`, with the bias if there is one."""
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, at_least_float32(self.dtype))
        y = convolve(
            x.astype(self.dtype), kernel.astype(self.dtype), (self.stride,) * 2, ((self.pad, self.pad),) * 2,
            rhs_dilation=(self.dilation,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )  # fmt: skip
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), at_least_float32(self.dtype))
        # Added in float32 and rounded once. Its gradient is then a sum in float32, too: on a CPU XLA takes 30 times
        # longer to add up 16 bits.
        return (y + bias).astype(y.dtype)


class ConvTranspose(nn.Module):
    """Transposed convolution: (N, H, W, C) -> (N, stride·(H - 1) + kernel - 2 pad + extra, …, features).

    It is the gradient of the strided convolution of the same kernel, stride and padding with respect to its input, as
    torch's ConvTranspose2d: `extra` is its `output_padding`. The kernel (kernel, kernel, C, features) is applied as it
    is stored: torch's, turned by 180° about its centre.

    Attributes:
      wide: accumulate and return float32, as the last layer before a loss must.
    """

    features: int
    kernel: int
    stride: int
    pad: int
    extra: int = 0
    use_bias: bool = False
    dtype: Dtype = jnp.bfloat16
    wide: bool = False
    kernel_init: Callable[..., Any] = he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the enlarged map, in `dtype` or, if `wide`, float32."""
        shape, high = (self.kernel, self.kernel, x.shape[-1], self.features), at_least_float32(self.dtype)
        kernel = self.param("kernel", self.kernel_init, shape, high).astype(self.dtype)
        transpose = partial(convolve_transposed, stride=self.stride, pad=self.pad, extra=self.extra)
        x = x.astype(self.dtype)
        y: Any = _accumulated(transpose, x, kernel) if self.wide else transpose(x, kernel)
        if not self.use_bias:
            return y
        return (y + self.param("bias", nn.initializers.zeros_init(), shape[-1:], high)).astype(y.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _accumulated(convolve: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve with sums of float32 that are not rounded; the gradient convolves operands of the type of `x`."""
    return convolve(x, kernel, wide=at_least_float32(x.dtype))


def _accumulated_gradients(
    convolve: Callable[..., jax.Array], operands: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # As of `_product`: JAX's own rule would mix the two types, which a convolution refuses.
    return jax.vjp(convolve, *operands)[1](grad.astype(operands[0].dtype))


_accumulated.defvjp(lambda f, x, kernel: (_accumulated(f, x, kernel), (x, kernel)), _accumulated_gradients)


def batch_norm(
    train: bool, *, dtype: Dtype, epsilon: float = 1e-5, frozen: bool = False, name: str | None = None
) -> nn.Module:
    """Return BatchNorm over all rows, or as `statistics_over` says, computed in float32; output in `dtype`.

    Called with `mask`, bool (N, H, W, 1), its statistics are those of the cells where that is True.

    Args:
      train: normalise by the batch's statistics and move the running ones towards them.
      frozen: normalise by fixed statistics and a fixed affine in both modes, see `FrozenBatchNorm`.
    """
    if frozen:
        return FrozenBatchNorm(epsilon, dtype, name=name)
    fast = train and jnp.dtype(dtype).itemsize == 2 and platform() == "cpu" and statistics_axis() is None
    kind = BatchNormOfACPU if fast else nn.BatchNorm
    # Flax's momentum is the part that is kept: its 0.9 is torch's 0.1.
    return kind(not train, axis_name=statistics_axis(), momentum=0.9, epsilon=epsilon, dtype=dtype, name=name)


class FullyConnected(nn.Module):
    """Hidden layer (N, H, W, C) or (N, C) -> (N, features) in `dtype`, before its ReLU.

    The kernel of a layer over a feature map is kept as (H, W, C, features): the convolution that it is, computed as the
    matrix product that is faster.

    Attributes:
      dense: compute it as the convolution, so that the map may be larger than that of training (`_convolve`).
      window: make the kernel for a map of this (H, W), or () after another layer, and compute it as the convolution of
        whatever map there is, in training too (`_convolve`).
    """

    features: int
    dtype: Dtype
    kernel_init: Callable[..., Any] = he_normal
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    dense: bool = False
    window: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return product and bias, in `dtype`."""
        if self.window is not None:
            kernel, bias = _kernel_and_bias(self, (*self.window, x.shape[-1], self.features))
            params = {"kernel": kernel, "bias": bias}
            return _model_parallel(lambda rows: _convolve(rows, params, self.dtype), x, self.features)
        if self.dense:
            # Read without `self.param`, which would insist on a kernel of this map's size.
            return _convolve(x, self.variables.get("params", {}), self.dtype)
        kernel, bias = _kernel_and_bias(self, (*x.shape[1:], self.features))
        fan_in = math.prod(x.shape[1:])
        flat = x.astype(self.dtype).reshape(x.shape[0], fan_in)  # of an export the number is a symbol
        kernel, bias = kernel.astype(self.dtype).reshape(fan_in, self.features), bias.astype(self.dtype)
        return _model_parallel(lambda rows: rows @ kernel + bias, flat, self.features)


def classify(
    network: Any, x: jax.Array, train: bool, init: Callable[[str], dict[str, Any]], dropout_first: bool = False
) -> jax.Array:
    """Return logits of a map (N, h, w, C) by the three fully connected layers of AlexNet and VGG, fc6, fc7 and head.

    Args:
      network: a module with `width`, `dropout` and `dense`: of a larger map, the mean of the scores at every place.
      init: (name of a layer) -> its initializers.
      dropout_first: before fc6 and fc7 rather than after.
    """
    drop = nn.Dropout(network.dropout, deterministic=not train)
    features = widen(4096, network.width)
    for name in ("fc6", "fc7"):
        x = drop(x) if dropout_first else x
        x = nn.relu(FullyConnected(features, network.dtype, dense=network.dense, name=name, **init(name))(x))
        x = x if dropout_first else drop(x)
    logits = Classifier(network.num_classes, network.dtype, name="head", **init("head"))(x)
    return logits.mean((1, 2)) if network.dense else logits


class Classifier(nn.Module):
    """Fully connected head (…, C) -> (…, features) in float32.

    The product takes operands of `dtype` and accumulates in float32; the bias is added there, so that logits are never
    rounded to 16 bits before the loss.
    """

    features: int
    dtype: Dtype
    kernel_init: Callable[..., Any] = he_normal
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits (N, features) of (N, C); of a map (N, H, W, C) those of every cell."""
        kernel, bias = _kernel_and_bias(self, (x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        logits = _model_parallel(lambda rows: _product(rows, kernel) + bias, x, self.features)
        # The loss works on rows: spread them over both axes again, so that no device computes a row twice.
        return place(logits, ("data", "model")) if model_parallel(self.features) else logits


class Pointwise(nn.Module):
    """1×1 convolution (…, C) -> (…, features) in float32, for scores and regressions that are not of classes.

    As `Classifier`, but no rule for the classes of heads applies to it: `reset_head` and `mesh.model` pass it over.
    """

    features: int
    dtype: Dtype
    kernel_init: Callable[..., Any] = he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the product, summed in float32 at least, and the bias."""
        wide = at_least_float32(self.dtype)
        kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features), wide)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), wide)
        return _product(x.astype(self.dtype), kernel[0, 0].astype(self.dtype)) + bias


def _kernel_and_bias(layer: FullyConnected | Classifier, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the parameters of a layer, made by `init`: a kernel of this shape and a bias (features,)."""
    kernel = layer.param("kernel", layer.kernel_init, shape, at_least_float32(layer.dtype))
    return kernel, layer.param("bias", layer.bias_init, shape[-1:], at_least_float32(layer.dtype))


def _model_parallel(layer: Callable[[jax.Array], jax.Array], x: jax.Array, features: int) -> jax.Array:
    """Apply `layer` to (N, C), its features sharded over `model` where the mesh has such an axis.

    Krizhevsky 2014, section 4, scheme (a): neighbours along `model` gather their rows, and each computes its part
    of the features.
    """
    if not model_parallel(features):
        return layer(x)
    return place(layer(place(x, ("data",))), ("data",), "model")


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply (…, C) × (C, features) -> float32. Its gradient multiplies operands of the type of `x`."""
    return jnp.matmul(x, kernel, preferred_element_type=at_least_float32(x.dtype))


def _gradients(operands: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    # JAX's own rule would multiply in float32, the type of `grad`, which is slow where `x` has 16 bits.
    x, kernel = operands
    grad = grad.astype(x.dtype)
    if x.ndim == 2:
        return grad @ kernel.T, x.T @ grad
    rows = tuple(range(x.ndim - 1))  # of a map: every cell of every image
    return grad @ kernel.T, lax.dot_general(x, grad, ((rows, rows), ((), ())))


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _gradients)


def _convolve(x: jax.Array, params: Mapping[str, jax.Array], dtype: Dtype) -> jax.Array:
    """Apply a hidden layer at every place of a map: (N, H, W, C) -> (N, H - h + 1, W - w + 1, features) in `dtype`.

    VGG, section 3.2: the first layer becomes a convolution of its map's size, the later ones of 1×1.

    Args:
      params: "kernel" (h, w, C, features), or (C, features) of a later layer, and "bias" (features,); not copied.

    Raises:
      UserError: there are no such parameters yet, or the map is smaller than the kernel.
    """
    if "kernel" not in params:
        raise UserError("model.overrides.dense is for evaluation: parameters are made for one image size, leave it off")
    kernel, bias = params["kernel"].astype(dtype), params["bias"].astype(dtype)
    kernel = kernel.reshape((1, 1) * (kernel.ndim == 2) + kernel.shape)
    (height, width), (rows, columns) = kernel.shape[:2], x.shape[1:3]
    if rows < height or columns < width:
        raise UserError(
            f"the images leave {rows}×{columns} cells of a map to a layer that sees {height}×{width}: "
            "take them at least as large as those of training"
        )
    x = x.astype(dtype)
    return convolve(x, kernel, (1, 1), ((0, 0), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
