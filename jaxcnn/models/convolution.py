"""Convolution in forms that XLA's CPU compiler is fast at; on a GPU and a TPU it is `lax.conv_general_dilated`.

All are NHWC with kernels (H, W, C_in, C_out). What a form computes does not change, but for rounding.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.models.sharding import platform, rows_of_a_device

Padding = tuple[tuple[int, int], ...]  # pixels before and after, of height and width


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, *, feature_group_count: int = 1, **rest: Any
) -> jax.Array:
    """Convolve as `lax.conv_general_dilated` does, whose arguments these are: (N, H, W, C) -> (N, H', W', features)."""
    plain = rest.get("precision") is None and not isinstance(padding, str)
    plain &= all(factor == 1 for key in ("lhs_dilation", "rhs_dilation") for factor in rest.get(key) or ())
    if feature_group_count > 1:
        return _by_group(x, kernel, strides, padding, feature_group_count=feature_group_count, **rest)
    # Chosen as the step is built for its mesh: `platform_dependent` would put both forms into its jaxpr.
    if plain and platform() == "cpu" and (x.dtype.itemsize == 2 or max(strides) > 1):
        return _on_a_cpu(x, kernel, tuple(strides), tuple((before, after) for before, after in padding))
    return lax.conv_general_dilated(x, kernel, strides, padding, **rest)


def _by_group(x: jax.Array, kernel: jax.Array, *args: Any, feature_group_count: int, **kwargs: Any) -> jax.Array:
    """Convolve by group; a CPU runs one convolution a group, which is five times faster there but slower on a TPU."""

    def side_by_side(x: jax.Array, kernel: jax.Array) -> jax.Array:
        parts = zip(jnp.split(x, feature_group_count, -1), jnp.split(kernel, feature_group_count, -1), strict=True)
        return jnp.concatenate([convolve(a, b, *args, **kwargs) for a, b in parts], axis=-1)

    def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, *args, feature_group_count=feature_group_count, **kwargs)

    return lax.platform_dependent(x, kernel, cpu=side_by_side, default=grouped)


def convolve_transposed(
    x: jax.Array, kernel: jax.Array, stride: int, pad: int, extra: int, wide: Any = None
) -> jax.Array:
    """Return the transposed convolution: (N, H, W, C) -> (N, stride·(H - 1) + taps - 2 pad + extra, …, features).

    Args:
      kernel: (taps, taps, C, features), applied to the spread map as it is.
      wide: type of sums and result; None: that of `x`.
    """
    taps = kernel.shape[0]
    if platform() == "cpu":
        # XLA's loops over a spread map multiply its zeros; the gradient of the kernel takes them 25 times as long.
        height, width = (stride * (side - 1) + taps - 2 * pad + extra for side in x.shape[1:3])
        shape = (len(x), height, width, kernel.shape[3])
        forward = kernel[::-1, ::-1].swapaxes(2, 3)  # This is the transpose of a convolution by `forward`.
        strides, padding = (stride, stride), ((pad, pad), (pad, pad))
        if wide:  # Whoever asks for it has a gradient of his own, with operands of the type of `x`.
            return _by_phase(x, forward, strides, padding, shape, wide)
        return _transposed(x, forward, strides, padding, shape)
    before = taps - 1 - pad
    around = (before, before + extra)  # rows of zeros above and below the map, which is spread by the stride
    return lax.conv_general_dilated(
        x, kernel, (1, 1), (around, around), lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=wide,
    )  # fmt: skip


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _on_a_cpu(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding) -> jax.Array:
    return _plain(x, kernel, strides, padding)


def _plain(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], wide: Any = None
) -> jax.Array:
    if not onednn_is_right(kernel.shape[1], kernel.shape[2]):
        lacking = 16 - kernel.shape[2]  # channels of zeros, which add nothing to any sum
        x, kernel = jnp.pad(x, (*[(0, 0)] * 3, (0, lacking))), jnp.pad(kernel, (*[(0, 0)] * 2, (0, lacking), (0, 0)))
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=wide
    )


def onednn_is_right(width: int, channels: int) -> bool:
    """Return whether the oneDNN of jaxlib 0.12 computes a convolution of 16 bits rightly on a CPU with AMX.

    It takes the taps of a row and the channels together, 32 at a time, where there are fewer than 16 channels; of rows
    that fill two or more times 32 exactly its results are wrong altogether (tests/models/test_convolution.py).

    Args:
      width: taps of the kernel along the width of the image.
      channels: of the image.
    """
    return channels >= 16 or width * channels <= 32 or width * channels % 32 > 0


def _forward(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding) -> Any:
    return _plain(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: tuple[int, ...], padding: Padding, operands: Any, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    # XLA's own gradient is a convolution whose window is reversed and, of a strided one, whose operand is dilated.
    # oneDNN takes neither, and in 16 bits XLA's own loops have less than half of its speed; over a dilated operand
    # they are slow in 32 bits, too.
    of_x = _by_phase(grad, kernel, strides, padding, x.shape)
    return of_x, _of_kernel(x, kernel, strides, padding, grad)


_on_a_cpu.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _transposed(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding, shape: tuple[int, ...]
) -> jax.Array:
    """Return the transpose of `_on_a_cpu` with respect to its image, which has this `shape`, applied to `x`."""
    return _by_phase(x, kernel, strides, padding, shape)


def _transposed_forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding, shape: tuple[int, ...]
) -> Any:
    return _by_phase(x, kernel, strides, padding, shape), (x, kernel)


def _transposed_backward(
    strides: tuple[int, ...], padding: Padding, _: tuple[int, ...], operands: Any, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # What is transposed twice is the convolution itself; in its kernel's gradient the two maps have changed places.
    x, kernel = operands
    return _plain(grad, kernel, strides, padding), _of_kernel(grad, kernel, strides, padding, x)


_transposed.defvjp(_transposed_forward, _transposed_backward)


def _of_kernel(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding, grad: jax.Array
) -> jax.Array:
    """Return the gradient of `_plain` with respect to the kernel, in the form that is right and fast for its shape."""
    if kernel.shape[:2] == (1, 1) or x.shape[3] > 64 or not onednn_is_right(grad.shape[2], rows_of_a_device(x)):
        return _by_tap(x, grad, kernel.shape, strides, padding)
    # XLA's own gradient is one convolution whose kernel is the gradient, with the images as channels.
    return jax.linear_transpose(lambda kernel: _plain(x, kernel, strides, padding), kernel)(grad)[0]


def _by_tap(
    x: jax.Array, grad: jax.Array, shape: Sequence[int], strides: tuple[int, ...], padding: Padding
) -> jax.Array:
    """Return the gradient with respect to the kernel, one product (C, N·H'·W') × (N·H'·W', features) a tap.

    dw[i, j] = Σ x[n, s·h + i - p, s·w + j - p] · g[n, h, w] over images and pixels: a product with every s-th pixel. It
    copies those pixels, where a convolution would transpose image and gradient: faster from some 100 channels.

    Args:
      grad: (N, H', W', features).
      shape: (taps, taps, C, features), that of the kernel.
    """
    # Padding and cropping in one: the last pixels that a stride passes over are left out.
    spans = [(out - 1) * s + taps for out, s, taps in zip(grad.shape[1:3], strides, shape[:2], strict=True)]
    edges = [
        (before, span - before - side, 0) for (before, _), span, side in zip(padding, spans, x.shape[1:3], strict=True)
    ]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    grad = grad.reshape(-1, shape[3])
    taps = []
    for i, j in itertools.product(range(shape[0]), range(shape[1])):
        stops = (i + spans[0] - shape[0] + 1, j + spans[1] - shape[1] + 1)
        pixels = lax.slice(padded, (0, i, j, 0), (x.shape[0], *stops, x.shape[3]), (1, *strides, 1))
        taps.append(pixels.reshape(-1, x.shape[3]).T @ grad)
    return jnp.stack(taps).reshape(shape)


def _by_phase(
    grad: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    padding: Padding,
    shape: tuple[int, ...],
    wide: Any = None,
) -> jax.Array:
    """Return the gradient with respect to the image, by convolutions of stride 1 with parts of the flipped kernel.

    y[o] = Σ_i w[i] · x[s·o + i - p] along each axis, so dx[s·m + a] = Σ_i w[i] · g[m + (a + p - i) / s] over those taps
    i for which the division is exact: one convolution for each phase a = 0 … s - 1. Phases are interleaved at the end.

    Args:
      grad: (N, H', W', features).
      shape: (N, H, W, C), that of the image.
    """
    (rows, columns), channels = (-(-side // s) for side, s in zip(shape[1:3], strides, strict=True)), shape[3]
    down, across = (
        [
            _phase(a, strides[axis], padding[axis][0], kernel.shape[axis], size, grad.shape[1 + axis])
            for a in range(strides[axis])
        ]
        for axis, size in enumerate((rows, columns))
    )
    phases = []
    for (vertical, below), (horizontal, beside) in itertools.product(down, across):
        part = kernel[vertical, horizontal].swapaxes(2, 3)  # (taps, taps, features, C), flipped
        if 0 in part.shape:  # a stride that is larger than the kernel passes over pixels
            phases.append(jnp.zeros((shape[0], rows, columns, channels), wide or grad.dtype))
        else:
            # jaxlib 0.10.2 computes a negative padding wrongly on a CPU: the pixels are cropped before.
            crops = [(min(0, before), min(0, after), 0) for before, after in ((0, 0), below, beside, (0, 0))]
            cropped = lax.pad(grad, jnp.zeros((), grad.dtype), crops)
            pads = [(max(0, before), max(0, after)) for before, after in (below, beside)]
            # The barrier keeps XLA from folding the flip into a reversed window again.
            phases.append(_plain(cropped, lax.optimization_barrier(part), (1, 1), pads, wide))
    if len(phases) == 1:
        return phases[0]
    x = jnp.stack(phases, 3).reshape(shape[0], rows, columns, *strides, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(shape[0], rows * strides[0], columns * strides[1], channels)
    return x[:, : shape[1], : shape[2]]


def _phase(a: int, stride: int, before: int, taps: int, size: int, out: int) -> tuple[slice, tuple[int, int]]:
    """Return the taps of phase `a`, in falling order, and the padding that gives `size` pixels.

    Args:
      before: padding of the forward convolution.
      out: length of the gradient along this axis.
    """
    last = max((i for i in range(taps) if (a + before - i) % stride == 0), default=None)
    if last is None:
        return slice(0), (0, 0)
    first = (a + before - last) // stride  # the pixel of the gradient that tap `last` meets at m = 0
    return slice(last, None, -stride), (-first, size - out + first + last // stride)
