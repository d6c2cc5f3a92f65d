"""One training step, or forward pass, in a process of its own, asked by step.py: it may be another Python's.

    python steppers.py KIND MODEL SIDE BATCH DTYPE training|forward CORES

KIND is jaxcnn, flax (plain_networks.py, optax, `jax.jit`), torch or torch.compile (torchvision's networks, channels
last, autocast). Each takes one batch of uint8 images over and over, normalises it, and updates by Adam. The first line
of stdout is the number of parameters, once all is compiled; each line of stdin is a number of steps, answered by what
they took, as JSON: "wall" and "cpu", seconds of the process.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

RATE = 1e-4


def batch_of(side: int, batch: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 (N, H, W, 3), and their labels."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, side, side, 3), np.uint8), rng.integers(0, classes, batch).astype(np.int32)


def ours(name: str, side: int, batch: int, classes: int, dtype: str, forward: bool) -> tuple[int, Callable[[], Any]]:
    """The step that `jaxcnn train` compiles, and the forward pass of `jaxcnn predict`."""
    import jax
    import jax.numpy as jnp

    from jaxcnn.config import base_config
    from jaxcnn.models import create_model
    from jaxcnn.training.throughput import one_call
    from jaxcnn.training.train import assemble

    config = base_config()
    config.update({"steps": 1000, "global_batch_size": batch, "dtype": dtype})
    config.data.update({"name": f"synthetic:{classes}:{max(batch, 16)}", "image_size": side})
    config.model.name, config.optimizer.learning_rate = name, RATE
    data, program = assemble(config)
    state = program.init()
    count = sum(x.size for x in jax.tree.leaves(state.params))
    _, rows = one_call(config, data, program, 1)
    if forward:
        model = create_model(name, classes, jnp.dtype(dtype))
        options: Any = program.compiler_options

        def logits(variables: Any, x: Any) -> Any:
            outputs: Any = model.apply(variables, x)
            return outputs["logits"]

        lowered = jax.jit(logits).lower(state.variables, jnp.zeros((batch, side, side, 3)))
        compiled = lowered.compile(compiler_options=options)
        images = data.preprocess(rows, None)["image"]
        return count, lambda: compiled(state.variables, images).block_until_ready()
    step, box = program.compiled(program.lower(program.largest_batch)), [state]

    def run() -> None:
        box[0], loss = step(box[0], rows)
        loss.block_until_ready()

    return count, run


def flax(name: str, side: int, batch: int, classes: int, dtype: str, forward: bool) -> tuple[int, Callable[[], Any]]:
    """Stock Flax layers, optax's Adam and one `jax.jit`."""
    import jax
    import jax.numpy as jnp
    import optax
    from plain_networks import Network

    images, labels = map(jnp.asarray, batch_of(side, batch, classes))
    model, optimizer = Network(name, classes, jnp.dtype(dtype)), optax.adam(RATE)

    def normalised(images: Any) -> Any:
        return (images.astype(jnp.float32) / 255 - 0.5) / 0.25

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables: Any = jax.jit(lambda: model.init(keys, jnp.zeros((2, side, side, 3)), True))()
    params, stats = variables["params"], variables.get("batch_stats", {})
    count = sum(x.size for x in jax.tree.leaves(params))
    if forward:
        apply = jax.jit(lambda variables, x: model.apply(variables, normalised(x), False)[0])
        return count, lambda: apply({"params": params, "batch_stats": stats}, images).block_until_ready()

    @jax.jit
    def step(params: Any, stats: Any, moments: Any, key: Any) -> Any:
        def loss_of(params: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            (logits, aux), new = model.apply(
                variables, normalised(images), True, mutable=["batch_stats"], rngs={"dropout": key}
            )
            losses = [optax.softmax_cross_entropy_with_integer_labels(x, labels).mean() for x in (logits, *aux)]
            return losses[0] + 0.3 * sum(losses[1:]), new.get("batch_stats", {})

        (loss, new), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), new, moments, jax.random.fold_in(key, 1), loss

    box = [(params, stats, optimizer.init(params), jax.random.key(2))]

    def run() -> None:
        *state, loss = step(*box[0])
        box[0] = tuple(state)
        loss.block_until_ready()

    return count, run


def torch(
    name: str, side: int, batch: int, classes: int, dtype: str, forward: bool, compiled: bool, cores: int
) -> tuple[int, Callable[[], Any]]:
    """PyTorch on torchvision's networks, and on the paper's for CIFAR."""
    torch: Any = import_module("torch")
    torchvision: Any = import_module("torchvision")
    functional = torch.nn.functional
    torch.set_num_threads(cores)
    if name in ("resnet20", "resnet56"):
        model = cifar_in_torch((int(name.removeprefix("resnet")) - 2) // 6, classes)
    else:
        options = {"aux_logits": True, "init_weights": False} if name == "googlenet_tv" else {}
        model = getattr(torchvision.models, name.removesuffix("_tv"))(num_classes=classes, **options)
    model = model.to(memory_format=torch.channels_last).train(not forward)
    images, labels = map(torch.from_numpy, batch_of(side, batch, classes))
    images, labels = images.permute(0, 3, 1, 2), labels.long()  # channels last, as they lie
    optimizer = torch.optim.Adam(model.parameters(), RATE)

    def outputs() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return model((images.float() / 255 - 0.5) / 0.25)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        found = outputs()
        logits, *aux = found if isinstance(found, tuple) else (found,)
        loss = functional.cross_entropy(logits.float(), labels)
        for head in aux:
            loss = loss + 0.3 * functional.cross_entropy(head.float(), labels)
        loss.backward()
        optimizer.step()

    run = torch.no_grad()(outputs) if forward else step
    return sum(p.numel() for p in model.parameters()), torch.compile(run) if compiled else run


def cifar_in_torch(blocks: int, classes: int) -> Any:
    """Return the network of He et al. 2015, section 4.2, with so many blocks a stage, which torchvision lacks."""
    nn: Any = import_module("torch.nn")
    functional = nn.functional

    class Block(nn.Module):
        def __init__(self, before: int, after: int):
            super().__init__()
            self.stride, self.grown = 1 if before == after else 2, after - before
            self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)

        def forward(self, x: Any) -> Any:
            y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
            if self.grown:  # the shortcut is padded with zeros (option A)
                x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grown))
            return functional.relu(x + y)

    widths = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    body = [Block(before, after) for before, after in itertools.pairwise(widths)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main() -> None:
    kind, name, side, batch, dtype, what, cores = sys.argv[1:]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    classes = 10 if int(side) < 64 else 1000
    made: dict[str, Callable[..., Any]] = {"jaxcnn": ours, "flax": flax}
    arguments = name, int(side), int(batch), classes, dtype, what == "forward"
    if kind in made:
        count, run = made[kind](*arguments)
    else:
        count, run = torch(*arguments, compiled=kind == "torch.compile", cores=int(cores))
    run()
    run()
    print(count, flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            run()
        print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    main()
