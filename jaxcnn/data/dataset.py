"""What a config says about data, resolved: sizes, classes, batches and preprocessing, for training and evaluation."""

from collections.abc import Iterator
from typing import Any

import jax

from jaxcnn import UserError
from jaxcnn.data import pipeline, transforms
from jaxcnn.data.sources import eval_split, make_source


class Dataset:
    """The two sources of `config.data` and how to read them.

    Attributes:
      num_classes: width of the head, `config.model.num_classes` or the data set's own.
      image_shape: (H, W, C) of a batch's images.
      input: what a checkpoint keeps so that it can be used without the data set.
      position: what a checkpoint keeps to prove that it goes on in the same data.

    Raises:
      UserError: the data is missing, or does not fit the config.
    """

    def __init__(self, config: Any, part: pipeline.Slice = pipeline.WHOLE):
        data = config.data
        self.config, self.part = config, part
        self.train = make_source(data.name, data.train_split, data_dir=data.dir)
        split = data.eval_split or eval_split(data.name, data_dir=data.dir)
        self.eval = make_source(data.name, split, data_dir=data.dir)
        self.num_classes = config.model.num_classes or self.train.num_classes
        if self.num_classes < self.train.num_classes:
            raise UserError(
                f"config.model.num_classes={self.num_classes} is less than "
                f"the {self.train.num_classes} classes of {data.name}"
            )
        spare = range(self.train.num_classes, self.num_classes)  # a wider head than the data needs
        self.class_names = (*self.train.class_names, *map(str, spare))
        height, width, channels = self.train.image_shape
        if data.image_size:
            height = width = data.image_size
        if height is None or width is None or channels is None:
            raise UserError(f"images of {data.name} differ in size: set config.data.image_size, such as 224")
        self.image_shape = (height, width, channels)
        self.mean = self._per_channel("mean", data.mean or self.train.mean)
        self.std = self._per_channel("std", data.std or self.train.std)
        self.steps_per_epoch = pipeline.steps_per_epoch(len(self.train), config.global_batch_size)
        self.input = {
            "image_shape": self.image_shape, "mean": self.mean, "std": self.std, "class_names": self.class_names,
        }  # fmt: skip
        self.eval_examples = len(self.eval)
        self.position = {
            "data": data.name, "split": data.train_split, "examples": len(self.train),
            "global_batch_size": config.global_batch_size, "seed": config.seed,
        }  # fmt: skip

    def _per_channel(self, key: str, values: tuple[float, ...]) -> tuple[float, ...]:
        channels = self.image_shape[-1]
        if len(values) != channels or (key == "std" and min(values) <= 0):
            raise UserError(f"config.data.{key}={values}: images of {self.config.data.name} have {channels} channels")
        return tuple(float(v) for v in values)

    def _reading(self) -> dict[str, Any]:
        data = self.config.data
        return {
            "image_size": data.image_size,
            "part": self.part,
            "workers": data.workers,
            "prefetch": data.prefetch,
        }

    def train_batches(self, start: int, stop: int) -> Iterator[pipeline.Batch]:
        """This process's share of the batches of steps `start` … `stop` - 1."""
        config = self.config
        return pipeline.train_batches(self.train, config.global_batch_size, config.seed, start, stop, **self._reading())

    def eval_batches(self) -> Iterator[pipeline.Batch]:
        """This process's share of the evaluation set, every example once."""
        return pipeline.eval_batches(self.eval, self.config.global_batch_size, **self._reading())

    def preprocess(self, images: jax.Array, rng: jax.Array | None) -> jax.Array:
        """uint8 (N, H, W, C) -> normalised float32, augmented where there is an `rng`. For the device, in the step."""
        if rng is not None:
            images = transforms.augment(self.config.data.augment, self.config.data.pad, rng, images)
        return transforms.normalize(images, self.mean, self.std)
