"""The order in which training examples are read: a function of (seed, place), without a table of it in memory."""

import numpy as np
from grain.experimental import index_shuffle


class Order:
    """The endless stream of training examples: one shuffled epoch after another, with no gap between them.

    Place p of the stream is example `p % examples` of the shuffled epoch `p // examples`; the batch of step k is places
    k·B … (k+1)·B - 1. So each epoch has every example once, also where it is no whole number of batches.
    """

    def __init__(self, examples: int, seed: int):
        self.examples = examples
        # Epochs are seeded by seed + e: neighbouring seeds would share orders, hence the hash.
        self.seed = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def __getitem__(self, place: int) -> tuple[int, int]:
        """(epoch, example) at `place`."""
        epoch, position = divmod(place, self.examples)
        seed = (self.seed + epoch) % 2**32
        return epoch, index_shuffle(position, max_index=self.examples - 1, seed=seed, rounds=4)
