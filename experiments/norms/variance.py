"""Score a run with the running variances that it kept, and with those that PyTorch would have kept.

    python experiments/norms/variance.py runs/cifar10-vgg16_bn 512

BatchNorm divides by the variance over the n values of a channel in the batch, Σ (x - mean)² / n, and Flax keeps a
moving average of that for evaluation. PyTorch keeps one of Σ (x - mean)² / (n - 1). Here every variance is multiplied
by n / (n - 1), with the smallest n that a norm of the network has: images a batch times cells of its coarsest map.
"""

import sys
from dataclasses import replace
from typing import Any

import jax

import jaxcnn
from jaxcnn.commands.options import set_up_jax


def main(workdir: str, n: int) -> None:
    """Print the scores with either variance."""
    set_up_jax()
    run = jaxcnn.open_run(workdir)

    def unbiased(path: Any, x: jax.Array) -> jax.Array:
        return x * n / (n - 1) if path[-1].key == "var" else x

    statistics = jax.tree_util.tree_map_with_path(unbiased, run.variables["batch_stats"])
    for name, variables in (("n", run.variables), ("n - 1", run.variables | {"batch_stats": statistics})):
        scores = replace(run, variables=variables).evaluate()
        print(name, {key: value for key, value in scores.items() if isinstance(value, float)})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
