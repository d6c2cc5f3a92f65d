"""The papers' tables, rebuilt from the code with the published value beside ours, and the price of bfloat16.

Most is counted by `cost`; what a stack of filters sees, and the precision of bfloat16, are computed.
"""

import difflib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import UserError
from jaxcnn.models import create_model, list_models
from jaxcnn.models.layers import conv
from jaxcnn.papers.cost import Layer, layers, paper_layers, total
from jaxcnn.papers.published import Figure, figure, of_model
from jaxcnn.papers.rendering import Cell, Table, extent, in_unit, integer, text

IMAGES = 4  # of the table precision


def build(name: str) -> Table:
    """Return the table called `name`.

    Raises:
      UserError: there is none of that name; the nearest are listed.
    """
    if name not in TABLES:
        near = difflib.get_close_matches(name.lower(), TABLES, n=3, cutoff=0.4)
        words = "the nearest are" if near else "there are"
        raise UserError(f"there is no table '{name}': {words} " + ", ".join(sorted(near) or TABLES))
    return TABLES[name]()


def _stages(name: str, stage_of: Callable[[str], str]) -> dict[str, list[Layer]]:
    """Return the layers of the model `name` by stage: what `stage_of` makes of a layer's name, "" for none."""
    stages: dict[str, list[Layer]] = {}
    for row in paper_layers(name):
        if stage := stage_of(row.name):
            stages.setdefault(stage, []).append(row)
    return stages


def _costs(
    kept: Sequence[Layer], unit: float, digits: int, parameters: Figure | None = None, macs: Figure | None = None
) -> list[Cell]:
    """Return the cells of the parameters and of the MACs of layers, with what the paper prints of them."""
    return [integer(total(kept, "parameters"), parameters), in_unit(total(kept, "macs"), unit, digits, macs)]


def _weighted(name: str) -> list[Layer]:
    return [layer for layer in paper_layers(name) if layer.kind.startswith(("conv", "dense"))]


def _alexnet_figure2() -> Table:
    kept, rows = _weighted("alexnet"), []
    for layer in [Layer("images", "", (224, 224, 3), 0, 0, 0), *kept]:
        rows.append([
            text(layer.name), text(extent(layer.shape), figure("alexnet", "sizes", layer.name)),
            integer(math.prod(layer.shape), figure("alexnet", "neurons", layer.name)), *_costs([layer], 1e6, 1),
        ])  # fmt: skip
    whole = [text("total"), text(""), integer(sum(cells[2].ours for cells in rows[1:])), *_costs(kept, 1e6, 1)]
    return Table(
        "alexnet-figure2", "AlexNet, Figure 2 and its caption: sizes of the layers", 1,
        ("layer", "output", "neurons", "parameters", "MMACs"), [*rows, whole],
        ("The figure draws each layer as two halves, one for a GPU (55×55×48 …): here they are side by side.",
         "The caption's 253,440 neurons of conv1 are not those of the 55×55×96 that the figure draws (290,400).",
         "The total leaves the image out."),
    )  # fmt: skip


def _alexnet_abstract() -> Table:
    kept = _weighted("alexnet")
    neurons = sum(math.prod(layer.shape) for layer in kept)
    rows = [
        [text("parameters"), integer(total(kept, "parameters"), of_model("alexnet")["parameters"])],
        [text("neurons"), integer(neurons, figure("alexnet", "all_neurons", "alexnet"))],
    ]
    return Table("alexnet-abstract", "AlexNet, abstract: the whole network", 1, ("what", "ours"), rows)


_VGG = ("vgg11", "vgg11_lrn", "vgg13", "vgg16_c", "vgg16", "vgg19")


def _vgg_stage(name: str) -> str:
    names = {"fc6": "fc", "fc7": "fc", "head": "fc", "lrn": "stage1"}
    return names.get(name, name.split("_")[0] if "conv" in name else "")


def _vgg_layers(rows: list[Layer]) -> str:
    """Return Table 1's words for a stage: "2 conv3-512 conv1-512"."""

    def word(row: Layer) -> str:
        kernel = row.kind.removeprefix("conv ").split("×")[0]
        return {"dense": f"FC-{row.shape[-1]}", "LRN": "LRN"}.get(row.kind, f"conv{kernel}-{row.shape[-1]}")

    runs = [(words, len(list(run))) for words, run in itertools.groupby(map(word, rows))]
    return " ".join(f"{times} {words}" if times > 1 else words for words, times in runs)


def _vgg_table1() -> Table:
    rows = []
    for name in _VGG:
        for stage, inside in _stages(name, _vgg_stage).items():
            words = text(_vgg_layers(inside), figure("vgg", "layers", name, stage))
            rows.append([text(name), text(stage), words, text(extent(inside[-1].shape)), *_costs(inside, 1e9, 3)])
    return Table(
        "vgg-table1", "VGG, Table 1: the configurations A, A-LRN, B, C, D and E", 2,
        ("network", "stage", "layers", "output", "parameters", "GMACs"), rows,
        ("The output is that of the stage's last layer; 2×2 max pooling follows each stage of convolutions.",),
    )  # fmt: skip


def _vgg_table2() -> Table:
    rows = []
    for name in _VGG:
        depth = integer(len(_weighted(name)), figure("vgg", "weight_layers", name))
        rows.append([text(name), depth, *_costs(paper_layers(name), 1e9, 3, of_model(name)["parameters"])])
    title = "VGG, Table 2: number of parameters; the weight layers are those of Table 1"
    return Table("vgg-table2", title, 1, ("network", "weight layers", "parameters", "GMACs"), rows)


def _googlenet_stage(name: str) -> str:
    names = {"conv2_reduce": "conv2", "global_avg_pool": "avg pool", "head": "linear"}
    top = name.split("/")[0]
    return names.get(top, "" if top.startswith("lrn") else top.removeprefix("inception").replace("max_pool", "pool"))


def _googlenet_table1() -> Table:
    rows = []
    for stage, inside in _stages("googlenet", _googlenet_stage).items():
        # An inception module joins its four branches; each ends in a layer that is not a reduction.
        ends = [row for row in inside if row.kind.startswith("conv") and "reduce" not in row.name] or inside
        shape = (*ends[-1].shape[:-1], sum(row.shape[-1] for row in ends))
        shape = shape if len(shape) == 3 else (1, 1, *shape)
        printed = [figure("googlenet", f"table1_{what}", stage) for what in ("parameters", "macs")]
        costs = _costs(inside, 1e6, 1, *(printed if total(inside, "macs") else ()))
        rows.append([text(stage), text(extent(shape), figure("googlenet", "sizes", stage)), *costs])
    everything = paper_layers("googlenet")
    auxiliary = total(paper_layers("googlenet", train=True), "parameters") - total(everything, "parameters")
    whole = [text("total"), text(""), *_costs(everything, 1e6, 1)]
    return Table(
        "googlenet-table1", "GoogLeNet, Table 1: the incarnation of the Inception architecture", 1,
        ("layer", "output", "parameters", "MMACs"), [*rows, whole],
        ("The paper's ops are those of its architecture, the first convolution and 5a aside. Its parameters are not: "
         "the first convolution has 7·7·3·64 = 9,408 weights, where 2.7K is printed.",
         "K is read as 1,024: the linear layer's 1000K are 1,024,000 weights. Ours count the biases, too.",
         f"Two auxiliary classifiers, in training only, add {auxiliary:,} parameters."),
    )  # fmt: skip


def _resnet_stage(name: str) -> str:
    if name.startswith("stage"):
        return f"conv{int(name[5]) + 1}_x"
    return {"stem_conv": "conv1", "stem_norm": "conv1", "max_pool": "conv2_x"}.get(name, "fc")


def _resnet_table1() -> Table:
    rows = []
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        for stage, inside in _stages(name, _resnet_stage).items():
            shape = inside[-1].shape[:2] if stage != "fc" else (1, 1)
            size = text(extent(shape), figure("resnet", "sizes", stage))
            rows.append([text(name), text(stage), size, *_costs(inside, 1e9, 3)])
        for form in (name, f"{name}_a")[: 2 if name in ("resnet18", "resnet34") else 1]:
            costs = _costs(paper_layers(form), 1e9, 3, macs=of_model(form)["macs"])
            rows.append([text(form), text("total"), text(""), *costs])
    return Table(
        "resnet-table1", "ResNet, Table 1: architectures for ImageNet", 2,
        ("network", "stage", "output", "parameters", "GMACs"), rows,
        ("The paper prints FLOPs and means multiply-adds. It does not say which shortcuts its 18 and 34 layers have: "
         "no letter is option B (projections where the size changes), _a is option A (none).",),
    )  # fmt: skip


def _resnet_table6() -> Table:
    rows = []
    for name in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202"):
        paper, depth = of_model(name), integer(len(_weighted(name)))
        costs = _costs(paper_layers(name), 1e6, 2, paper["parameters"])
        rows.append([text(name), depth, *costs, text(paper["error"].printed)])
    return Table(
        "resnet-table6", "ResNet, Table 6: networks for CIFAR-10", 1,
        ("network", "layers", "parameters", "MMACs", "paper's error %"), rows,
        ("The error is the paper's, on the test set; of 110 layers it is the best of five runs.",),
    )  # fmt: skip


class Stack(nn.Module):
    """`depth` square convolutions of `kernel` pixels on equally many channels, without biases."""

    kernel: int
    depth: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """(N, H, W, channels) -> the same shape."""
        for _ in range(self.depth):
            x = conv(self.channels, self.kernel, dtype=jnp.float32, kernel_init=nn.initializers.ones)(x)
        return x


def receptive_field(kernel: int, depth: int) -> int:
    """Return the side in pixels of what one output of such a stack depends on: where its gradient is not zero."""
    stack, side = Stack(kernel, depth, 1), 2 * kernel * depth + 1
    image = jnp.zeros((1, side, side, 1))
    variables = stack.init(jax.random.key(0), image)

    def middle(image: jax.Array) -> jax.Array:
        output: Any = stack.apply(variables, image)
        return output[0, side // 2, side // 2, 0]

    return int(np.any(np.asarray(jax.grad(middle)(image)) != 0, axis=(0, 1, 3)).sum())


def _fcn_table1() -> Table:
    rows = [
        [text(name), *_costs(paper_layers(name), 1e9, 1, figure("fcn", "parameters", name))]
        for name in ("fcn32s_alexnet", "fcn32s", "fcn32s_googlenet")
    ]
    return Table(
        "fcn-table1", "FCN, Table 1: classifiers as fully convolutional networks", 1,
        ("network", "parameters", "GMACs"), rows,
        ("21 classes, images of 500×500. The layers that enlarge the scores are fixed and have no parameters.",),
    )  # fmt: skip


def stacks() -> Table:
    """Return the table of the cost and the receptive field of one filter and of the stack that replaces it."""
    channels, pixels, rows = 256, 28, []
    for large, depth in ((5, 2), (7, 3), (9, 4)):
        costs = []
        for kernel, times in ((large, 1), (3, depth)):
            kept = layers(Stack(kernel, times, channels), (pixels, pixels, channels))
            costs.append(total(kept, "parameters"))
            rows.append([
                text(f"{times} of {kernel}×{kernel}"), text(extent((receptive_field(kernel, times),) * 2)),
                integer(costs[-1] // channels**2), *_costs(kept, 1e6, 1), integer(times),
                in_unit(costs[-1] / costs[0], 1, 2),
            ])  # fmt: skip
    return Table(
        "stacks", "One large filter against a stack of 3×3 filters that sees as much", 1,
        ("layers", "sees", "per pair", "parameters", "MMACs", "ReLUs", "cost"), rows,
        (f"{channels} channels in and out at {pixels}×{pixels} pixels, no biases. Per pair: weights for each pair of "
         "an input and an output channel. Cost: against the large filter.",
         "VGG, section 2.3: 27C² against 49C² weights for 7×7, and three non-linearities in place of one.",
         "What a stack sees is measured: the pixels on which one output's gradient is not zero."),
    )  # fmt: skip


TABLES: dict[str, Callable[[], Table]] = {
    "alexnet-abstract": _alexnet_abstract, "alexnet-figure2": _alexnet_figure2, "vgg-table1": _vgg_table1,
    "vgg-table2": _vgg_table2, "googlenet-table1": _googlenet_table1, "resnet-table1": _resnet_table1,
    "resnet-table6": _resnet_table6, "fcn-table1": _fcn_table1, "stacks": stacks,
}  # fmt: skip


def errors(name: str, seed: int = 0) -> tuple[float, float]:
    """Return (largest, mean) error of bfloat16 against float32 logits, relative to the largest and the mean logit.

    Both have the same float32 weights of the model `name`, drawn from `seed`, and see four images of Gaussian noise.
    BatchNorm uses the statistics of the four, as in training: those of a fresh network, mean 0 and variance 1, let the
    activations of deep ones grow without bound. There is no dropout.
    """
    size: int = create_model(name).image_size  # type: ignore[attr-defined]
    classes = 10 if size == 32 else 1000
    images = jnp.asarray(np.random.default_rng(seed).standard_normal((IMAGES, size, size, 3), np.float32))
    exact = create_model(name, classes, jnp.float32, dropout=0.0)
    variables = jax.jit(exact.init)(jax.random.key(seed), images[:1])

    def logits(dtype: Any) -> np.ndarray:
        model = create_model(name, classes, dtype, dropout=0.0)

        @jax.jit
        def apply(variables: Any, images: jax.Array) -> jax.Array:
            rngs = {"dropout": jax.random.key(seed)}  # of GoogLeNet's auxiliary classifiers, whose logits are left out
            outputs: Any = model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
            return outputs[0]["logits"]

        return np.asarray(apply(variables, images), np.float64)

    exact_logits = logits(jnp.float32)
    difference, reference = np.abs(logits(jnp.bfloat16) - exact_logits), np.abs(exact_logits)
    return float(difference.max() / reference.max()), float(difference.mean() / reference.mean())


def precision(
    names: Sequence[str] | None = None, seed: int = 0, report: Callable[[str], Any] = lambda name: None
) -> Table:
    """Return the table of `errors` of the models `names`, by default all but the one of 1,202 layers, which takes long.

    Args:
      report: is told each name when its turn comes.

    Raises:
      UserError: an unknown name.
    """
    for name in names or ():
        create_model(name)
    if seed < 0:
        raise UserError(f"--seed {seed}: it must be 0 or more")
    rows = []
    classifiers = [name for name in list_models() if getattr(create_model(name), "task", "") == "classification"]
    for name in names or [name for name in classifiers if name != "resnet1202"]:
        report(name)
        model: Any = create_model(name)
        largest, mean = errors(name, seed)
        rows.append([text(name), integer(model.image_size), in_unit(largest, 0.01, 3), in_unit(mean, 0.01, 3)])
        jax.clear_caches()  # the largest hold gigabytes: let go of each before the next
    return Table(
        "precision", "bfloat16 against float32: relative error of the logits", 1,
        ("network", "pixels", "largest %", "mean %"), rows,
        ("Largest: the largest difference over the largest logit. Mean: the mean difference over the mean logit; both "
         f"of absolute values, over {IMAGES} images of Gaussian noise and all classes.",
         f"Fresh weights of seed {seed}, the same for both; BatchNorm with the statistics of the {IMAGES} images, no "
         f"dropout. Computed on {jax.default_backend()}.",
         "bfloat16 keeps 8 binary digits: one rounding is off by up to 0.39 %."),
    )  # fmt: skip
