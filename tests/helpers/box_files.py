"""Small data sets with boxes, and images in which each pixel says where it lies."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Thing(NamedTuple):
    """An object to annotate: its box x1, y1, x2, y2 has corners as points, counted from 0."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool = False


def coordinates(height: int, width: int) -> np.ndarray:
    """Return an image, uint8 (H, W, 3), whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([columns, rows, np.full_like(rows, 200)], -1)


def write_voc_boxes(
    root: Path, splits: dict[str, list[tuple[tuple[int, int], list[Thing]]]], names: tuple[str, ...]
) -> str:
    """Write `voc:ROOT` of coordinates' images, {split: [((height, width), objects)]}, with classes `names`."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    for split, pictures in splits.items():
        files = [f"{split}{i}" for i in range(len(pictures))]
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{file}\n" for file in files))
        for file, (size, things) in zip(files, pictures, strict=True):
            Image.fromarray(coordinates(*size)).save(root / f"JPEGImages/{file}.jpg", "PNG")  # exact, whatever its name
            (root / f"Annotations/{file}.xml").write_text(_xml(size, things))
    return f"voc:{root}"


def _xml(size: tuple[int, int], things: list[Thing]) -> str:
    objects = ""
    for thing in things:
        x1, y1, x2, y2 = thing.box
        edges = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        about = f"<name>{thing.name}</name><difficult>{int(thing.difficult)}</difficult>"
        objects += f"<object>{about}<bndbox>{edges}</bndbox></object>"
    height, width = size
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def write_blocks(root: Path, counts: dict[str, int], side: int = 64) -> str:
    """Write `voc:ROOT` of images with one to three blocks, red or blue, on grey noise; {split: images}.

    Every fifth image of a split has no object.
    """
    rng, names = np.random.default_rng(0), ("red", "blue")
    splits, paintings = {}, {}
    for split, count in counts.items():
        splits[split] = []
        for i in range(count):
            image = rng.integers(90, 150, (side, side + 16, 3)).astype(np.uint8)
            things = []
            for _ in range(0 if i % 5 == 4 else rng.integers(1, 4)):
                kind = int(rng.integers(2))
                height, width = rng.integers(14, 30, 2)
                top, left = rng.integers(0, side - height), rng.integers(0, side + 16 - width)
                box = (float(left), float(top), float(left + width), float(top + height))
                image[top : top + height, left : left + width] = (230, 40, 40) if kind == 0 else (40, 40, 230)
                # A later block covers an earlier one: what is left of that is no object of this box.
                things = [t for t in things if t.box[2] <= left or left + width <= t.box[0]
                          or t.box[3] <= top or top + height <= t.box[1]]  # fmt: skip
                things.append(Thing(names[kind], box))
            splits[split].append(((side, side + 16), things))
            paintings[f"{split}{i}"] = image
    name = write_voc_boxes(root, splits, names)
    for file, image in paintings.items():
        Image.fromarray(image).save(root / f"JPEGImages/{file}.jpg", "PNG")
    return name
