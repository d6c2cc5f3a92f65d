"""How fast a network answers: the forward pass that `predict` runs, by batch size."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def measure(network: Any, batches: Sequence[int], calls: int, warmup: int) -> Iterator[dict[str, Any]]:
    """Yield, for each batch size, images per second and the latency of a call in milliseconds.

    A call takes uint8 images from the host's memory and ends when what the task keeps of the outputs is back there, as
    in `TrainedModel.predict`; reading files is left out, and so is searching proposals: `task.max_proposals` boxes are
    drawn at random. Compiling is not counted, nor are the `warmup` calls.

    Args:
      network: a `TrainedModel`.
      batches: numbers of images in a call.
      calls: that count, for each size.

    Yields:
      "batch", "images_per_sec" (all images over all the time), "p50_ms", "p99_ms", the latency that 99 % of the calls
      do not exceed (of fewer than 100 calls, the longest one), and "ms", those of all calls in their order.
    """
    shape = network.input["image_shape"]
    for batch in batches:
        images = np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)
        sizes = np.tile(np.array(shape[:2], np.int32), (batch, 1)) if network.task.padded else None
        proposals = _proposals(network, batch) if network.task.takes_proposals(network.model) else None
        seconds = []
        for _ in range(warmup + calls):
            start = time.perf_counter()
            network.outputs(images, sizes, proposals)
            seconds.append(time.perf_counter() - start)
        counted = np.array(seconds[warmup:])
        p50, p99 = 1e3 * np.quantile(counted, (0.5, 0.99), method="inverted_cdf")
        yield {
            "batch": batch, "images_per_sec": batch * calls / float(counted.sum()), "p50_ms": float(p50),
            "p99_ms": float(p99), "ms": (1e3 * counted).tolist(),
        }  # fmt: skip


def _proposals(network: Any, batch: int) -> np.ndarray:
    """Return boxes at random, float32 (batch, `task.max_proposals`, 4), that are within the images."""
    height, width, _ = network.input["image_shape"]
    rng, room = np.random.default_rng(0), network.config.task.max_proposals
    corners = np.sort(rng.random((batch, room, 2, 2)), axis=2) * (width, height)  # (batch, room, corner, x and y)
    return corners.reshape(batch, room, 4).astype(np.float32)
