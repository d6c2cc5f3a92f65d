"""Layers that the families share: convolution, norms, fully connected layers, the classifier head. All are NHWC.

Parameters and statistics are float32 whatever the compute type (float64 if that is the compute type).

Padding is explicit and symmetric, as torch's: XLA's SAME pads a strided layer on one side only, which moves features by
a pixel and would break parity with published weights.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxcnn import UserError
from jaxcnn.models.sharding import model_parallel, place, statistics_axis

Dtype = Any
Module = Callable[..., Any]

# He et al. 2015, equation 10: zero-mean Gaussian of variance 2 / fan_in. Not truncated, as `he_normal` would be.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def widen(channels: int, width: float) -> int:
    """Return `channels` times the override `width`, as a multiple of 8 (at least 8), so that groups still divide."""
    return max(1, round(channels * width / 8)) * 8


def end_of_block(x: jax.Array) -> jax.Array:
    """Return `x`, named so that `config.remat` keeps it for the backward pass and recomputes what lies between."""
    return checkpoint_name(x, "block")


class Endpoint(nn.Module):
    """Identity whose module name is a feature map's name; Grad-CAM intercepts it and differentiates by its output."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x`."""
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
    """Return a square convolution, padded by (kernel - 1) // 2 unless `pad` says otherwise.

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
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        name=name,
        **kwargs,
    )


def _by_group(x: jax.Array, kernel: jax.Array, *args: Any, feature_group_count: int, **kwargs: Any) -> jax.Array:
    """Convolve by group; a CPU runs one convolution a group, which is five times faster there but slower on a TPU."""

    def side_by_side(x: jax.Array, kernel: jax.Array) -> jax.Array:
        parts = zip(jnp.split(x, feature_group_count, -1), jnp.split(kernel, feature_group_count, -1), strict=True)
        return jnp.concatenate([lax.conv_general_dilated(a, b, *args, **kwargs) for a, b in parts], axis=-1)

    def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, *args, feature_group_count=feature_group_count, **kwargs)

    return lax.platform_dependent(x, kernel, cpu=side_by_side, default=grouped)


def batch_norm(
    train: bool, *, dtype: Dtype, epsilon: float = 1e-5, frozen: bool = False, name: str | None = None
) -> nn.Module:
    """Return BatchNorm over all rows, or as `statistics_over` says, computed in float32; output in `dtype`.

    Args:
      train: normalise by the batch's statistics and move the running ones towards them.
      frozen: normalise by fixed statistics and a fixed affine in both modes, see `FrozenBatchNorm`.
    """
    if frozen:
        return FrozenBatchNorm(epsilon, dtype, name=name)
    # Flax's momentum is the part that is kept: its 0.9 is torch's 0.1.
    return nn.BatchNorm(not train, axis_name=statistics_axis(), momentum=0.9, epsilon=epsilon, dtype=dtype, name=name)


class FrozenBatchNorm(nn.Module):
    """BatchNorm whose statistics and affine are constants: (…, C) -> (…, C) in `dtype`, computed in float32.

    All four arrays live in `batch_stats`: they are no parameters, no optimizer sees them, and nothing writes to them.
    The gradient reaches `x`. `match_norms` moves the values of an ordinary network here.
    """

    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise `x` over its last axis."""

        def constant(name: str, value: float) -> jax.Array:
            wide = jnp.promote_types(self.dtype, jnp.float32)
            return cast(jax.Array, self.variable("batch_stats", name, jnp.full, x.shape[-1:], value, wide).value)

        mean, var = constant("mean", 0), constant("var", 1)
        scale, bias = constant("scale", 1), constant("bias", 0)
        # The order of Flax's BatchNorm in evaluation, so that both round alike.
        return ((x - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias).astype(self.dtype)


def match_norms(variables: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables {"params", "batch_stats"} with each array in the collection where `wanted` has it.

    So an ordinary network's variables become those of the same one with frozen norms, whose "scale" and "bias" lie in
    `batch_stats`, and the reverse. Nothing is copied; what `wanted` has in neither collection stays where it is.

    Args:
      wanted: the variables of the other form, or anything by their paths, such as {"params/norm/scale": shape}.
    """
    flat, paths = (flatten_dict(dict(tree), sep="/") for tree in (variables, wanted))
    moved: dict[Any, Any] = {}
    for path, x in flat.items():
        collection, _, rest = cast(str, path).partition("/")
        other = f"{'params' if collection == 'batch_stats' else 'batch_stats'}/{rest}"
        moved[other if path not in paths and other in paths else path] = x
    # A network without parameters or statistics of its own keeps the empty collection.
    return {name: {} for name in variables} | unflatten_dict(moved, sep="/")


@jax.custom_vjp
def local_response_norm(x: jax.Array) -> jax.Array:
    """Normalise over neighbouring channels: x / (2 + 1e-4 · Σ x²)^0.75, computed in float32.

    Krizhevsky et al. 2012, section 3.3, with its constants.

    The sum is over five channels, the two on each side included; the constant is not divided by five, as it is in Caffe
    and torch. On a TPU the squares are rounded to the type of `x` before they are added. (N, H, W, C) -> the same shape
    and type. The backward pass keeps nothing but `x` and recomputes the rest.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    with jax.named_scope("lrn"):
        return (wide * _lrn_scale(wide, x.dtype)[1]).astype(x.dtype)


def _neighbours(x: jax.Array, dtype: Dtype) -> jax.Array:
    """Return the sum over five adjacent channels, float32 -> float32; `dtype` is that of the network's activations."""
    return lax.platform_dependent(x, tpu=functools.partial(_by_band, dtype=dtype), default=_by_slices)


def _by_slices(x: jax.Array) -> jax.Array:
    """Add five shifted slices, which XLA fuses with the operations around them."""
    channels = x.shape[-1]
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2)))
    return sum((padded[..., i : i + channels] for i in range(1, 5)), padded[..., :channels])


def _by_band(x: jax.Array, dtype: Dtype) -> jax.Array:
    """Multiply by a banded (C, C) matrix of ones: on a TPU shifts along channels are slow, the matrix unit is idle."""
    channel = jnp.arange(x.shape[-1])
    band = (jnp.abs(channel[:, None] - channel) <= 2).astype(dtype)
    precision = lax.Precision.HIGHEST if dtype == x.dtype else None  # a TPU's default would round to 16 bits
    return jnp.matmul(x.astype(dtype), band, precision=precision, preferred_element_type=x.dtype)


def _lrn_scale(x: jax.Array, dtype: Dtype) -> tuple[jax.Array, jax.Array]:
    """Return 1 / d and d^-0.75, where d = 2 + 1e-4 · Σ x²; by roots, which cost less than a power."""
    root = lax.rsqrt(2 + 1e-4 * _neighbours(x * x, dtype))
    return root * root, root * lax.sqrt(root)


def _lrn_gradient(x: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    # With s = d^-0.75: dy_j/dx_i = s_j·[i = j] - 2·1e-4·0.75·x_i·(x_j·s_j / d_j) where j is within two channels of i.
    # The sum over j is again one over five adjacent channels.
    with jax.named_scope("lrn"):
        full = jnp.promote_types(x.dtype, jnp.float32)
        wide, grad = x.astype(full), grad.astype(full)
        inverse, scale = _lrn_scale(wide, x.dtype)
        across = _neighbours(grad * wide * scale * inverse, x.dtype)
        return ((grad * scale - 2 * 1e-4 * 0.75 * wide * across).astype(x.dtype),)


local_response_norm.defvjp(lambda x: (local_response_norm(x), x), _lrn_gradient)


class FullyConnected(nn.Module):
    """Hidden layer (N, H, W, C) or (N, C) -> (N, features) in `dtype`, before its ReLU.

    The kernel of a layer over a feature map is kept as (H, W, C, features): the convolution that it is, computed as the
    matrix product that is faster. `dense`: computed as the convolution, so that the map may be larger (`_convolve`).
    """

    features: int
    dtype: Dtype
    kernel_init: Callable[..., Any] = he_normal
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    dense: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return product and bias, in `dtype`."""
        if self.dense:
            # Read without `self.param`, which would insist on a kernel of this map's size.
            return _convolve(x, self.variables.get("params", {}), self.dtype)
        kernel, bias = _kernel_and_bias(self, (*x.shape[1:], self.features))
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
        """Return logits (N, features) of (N, C); of a map (N, H, W, C) those of every place, in evaluation only."""
        kernel, bias = _kernel_and_bias(self, (x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        logits = _model_parallel(lambda rows: _product(rows, kernel) + bias, x, self.features)
        # The loss works on rows: spread them over both axes again, so that no device computes a row twice.
        return place(logits, ("data", "model")) if model_parallel(self.features) else logits


def _kernel_and_bias(layer: FullyConnected | Classifier, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the parameters of a layer, made by `init`: a kernel of this shape and a bias (features,)."""
    wide = jnp.promote_types(layer.dtype, jnp.float32)
    kernel = layer.param("kernel", layer.kernel_init, shape, wide)
    return kernel, layer.param("bias", layer.bias_init, shape[-1:], wide)


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
    """Multiply (…, C) × (C, features) -> float32. Its gradient, for (N, C), multiplies operands of the type of `x`."""
    return jnp.matmul(x, kernel, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _gradients(operands: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    # JAX's own rule would multiply in float32, the type of `grad`, which is slow where `x` has 16 bits.
    x, kernel = operands
    grad = grad.astype(x.dtype)
    return grad @ kernel.T, x.T @ grad


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
            f"dense application: the images leave {rows}×{columns} pixels to a layer that sees {height}×{width}: "
            "take them at least as large as those of training"
        )
    x = x.astype(dtype)
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
