"""The default recipe: a config for a data set and a network that nobody has written one for, with its reasons.

It is a start that trains, and no tuned recipe: the rates, crops and lengths are those that experiments/ has for data of
similar size (digits, fashion_mnist_jpeg, imagenet, camvid, bccd).
"""

import math
import statistics
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxcnn import UserError
from jaxcnn.config import OPEN, Config, base_config, group_of
from jaxcnn.data.sources import KINDS, Source, kind_of, labelled_splits, make_source
from jaxcnn.data.sources.boxed import Boxed
from jaxcnn.data.sources.slices import sliced
from jaxcnn.models import create_model

_LARGE = 500_000  # examples from which on a data set is trained as ImageNet is
_SMALL_SIDE = 64  # pixels up to which the networks of ImageNet have the form `small_images`
_LOOKED_AT = 200  # images whose sizes are read
_MODELS = {"label": "resnet18", "label_map": "fcn_resnet50_tv", "boxes": "faster_rcnn_resnet50_fpn_tv"}
_TASKS = {"label": "classification", "label_map": "segmentation", "boxes": "detection"}


class Choice(NamedTuple):
    """A key of the config, its value, and why, in a few words."""

    key: str
    value: Any
    why: str


class Recipe(NamedTuple):
    """A task, and the choices that differ from the defaults of its config."""

    task: str
    choices: tuple[Choice, ...]

    def config(self) -> Config:
        """Return the config, not validated yet."""
        config = base_config(self.task)
        for key, value, _ in self.choices:
            parent = config.model.overrides if key.startswith(f"{OPEN}.") else group_of(config, key)
            parent[key.rpartition(".")[2]] = value
        return config

    def lines(self) -> list[str]:
        """Return a line for each choice."""
        settings = [f"{key} = {_written(value)}" for key, value, _ in self.choices]
        width = min(max(map(len, settings)), 40)  # a path may be longer
        return [f"{setting:<{width}}  # {x.why}" for setting, x in zip(settings, self.choices, strict=True)]

    def experiment(self) -> str:
        """Return the text of an experiment file whose `get_config()` gives the same config."""
        body = []
        for key, value, why in self.choices:
            body += textwrap.wrap(f"{why[0].upper()}{why[1:]}.", 110, initial_indent="# ", subsequent_indent="# ")
            body.append(f"config.{key} = {_written(value)}")
        return _EXPERIMENT.format(task=_written(self.task), body=textwrap.indent("\n".join(body), "    "))


_EXPERIMENT = '''"""What is tried here, and what came out of it: hardware, time, score.

jaxcnn train --config FILE.py --workdir runs/NAME

The values are the default recipe of jaxcnn: a start, not tuned. `jaxcnn config` lists all keys with their meanings,
`jaxcnn data show FILE.py` draws what training sees, and `jaxcnn compare runs/*` compares runs.
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config({task})
{body}
    return config
'''


def _written(value: Any) -> str:
    """Return a value as Python; a text is in double quotes, as experiments have them, unless it has quotes itself."""
    text = repr(value)
    return f'"{text[1:-1]}"' if isinstance(value, str) and not {"'", '"'} & set(value) else text


def default_recipe(data: str, model: str = "", data_dir: str = "") -> Recipe:
    """Return the default recipe of a data set, by its targets, its size and that of its images, and the network.

    Args:
      data: as `config.data.name`.
      model: as `config.model.name`; "": one for the task.
      data_dir: folder of TFDS data sets.

    Raises:
      UserError: the data set cannot be read, has no labels, or the network is for another task.
    """
    splits = _splits(data, data_dir)
    chosen = {choice.key: choice.value for choice in splits}
    source = make_source(data, chosen.get("data.train_split", "train"), data_dir=data_dir)
    target = next((name for name in _MODELS if name in source.targets), "")
    if not target:
        raise UserError(
            f"{data} has no labels, and so no default recipe: give --config; experiments/ has VAEs and GANs"
        )
    name = model or _MODELS[target]
    network: Any = create_model(name)
    task = getattr(network, "task", "classification")
    if task != _TASKS[target]:
        raise UserError(
            f"model {name} is for {task}, and {data} is for {_TASKS[target]}: give --config, or another model"
        )
    size = len(source)
    choices = [Choice("data.name", data, f"{size:,} images to train on, {source.num_classes} classes"), *splits]
    choices += [Choice("data.dir", data_dir, "where TFDS data sets are")] if data_dir else []
    choices.append(Choice("model.name", name, "as asked for" if model else f"a good start for {task}"))
    if not model and target != "label":
        choices.append(
            Choice(f"{OPEN}.backbone", "resnet18", "smaller than ResNet-50, as training starts from scratch")
        )
    choices += {"label": _classification, "label_map": _segmentation, "boxes": _detection}[target](source, network)
    return Recipe(task, tuple(choices))


def _splits(data: str, data_dir: str) -> list[Choice]:
    """Return the choices of splits, where there is none to evaluate on and the training split can be divided."""
    splits = labelled_splits(data, data_dir)
    kind = KINDS[kind_of(data)]
    if {"val", "test", "validation"} & set(splits) or "train" not in splits or not kind.slices:
        return []
    why = "there is no val, test or validation split: every tenth image is held out"
    return [
        Choice("data.train_split", "train[:90%]", why),
        Choice("data.eval_split", "train[90%:]", "the held-out images"),
    ]


def _classification(source: Source, network: Any) -> Iterator[Choice]:
    side, size = _shorter_side(source), len(source)
    native = getattr(network, "image_size", None) or 224
    small = side <= _SMALL_SIDE
    if small and native > _SMALL_SIDE and hasattr(network, "small_images"):
        yield Choice(f"{OPEN}.small_images", True, f"images have {side} pixels: the form for 28 to 64")
    if small:
        pixels = min(max(side, 28 if native > _SMALL_SIDE else 16), _SMALL_SIDE)
        yield Choice("data.image_size", pixels, f"about as stored, {side} pixels")
        flips = source.image_shape[-1] == 3
        yield Choice("data.augment", "pad_crop,flip" if flips else "pad_crop", (
            "shifts and mirror images; leave flip out where left and right differ, as in text" if flips
            else "shifts; grey images are often text, which flip would spoil"
        ))  # fmt: skip
        yield Choice("data.pad", max(pixels // 8, 1), "shift by an eighth at most")
    else:
        yield Choice("data.image_size", native, f"what the network is published for; images have about {side} pixels")
        yield Choice("data.augment", "torchvision" if size >= _LARGE else "random_area(0.35,1),flip", (
            "crops of 8 to 100 % of the area, as for ImageNet" if size >= _LARGE
            else "few images: milder crops than ImageNet's; leave flip out where left and right differ"
        ))  # fmt: skip
    batch = _batch(size, 256 if size >= _LARGE else 128)
    yield Choice("global_batch_size", batch, "a power of two, 20 or more steps an epoch where there are enough images")
    epochs = 100 if size < 2_000 else 50 if size < 20_000 else 30 if size < _LARGE else 90
    yield Choice("epochs", float(epochs), "the fewer images, the more often each is seen")
    if size >= _LARGE:
        yield Choice("optimizer.name", "sgd", "as the published ImageNet recipes")
        rate, base, why = 0.1, 256, "Goyal et al. 2017"
        if not _normalised(network):
            rate, why = 0.01, "without BatchNorm a tenth, as VGG and AlexNet"
        yield Choice("optimizer.learning_rate", rate, why)
        yield Choice("optimizer.base_batch_size", base, "the batch that the rate is stated for")
    else:
        rate, why = (1e-3, "Adam's usual rate") if _normalised(network) else (3e-4, "lower, as there is no BatchNorm")
        yield Choice("optimizer.learning_rate", rate, why)
    yield Choice("optimizer.weight_decay", 1e-4, "on kernels, against overfitting")
    yield from _pace(size, batch)


def _segmentation(source: Source, network: Any) -> Iterator[Choice]:
    size = len(source)
    residual = hasattr(network, "output_stride")  # the others are on VGG-16 and its like, without BatchNorm
    if residual:
        yield Choice(f"{OPEN}.output_stride", 16, "half the memory of 8")
    yield Choice("data.image_size", 224, "training takes crops; evaluation sees the full images")
    yield Choice("data.augment", "rescale(0.75,1.25),flip", "moves image and label map alike")
    batch = _batch(size, 8)
    yield Choice("global_batch_size", batch, "crops a step; raise it where memory allows")
    yield Choice("epochs", 100.0 if size < 2_000 else 50.0, "from scratch; fewer with init_from")
    rate, why = (1e-3, "Adam's usual rate") if residual else (1e-4, "lower, as there is no BatchNorm")
    yield Choice("optimizer.learning_rate", rate, why)
    yield Choice("optimizer.schedule", "polynomial", "as DeepLab")
    yield Choice("optimizer.power", 0.9, "as DeepLab")
    yield from _pace(size, batch)


def _detection(source: Any, network: Any) -> Iterator[Choice]:
    size, shorter = len(source), getattr(network, "image_size", None) or 600
    if getattr(getattr(network, "spec", None), "frozen_norm", False):  # a network of the user's own has no spec
        yield Choice(f"{OPEN}.frozen_norm", False, "from scratch, BatchNorm has to train")
    side = min(_shorter_side(source), shorter)
    yield Choice("data.min_size", side, f"shorter side: as stored, {shorter} at most")
    yield Choice("data.max_size", side * 5 // 3, "longer side, at most: 1000 for 600, as Faster R-CNN")
    yield Choice("data.augment", "flip", "as Faster R-CNN")
    most = getattr(source, "most", 100)
    yield Choice("task.max_boxes", max(32, 2 ** math.ceil(math.log2(most + 1))), f"room for the {most} of an image")
    batch = _batch(size, 8)
    yield Choice("global_batch_size", batch, "images a step; lower it where memory ends")
    yield Choice("epochs", 60.0 if size < 2_000 else 20.0, "from scratch; fewer with init_from")
    yield Choice("optimizer.name", "sgd", "as the published recipes")
    yield Choice("optimizer.learning_rate", 0.02, "with clip_norm and warm-up; 0.002 with init_from")
    yield Choice("optimizer.clip_norm", 10.0, "the first steps from scratch have large gradients")
    yield Choice("optimizer.weight_decay", 1e-4, "on kernels")
    yield from _pace(size, batch)


def _pace(size: int, batch: int) -> Iterator[Choice]:
    """Choose warm-up, and how often is logged and evaluated."""
    steps = max(size // batch, 1)
    yield Choice("optimizer.warmup_epochs", 1.0, "the rate rises from 0 during the first epoch")
    if steps < 50:
        rounds = math.ceil(50 / steps) * steps
        yield Choice("log_every", 10, "epochs are short")
        yield Choice("eval_every", rounds, f"every {rounds // steps} epochs or so, as they are short")
        yield Choice("checkpoint_every", rounds, "with each evaluation")


def _batch(size: int, most: int) -> int:
    """Return a power of two: a twentieth of the examples or less, 8 at least and `most` at most; all of a few."""
    return min(size, most, max(8, 2 ** int(math.log2(max(size / 20, 1)))))


def _normalised(network: Any) -> bool:
    """Return whether a network has BatchNorm; one of the user's own may have."""
    return hasattr(network, "frozen_norm") and getattr(getattr(network, "spec", None), "norm", True)


def _shorter_side(source: Source) -> int:
    """Return the median of the images' shorter sides, of a sample of them, in pixels."""
    if len(source) > _LOOKED_AT and None in source.image_shape:
        if isinstance(source, Boxed):  # whose sizes are annotated
            return statistics.median_high(source.pixels.min(1).tolist())
        source = sliced(source, "a sample", ("", str(_LOOKED_AT)))
    return statistics.median_high(source.sizes(skip=True).min(1).tolist())
