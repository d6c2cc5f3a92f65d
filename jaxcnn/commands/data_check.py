"""`jaxcnn data check`: read every example of a data set, report what is found, draw the first of each class."""

import argparse
import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcnn import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from rich.progress import Progress

    from jaxcnn.data.sources import Source

_SHEET_CLASSES, _SHEET_COLUMNS = 25, 10
_LISTED_CLASSES, _LISTED_BAD = 25, 100  # lines of a report, at most


@dataclass
class _Tally:
    """What is found in one split."""

    bad: dict[int, str] = field(default_factory=dict)  # index: what is wrong
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    dtypes: set[str] = field(default_factory=set)
    labels: Counter[int] = field(default_factory=Counter)
    values: "np.ndarray | int" = 0  # (C, 256): how often each value occurs in each channel
    samples: "dict[int, list[np.ndarray]]" = field(default_factory=dict)  # label: the first images

    def add(self, image: "np.ndarray", label: int) -> None:
        import numpy as np

        self.shapes[image.shape] += 1
        self.dtypes.add(str(image.dtype))
        self.labels[label] += 1
        self.values += np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(image, -1, 0)])
        if len(images := self.samples.setdefault(label, [])) < _SHEET_COLUMNS:
            images.append(image)


def check(arguments: argparse.Namespace) -> None:
    """Do what the arguments of `jaxcnn data check` say; splits without labels are passed over."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from jaxcnn.data.sources import labelled_splits, make_source

    name, data_dir = source_name(arguments.name, arguments.data_dir), arguments.data_dir
    stem = re.sub(r"\W+", "-", name.removeprefix("tfds:"))[-60:].strip("-")  # a path may be longer than a name
    out = arguments.out or Path(f"{stem}.png")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a PNG file in it")
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if name.startswith("packed:"):
        _verify(name)
    sources = [make_source(name, split, data_dir=data_dir) for split in labelled_splits(name, data_dir)]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bad = []
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        tallies = [_read(source, progress) for source in sources]
    for source, tally in zip(sources, tallies, strict=True):
        _report(source, tally)
        bad += [f"{source.split} {_ranges(tally.bad)}"] if tally.bad else []
    if tallies and tallies[0].samples:
        names, samples = sources[0].class_names, tallies[0].samples
        rows = [(class_title(label, names), samples[label]) for label in sorted(samples)[:_SHEET_CLASSES]]
        contact_sheet(rows).save(out, format="PNG")
        print(f"examples of {sources[0].split} are drawn in {out}")
    if bad:
        first = next(error for tally in tallies for error in tally.bad.values())
        raise UserError(f"{name} has bad examples: {'; '.join(bad)}. The first: {first}")


def _verify(name: str) -> None:
    """Check the sums of a packed data set; UserError with the shards that are damaged."""
    from jaxcnn.data.sources.packed import read_manifest, verify

    total = sum(shard.bytes for shards in read_manifest(name).shards.values() for shard in shards)
    with counted("verifying checksums", "bytes") as progress:
        if damaged := verify(name, lambda done: progress(done, total)):
            raise UserError(
                f"{name} has damaged shards, get them again or pack the data set again: {'; '.join(damaged)}"
            )


@contextlib.contextmanager
def counted(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """`progress(done, total)` to call while something long goes on: a bar, or a line for each tenth off a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    terminal, said = sys.stderr.isatty(), -1
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not terminal) as bar:
        task = bar.add_task(description)

        def progress(done: int, total: int) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total)
            if not terminal and (tenth := 10 * done // max(1, total)) > said:
                said = tenth
                print(f"{description}: {done:,} of {total:,} {unit}", file=sys.stderr, flush=True)

        yield progress


def source_name(name: str, data_dir: str) -> str:
    """`name`, with `tfds:` before it where it is the bare name of a TFDS data set."""
    from jaxcnn.data.sources import KINDS
    from jaxcnn.data.sources.tfds import STATISTICS, data_root

    base = re.split("[/:]", name)[0]
    is_source = base in ("", *KINDS)
    return f"tfds:{name}" if not is_source and (base in STATISTICS or (data_root(data_dir) / base).is_dir()) else name


def _read(source: "Source", progress: "Progress") -> _Tally:
    tally = _Tally()
    if progress.disable:
        print(f"reading {len(source):,} examples of {source.split}", file=sys.stderr)
    for index in progress.track(range(len(source)), description=f"reading {source.split}"):
        try:
            example = source[index]
        except UserError as error:
            tally.bad[index] = str(error)
        else:
            tally.add(example["image"], example["label"])
    return tally


def _report(source: "Source", tally: _Tally) -> None:
    import numpy as np

    from jaxcnn.safe_files import printable

    few = " ".join(f"{shape_text(shape)} ({count:,})" for shape, count in tally.shapes.most_common(3))
    more = f" and {len(tally.shapes) - 3:,} other shapes" if len(tally.shapes) > 3 else ""
    print(f"{source.name}, {source.split}: {len(source):,} examples")
    if tally.labels:
        print(f"  image  {few}{more}, {' '.join(sorted(tally.dtypes))}")
        share = np.asarray(tally.values) / np.sum(tally.values, axis=-1, keepdims=True)
        mean = share @ np.arange(256) / 255
        std = np.sqrt(share @ np.arange(256) ** 2 / 255**2 - mean**2)
        print(f"  mean   {' '.join(f'{v:.4f}' for v in mean)}   std {' '.join(f'{v:.4f}' for v in std)}")
    counts = [tally.labels[label] for label in range(source.num_classes)]
    if len(counts) <= _LISTED_CLASSES:
        for label, count in enumerate(counts):
            print(f"  {count:>9,}  {class_title(label, source.class_names)}")
    else:
        few, many = int(np.argmin(counts)), int(np.argmax(counts))
        least, most = (f"{counts[n]:,} ({class_title(n, source.class_names)})" for n in (few, many))
        print(f"  each of {len(counts):,} classes has {least} to {most} examples, the median {np.median(counts):,.0f}")
    if tally.bad:
        print(f"  {len(tally.bad):>9,}  bad: {_ranges(tally.bad)}")
        for error in list(tally.bad.values())[:_LISTED_BAD]:
            print(f"             {printable(error)}")


def _ranges(indices: Iterable[int]) -> str:
    """Rising numbers with runs drawn together: "3, 5-9"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def class_title(label: int, class_names: tuple[str, ...]) -> str:
    """Number and name of a class; the number alone where that is its name."""
    return f"{label}" if class_names[label] == f"{label}" else f"{label} {class_names[label]}"


def shape_text(shape: Iterable[int | None]) -> str:
    """(8, None, 1) -> "8×?×1"."""
    return "×".join("?" if n is None else str(n) for n in shape)


def contact_sheet(rows: "list[tuple[str, list[np.ndarray]]]", tile: int = 56) -> "Image":
    """A picture with a row for each (title, images uint8 (H, W, C)), in squares of `tile` pixels."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    font: Any = ImageFont.load_default(size=14)
    left = 16 + int(max(font.getlength(title) for title, _ in rows))
    columns = max(len(images) for _, images in rows)
    sheet = Image.new("RGB", (left + columns * (tile + 4), len(rows) * (tile + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (title, images) in enumerate(rows):
        top = row * (tile + 4) + 2
        draw.text((8, top + tile // 2), title, fill="black", font=font, anchor="lm")
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
            enlarge = Image.Resampling.NEAREST if max(image.size) < tile else Image.Resampling.LANCZOS
            sheet.paste(ImageOps.contain(image, (tile, tile), enlarge), (left + column * (tile + 4), top))
    return sheet
