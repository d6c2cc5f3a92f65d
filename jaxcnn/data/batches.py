"""From examples to batches: which ones a step takes, and their rows.

The order is a function of (seed, step) and the number of examples alone, without a table of it in memory. Batches are
dicts of NumPy arrays, the slice of this process out of the global batch: "image" uint8 (n, H, W, C), the targets,
"mask" float32 (n,), 1 for an example and 0 for padding, "epoch" and "example" int32 (n,), which name the example, and
"broken" int32 (n,): -1, or the example that could not be read and has another in its place. A batch has images of one
size, a bucket's; for each bucket there is a `Reader`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import grain
import numpy as np
from grain.experimental import index_shuffle

from jaxcnn import UserError
from jaxcnn.data.read_ahead import Batch, aligned, read_ahead
from jaxcnn.data.reader import Reader, Row


class Slice(NamedTuple):
    """The part of every global batch that one process reads."""

    process: int = 0
    processes: int = 1

    def local_batch(self, global_batch_size: int) -> int:
        """Return the rows of this process; the processes' rows follow one another in the global batch."""
        if global_batch_size % self.processes:
            raise UserError(
                f"config.global_batch_size={global_batch_size} does not divide by {self.processes} processes: "
                "take a multiple of their number"
            )
        return global_batch_size // self.processes


WHOLE = Slice()


class Order:
    """The endless stream of a bucket's training examples: one shuffled epoch after another, with no gap between them.

    Place p of the stream is example `p % examples` of the shuffled epoch `p // examples`; the bucket's batch number k
    is places k·B … (k+1)·B - 1. So each epoch has every example once, also where it is no whole number of batches.
    """

    def __init__(self, examples: int, seed: int, bucket: int = 0):
        self.examples = examples
        # Epochs are seeded by seed + e: neighbouring seeds would share orders, hence the hash.
        self.seed = int(np.random.SeedSequence(seed).generate_state(bucket + 1)[bucket])

    def __getitem__(self, place: int) -> tuple[int, int]:
        """Return (epoch, place in the bucket) of the example at `place` of the stream."""
        epoch, position = divmod(place, self.examples)
        return epoch, _shuffled(position, self.examples, self.seed + epoch)


class Schedule:
    """Which bucket each step takes: as often as it has examples, in a shuffled order.

    By the end of epoch e, bucket b has had floor((e + 1)·n_b / B) batches, so that no bucket gains on another however
    long the run is.

    Args:
      sizes: examples of each bucket.
    """

    def __init__(self, sizes: Sequence[int], global_batch_size: int, seed: int):
        self.sizes, self.batch, self.seed = tuple(sizes), global_batch_size, seed

    def __getitem__(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step, and how many earlier steps took it."""
        if len(self.sizes) == 1:
            return 0, step
        epoch = step * self.batch // sum(self.sizes)  # or a later one: the floors leave batches over
        while sum(self._before(epoch + 1)) <= step:
            epoch += 1
        before = self._before(epoch)
        turns = _turns(tuple(b - a for a, b in zip(before, self._before(epoch + 1), strict=True)), self.seed, epoch)
        place = step - sum(before)
        bucket = int(turns[place])
        return bucket, before[bucket] + int(np.count_nonzero(turns[:place] == bucket))

    def _before(self, epoch: int) -> list[int]:
        """Return the number of batches of each bucket in the epochs before `epoch`."""
        return [epoch * size // self.batch for size in self.sizes]


@lru_cache(maxsize=8)
def _turns(counts: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    """Return the buckets of an epoch's steps, int (steps,): each as often as `counts` says, shuffled."""
    buckets, total = np.repeat(np.arange(len(counts)), counts), sum(counts)
    key = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    return buckets[[_shuffled(i, total, key) for i in range(total)]]


def _shuffled(place: int, count: int, seed: int) -> int:
    return index_shuffle(place, max_index=count - 1, seed=seed % 2**32, rounds=4)


def nearest_bucket(sizes: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the bucket whose aspect is nearest to that of each image, in the logarithm: int (N,).

    Equal on every machine: it compares products of whole numbers, and takes no logarithm.

    Args:
      sizes: (N, 2), heights and widths.
      buckets: (height, width) of each.
    """
    rising = sorted(range(len(buckets)), key=lambda b: Fraction(*buckets[b]))
    heights, widths = np.asarray(sizes, np.float64).T ** 2  # exact below 2^26 pixels, and else rounded alike
    bounds = [
        heights * (buckets[low][1] * buckets[high][1]) > widths * (buckets[low][0] * buckets[high][0])
        for low, high in pairwise(rising)
    ]
    return np.array(rising)[np.sum(bounds, axis=0, dtype=int) if bounds else np.zeros(len(sizes), int)]


def steps_per_epoch(examples: int, global_batch_size: int) -> Fraction:
    """Return the batches in one pass over the data: a fraction, for one epoch follows another without a gap."""
    if global_batch_size > examples:
        raise UserError(
            f"config.global_batch_size={global_batch_size} is more than the {examples} training examples there are: "
            f"set it to {examples} or less"
        )
    return Fraction(examples, global_batch_size)


def train_batches(
    readers: Sequence[Reader], global_batch_size: int, start: int, stop: int, *, part: Slice = WHOLE, **ahead: Any
) -> Iterator[Batch]:
    """Return the batches of steps `start` … `stop` - 1, all full.

    The global batch of step k is a function of (seed, k) and the readers, whatever the number of processes and
    restarts.

    Args:
      part: what this process reads.
      ahead: options of `read_ahead`.
    """
    local = part.local_batch(global_batch_size)
    make = partial(_train_batch, Places(readers, global_batch_size), local, part.process * local)
    return read_ahead(grain.MapDataset.range(start, stop).map(make), **ahead)


def eval_batches(
    readers: Sequence[Reader], global_batch_size: int, *, part: Slice = WHOLE, **ahead: Any
) -> Iterator[Batch]:
    """Return every example exactly once, in order, one bucket after another.

    A bucket's last global batch is filled with black rows of mask 0. All processes yield the same number of batches, so
    none waits for another's collective. The arguments are those of `train_batches`.
    """
    local = part.local_batch(global_batch_size)
    batches = [(reader, n) for reader in readers for n in range(math.ceil(len(reader) / global_batch_size))]
    make = partial(_eval_batch, batches, global_batch_size, local, part.process * local)
    return read_ahead(grain.MapDataset.range(len(batches)).map(make), **ahead)


class Places:
    """The names of a step's examples."""

    def __init__(self, readers: Sequence[Reader], global_batch_size: int):
        seed = readers[0].seed
        self.readers, self.batch = readers, global_batch_size
        self.schedule = Schedule([len(reader) for reader in readers], global_batch_size, seed)
        self.orders = [Order(len(reader), seed, b) for b, reader in enumerate(readers)]

    def names(self, step: int, first: int, count: int) -> tuple[Reader, list[tuple[int, int]]]:
        """Return the reader of a step's bucket, and (epoch, example) of rows `first` … `first + count - 1`."""
        bucket, number = self.schedule[step]
        start = number * self.batch + first
        places = (self.orders[bucket][place] for place in range(start, start + count))
        reader = self.readers[bucket]
        return reader, [(epoch, reader.example(place)) for epoch, place in places]


def _train_batch(places: Places, local: int, first: int, step: int) -> Batch:
    """Return rows `first` … `first + local - 1` of the global batch of `step`."""
    reader, names = places.names(step, first, local)
    return _batch(reader, names, (reader.train(*name) for name in names)) | {"mask": np.ones(local, np.float32)}


def _eval_batch(batches: list[tuple[Reader, int]], size: int, local: int, first: int, number: int) -> Batch:
    """Return rows `first` … of global batch `number`."""
    reader, number = batches[number]
    places = np.arange(local) + (number * size + first)
    names = [(0, reader.example(int(place))) for place in places]
    batch = _batch(reader, names, (reader.eval(example) for _, example in names))
    return batch | {"mask": ((places < len(reader)) & (batch["broken"] < 0)).astype(np.float32)}


def _batch(reader: Reader, names: list[tuple[int, int]], rows: Iterable[Row]) -> Batch:
    """Put each row in its place as it comes, while the processor has it in its cache."""
    count = len(names)
    targets = {name: np.empty((count, *shape), dtype) for name, (shape, dtype) in reader.targets.items()}
    images = aligned((count, *reader.size, reader.source.image_shape[-1]))
    batch = {"image": images, **targets, "broken": np.empty(count, np.int32)}
    for i, row in enumerate(rows):
        for name, value in row.items():
            batch[name][i] = value
    epochs, examples = np.array(names, np.int32).T
    return batch | {"epoch": epochs, "example": examples}
