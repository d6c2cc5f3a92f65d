"""Whether the training loop hides the reading behind the step: `jaxcnn bench` with a step that leaves the cores alone.

    python experiments/throughput/overlap.py > table.md

On a CPU reading and the step share the cores, and no loop can be as fast as the slower of them. So here the step is a
wait of a given time, which a device with its own processor is to the host; JPEG files are read as in training, their
batches put on the device and counted by the loop's own clock. The waits are shares of the time that reading takes: the
loop is bound by the input at small ones, by the device at large ones, and by both at 1.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import photographs

from jaxcnn.config import base_config
from jaxcnn.data.dataset import Dataset
from jaxcnn.models import create_model
from jaxcnn.training import bench
from jaxcnn.training.mesh import make_mesh
from jaxcnn.training.program import build_program

SHARES = (0.5, 0.8, 1.0, 1.25, 2.0)


def waiting_step(seconds: float):
    """A step of (state, batch) that takes so long from when the batch is there, and no core."""

    def wait(label: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return np.zeros((), np.float32)

    def step(state: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # The steps follow one another, as on a device: each needs the state of the one before.
        loss = jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), batch["label"][0] + state)
        return state + 1 + loss.astype(jnp.int32), loss

    return jax.jit(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    config = base_config()
    config.steps, config.global_batch_size = 1, options.batch
    config.data.image_size, config.data.augment = 224, "random_area(0.08,1),flip"
    lengths = {key: getattr(options, key) for key in ("steps", "warmup", "repeats")}
    print("| wait of a step | data only | device only | end to end | data wait | end to end / slower |")
    print("|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        photographs.make(Path(folder), options.files)
        (Path(folder) / "val").symlink_to("train")
        config.data.name = f"folder:{folder}"
        data = Dataset(config)
        program = build_program(config, create_model("alexnet", data.num_classes), data, make_mesh(1))
        images = bench.measure(config, data, program, jnp.int32(0), waiting_step(0.0), **lengths | {"repeats": 1})
        reading = options.batch / images["data_only"][0]
        for share in SHARES:
            step = waiting_step(share * reading)
            rows = bench.summary(bench.measure(config, data, program, jnp.int32(0), step, **lengths), shared=False)
            rates = [f"{rows[name]['median']:.0f}" for name in ("data_only", "device_only", "end_to_end")]
            ratio = rows["ratio"]
            print(
                f"| {share} × reading's | {' | '.join(rates)} | {rows['data_wait_frac']['median']:.0%} "
                f"| {ratio['median']:.3f} ({ratio['min']:.3f} … {ratio['max']:.3f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
