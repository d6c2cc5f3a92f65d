"""Whether the training loop hides the reading behind the step: `jaxcnn bench` with a step that leaves the cores alone.

    python experiments/throughput/overlap.py > table.md

On a CPU reading and the step share the cores, and no loop can be as fast as the slower of them. So here a step is a
time that passes, as on a device that has its own processor; JPEG files are read as in training, their batches put on
JAX's device, and the loop's own clock counts. The times are shares of what reading takes: the loop is bound by the
input at small ones, by the device at large ones, and by both at 1.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import photographs

from jaxcnn.config import base_config
from jaxcnn.data.dataset import Dataset
from jaxcnn.models import create_model
from jaxcnn.training import throughput
from jaxcnn.training.program import build_program
from jaxcnn.training.sharding import make_mesh

SHARES = (0.5, 0.8, 1.0, 1.25, 2.0)


class Done:
    """What the device will have computed by a time: as much of a jax.Array as the loop asks for."""

    def __init__(self, at: float):
        self.at = at

    def is_ready(self) -> bool:
        """Whether it has."""
        return time.monotonic() >= self.at

    def block_until_ready(self) -> "Done":
        """Wait until it has."""
        time.sleep(max(0.0, self.at - time.monotonic()))
        return self

    def __array__(self) -> np.ndarray:
        self.block_until_ready()
        return np.zeros(())


def device(seconds: float):
    """The step of a device that takes so long for each, one after the other."""

    def step(state: Done, batch: object) -> tuple[Done, Done]:
        done = Done(max(time.monotonic(), state.at) + seconds)
        return done, done

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes that read (0: threads)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    config = base_config()
    config.steps, config.global_batch_size = 1, options.batch
    config.data.image_size, config.data.augment = 224, "random_area(0.08,1),flip"
    config.data.workers = options.workers
    lengths = {key: getattr(options, key) for key in ("steps", "warmup", "repeats")}
    print("| a step's time | data only | device only | end to end | data wait | end to end / slower |")
    print("|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        photographs.make(Path(folder), options.files)
        (Path(folder) / "val").symlink_to("train")
        config.data.name = f"folder:{folder}"
        data = Dataset(config)
        program = build_program(config, create_model("alexnet", data.num_classes), data, make_mesh(1))
        rates = throughput.measure(config, data, program, Done(0), device(0), **lengths | {"repeats": 1})
        reading = options.batch / rates["data_only"][0]
        for share in SHARES:
            step = device(share * reading)
            rows = throughput.summary(throughput.measure(config, data, program, Done(0), step, **lengths), shared=False)
            cells = [f"{rows[name]['median']:.0f}" for name in ("data_only", "device_only", "end_to_end")]
            ratio = rows["ratio"]
            print(
                f"| {share} × reading's | {' | '.join(cells)} | {rows['data_wait_frac']['median']:.0%} "
                f"| {ratio['median']:.3f} ({ratio['min']:.3f} … {ratio['max']:.3f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
