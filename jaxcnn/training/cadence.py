"""When a run logs, evaluates and saves."""

import math
from fractions import Fraction

from jaxcnn.config import Config


class Cadence:
    """Which steps are followed by what: every so many steps, or at the first step by which another epoch is complete.

    An epoch need not be a whole number of steps.
    """

    def __init__(self, config: Config, steps_per_epoch: Fraction | int, total: int):
        self.total = total
        self.every = {
            "log": Fraction(config.log_every),
            "eval": Fraction(config.eval_every or steps_per_epoch),
            "save": Fraction(config.checkpoint_every or steps_per_epoch),
        }

    def due(self, what: str, step: int) -> bool:
        """Whether "log", "eval" or "save" comes after `step`; the last step is followed by all three."""
        return step == self.total or step // self.every[what] > (step - 1) // self.every[what]

    def next_stop(self, step: int) -> int:
        """The first step after `step` that something follows."""
        return min(self.total, *(math.ceil((step // every + 1) * every) for every in self.every.values()))
