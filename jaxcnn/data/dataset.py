"""The data set of a config: everything that holds for all of its examples.

`Dataset` makes the readers (`reader.Reader`) of training and evaluation, asks for their batches, and defines the part
of preprocessing that the device does.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import UserError
from jaxcnn.config import height_width, names_of, sides_of
from jaxcnn.data import batches, usable_cores
from jaxcnn.data.batches import WHOLE, Batch, Places, Slice, nearest_bucket
from jaxcnn.data.broken import EVALUATION, Broken
from jaxcnn.data.expected import Network, brought_to
from jaxcnn.data.images import augment_device, augment_host
from jaxcnn.data.images.canvases import choose_canvases, scaled, smallest_canvas
from jaxcnn.data.proposals import open_proposals
from jaxcnn.data.reader import LABEL, MADE, PLACED, Reader, Specs
from jaxcnn.data.sources import Source, eval_split, make_source, path_kind
from jaxcnn.data.sources.boxed import Boxed
from jaxcnn.data.statistics import class_frequencies, mean_image
from jaxcnn.data.windows import SAMPLE, Windows, make_windows
from jaxcnn.locations import composed

# Images with boxes share few canvases, as each takes a large program, and canvases fit the cells of a map of stride 32.
_MOST_CANVASES, _CANVAS_MULTIPLE = 4, 32
_STREAM = 0x64617461  # of random numbers: no other use of the seed folds this in


class Dataset:
    """The two sources of `config.data` and how to read them.

    Attributes:
      num_classes: width of the head, `config.model.num_classes` or the data set's own.
      buckets, eval_buckets: (H, W) of the images of a batch; training and evaluation have one or several.
      image_shape, eval_image_shape: (H, W, C) of the first of them.
      train_readers, eval_readers: one for each bucket.
      steps_per_epoch: batches in one pass over the training examples, a fraction.
      input: what a checkpoint keeps so that it can be used without the data set.
      position: what a checkpoint keeps to prove that it goes on in the same data.
      proposals: the boxes in the files of `config.task.proposals`, if "proposals" is a target; else None.

    If the task has the target "sizes", images are padded, not cropped or distorted to one size. The buckets then are
    canvases, those of the config or else chosen for the images, and an image goes to the smallest that holds it. If
    `data.min_size` has several sides, the largest decides, so that an example has one canvas in all epochs.

    Args:
      training: False where nothing is trained: then there need not be a training split, and `train` is `eval`.
      targets: what a task wants besides the image, `Task.targets`: (what has `num_classes` and the `image_shape`
        (H, W, C) of one bucket) -> {name: anything with the shape and dtype of one example's}; None: the label, int32.
      network: that there is already, which the images and labels are for; None: one is made for the data.
      pixel_range: what 0 and 255 become; None: pixels are centred and scaled by mean and deviation.
      kept: returns the `input` of an earlier checkpoint of the run, in which is what was counted once.

    Raises:
      UserError: the data is missing, or does not fit the config or the task.
    """

    def __init__(
        self, config: Any, part: Slice = WHOLE, training: bool = True,
        targets: Callable[[Any], Any] | None = None, network: Network | None = None,
        pixel_range: tuple[float, float] | None = None,
        kept: Callable[[], Mapping[str, Any] | None] = dict,
    ):  # fmt: skip
        data = config.data
        self.config, self.part, self.targets, self._kept = config, part, targets, kept
        split = data.eval_split or eval_split(data.name, data_dir=data.dir)
        self.eval = self._opened(split, evaluation=True)
        # Data that is evaluated alone need not have a training split.
        self.train = self._opened(data.train_split) if training else self.eval
        known = network.classes if network else None
        if network:
            self.train, self.eval = (brought_to(network, source) for source in (self.train, self.eval))
        self.num_classes = len(known or ()) or config.model.num_classes or self.train.num_classes
        if self.num_classes < self.train.num_classes:
            raise UserError(
                f"config.model.num_classes={self.num_classes} is less than "
                f"the {self.train.num_classes} classes of {data.name}"
            )
        spare = range(self.train.num_classes, self.num_classes)  # a wider head than the data needs
        self.class_names = tuple(known or (*self.train.class_names, *map(str, spare)))
        specs = self._specs((1, 1, self.train.image_shape[-1]))
        self.padded, self._boxes = "sizes" in specs, "boxes" in specs
        if "masks" in specs and isinstance(self.eval, Boxed) and isinstance(self.train, Boxed):
            self.eval = self.eval.with_masks()
            self.train = self.train.with_masks() if training else self.eval
        if self._boxes:
            self._check_boxes(room=specs["boxes"][0][0])
        self.proposals = open_proposals(names_of(config.task.proposals)) if "proposals" in specs else None
        sizes, eval_sizes = self._canvases(training) if self.padded else self._sizes()
        self.image_shape, self.eval_image_shape = ((*s[0], self.train.image_shape[-1]) for s in (sizes, eval_sizes))
        self.mean, self.std = self._mean_and_std(pixel_range)
        self.augmentation, self.mirror = self._augmentation()
        self.steps_per_epoch = batches.steps_per_epoch(len(self.train), config.global_batch_size if training else 1)
        # A bigger or smaller image has a frame in proportion.
        self.resize = max(sides_of(data.min_size)) if self.padded else (
            data.resize or round(max(eval_sizes[0]) * 256 / 224)
        )  # fmt: skip
        self.train_readers = self._readers(self.train, sizes, known=training)
        self.eval_readers = self._readers(self.eval, eval_sizes)
        self.buckets, self.eval_buckets = (
            tuple(reader.size for reader in readers) for readers in (self.train_readers, self.eval_readers)
        )
        self.eval_examples = len(self.eval)
        self.input, self.position = self._input(), self._position()
        self.broken = Broken(self.train, self.eval)
        self._check_resident()

    def _opened(self, split: str, evaluation: bool = False) -> Source:
        """Return the source of a split, or of its windows: all for training, a sample for evaluation."""
        data = self.config.data
        source = make_source(data.name, split, data_dir=data.dir)
        if not data.windows:
            return source
        side = data.image_size
        if not isinstance(side, int) or not side or data.buckets or data.eval_size not in (0, side):
            raise UserError(
                f"config.data.windows are squares of one size: set config.data.image_size to their side, not to "
                f"{side}, and leave out .eval_size and .buckets"
            )
        mean = data.mean or source.mean
        return make_windows(
            source, open_proposals(names_of(data.windows)), side, data.context, mean, SAMPLE if evaluation else 0
        )

    def _check_resident(self) -> None:
        """Refuse what cannot be kept in device memory."""
        data = self.config.data
        if data.resident and self.mirror:
            raise UserError(
                f"config.data.augment={data.augment} is done on the host where targets move along: set "
                "config.data.resident=False, or leave it out"
            )
        if data.resident and (self.augmentation.geometry or self.augmentation.pixels):
            raise UserError(
                f"config.data.augment={data.augment} works on the host, image by image: config.data.resident takes "
                "what works on the device, flip, pad_crop, mixup and cutmix"
            )
        if data.resident and max(len(self.buckets), len(self.eval_buckets)) > 1:
            raise UserError(
                "config.data.resident holds images of one size: set config.data.buckets to (), or it to False"
            )

    def _check_boxes(self, room: int) -> None:
        """Print how many boxes are left out; UserError if an image has more boxes than `room`."""
        for source in dict.fromkeys((self.train, self.eval)):
            if not isinstance(source, Boxed):
                continue
            if source.most > room:
                raise UserError(
                    f"{source.where(source.fullest)} has {source.most} boxes, more than config.task.max_boxes={room}: "
                    f"set it to {source.most} or more"
                )
            if source.dropped and not self.part.process:
                total = len(source.objects["boxes"]) + source.dropped
                of = f"{source.dropped:,} of {total:,} boxes of {source.name}, split '{source.split}',"
                print(f"boxes      {of} have no area and are left out", file=sys.stderr)

    def _sizes(self) -> tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]:
        """Return the sizes of training and of evaluation images, one or several each."""
        data, (height, width, _) = self.config.data, self.train.image_shape
        stored = (height, width) if height and width else None
        sizes = data.buckets or tuple(filter(None, [height_width(data.image_size) or stored]))
        if not sizes:
            raise UserError(f"images of {data.name} differ in size: set config.data.image_size, such as 224")
        eval_size = height_width(data.eval_size)
        return sizes, (eval_size,) if eval_size else sizes

    def _canvases(self, training: bool) -> tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]:
        """Return the canvases of training and of evaluation, one or several each."""
        data = self.config.data
        if data.resize:
            raise UserError(
                f"config.data.resize={data.resize}: this task sees all of an image, not its centre; set "
                "config.data.min_size to resize images"
            )
        size, eval_size = height_width(data.image_size), height_width(data.eval_size)
        eval_sizes = (eval_size,) if eval_size else data.buckets or self._chosen(self.eval)
        if not training:
            return eval_sizes, eval_sizes
        return (size,) if size else data.buckets or self._chosen(self.train), eval_sizes

    def _chosen(self, source: Source) -> list[tuple[int, int]]:
        """Return the canvases for the images of a source."""
        limits = (_MOST_CANVASES, _CANVAS_MULTIPLE) if self._boxes else ()
        return choose_canvases(self._scaled_sizes(source), *limits)

    def _scaled_sizes(self, source: Source) -> np.ndarray:
        """Return the height and width of every image, (N, 2), resized to the largest of `data.min_size`."""
        data = self.config.data
        shorter, sizes = max(sides_of(data.min_size)), source.sizes(data.on_error == "skip")
        return np.array([scaled((height, width), shorter, data.max_size) for height, width in sizes.tolist()])

    def _augmentation(self) -> tuple[augment_host.Augmentation, bool]:
        """Return the changes to training images, and whether the host mirrors them, as targets in them must follow."""
        wanted = augment_host.parse(self.config.data.augment)
        names, specs = {name for name, _ in wanted.device}, self._specs(self.image_shape)
        if "label" not in specs and (mixes := names & {"mixup", "cutmix"}):
            raise UserError(f"config.data.augment: {mixes.pop()} mixes labels, which this task has not: leave it out")
        if not specs.keys() & PLACED:
            return wanted, False
        if any(map(augment_host.moves, wanted.pixels)):
            raise UserError(
                f"config.data.augment={self.config.data.augment}: randaugment moves pixels, and "
                f"{' and '.join(specs.keys() & PLACED)} would not follow: leave it out"
            )
        if other := names - {"flip"}:
            raise UserError(
                f"config.data.augment: {other.pop()} works on the device, where {' and '.join(specs.keys() & PLACED)} "
                "cannot follow the image: leave it out"
            )
        return wanted._replace(device=()), "flip" in names

    def _specs(self, image_shape: tuple[int, int, int]) -> Specs:
        """Return shape and type of each target of an example."""
        if self.targets is None:
            return LABEL
        known = {"num_classes": self.num_classes, "image_shape": image_shape, "levels": self.train.levels}
        specs = self.targets(SimpleNamespace(**known))
        if lacking := specs.keys() - {*self.train.targets, *MADE}:
            raise UserError(
                f"the task {self.config.task.name} needs '{min(lacking)}', which {self.config.data.name} lacks: it has "
                f"{', '.join(self.train.targets) or 'images alone'}; take another data set"
            )
        return {name: (tuple(spec.shape), np.dtype(spec.dtype)) for name, spec in specs.items()}

    def _readers(self, source: Source, sizes: Sequence[tuple[int, int]], known: bool = True) -> tuple[Reader, ...]:
        """Return the readers of a source, one for each size; of several sizes, those without examples are left out.

        Args:
          known: False if it does not matter which examples have which size.
        """
        data, skip = self.config.data, self.config.data.on_error == "skip"
        largest = max(self.eval_image_shape[:2])
        fit: dict[str, Any] = {}
        if self.padded:
            fit = {"longest": data.max_size, "sides": data.min_size if isinstance(data.min_size, tuple) else ()}
        if self.proposals:
            fit["proposals"] = self.proposals.of(source)
        readers = [
            Reader(
                source, size, self.resize if self.padded else round(self.resize * max(size) / largest),
                self.augmentation, data.interpolation, skip,
                self.config.seed, self._specs((*size, source.image_shape[-1])), self.mirror, **fit,
            )
            for size in sizes
        ]  # fmt: skip
        if self._boxes and known and (source is self.eval or not self.augmentation.geometry):
            # Annotations have the sizes of all images, so one that no canvas holds is found before step 1.
            self._held(source, sizes)
        if len(sizes) == 1 or not known:
            return (readers[0],)
        chosen = self._held(source, sizes) if self.padded else nearest_bucket(source.sizes(skip), sizes)
        members = (replace(reader, members=np.flatnonzero(chosen == b)) for b, reader in enumerate(readers))
        return tuple(reader for reader in members if len(reader))

    def _held(self, source: Source, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return the index of each image's canvas, int (N,); UserError if no canvas holds an image."""
        needed = self._scaled_sizes(source)
        chosen = smallest_canvas(needed, sizes)
        if (chosen < 0).any():
            first = int((chosen < 0).argmax())
            height, width = needed[first].tolist()
            raise UserError(
                f"{source.where(first)} needs {height}×{width} pixels, more than each canvas of "
                f"{', '.join(map(str, sizes))}: give a larger one, or lower config.data.min_size"
            )
        return chosen

    def _input(self) -> dict[str, Any]:
        """Return `input`: shape, normalisation and classes, and how images are brought to that shape."""
        about: dict[str, Any] = {
            "image_shape": self.eval_image_shape, "mean": self.mean, "std": self.std, "class_names": self.class_names,
        }  # fmt: skip
        if self.padded:
            about |= {"min_size": self.resize, "max_size": self.config.data.max_size}
            if self.proposals and self.proposals.search:
                about["search"] = self.proposals.search
            return about | ({"canvas_multiple": _CANVAS_MULTIPLE} if self._boxes else {})
        if isinstance(self.eval, Windows):
            return about | {"context": self.eval.context}
        photographs = None in self.train.image_shape  # Evaluation sees the centre of these.
        return about | ({"resize": self.resize} if photographs else {})

    def _position(self) -> dict[str, Any]:
        """Return `position`: the data, its order, and the examples of each bucket."""
        config, buckets = self.config, {"buckets": self._digests()} if len(self.buckets) > 1 else {}
        return {
            "data": self._identity(), "split": config.data.train_split, "examples": len(self.train),
            "global_batch_size": config.global_batch_size, "seed": config.seed, "order": "gapless",
        } | buckets | (
            {"proposals": self.proposals.digest} if self.proposals else {}
        ) | ({"windows": self.train.digest} if isinstance(self.train, Windows) else {})  # fmt: skip

    def _digests(self) -> list[str]:
        """Return a line for each training bucket: its size, and a digest of the examples that it has."""
        digests = (hashlib.sha256(np.asarray(reader.members, np.int64).tobytes()) for reader in self.train_readers)
        return [f"{size} {digest.hexdigest()[:12]}" for size, digest in zip(self.buckets, digests, strict=True)]

    def _identity(self) -> str:
        """Return the name of the data set; of files, which may be moved, the kind and a digest of the classes."""
        if not (kind := path_kind(self.config.data.name)):
            return self.config.data.name
        return f"{kind} {hashlib.sha256(repr(tuple(map(composed, self.train.class_names))).encode()).hexdigest()[:12]}"

    def _mean_and_std(self, pixel_range: tuple[float, float] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return what each channel's pixels, in 0 … 1, are centred and scaled by."""
        data = self.config.data
        mean, std = data.mean or self.train.mean, data.std or self.train.std
        if pixel_range:
            low, high = pixel_range
            channels = self.image_shape[-1]
            mean, std = (0.0 - low / (high - low),) * channels, (1 / (high - low),) * channels
            if (data.mean or mean, data.std or std) != (mean, std):
                raise UserError(
                    f"config.data.mean={data.mean} and .std={data.std}: the pixels of task.name="
                    f"{self.config.task.name} are {low:g} … {high:g}, leave both out"
                )
        return self._per_channel("mean", mean), self._per_channel("std", std)

    def _per_channel(self, key: str, values: tuple[float, ...]) -> tuple[float, ...]:
        channels = self.image_shape[-1]
        if len(values) != channels or (key == "std" and min(values) <= 0):
            raise UserError(f"config.data.{key}={values}: images of {self.config.data.name} have {channels} channels")
        return tuple(float(v) for v in values)

    def train_batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Return this process's share of the batches of steps `start` … `stop` - 1."""
        size = self.config.global_batch_size
        return batches.train_batches(self.train_readers, size, start, stop, **self._reading(None))

    def eval_batches(self) -> Iterator[Batch]:
        """Return this process's share of the evaluation set, every example once."""
        self.broken.examples[EVALUATION] = set()
        return batches.eval_batches(self.eval_readers, self.config.global_batch_size, **self._reading(EVALUATION))

    def _reading(self, where: int | None) -> dict[str, Any]:
        data, note = self.config.data, partial(self._note, where)
        return {
            "part": self.part,
            "workers": data.workers,
            "prefetch": data.prefetch,
            "timeout": data.timeout,
            "note": note,
        }

    def _note(self, where: int | None, batch: Batch) -> None:
        """Take note of a batch's broken examples, in their epochs or, if not None, `where`; remove them from it."""
        broken = batch.pop("broken")
        for row in np.flatnonzero(broken >= 0):
            self.broken.examples[int(batch["epoch"][row]) if where is None else where].add(int(broken[row]))

    def resident(self, training: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return all examples, {"image": uint8 (N, H, W, C), targets (N, …)}, and mask float32 (N,), 0 if broken."""
        (reader,) = self.train_readers if training else self.eval_readers
        count = len(reader.source)
        arrays = {name: np.zeros((count, *shape), dtype) for name, (shape, dtype) in reader.targets.items()}
        arrays["image"] = np.empty((count, *reader.size, reader.source.image_shape[-1]), np.uint8)
        mask = np.ones(count, np.float32)

        def read(example: int) -> None:
            row = reader.train(0, example) if training else reader.eval(example)
            for name, array in arrays.items():
                array[example] = row[name]
            mask[example] = training or row["broken"] < 0
            if row["broken"] >= 0:
                self.broken.examples[0 if training else EVALUATION].add(row["broken"])

        with ThreadPoolExecutor(usable_cores()) as threads:
            for _ in threads.map(read, range(count)):
                pass  # what is raised there is raised here
        return arrays, mask

    def mean_image(self) -> np.ndarray:
        """Return the mean of the training images without random changes, float64 (H, W, C) in 0 … 1."""
        return mean_image(self.train_readers[0])

    def places(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return epoch and example, int32 (stop - start, global batch) each, of the batches of those steps."""
        size = self.config.global_batch_size
        places = Places(self.train_readers, size)
        names = np.array([places.names(step, range(size))[1] for step in range(start, stop)], np.int32)
        epochs, examples = names.transpose(2, 0, 1)
        return epochs, examples

    @property
    def class_frequencies(self) -> list[float]:
        """Return each class's share of the pixels that count in the training images that have the class; 0 if none has.

        They are counted when they are first asked for, and are part of `input` from then on.
        """
        found: Any = self.input.get("class_frequencies") or (self._kept() or {}).get("class_frequencies")
        found = found or class_frequencies(self.train, self.num_classes, self.config.data.on_error == "skip")
        self.input |= {"class_frequencies": list(found)}
        return self.input["class_frequencies"]

    @property
    def eval_broken(self) -> int:
        """Return how many examples of the last evaluation could not be read here and were not counted."""
        return len(self.broken.examples[EVALUATION])

    def complaints(self, epoch: float) -> list[str]:
        """Return the lines of `Broken.complaints`."""
        return self.broken.complaints(epoch)

    def preprocess(self, batch: dict[str, jax.Array], seed: jax.Array | None) -> dict[str, jax.Array]:
        """Return the batch with images normalised, float32; where there is a `seed`, changed at random first.

        For the device, within the step. The changes are a function of (seed, epoch, example), not of the row.
        """
        if seed is not None and self.augmentation.device:
            root = jax.random.fold_in(jax.random.key(seed), _STREAM)
            epochs = jax.vmap(jax.random.fold_in, (None, 0))(root, batch["epoch"])
            keys = jax.vmap(jax.random.fold_in)(epochs, batch["example"])
            batch = augment_device.augment(self.augmentation.device, self.config.data.pad, keys, batch)
        return batch | {"image": augment_device.normalize(jnp.asarray(batch["image"]), self.mean, self.std)}
