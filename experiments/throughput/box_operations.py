"""Our NMS and RoIAlign against torchvision's, on the same cores of this machine.

    python experiments/throughput/box_operations.py --torch-python TORCH/bin/python > table.md

2,000 boxes at an IoU of 0.7, and 1,000 boxes of a map of 50×84×256 cells at stride 16 in 7×7 bins of 2×2 samples, alone
and with the gradient of its sum of squares at the map. Each side is this file in a process of its own, asked in turn
while the other is stopped by a signal. The ratio is torchvision's time by ours, within a round: above 1 ours is faster.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from alternating import Competitor

HEIGHT, WIDTH, STRIDE, CHANNELS = 800, 1344, 16, 256
OPERATIONS = {"nms": 2000, "roi_align": 1000, "roi_align with gradient": 1000}  # boxes


def inputs(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes in clusters as an RPN proposes them, scores, and a map (1, H, W, C), float32."""
    rng = np.random.default_rng(0)
    objects = rng.uniform((0, 0, 3.5, 3.5), (WIDTH, HEIGHT, 6, 6), (40, 4))  # x, y, log width, log height
    rows = objects[rng.integers(len(objects), size=number)] + rng.normal(0, (12, 12, 0.2, 0.2), (number, 4))
    half = np.exp(rows[:, 2:]) / 2
    boxes = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], 1)
    boxes = np.clip(boxes, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    x = rng.standard_normal((1, HEIGHT // STRIDE, WIDTH // STRIDE, CHANNELS))
    return boxes.astype(np.float32), rng.random(number, np.float32), x.astype(np.float32)


def ours(operation: str, number: int) -> Callable[[], Any]:
    """Return a call that does the operation and waits for it: the boxes kept, or a checksum."""
    import jax

    from jaxcnn.models.nms import nms
    from jaxcnn.models.roi import roi_align

    boxes, scores, x = (jax.device_put(a) for a in inputs(number))

    def suppress(boxes: jax.Array, scores: jax.Array) -> jax.Array:
        return nms(boxes, scores, 0.7)[1].sum()

    def align(x: jax.Array, boxes: jax.Array) -> jax.Array:
        return roi_align([x], [1 / STRIDE], boxes[None], (7, 7))

    calls: dict[str, Any] = {
        "nms": (suppress, boxes, scores),
        "roi_align": (align, x, boxes),
        "roi_align with gradient": (jax.grad(lambda x, boxes: (align(x, boxes) ** 2).sum()), x, boxes),
    }
    function, *arguments = calls[operation]
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def torchvisions(operation: str, number: int) -> Callable[[], Any]:
    """Return the same call of torchvision's."""
    torch, ops = importlib.import_module("torch"), importlib.import_module("torchvision.ops")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    boxes, scores, x = (torch.from_numpy(a) for a in inputs(number))
    x = x.permute(0, 3, 1, 2).contiguous()

    def align(x: Any) -> Any:
        return ops.roi_align(x, [boxes], (7, 7), 1 / STRIDE, 2)

    def gradient() -> Any:
        leaf = x.clone().requires_grad_()
        (align(leaf) ** 2).sum().backward()
        return leaf.grad

    def nms() -> Any:
        return torch.tensor(len(ops.nms(boxes, scores, 0.7)))

    return {"nms": nms, "roi_align": lambda: align(x), "roi_align with gradient": gradient}[operation]


def serve(kind: str, operation: str, cores: int) -> None:
    """Say what comes out, then answer each number of calls with the seconds of one."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    call = {"jaxcnn": ours, "torchvision": torchvisions}[kind](operation, OPERATIONS[operation])
    print(float((np.asarray(call(), np.float64) ** 2).sum()), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            call()
        print(json.dumps({"seconds": (time.perf_counter() - start) / int(line)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", metavar="PATH", default=sys.executable)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1, help="of a measurement, at least one call")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "OPERATION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, operation = options.serve
        serve(kind, operation, options.cores)
        return
    print("| operation | boxes | ours, ms | torchvision, ms | torchvision / ours |\n|---|--:|--:|--:|--:|")
    settings = {"OMP_WAIT_POLICY": "passive", "JAX_PLATFORMS": "cpu"}
    for operation, number in OPERATIONS.items():
        words = [__file__, "--cores", str(options.cores), "--serve"]
        pythons = {"jaxcnn": sys.executable, "torchvision": options.torch_python}
        sides = {k: Competitor([python, *words, k, operation], settings) for k, python in pythons.items()}
        if missing := [kind for kind, side in sides.items() if not side.ready]:
            raise SystemExit(f"{operation}: {missing[0]} did not start: {sides[missing[0]].end()}")
        results = [float(side.ready) for side in sides.values()]
        if not np.isclose(results[0], results[1], rtol=1e-4):
            raise SystemExit(f"{operation}: the results differ: {results}")
        calls = {kind: max(1, round(options.seconds / side.ask(1)["seconds"])) for kind, side in sides.items()}
        rounds = [[side.ask(calls[kind])["seconds"] for kind, side in sides.items()] for _ in range(options.rounds)]
        for side in sides.values():
            side.end()
        ratio = [theirs / our for our, theirs in rounds]
        medians = [f"{1000 * statistics.median(column):.1f}" for column in zip(*rounds, strict=True)]
        spread = f"{statistics.median(ratio):.2f} ({min(ratio):.2f} … {max(ratio):.2f})"
        print("|", " | ".join([operation, str(number), *medians, spread]), "|", flush=True)


if __name__ == "__main__":
    main()
