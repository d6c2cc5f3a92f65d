"""`jaxcnn data show`: draw a config's images as training sees them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcnn import UserError
from jaxcnn.commands.data_common import class_title, contact_sheet, save_sheet, sheet_path
from jaxcnn.commands.options import add_config, config_of, count, set_up_jax

if TYPE_CHECKING:
    import numpy as np

    from jaxcnn.data.dataset import Dataset

    Tile = tuple[np.ndarray, str]  # an image and its caption

_TILE, _BOXES_TILE = 112, 224  # side in pixels of a drawn image, and of one that needs room for the names of boxes


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.description = """Draw examples of a config's training split, a row each: what evaluation would see, then
        what training sees in epoch after epoch. The rows are one batch, so that mixing is seen too."""
    add_config(command, "config")
    command.add_argument(
        "--out", type=sheet_path, default=Path("augmented.png"), metavar="PNG", help="default: %(default)s"
    )
    command.add_argument("--examples", type=count, default=8, metavar="N", help="rows (default: %(default)s)")
    command.add_argument("--epochs", type=count, default=8, metavar="N", help="columns (default: %(default)s)")


def show_examples(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    """Draw a row of images for each example: as evaluation sees it, then as training does in each epoch."""
    if not arguments.out.resolve().parent.is_dir() or arguments.out.is_dir():
        raise UserError(f"--out {arguments.out}: name a PNG file in a folder that exists")
    config = config_of(arguments, overrides)
    set_up_jax()
    from jaxcnn.data.dataset import Dataset
    from jaxcnn.tasks import create_task

    task = create_task(config)
    data = Dataset(config, targets=task.targets, pixel_range=task.pixel_range)
    rows = min(arguments.examples, len(data.train))
    examples = [i * len(data.train) // rows for i in range(rows)]
    targets = data.train_readers[0].targets
    shown = _masks if "label_map" in targets else _boxes if "boxes" in targets else _augmented
    columns = [shown(data, examples, epoch) for epoch in (None, *range(arguments.epochs))]
    heads = ["evaluation" if shown is _augmented else "as stored", *(f"epoch {i + 1}" for i in range(arguments.epochs))]
    raw = [data.train.read(i) for i in examples]
    titles = [class_title(x["label"], data.class_names)[:40] if "label" in x else f"example {i}"
              for i, x in zip(examples, raw, strict=True)]  # fmt: skip
    rows_of = list(zip(*columns, strict=True))  # A row is an example: in each column an image and its caption.
    images = [(title, [image for image, _ in row]) for title, row in zip(titles, rows_of, strict=True)]
    captions = [[caption for _, caption in row] for row in rows_of]
    tile = _BOXES_TILE if "boxes" in targets else _TILE
    save_sheet(contact_sheet(images, tile, heads, captions), arguments.out)
    print(f"{rows} examples of {config.data.name}, then epochs 1 to {arguments.epochs} of '{config.data.augment}'")
    print(f"drawn in {arguments.out}")


def _rows(data: "Dataset", examples: list[int], epoch: int | None) -> "list[dict[str, Any]]":
    """Return examples as rows of an epoch of training, each from the reader of its size; epoch None: as stored."""
    if epoch is None:
        return [data.train[example] for example in examples]
    readers = [next(r for r in data.train_readers if r.members is None or i in r.members) for i in examples]
    return [reader.train(epoch, example) for reader, example in zip(readers, examples, strict=True)]


def _masks(data: "Dataset", examples: list[int], epoch: int | None) -> "list[Tile]":
    """Return images uint8 with their label maps over them; see `_rows`."""
    from jaxcnn.figures.overlays import tinted

    return [(tinted(row["image"], row["label_map"], data.class_names), "") for row in _rows(data, examples, epoch)]


def _boxes(data: "Dataset", examples: list[int], epoch: int | None) -> "list[Tile]":
    """Return images uint8 with their boxes over them, `_BOXES_TILE` pixels a longer side; see `_rows`."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from jaxcnn.figures.overlays import draw_boxes, show

    drawn = []
    for row in _rows(data, examples, epoch):
        height, width, _ = row["image"].shape
        scale = _BOXES_TILE / max(height, width) / 100
        figure = Figure(figsize=(max(0.01, width * scale), max(0.01, height * scale)), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        show(axes, row["image"], "")
        valid = row.get("valid", slice(None))  # Stored examples have no padding boxes.
        draw_boxes(axes, row["boxes"][valid], row["labels"][valid], data.class_names)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn.append((np.asarray(canvas.buffer_rgba())[..., :3], ""))
    return drawn


def _augmented(data: "Dataset", examples: list[int], epoch: int | None) -> "list[Tile]":
    """Return images uint8 of one batch after host and device have changed them, before they are normalised.

    The caption of a mixed image is its share of the row's own class and that of its neighbour's.

    Args:
      epoch: None: as evaluation sees them.
    """
    import jax.numpy as jnp
    import numpy as np

    if epoch is None:
        return [(data.train_readers[0].eval(example)["image"], "") for example in examples]
    rows = [data.train_readers[0].train(epoch, example) for example in examples]
    batch = {
        "image": jnp.asarray(np.stack([row["image"] for row in rows])),
        "label": jnp.asarray([row.get("label", 0) for row in rows]),
        "epoch": jnp.full(len(rows), epoch),
        "example": jnp.asarray(examples),
    }
    changed = data.preprocess(batch, jnp.uint32(data.config.seed))
    pixels = 255 * (np.asarray(changed["image"]) * np.asarray(data.std, np.float32) + np.asarray(data.mean, np.float32))
    captions = [""] * len(rows)
    if "share" in changed:
        pairs = zip(np.asarray(changed["share"]).tolist(), np.asarray(changed["other"]).tolist(), strict=True)
        captions = [f"{share:.0%}, {1 - share:.0%} {class_title(other, data.class_names)}" for share, other in pairs]
    return list(zip(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), captions, strict=True))
