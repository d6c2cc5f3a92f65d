"""Time a step in micro-batches (`optimizer.accumulate`) against the step that takes its batch at once.

    python experiments/throughput/accumulate.py --networks resnet20 resnet18 --parts 4

The steps take turns in one process, round after round, so that what else the machine does meets all. The batches
are those of step.py. A ratio above 1 is what the micro-batches cost.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from step import NETWORKS, cell


def stepper(name: str, side: int, batch: int, dtype: str, parts: int) -> Callable[[], None]:
    """Return the step that `jaxcnn train` compiles, of `batch` images in so many parts."""
    from jaxcnn.config import base_config
    from jaxcnn.training.throughput import one_call
    from jaxcnn.training.train import assemble

    config = base_config()
    config.update({"steps": 1000, "global_batch_size": batch, "dtype": dtype})
    config.data.update({"name": f"synthetic:1000:{batch}", "image_size": side})
    config.model.name = name
    config.optimizer.accumulate = parts
    data, program = assemble(config)
    state = [program.init()]
    _, rows = one_call(config, data, program, 1)
    step = program.compiled(program.lower(program.largest_batch))

    def run() -> None:
        state[0], loss = step(state[0], rows)
        loss.block_until_ready()

    run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20", "resnet18"], metavar="NAME")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print("| network | type | batch | parts | ms at once | ms in parts | in parts / at once |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name in options.networks:
        side, batch = NETWORKS[name]
        for dtype in options.dtypes:
            steps = [stepper(name, side, batch, dtype, parts) for parts in (1, options.parts)]
            times: list[tuple[float, ...]] = []
            for _ in range(options.rounds):
                seconds = []
                for run in steps:
                    began = time.perf_counter()
                    run()
                    seconds.append(1000 * (time.perf_counter() - began))
                times.append(tuple(seconds))
            medians = [f"{statistics.median(column):.0f}" for column in zip(*times, strict=True)]
            ratio = cell([parts / once for once, parts in times])
            print("|", " | ".join([name, dtype, str(batch), str(options.parts), *medians, ratio]), "|", flush=True)


if __name__ == "__main__":
    main()
