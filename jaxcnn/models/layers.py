"""Layers that the families share: convolution, norms, fully connected layers, the classifier head. All NHWC.

Padding is explicit and symmetric, as torch's: XLA's SAME pads a strided layer on one side only, which moves features by
a pixel and would break parity with published weights.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxcnn.models.dense import convolve
from jaxcnn.models.sharding import model_parallel, place, statistics_axis

Dtype = Any
Module = Callable[..., Any]

# He et al. 2015, equation 10: zero-mean Gaussian of variance 2 / fan_in. Not truncated, as `he_normal` would be.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def scaled(channels: int, width: float) -> int:
    """`channels` times the override `width`, to the nearest multiple of 8 (at least 8), so that groups still divide."""
    return max(1, round(channels * width / 8)) * 8


def end_of_block(x: jax.Array) -> jax.Array:
    """`x` itself: what is kept for the backward pass where `config.remat` has the rest computed anew."""
    return checkpoint_name(x, "block")


class Endpoint(nn.Module):
    """Identity that gives a feature map its name, so that tools find it: Grad-CAM differentiates with respect to it."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` itself."""
        return end_of_block(x)


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    dtype: Dtype,
    pad: int | None = None,
    groups: int = 1,
    name: str | None = None,
    **kwargs: Any,
) -> nn.Conv:
    """A square convolution, padded by (kernel - 1) // 2 unless `pad` says otherwise.

    (N, H, W, C) -> (N, ceil(H / stride), ceil(W / stride), features) for odd kernels.

    Args:
      groups: each of so many equal parts of the output channels sees only its part of the input channels.
    """
    kwargs.setdefault("use_bias", False)
    kwargs.setdefault("kernel_init", he_normal)
    pad = (kernel - 1) // 2 if pad is None else pad
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        conv_general_dilated=_by_group if groups > 1 else None,
        dtype=dtype,
        name=name,
        **kwargs,
    )


def _by_group(x: jax.Array, kernel: jax.Array, *args: Any, feature_group_count: int, **kwargs: Any) -> jax.Array:
    """A grouped convolution; on a CPU as one convolution a group: there five times faster, on a TPU a third slower."""

    def side_by_side(x: jax.Array, kernel: jax.Array) -> jax.Array:
        parts = zip(jnp.split(x, feature_group_count, -1), jnp.split(kernel, feature_group_count, -1), strict=True)
        return jnp.concatenate([lax.conv_general_dilated(a, b, *args, **kwargs) for a, b in parts], axis=-1)

    def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, *args, feature_group_count=feature_group_count, **kwargs)

    return lax.platform_dependent(x, kernel, cpu=side_by_side, default=grouped)


def batch_norm(train: bool, *, dtype: Dtype, epsilon: float = 1e-5, name: str | None = None) -> nn.BatchNorm:
    """BatchNorm over all rows, or as `statistics_over` says; in float32. Flax's momentum 0.9 is torch's 0.1."""
    axis = statistics_axis()
    return nn.BatchNorm(not train, axis_name=axis, momentum=0.9, epsilon=epsilon, dtype=dtype, name=name)


@jax.custom_vjp
def local_response_norm(x: jax.Array) -> jax.Array:
    """Krizhevsky et al. 2012, section 3.3, with its constants: x / (2 + 1e-4 · Σ x²)^0.75, computed in float32.

    The sum is over five channels, the two on each side included; the constant is not divided by five, as it is in Caffe
    and torch. On a TPU the squares are rounded to the type of `x` before they are added. (N, H, W, C) -> the same shape
    and type. The gradient keeps nothing but `x`, and computes the rest anew.
    """
    wide = x.astype(jnp.float32)
    with jax.named_scope("lrn"):
        return (wide * _lrn_scale(wide, x.dtype)[1]).astype(x.dtype)


def _neighbours(x: jax.Array, dtype: Dtype) -> jax.Array:
    """Sum over five adjacent channels, float32 -> float32; `dtype` is the type of the network's activations."""
    return lax.platform_dependent(x, tpu=functools.partial(_by_band, dtype=dtype), default=_by_slices)


def _by_slices(x: jax.Array) -> jax.Array:
    """Five shifted slices, which fuse with what is around them."""
    channels = x.shape[-1]
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2)))
    return sum((padded[..., i : i + channels] for i in range(1, 5)), padded[..., :channels])


def _by_band(x: jax.Array, dtype: Dtype) -> jax.Array:
    """A product with a banded matrix of ones: on a TPU shifts along channels are slow and the matrix unit is idle."""
    channel = jnp.arange(x.shape[-1])
    band = (jnp.abs(channel[:, None] - channel) <= 2).astype(dtype)
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else None  # a TPU's default would round to 16 bits
    return jnp.matmul(x.astype(dtype), band, precision=precision, preferred_element_type=jnp.float32)


def _lrn_scale(x: jax.Array, dtype: Dtype) -> tuple[jax.Array, jax.Array]:
    """1 / d and d^-0.75, where d = 2 + 1e-4 · Σ x²; by roots, which cost less than a power."""
    root = lax.rsqrt(2 + 1e-4 * _neighbours(x * x, dtype))
    return root * root, root * lax.sqrt(root)


def _lrn_gradient(x: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    with jax.named_scope("lrn"):
        wide, grad = x.astype(jnp.float32), grad.astype(jnp.float32)
        inverse, scale = _lrn_scale(wide, x.dtype)
        across = _neighbours(grad * wide * scale * inverse, x.dtype)
        return ((grad * scale - 2 * 1e-4 * 0.75 * wide * across).astype(x.dtype),)


local_response_norm.defvjp(lambda x: (local_response_norm(x), x), _lrn_gradient)


class FullyConnected(nn.Module):
    """Hidden layer (N, H, W, C) or (N, C) -> (N, features) in `dtype`, before its ReLU.

    The kernel of a layer over a feature map is kept as (H, W, C, features): the convolution that it is, computed as the
    matrix product that is faster. `dense`: computed as the convolution, so that the map may be larger (`convolve`).
    """

    features: int
    dtype: Dtype
    kernel_init: Callable[..., Any] = he_normal
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    dense: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Product and bias, in `dtype`."""
        if self.dense:
            return convolve(x, self.variables.get("params", {}), self.dtype)
        kernel = self.param("kernel", self.kernel_init, (*x.shape[1:], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        fan_in = math.prod(x.shape[1:])
        flat = x.astype(self.dtype).reshape(len(x), fan_in)
        kernel, bias = kernel.astype(self.dtype).reshape(fan_in, self.features), bias.astype(self.dtype)
        return _model_parallel(lambda rows: rows @ kernel + bias, flat, self.features)


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
        """(N, C) of any float type -> (N, features) float32. A map (N, H, W, C), at every place: not to be trained."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        logits = _model_parallel(lambda rows: _product(rows, kernel) + bias, x, self.features)
        return place(logits, ("data", "model")) if model_parallel(self.features) else logits


def _model_parallel(layer: Callable[[jax.Array], jax.Array], x: jax.Array, features: int) -> jax.Array:
    """`layer` of (N, C), its features cut over `model` where there is such an axis.

    Krizhevsky 2014, section 4, scheme (a): neighbours along `model` gather their rows, and each computes its part
    of the features.
    """
    if not model_parallel(features):
        return layer(x)
    return place(layer(place(x, ("data",))), ("data",), "model")


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(…, C) × (C, features) -> float32. Its gradient, for (N, C), multiplies operands of the type of `x`, too."""
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _gradients(operands: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    grad = grad.astype(x.dtype)
    return grad @ kernel.T, x.T @ grad


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _gradients)
