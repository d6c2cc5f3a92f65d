"""`jaxcnn data show`: training images as the network is given them, in several epochs, on one picture."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcnn import UserError
from jaxcnn.commands.data_check import class_title, contact_sheet
from jaxcnn.commands.options import add_config, config_of, set_up_jax

if TYPE_CHECKING:
    import numpy as np

    from jaxcnn.data.dataset import Dataset

_TILE = 112  # pixels


def add(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.description = """Draw examples of a config's training split, a row each: what evaluation would see, then
        what training sees in epoch after epoch. The rows are one batch, so that mixing is seen too."""
    add_config(command, "config")
    command.add_argument("--out", type=Path, default=Path("augmented.png"), metavar="PNG", help="default: %(default)s")
    command.add_argument("--examples", type=int, default=8, metavar="N", help="rows (default: %(default)s)")
    command.add_argument("--epochs", type=int, default=8, metavar="N", help="columns (default: %(default)s)")


def show(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    """Do what the arguments say."""
    if arguments.examples < 1 or arguments.epochs < 1:
        raise UserError("--examples and --epochs: write positive numbers")
    if not arguments.out.resolve().parent.is_dir() or arguments.out.is_dir():
        raise UserError(f"--out {arguments.out}: name a PNG file in a folder that exists")
    config = config_of(arguments, overrides)
    set_up_jax()
    from jaxcnn.data.dataset import Dataset

    data = Dataset(config)
    count = min(arguments.examples, len(data.train))
    examples = [i * len(data.train) // count for i in range(count)]
    columns = [_whole(data, examples), *(_augmented(data, examples, epoch) for epoch in range(arguments.epochs))]
    labels = [data.train.read(i)["label"] for i in examples]
    titles = [class_title(label, data.class_names)[:40] for label in labels]
    contact_sheet(list(zip(titles, map(list, zip(*columns, strict=True)), strict=True)), _TILE).save(
        arguments.out, format="PNG"
    )
    print(f"{count} examples of {config.data.name}, then epochs 1 to {arguments.epochs} of '{config.data.augment}'")
    print(f"drawn in {arguments.out}")


def _whole(data: "Dataset", examples: list[int]) -> "list[np.ndarray]":
    return [data.train_readers[0].eval(example)["image"] for example in examples]


def _augmented(data: "Dataset", examples: list[int], epoch: int) -> "list[np.ndarray]":
    """Images uint8 of one batch after host and device have changed them, before they are normalised."""
    import jax.numpy as jnp
    import numpy as np

    rows = [data.train_readers[0].train(epoch, example) for example in examples]
    batch = {
        "image": jnp.asarray(np.stack([row["image"] for row in rows])),
        "label": jnp.asarray([row["label"] for row in rows]),
        "epoch": jnp.full(len(rows), epoch),
        "example": jnp.asarray(examples),
    }
    images = np.asarray(data.preprocess(batch, jnp.uint32(data.config.seed))["image"])
    pixels = 255 * (images * np.asarray(data.std, np.float32) + np.asarray(data.mean, np.float32))
    return list(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
