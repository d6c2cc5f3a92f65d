"""Layers that the families share: convolution, norm, pooling and the classifier head. All NHWC.

Padding is explicit and symmetric, as torch's: XLA's SAME pads a strided layer on one side only, which moves features by
a pixel and would break parity with published weights.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any
Module = Callable[..., Any]

# He et al. 2015, equation 10: zero-mean Gaussian of variance 2 / fan_in. Not truncated, as `he_normal` would be.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def conv(
    features: int, kernel: int, stride: int = 1, *, dtype: Dtype, name: str | None = None, **kwargs: Any
) -> nn.Conv:
    """A square convolution, padded by (kernel - 1) // 2.

    (N, H, W, C) -> (N, ceil(H / stride), ceil(W / stride), features) for odd kernels.
    """
    kwargs.setdefault("use_bias", False)
    kwargs.setdefault("kernel_init", he_normal)
    pad = (kernel - 1) // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        dtype=dtype,
        name=name,
        **kwargs,
    )


def batch_norm(train: bool, *, dtype: Dtype, name: str | None = None) -> nn.BatchNorm:
    """BatchNorm over the global batch; statistics in float32. Flax's momentum 0.9 is torch's 0.1."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name)


def max_pool(x: jax.Array, window: int, stride: int, pad: int = 0) -> jax.Array:
    """Max pooling (N, H, W, C) -> (N, (H + 2 pad - window) // stride + 1, …, C); the padding never wins."""
    padding: Any = ((pad, pad), (pad, pad))
    return nn.max_pool(x, (window, window), (stride, stride), padding)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over space, summed in float32: (N, H, W, C) -> (N, C) in the type of `x`."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)


class Classifier(nn.Module):
    """Fully connected head (N, C) -> (N, features) in float32.

    The product takes operands of `dtype` and accumulates in float32; the bias is added there, so that logits are never
    rounded to 16 bits before the loss.
    """

    features: int
    dtype: Dtype
    kernel_init: Callable[..., Any] = he_normal
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, C) of any float type -> (N, features) float32."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return _product(x.astype(self.dtype), kernel.astype(self.dtype)) + bias


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(N, C) × (C, features) -> float32. The products of its gradient, too, take operands of the type of `x`."""
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _gradients(operands: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    grad = grad.astype(x.dtype)
    return grad @ kernel.T, x.T @ grad


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _gradients)
