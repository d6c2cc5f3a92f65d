"""What a config says about data, resolved: sizes, classes, batches and preprocessing, for training and evaluation."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import UserError
from jaxcnn.data import batches as pipeline
from jaxcnn.data.images import augment_device, augment_host
from jaxcnn.data.order import Order
from jaxcnn.data.reader import Reader
from jaxcnn.data.sources import eval_split, make_source
from jaxcnn.data.sources.base import Source

_STREAM = 0x64617461  # of random numbers: no other use of the seed folds this in
_NAMED = 3  # broken examples that are named in a line


class Dataset:
    """The two sources of `config.data` and how to read them.

    Attributes:
      num_classes: width of the head, `config.model.num_classes` or the data set's own.
      image_shape: (H, W, C) of a batch's images.
      steps_per_epoch: batches in one pass over the training examples, a fraction.
      input: what a checkpoint keeps so that it can be used without the data set.
      position: what a checkpoint keeps to prove that it goes on in the same data.

    Args:
      training: False where nothing is trained: then a batch may be larger than the training set.

    Raises:
      UserError: the data is missing, or does not fit the config.
    """

    def __init__(self, config: Any, part: pipeline.Slice = pipeline.WHOLE, training: bool = True):
        data = config.data
        self.config, self.part = config, part
        self.augmentation = augment_host.parse(data.augment)
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
        photographs = height is None or width is None  # of which evaluation sees the centre
        if data.image_size:
            height = width = data.image_size
        if height is None or width is None:
            raise UserError(f"images of {data.name} differ in size: set config.data.image_size, such as 224")
        self.image_shape = (height, width, channels)
        self.buckets: tuple[tuple[int, int], ...] = ((height, width),)
        self.eval_buckets = self.buckets
        resize = data.resize or round(max(height, width) * 256 / 224)
        self.mean = self._per_channel("mean", data.mean or self.train.mean)
        self.std = self._per_channel("std", data.std or self.train.std)
        batch = config.global_batch_size if training else 1
        self.steps_per_epoch = pipeline.steps_per_epoch(len(self.train), batch)
        self.input = {
            "image_shape": self.image_shape, "mean": self.mean, "std": self.std, "class_names": self.class_names,
        } | ({"resize": resize} if photographs else {})  # fmt: skip
        self.eval_examples = len(self.eval)
        self.position = {
            "data": self._identity(), "split": data.train_split, "examples": len(self.train),
            "global_batch_size": config.global_batch_size, "seed": config.seed, "order": "gapless",
        }  # fmt: skip
        self.reader = Reader(
            self.train, (height, width), resize, self.augmentation, data.interpolation, data.on_error == "skip",
            config.seed,
        )  # fmt: skip
        self.broken: dict[int, set[int]] = defaultdict(set)  # epoch: examples; -1 is evaluation
        self.said = set[int]()  # those of the evaluation that a line has named
        if data.resident and (self.augmentation.geometry or self.augmentation.pixels):
            raise UserError(
                f"config.data.augment={data.augment} works on the host, image by image: config.data.resident takes "
                "what works on the device, flip, pad_crop, mixup and cutmix"
            )

    def _identity(self) -> str:
        """The name of the data set; of files, which may be moved, the kind and a digest of the classes."""
        kind = self.config.data.name.partition(":")[0]
        if kind not in ("folder", "packed"):
            return self.config.data.name
        return f"{kind} {hashlib.sha256(repr(self.train.class_names).encode()).hexdigest()[:12]}"

    def _per_channel(self, key: str, values: tuple[float, ...]) -> tuple[float, ...]:
        channels = self.image_shape[-1]
        if len(values) != channels or (key == "std" and min(values) <= 0):
            raise UserError(f"config.data.{key}={values}: images of {self.config.data.name} have {channels} channels")
        return tuple(float(v) for v in values)

    def _reading(self) -> dict[str, Any]:
        data = self.config.data
        return {"part": self.part, "workers": data.workers, "prefetch": data.prefetch, "timeout": data.timeout}

    def train_batches(self, start: int, stop: int) -> Iterator[pipeline.Batch]:
        """This process's share of the batches of steps `start` … `stop` - 1."""
        batches = pipeline.train_batches(self.reader, self.config.global_batch_size, start, stop, **self._reading())
        return self._noting(batches, lambda epoch: epoch)

    def eval_batches(self) -> Iterator[pipeline.Batch]:
        """This process's share of the evaluation set, every example once."""
        self.broken[-1] = set()
        reader = replace(self.reader, source=self.eval)
        batches = pipeline.eval_batches(reader, self.config.global_batch_size, **self._reading())
        return self._noting(batches, lambda _: -1)

    def _noting(self, batches: Iterator[pipeline.Batch], where: Callable[[int], int]) -> Iterator[pipeline.Batch]:
        """Take note of the broken examples, of which the device need not know."""
        try:
            for batch in batches:
                broken = batch.pop("broken")
                for row in np.flatnonzero(broken >= 0):
                    self.broken[where(int(batch["epoch"][row]))].add(int(broken[row]))
                yield batch
        finally:
            getattr(batches, "close", int)()  # ends the reader's threads or processes

    def resident(self, training: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """All examples: images uint8 (N, H, W, C), labels int32 (N,) and mask float32 (N,), 0 where one is broken."""
        reader = self.reader if training else replace(self.reader, source=self.eval)
        images = np.empty((len(reader.source), *self.image_shape), np.uint8)
        labels, mask = np.zeros(len(images), np.int32), np.ones(len(images), np.float32)

        def read(example: int) -> None:
            images[example], labels[example], broken = reader.train(0, example) if training else reader.eval(example)
            mask[example] = training or broken < 0
            if broken >= 0:
                self.broken[0 if training else -1].add(broken)

        with ThreadPoolExecutor(pipeline.usable_cores()) as threads:
            for _ in threads.map(read, range(len(images))):
                pass  # what is raised there is raised here
        return {"image": images, "label": labels}, mask

    def places(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and example, int32 (stop - start, global batch) each, of the batches of steps `start` … `stop` - 1."""
        order, size = Order(len(self.train), self.config.seed), self.config.global_batch_size
        names = np.array([order[place] for place in range(start * size, stop * size)], np.int32)
        epochs, examples = names.reshape(stop - start, size, 2).transpose(2, 0, 1)
        return epochs, examples

    @property
    def eval_broken(self) -> int:
        """Examples of the last evaluation that could not be read here and were not counted."""
        return len(self.broken[-1])

    def complaints(self, epoch: float) -> list[str]:
        """A line for each epoch before `epoch` in which examples could not be read, and for those of the evaluation.

        None is said twice, and of the evaluation none that was said before.
        """
        ended = sorted(e for e in self.broken if 0 <= e <= epoch - 1 and self.broken[e])
        lines = [f"epoch {e + 1}: {self._words(self.train, self.broken.pop(e))} replaced" for e in ended]
        if self.broken[-1] - self.said:
            self.said |= self.broken[-1]
            lines.append(f"evaluation: {self._words(self.eval, self.broken[-1])} not counted")
        return lines

    def _words(self, source: Source, broken: set[int]) -> str:
        """How many examples of `source` could not be read, and the first of them with the reason."""
        of = f"{source.name}, split '{source.split}', "
        reasons = []
        for index in sorted(broken)[:_NAMED]:
            try:
                source[index]
            except UserError as error:
                reasons.append(f"{error}".removeprefix(of).removesuffix(f": {source.mend}"))
            else:
                reasons.append(f"{source.where(index).removeprefix(of)} can be read now")
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        count, verb = ("1 image", "was") if len(broken) == 1 else (f"{len(broken)} images", "were")
        return f"{count} of {of}could not be read ({'; '.join(reasons)}{more}) and {verb}"

    def preprocess(self, batch: dict[str, jax.Array], seed: jax.Array | None) -> dict[str, jax.Array]:
        """The batch with images normalised, float32; where there is a `seed`, changed at random first.

        For the device, in the step. The changes are a function of (seed, epoch, example), not of the row.
        """
        if seed is not None and self.augmentation.device:
            root = jax.random.fold_in(jax.random.key(seed), _STREAM)
            epochs = jax.vmap(jax.random.fold_in, (None, 0))(root, batch["epoch"])
            keys = jax.vmap(jax.random.fold_in)(epochs, batch["example"])
            batch = augment_device.augment(self.augmentation.device, self.config.data.pad, keys, batch)
        return batch | {"image": augment_device.normalize(jnp.asarray(batch["image"]), self.mean, self.std)}
