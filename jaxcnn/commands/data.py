"""`jaxcnn data`: list the data sets at hand, prepare TFDS data sets, check every example of one."""

import argparse
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcnn import UserError
from jaxcnn.commands.common import Parser

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from rich.progress import Progress

    from jaxcnn.data.sources import Source

_SHEET_CLASSES, _SHEET_COLUMNS, _TILE = 25, 10, 56  # tiles in pixels


def main(argv: list[str]) -> int:
    """Do what `argv` says; 0, or an error is raised."""
    parser = Parser("jaxcnn data", description=__doc__)
    commands = parser.add_subparsers(metavar="list | prepare | check", required=True)
    folder = Parser(add_help=False)
    folder.add_argument("--data-dir", default="", metavar="DIR", help="folder of TFDS data sets (default: TFDS's own)")

    command = commands.add_parser("list", parents=[folder], help="the data sets at hand")
    command.set_defaults(run=_list)
    command = commands.add_parser("prepare", parents=[folder], help="build a TFDS data set; needs TensorFlow")
    command.add_argument("name", metavar="NAME", help="its name in TFDS, such as fashion_mnist")
    words = "folder with the four IDX files of fashion_mnist, mnist or kmnist, instead of a download"
    command.add_argument("--from", dest="source_dir", metavar="DIR", help=words)
    command.set_defaults(run=_prepare)
    command = commands.add_parser("check", parents=[folder], help="read every example and draw some of them")
    command.add_argument("name", metavar="NAME", help="digits, synthetic[:CLASSES[:EXAMPLES]] or tfds:NAME")
    command.add_argument("--out", type=Path, metavar="PNG", help="where to draw (default: NAME.png)")
    command.set_defaults(run=_check)

    arguments = parser.parse_args(argv)
    arguments.run(arguments)
    return 0


def _list(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from jaxcnn.data.sources import describe_sources

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "examples", "image", "classes", "status"):
        table.add_column(heading, overflow="fold")
    for row in describe_sources(arguments.data_dir):
        splits = ", ".join(f"{split} {size:,}" for split, size in row["splits"].items())
        cells = row["name"], splits, _shape(row["image_shape"] or ()), str(row["num_classes"] or ""), row["status"]
        table.add_row(*map(Text, cells))
    # Rich takes 80 columns where there is no terminal, and would wrap what a program is to read.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def _prepare(arguments: argparse.Namespace) -> None:
    from jaxcnn.data.prepare import prepare

    folder, built = prepare(arguments.name, arguments.data_dir, arguments.source_dir)
    print(f"{'prepared' if built else 'already prepared, nothing to do:'} {folder}")
    where = f" --data-dir {shlex.quote(arguments.data_dir)}" if arguments.data_dir else ""
    print(f"look at it with: jaxcnn data check tfds:{arguments.name.removeprefix('tfds:')}{where}")


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


def _check(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from jaxcnn.data.sources import make_source, split_sizes

    name, data_dir = _source_name(arguments.name, arguments.data_dir), arguments.data_dir
    stem = re.sub(r"\W+", "-", name.removeprefix("tfds:"))
    out = arguments.out or Path(f"{stem}.png")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a PNG file in it")
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    sources = [make_source(name, split, data_dir=data_dir) for split in split_sizes(name, data_dir)]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bad = []
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        tallies = [_read(source, progress) for source in sources]
    for source, tally in zip(sources, tallies, strict=True):
        _report(source, tally)
        bad += [f"{source.split} {_ranges(tally.bad)}"] if tally.bad else []
    if tallies and tallies[0].samples:
        _sheet(sources[0].class_names, tallies[0].samples).save(out, format="PNG")
        print(f"examples of {sources[0].split} are drawn in {out}")
    if bad:
        first = next(iter(next(tally.bad for tally in tallies if tally.bad).values()))
        raise UserError(f"{name} has bad examples: {'; '.join(bad)}. The first: {first}")


def _source_name(name: str, data_dir: str) -> str:
    """`name`, with `tfds:` before it where it is the bare name of a TFDS data set."""
    from jaxcnn.data.stored import STATISTICS, data_root

    base = re.split("[/:]", name)[0]
    is_source = base in ("", "digits", "synthetic", "tfds")
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

    few = " ".join(f"{_shape(shape)} ({count:,})" for shape, count in tally.shapes.most_common(3))
    more = f" and {len(tally.shapes) - 3:,} other shapes" if len(tally.shapes) > 3 else ""
    print(f"{source.name}, {source.split}: {len(source):,} examples")
    print(f"  image  {few}{more}, {' '.join(sorted(tally.dtypes))}")
    if tally.labels:
        share = np.asarray(tally.values) / np.sum(tally.values, axis=-1, keepdims=True)
        mean = share @ np.arange(256) / 255
        std = np.sqrt(share @ np.arange(256) ** 2 / 255**2 - mean**2)
        print(f"  mean   {' '.join(f'{v:.4f}' for v in mean)}   std {' '.join(f'{v:.4f}' for v in std)}")
    for label in range(source.num_classes):
        print(f"  {tally.labels[label]:>9,}  {_title(label, source.class_names)}")
    if tally.bad:
        print(f"  {len(tally.bad):>9,}  bad: {_ranges(tally.bad)}")


def _ranges(indices: Iterable[int]) -> str:
    """Rising numbers with runs drawn together: "3, 5-9"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _title(label: int, class_names: tuple[str, ...]) -> str:
    return f"{label}" if class_names[label] == f"{label}" else f"{label} {class_names[label]}"


def _shape(shape: Iterable[int | None]) -> str:
    return "×".join("?" if n is None else str(n) for n in shape)


def _sheet(class_names: tuple[str, ...], samples: "dict[int, list[np.ndarray]]") -> "Image":
    """A picture with a row of images for each class, its number and name before them."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    font: Any = ImageFont.load_default(size=14)
    rows = sorted(samples)[:_SHEET_CLASSES]
    titles = [_title(label, class_names) for label in rows]
    left = 16 + int(max(font.getlength(title) for title in titles))
    sheet = Image.new("RGB", (left + _SHEET_COLUMNS * (_TILE + 4), len(rows) * (_TILE + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, title) in enumerate(zip(rows, titles, strict=True)):
        top = row * (_TILE + 4) + 2
        draw.text((8, top + _TILE // 2), title, fill="black", font=font, anchor="lm")
        for column, pixels in enumerate(samples[label]):
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
            enlarge = Image.Resampling.NEAREST if max(image.size) < _TILE else Image.Resampling.LANCZOS
            sheet.paste(ImageOps.contain(image, (_TILE, _TILE), enlarge), (left + column * (_TILE + 4), top))
    return sheet
