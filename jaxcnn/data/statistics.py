"""Statistics of a training set that take a pass over all of its examples."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxcnn.config import VOID
from jaxcnn.data import usable_cores
from jaxcnn.data.reader import Reader
from jaxcnn.data.sources import BadExample, Source


def mean_image(reader: Reader) -> np.ndarray:
    """Return the mean of the images of all rows without random changes, float64 (H, W, C) in 0 … 1."""
    total = np.zeros((*reader.size, reader.source.image_shape[-1]))
    with ThreadPoolExecutor(usable_cores()) as threads:
        for row in threads.map(reader.eval, range(len(reader.source))):
            total += row["image"]
    return total / (255 * len(reader.source))


def class_frequencies(source: Source, num_classes: int, skip: bool) -> list[float]:
    """Return each class's share of the pixels that count in the images that have the class; 0 if none has it.

    Args:
      source: one with label maps.
      skip: broken examples are left out.

    Raises:
      BadExample: an example cannot be read, unless `skip`.
    """
    print(f"counting   the pixels of {len(source):,} label maps of {source.name}", file=sys.stderr)

    def pixels_of(example: int) -> np.ndarray:
        """Return the number of an image's pixels of each class, int64 (classes,)."""
        try:
            labels = source.read(example)["label_map"]
        except BadExample:
            if not skip:
                raise
            return np.zeros(num_classes, np.int64)
        return np.bincount(labels.ravel(), minlength=VOID + 1)[:num_classes]

    own, around = np.zeros((2, num_classes), np.int64)
    with ThreadPoolExecutor(usable_cores()) as threads:
        for pixels in threads.map(pixels_of, range(len(source))):
            own += pixels
            around += np.where(pixels > 0, pixels.sum(), 0)  # all pixels that count of the images with the class
    return (own / np.maximum(around, 1)).tolist()
