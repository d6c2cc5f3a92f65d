"""From a source to batches: what each process reads, in an order that depends on nothing but (seed, epoch).

Batches are dicts of NumPy arrays, the slice of this process out of the global batch:
"image" uint8 (n, H, W, C), "label" int32 (n,), "mask" float32 (n,), 1 for an example and 0 for padding.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from PIL import Image

from jaxcnn import UserError
from jaxcnn.data.sources import Source

Batch = dict[str, np.ndarray]


class Slice(NamedTuple):
    """The part of every global batch that one process reads."""

    process: int = 0
    processes: int = 1

    def local_batch(self, global_batch_size: int) -> int:
        """Rows of this process; the processes' rows follow one another in the global batch."""
        if global_batch_size % self.processes:
            raise UserError(
                f"config.global_batch_size={global_batch_size} does not divide by {self.processes} processes: "
                "take a multiple of their number"
            )
        return global_batch_size // self.processes


WHOLE = Slice()


def steps_per_epoch(examples: int, global_batch_size: int) -> int:
    """Full batches in one pass over the data; the rest of an epoch's shuffled examples is left out of that epoch."""
    if global_batch_size > examples:
        raise UserError(
            f"config.global_batch_size={global_batch_size} is more than the {examples} training examples there are"
        )
    return examples // global_batch_size


def train_batches(
    source: Source, global_batch_size: int, seed: int, start: int, stop: int, *,
    image_size: int = 0, part: Slice = WHOLE, workers: int = 0, prefetch: int = 8,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of steps `start` … `stop` - 1, all full.

    The global batch of step k is a function of (seed, k) alone, whatever the number of processes and restarts.
    Grain's index shuffle keeps no table, so memory does not grow with the data set.
    """
    local = part.local_batch(global_batch_size)
    used = steps_per_epoch(len(source), global_batch_size) * global_batch_size
    # Grain's seed for epoch e is seed + e: neighbouring seeds would share orders, hence the hash.
    order = int(np.random.SeedSequence(seed).generate_state(1)[0])
    examples = grain.MapDataset.range(len(source)).shuffle(order)[:used].map(partial(_example, source, image_size))
    batches = examples.batch(local)[part.process :: part.processes].repeat()[start:stop]
    return _read(batches, workers, prefetch)


def eval_batches(
    source: Source, global_batch_size: int, *,
    image_size: int = 0, part: Slice = WHOLE, workers: int = 0, prefetch: int = 8,
) -> Iterator[Batch]:  # fmt: skip
    """Every example exactly once, in order; the last global batch is filled with masked copies of the last example.

    All processes yield the same number of batches, so none waits for another's collective.
    """
    local = part.local_batch(global_batch_size)
    rows = math.ceil(len(source) / global_batch_size) * global_batch_size
    examples = grain.MapDataset.range(rows).map(partial(_example, source, image_size))
    return _read(examples.batch(local)[part.process :: part.processes], workers, prefetch)


def _example(source: Source, image_size: int, index: int) -> Batch:
    """Example `index` in the form of a batch's row; past the end, the last one with mask 0."""
    example = source[min(index, len(source) - 1)]
    return {
        "image": resize(example["image"], image_size),
        "label": np.int32(example["label"]),
        "mask": np.float32(index < len(source)),
    }  # type: ignore[dict-item]


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, C) -> (size, size, C), bilinear with antialiasing; unchanged where it fits or `size` is 0."""
    if not size or image.shape[:2] == (size, size):
        return image
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    resized = Image.fromarray(squeezed).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(size, size, image.shape[-1])


def _read(batches: Any, workers: int, prefetch: int) -> Iterator[Batch]:
    """Iterate over a Grain data set, `prefetch` batches ahead, in threads or in worker processes."""
    threads = min(prefetch, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    if not workers:
        return iter(batches.to_iter_dataset(options))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which jaxcnn's command line does not use
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, prefetch // workers))
    return _copied(iter(batches.to_iter_dataset(options).mp_prefetch(processes, _start_worker)))


def _copied(batches: Any) -> Iterator[Batch]:
    """Copies out of the workers' shared memory, which is then free at once and not only when JAX lets go of it."""
    try:
        for batch in batches:
            yield {key: np.array(value) for key, value in batch.items()}
    finally:
        batches.close()


def _start_worker(index: int, count: int) -> None:
    """Leave Ctrl-C to the trainer, which stops its workers after it has saved; end with it if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent:
            parent.join()
            os._exit(0)

    threading.Thread(target=follow, daemon=True).start()
