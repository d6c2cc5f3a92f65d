"""Layers that the families share: convolution, norms, fully connected layers, the classifier head. All are NHWC.

Parameters and statistics are float32 whatever the compute type (float64 if that is the compute type).

Padding is explicit and symmetric, as torch's: XLA's SAME pads a strided layer on one side only, which moves features by
a pixel and would break parity with published weights.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxcnn import UserError
from jaxcnn.models.convolution import convolve, convolve_transposed
from jaxcnn.models.sharding import model_parallel, place, platform, statistics_axis

Dtype = Any

# He et al. 2015, equation 10: zero-mean Gaussian of variance 2 / fan_in. Not truncated, as `he_normal` would be.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _wide(dtype: Dtype) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


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
        kernel = self.param("kernel", self.kernel_init, shape, _wide(self.dtype))
        y = convolve(
            x.astype(self.dtype), kernel.astype(self.dtype), (self.stride,) * 2, ((self.pad, self.pad),) * 2,
            rhs_dilation=(self.dilation,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )  # fmt: skip
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), _wide(self.dtype))
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
        shape, high = (self.kernel, self.kernel, x.shape[-1], self.features), _wide(self.dtype)
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
    return convolve(x, kernel, wide=_wide(x.dtype))


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
    kind = _BatchNorm if fast else nn.BatchNorm
    # Flax's momentum is the part that is kept: its 0.9 is torch's 0.1.
    return kind(not train, axis_name=statistics_axis(), momentum=0.9, epsilon=epsilon, dtype=dtype, name=name)


class _BatchNorm(nn.BatchNorm):
    """Flax's BatchNorm in 16 bits, which trains by `_normalize`: for a step on a CPU."""

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalise `x` (…, C) over all axes but the last."""
        if mask is not None or x.dtype != self.dtype or self.is_initializing():
            return super().__call__(x, use_running_average, mask=mask)
        shape = x.shape[-1:]
        statistics: Any = [self.variable("batch_stats", name, jnp.zeros, shape) for name in ("mean", "var")]
        scale: Any = self.param("scale", nn.initializers.ones_init(), shape, jnp.float32)
        bias: Any = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
        normalize: Any = _normalize
        y, *found = normalize(x, scale, bias, self.epsilon)
        for running, new in zip(statistics, found, strict=True):
            running.value = self.momentum * running.value + (1 - self.momentum) * new
        return y


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return x normalised by its mean and variance over all axes but the last, in the type of `x`, and those two.

    Ioffe and Szegedy 2015, algorithm 1. Barriers stand between the passes over `x`, since XLA's CPU compiler would
    convert it to float32 once for all of them and write that copy to memory. Each pass reads 16 bits. No gradient
    reaches the statistics that are returned.
    """
    return _normalize_forward(x, scale, bias, epsilon)[0]


def _normalize_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    count, axes, barrier = x.size // x.shape[-1], tuple(range(x.ndim - 1)), lax.optimization_barrier
    mean = x.astype(jnp.float32).sum(axes) / count
    again = barrier(x).astype(jnp.float32)
    var = jnp.maximum(0, (again * again).sum(axes) / count - mean * mean)  # as Flax: E[x²] - E[x]², never negative
    inverse = lax.rsqrt(var + epsilon)
    x, a, b = barrier((x, inverse * scale, bias - mean * inverse * scale))
    return ((x.astype(jnp.float32) * a + b).astype(x.dtype), mean, var), (x, mean, inverse, scale)


def _normalize_gradient(epsilon: float, kept: Any, grads: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    # With x̂ = (x - mean) / σ and n values a channel: dβ = Σ g, dγ = Σ g·x̂, dx = γ/σ · (g - dβ/n - x̂·dγ/n), which is
    # a·g + b·x + c with a number each a channel.
    x, mean, inverse, scale = kept
    count, axes, barrier = x.size // x.shape[-1], tuple(range(x.ndim - 1)), lax.optimization_barrier
    grad = grads[0]
    of_bias = grad.astype(jnp.float32).sum(axes)
    grad, x = barrier((grad, x))
    of_scale = inverse * ((grad.astype(jnp.float32) * x.astype(jnp.float32)).sum(axes) - mean * of_bias)
    a = inverse * scale
    b = -a * inverse * of_scale / count
    c = -a * of_bias / count - b * mean
    grad, x, a, b, c = barrier((grad, x, a, b, c))
    return (grad.astype(jnp.float32) * a + x.astype(jnp.float32) * b + c).astype(x.dtype), of_scale, of_bias


_normalize.defvjp(_normalize_forward, _normalize_gradient)


class FrozenBatchNorm(nn.Module):
    """BatchNorm whose statistics and affine are constants: (…, C) -> (…, C) in `dtype`, computed in float32.

    All four arrays live in `batch_stats`: they are no parameters, no optimizer sees them, and nothing writes to them.
    The gradient reaches `x`. `match_norms` moves the values of an ordinary network here.
    """

    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalise `x` over its last axis; there are no statistics for `mask` to choose the cells of."""

        initial = {"mean": 0, "var": 1, "scale": 1, "bias": 0}
        mean, var, scale, bias = (
            cast(jax.Array, self.variable("batch_stats", key, jnp.full, x.shape[-1:], value, _wide(self.dtype)).value)
            for key, value in initial.items()
        )
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
    wide = x.astype(_wide(x.dtype))
    with jax.named_scope("lrn"):
        return (wide * _lrn_scale(wide, x.dtype)[1]).astype(x.dtype)


def _neighbours(x: jax.Array, dtype: Dtype) -> jax.Array:
    """Return the sum over five adjacent channels, float32 -> float32; `dtype` is that of the network's activations."""

    def by_slices(x: jax.Array) -> jax.Array:  # XLA fuses them with the operations around them
        channels, padded = x.shape[-1], jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2)))
        return sum((padded[..., i : i + channels] for i in range(1, 5)), padded[..., :channels])

    def by_band(x: jax.Array) -> jax.Array:  # on a TPU shifts along channels are slow, and the matrix unit is idle
        channel = jnp.arange(x.shape[-1])
        band = (jnp.abs(channel[:, None] - channel) <= 2).astype(dtype)  # (C, C)
        precision = lax.Precision.HIGHEST if dtype == x.dtype else None  # a TPU's default would round to 16 bits
        return jnp.matmul(x.astype(dtype), band, precision=precision, preferred_element_type=x.dtype)

    return lax.platform_dependent(x, tpu=by_band, default=by_slices)


def _lrn_scale(x: jax.Array, dtype: Dtype) -> tuple[jax.Array, jax.Array]:
    """Return 1 / d and d^-0.75, where d = 2 + 1e-4 · Σ x²; by roots, which cost less than a power."""
    root = lax.rsqrt(2 + 1e-4 * _neighbours(x * x, dtype))
    return root * root, root * lax.sqrt(root)


def _lrn_gradient(x: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    # With s = d^-0.75: dy_j/dx_i = s_j·[i = j] - 2·1e-4·0.75·x_i·(x_j·s_j / d_j) where j is within two channels of i.
    # The sum over j is again one over five adjacent channels.
    with jax.named_scope("lrn"):
        wide, grad = x.astype(_wide(x.dtype)), grad.astype(_wide(x.dtype))
        inverse, scale = _lrn_scale(wide, x.dtype)
        across = _neighbours(grad * wide * scale * inverse, x.dtype)
        return ((grad * scale - 2 * 1e-4 * 0.75 * wide * across).astype(x.dtype),)


local_response_norm.defvjp(lambda x: (local_response_norm(x), x), _lrn_gradient)


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


def _kernel_and_bias(layer: FullyConnected | Classifier, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the parameters of a layer, made by `init`: a kernel of this shape and a bias (features,)."""
    kernel = layer.param("kernel", layer.kernel_init, shape, _wide(layer.dtype))
    return kernel, layer.param("bias", layer.bias_init, shape[-1:], _wide(layer.dtype))


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
    return jnp.matmul(x, kernel, preferred_element_type=_wide(x.dtype))


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
