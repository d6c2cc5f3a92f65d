"""The networks of step.py in stock Flax layers, as one would write them without this project, NHWC.

Each has as many parameters as ours and as torchvision's of the name, which step.py checks.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

CIFAR = {"resnet20": 3, "resnet56": 9}  # name: blocks a stage
IMAGENET = {"resnet18": (2, 2, 2, 2), "resnet50_tv": (3, 4, 6, 3)}
VGG = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}
INCEPTION = (  # 1×1; 3×3 with its reduction; 5×5 (torchvision's are 3×3) with its reduction; after pooling
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)  # fmt: skip


class Network(nn.Module):
    """Images (N, H, W, 3) -> logits float32 (N, classes), and in training a tuple of auxiliary ones."""

    name_of: str
    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Any, train: bool) -> tuple[Any, tuple[Any, ...]]:
        """Apply the network."""
        conv = partial(nn.Conv, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        dense, drop = partial(nn.Dense, dtype=self.dtype), partial(nn.Dropout, deterministic=not train)
        aux: tuple[Any, ...] = ()
        x = x.astype(self.dtype)
        if self.name_of in CIFAR:
            x = cifar_resnet(x, CIFAR[self.name_of], conv, norm)
        elif self.name_of in IMAGENET:
            x = resnet(x, IMAGENET[self.name_of], self.name_of == "resnet50_tv", conv, norm)
        elif self.name_of == "googlenet_tv":
            x, aux = googlenet(x, train, conv, norm, dense, self.classes)
            x = drop(0.2)(x)
        else:
            x = alexnet(x, conv) if self.name_of == "alexnet_tv" else vgg(x, VGG[self.name_of], conv)
            x = x.reshape(len(x), -1)
            first = self.name_of == "alexnet_tv"
            for _ in range(2):
                x = drop(0.5)(x) if first else x
                x = nn.relu(dense(4096)(x))
                x = x if first else drop(0.5)(x)
        return dense(self.classes, name="head")(x).astype(jnp.float32), aux


def alexnet(x: Any, conv: Callable[..., Any]) -> Any:
    """Return the pooled map (N, 6, 6, 256)."""
    x = pool(nn.relu(conv(64, (11, 11), 4, 2)(x)))
    x = pool(nn.relu(conv(192, (5, 5), padding=2)(x)))
    for features in (384, 256, 256):
        x = nn.relu(conv(features, (3, 3), padding=1)(x))
    return pool(x)


def vgg(x: Any, layers: Sequence[int], conv: Callable[..., Any]) -> Any:
    """Return the pooled map (N, 7, 7, 512)."""
    for features, count in zip((64, 128, 256, 512, 512), layers, strict=True):
        for _ in range(count):
            x = nn.relu(conv(features, (3, 3), padding=1)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
    return x


def resnet(x: Any, blocks: Sequence[int], bottleneck: bool, conv: Callable[..., Any], norm: Callable[..., Any]) -> Any:
    """Return features (N, 512 or 2048); the stride is in the 3×3 convolution."""
    conv = partial(conv, use_bias=False)
    x = pool(nn.relu(norm()(conv(64, (7, 7), 2, 3)(x))), pad=1)
    for stage, count in enumerate(blocks):
        for block in range(count):
            width, stride, y = 64 * 2**stage, 2 if stage and not block else 1, x
            if bottleneck:
                y = nn.relu(norm()(conv(width, (1, 1))(y)))
                y = nn.relu(norm()(conv(width, (3, 3), stride, 1)(y)))
                y = norm()(conv(4 * width, (1, 1))(y))
            else:
                y = nn.relu(norm()(conv(width, (3, 3), stride, 1)(y)))
                y = norm()(conv(width, (3, 3), padding=1)(y))
            if x.shape != y.shape:
                x = norm()(conv(y.shape[-1], (1, 1), stride)(x))
            x = nn.relu(x + y)
    return x.mean((1, 2))


def cifar_resnet(x: Any, blocks: int, conv: Callable[..., Any], norm: Callable[..., Any]) -> Any:
    """Return features (N, 64); shortcuts are padded with zeros (option A)."""
    conv = partial(conv, kernel_size=(3, 3), padding=1, use_bias=False)
    x = nn.relu(norm()(conv(16)(x)))
    for width in (16, 32, 64):
        for _ in range(blocks):
            stride = 2 if width > x.shape[-1] else 1
            y = nn.relu(norm()(conv(width, strides=stride)(x)))
            y = norm()(conv(width)(y))
            x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))
            x = nn.relu(x + y)
    return x.mean((1, 2))


def googlenet(
    x: Any, train: bool, conv: Callable[..., Any], norm: Callable[..., Any], dense: Callable[..., Any], classes: int
) -> tuple[Any, tuple[Any, ...]]:
    """Return features (N, 1024) and the logits of both auxiliary heads."""

    def unit(x: Any, features: int, kernel: int = 1, stride: int = 1) -> Any:
        y = conv(features, (kernel, kernel), stride, kernel // 2, use_bias=False)(x)
        return nn.relu(norm(epsilon=1e-3)(y))

    x = pool(unit(x, 64, 7, 2), ceil=True)
    x = pool(unit(unit(x, 64), 192, 3), ceil=True)
    aux, maps = [], []
    for place, (one, before3, three, before5, five, pooled) in enumerate(INCEPTION):
        if place in (2, 7):
            x = pool(x, ceil=True) if place == 2 else nn.max_pool(x, (2, 2), (2, 2))
        beside = unit(nn.max_pool(x, (3, 3), (1, 1), "SAME"), pooled)
        branches = [unit(x, one), unit(unit(x, before3), three, 3), unit(unit(x, before5), five, 3), beside]
        x = jnp.concatenate(branches, -1)
        if place in (2, 5):
            maps.append(x)
    for y in maps if train else ():  # Last, so that Flax numbers the other layers alike in evaluation.
        y = unit(nn.avg_pool(y[:, :12, :12], (3, 3), (3, 3)), 128).reshape(len(x), -1)
        y = nn.Dropout(0.7, deterministic=False)(nn.relu(dense(1024)(y)))
        aux.append(dense(classes)(y).astype(jnp.float32))
    return x.mean((1, 2)), tuple(aux)


def pool(x: Any, pad: int = 0, ceil: bool = False) -> Any:
    """Pool maxima of 3×3 with stride 2; `ceil`: the last window hangs over the edge."""
    padding: Any = ((pad, pad + ceil), (pad, pad + ceil))
    return nn.max_pool(x, (3, 3), (2, 2), padding)
