"""What the tests of the networks share: their published sizes, shapes without computing, small networks run once."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn.models import create_model

# Option B has a projection with its norm only where a stage begins. Option C has one in the other blocks too: `more` of
# them at each width, counted in Table 1. A plain network is an option A one without its shortcuts, which cost nothing.
PROJECTIONS = sum(more * (width * width + 2 * width) for more, width in ((3, 64), (3, 128), (5, 256), (2, 512)))
RESNET = {
    "resnet18": 11_689_512,
    "resnet18_a": 11_515_688,
    "plain18": 11_515_688,
    "resnet34": 21_797_672,
    "resnet34_a": 21_623_848,
    "plain34": 21_623_848,
    "resnet34_c": 21_797_672 + PROJECTIONS,
    "resnet50": 25_557_032,
    "resnet50_tv": 25_557_032,
    "resnet101": 44_549_160,
    "resnet101_tv": 44_549_160,
    "resnet152": 60_192_808,
    "resnet152_tv": 60_192_808,
}
CIFAR = {  # with ten classes
    "resnet20": 269_722,
    "plain20": 269_722,
    "resnet32": 464_154,
    "plain32": 464_154,
    "resnet44": 658_586,
    "plain44": 658_586,
    "resnet56": 853_018,
    "plain56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
}
ALEXNET = {"alexnet": 60_965_224, "alexnet_tv": 61_100_840}
VGG = {
    "vgg11": 132_863_336,
    "vgg11_lrn": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16_c": 133_638_952,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    # A scale and a shift for each channel of each convolution: 64 and 128 once or twice, 256 and 512 more often.
    "vgg11_bn": 132_863_336 + 2 * (64 + 128 + 2 * 256 + 4 * 512),
    "vgg13_bn": 133_047_848 + 2 * (2 * 64 + 2 * 128 + 2 * 256 + 4 * 512),
    "vgg16_bn": 138_357_544 + 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512),
    "vgg19_bn": 143_667_240 + 2 * (2 * 64 + 2 * 128 + 4 * 256 + 8 * 512),
}
GOOGLENET = {"googlenet": 13_378_280, "googlenet_tv": 13_004_888}  # with both auxiliary heads
PARAMETERS = ALEXNET | VGG | GOOGLENET | RESNET | CIFAR
# Of grey images of 28 pixels, counted by hand: the layers of the papers, which give no numbers.
GENERATIVE = {
    "vae_mlp": (784 + 1) * 500 + 2 * (500 + 1) * 20 + (20 + 1) * 500 + (500 + 1) * 784,
    "vae_conv": (16 * 1 + 1) * 32 + (16 * 32 + 1) * 64 + (3136 + 1) * 256 + 2 * (256 + 1) * 32
    + (32 + 1) * 256 + (256 + 1) * 3136 + (16 * 64 + 1) * 32 + 16 * 32 + 1,
    "gan_mlp": (100 + 1) * 1200 + (1200 + 1) * 1200 + (1200 + 1) * 784 + (784 + 1) * 1200 + (240 + 1) * (1200 + 1),
    # In colour: generator and discriminator, as tests/golden has them; and the same without their largest level.
    "dcgan64": 18_885_760 + 17_232_768,
    "dcgan32": 100 * 8192 + 25 * (512 * 256 + 256 * 128 + 128 * 3) * 2 + 8192
    + 2 * (8192 + 256 + 128) + 2 * (256 + 512),
}  # fmt: skip
# Segmentation, with 21 classes; no interpolation kernels. Those of torchvision have an auxiliary head.
FCN = {
    "fcn32s": 134_346_581,
    "fcn16s": 134_357_354,
    "fcn8s": 134_362_751,
    "fcn8s_atonce": 134_362_751,
    # The classifier's, but for its head of 1,000 classes.
    "fcn32s_alexnet": 60_965_224 + 4097 * (21 - 1000),
    "fcn32s_googlenet": 6_998_552 + 1025 * (21 - 1000),
    "fcn_resnet50_tv": 35_322_218,
    "fcn_resnet101_tv": 54_314_346,
}
# Detection, with the published classes: VOC's 21, of VGG-16 with the authors' RPN and head, and torchvision's 91.
DETECTION = {
    # The classifier's, but for the head: as many inputs of it have 21 outputs and 4 · 21. CaffeNet's pool5 is 6×6×256,
    # VGG's 7×7×512, and so are the bins of RoI pooling. VGG-16: 14,714,688 + 102,764,544 + 16,781,312 + 430,185.
    "fast_rcnn_alexnet": 60_965_224 + (4096 + 1) * (5 * 21 - 1000),
    "fast_rcnn_vgg16": 14_714_688 + (25_088 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 5 * 21,
    # The classifier's, with 21 outputs of fc7 and 4 · 21 of pool5.
    "rcnn_alexnet": 60_965_224 + (4096 + 1) * (21 - 1000) + (9_216 + 1) * 4 * 21,
    "rcnn_vgg16": 14_714_688 + (25_088 + 1) * (4096 + 4 * 21) + (4096 + 1) * (4096 + 21),
    "faster_rcnn_vgg16": 14_714_688 + (25_088 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 5 * 21
    + (9 * 512 + 1) * 512 + (512 + 1) * 6 * 9,
    "faster_rcnn_resnet50_fpn_tv": 41_755_286,
    "mask_rcnn_resnet50_fpn_tv": 44_401_393,
}  # fmt: skip

# One network for everything that the new families do differently; small enough to be computed with.
KINDS = ("alexnet", "alexnet_tv", "vgg11_lrn", "vgg11_bn", "googlenet", "googlenet_tv")


def create(name: str, classes: int = 10, dtype: Any = jnp.float32, **overrides: Any) -> Any:
    """A network for small images, and an eighth as wide where the family can be."""
    small = {} if name in CIFAR else {"small_images": True} | ({} if name in RESNET else {"width": 0.125})
    return create_model(name, classes, dtype, **(small | overrides))


def images(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def quick(f: Callable[..., Any]) -> Any:
    """`f` compiled without optimisation: here compiling takes the time, not running."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def shapes(model: nn.Module, size: int, channels: int = 3, train: bool = False) -> tuple[Any, Any]:
    """Shapes of (outputs, variables) for two images, as a fresh model gives them."""
    x = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=train), x)


@cache
def traced(name: str, size: int, train: bool = False, dtype: str = "float32") -> tuple[Any, Any]:
    """`shapes` of a network as published, with the classes that its parameters are counted for."""
    return shapes(create_model(name, 10 if name in CIFAR else 1000, jnp.dtype(dtype)), size, train=train)


def filled(tree: Any) -> Any:
    """Arrays of these shapes: He's Gaussians for kernels, else values around 0, or 1 for scales and variances."""
    rng, flat = np.random.default_rng(1), cast(dict[tuple[str, ...], Any], flatten_dict(tree))
    for path, leaf in flat.items():
        if path[-1] == "kernel":
            draw = rng.standard_normal(leaf.shape, np.float32) * math.sqrt(2 / math.prod(leaf.shape[:-1]))
        else:
            draw = (path[-1] in ("scale", "var")) + rng.uniform(-0.2, 0.2, leaf.shape)
        flat[path] = draw.astype(np.float32)
    return unflatten_dict(flat)


def sizes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array."""
    flat: Any = flatten_dict(tree, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def count(tree: Any) -> int:
    return sum(math.prod(shape) for shape in sizes(tree).values())


@cache
def variables(name: str, size: int = 32) -> Any:
    """Variables of `create(name)`; tests must not write to them."""
    return filled(shapes(create(name), size)[1])


@cache
def evaluation(name: str) -> Callable[[Any, jax.Array], dict[str, np.ndarray]]:
    """(variables, images) -> outputs of `create(name)` in evaluation."""
    return quick(lambda variables, x: create(name).apply(variables, x, train=False))


@cache
def training(name: str) -> Callable[[jax.Array], tuple[Any, Any, list[tuple[jax.Array, jax.Array]]]]:
    """(key of the dropout) -> (outputs, gradients, (input, output) of each dropout) of a batch of 16."""
    model, x = create(name), images(16, 32, 32, 3)
    labels = jnp.asarray(np.random.default_rng(2).integers(0, 10, 16))

    def entropy(logits: jax.Array) -> jax.Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

    def run(params: Any, rest: Any, key: jax.Array) -> Any:
        drops = []

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            y = call(*args, **kwargs)
            if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
                drops.append((args[0], y))
            return y

        with nn.intercept_methods(watch):
            outputs, _ = model.apply(
                {"params": params} | rest, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
            )
        return entropy(outputs["logits"]) + 0.3 * sum(map(entropy, outputs.get("aux_logits", ()))), (outputs, drops)

    params, rest = variables(name)["params"], {k: v for k, v in variables(name).items() if k != "params"}
    program = quick(jax.value_and_grad(run, has_aux=True))

    def call(key: jax.Array) -> Any:
        (_, (outputs, drops)), grads = program(params, rest, key)
        return outputs, grads, drops

    return call
