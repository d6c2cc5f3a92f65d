"""`jaxcnn data check`: read every example of a data set, count them and, if asked for, draw some of them."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jaxcnn import UserError
from jaxcnn.commands.data_common import class_title, contact_sheet, counted, save_sheet, shape_text, source_name
from jaxcnn.commands.options import save

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress

    from jaxcnn.data.sources import Source
    from jaxcnn.data.sources.boxed import Boxed

_SHEET_CLASSES, _SHEET_COLUMNS = 25, 10
_LISTED_CLASSES, _LISTED_BAD = 25, 100  # lines of a report, at most
_OVERLAYS = 12  # images with their label maps or boxes that are drawn


def check(arguments: argparse.Namespace) -> None:
    """Read and count the examples of every split that has labels, report bad ones, and draw some if --out is given."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from jaxcnn.data.sources import labelled_splits, make_source

    name, data_dir = source_name(arguments.name, arguments.data_dir), arguments.data_dir
    out = arguments.out
    if out and out.is_dir():
        raise UserError(f"--out {out} is a folder: name a PNG file in it")
    if out and not out.resolve().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if name.startswith("packed:"):
        _verify(name)
    sources = [make_source(name, split, data_dir=data_dir) for split in labelled_splits(name, data_dir)]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bad = []
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        tallies = [_tally(source, progress) for source in sources]
    for source, tally in zip(sources, tallies, strict=True):
        _report(source, tally)
        bad += [f"{source.split} {_ranges(tally.bad)}"] if tally.bad else []
    if out and tallies and (tallies[0].samples or tallies[0].drawn):
        _draw(sources[0], tallies[0], out)
        print(f"examples of {sources[0].split} are drawn in {out}")
    if bad:
        first = next(error for tally in tallies for error in tally.bad.values())
        raise UserError(f"{name} has bad examples: {'; '.join(bad)}. The first: {first}")


def _draw(source: "Source", tally: "_Tally", out: Path) -> None:
    """Draw images of each class, or some with their label maps or boxes over them."""
    from jaxcnn.figures.overlays import box_cards, mask_cards

    names, samples = source.class_names, tally.samples
    if samples:
        rows = [(class_title(label, names), samples[label]) for label in sorted(samples)[:_SHEET_CLASSES]]
        save_sheet(contact_sheet(rows), out)
        return
    images, titles = [example["image"] for example in tally.drawn.values()], list(tally.drawn)
    if "label_map" in source.targets:
        maps = [example["label_map"] for example in tally.drawn.values()]
        save(mask_cards(images, titles, {"labels": maps}, names), out)
    else:
        boxes = [(example["boxes"], example["labels"], None) for example in tally.drawn.values()]
        save(box_cards(images, titles, {"": boxes}, names), out)


def _verify(name: str) -> None:
    """Check the sums of a packed data set; UserError with the shards that are damaged."""
    from jaxcnn.data.sources.packed import read_manifest, verify

    total = sum(shard.bytes for shards in read_manifest(name).shards.values() for shard in shards)
    with counted("verifying checksums", "bytes") as progress:
        if damaged := verify(name, lambda done: progress(done, total)):
            raise UserError(
                f"{name} has damaged shards, get them again or pack the data set again: {'; '.join(damaged)}"
            )


@dataclass
class _Tally:
    """The counts and faults of one split."""

    bad: dict[int, str] = field(default_factory=dict)  # index: the error
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    dtypes: set[str] = field(default_factory=set)
    labels: Counter[int] = field(default_factory=Counter)
    pixels: "np.ndarray | int" = 0  # (256,): pixels of each number in the label maps
    seen_in: "np.ndarray | int" = 0  # (256,): images that have the number
    values: "np.ndarray | int" = 0  # (C, 256): how often each value occurs in each channel
    samples: "dict[int, list[np.ndarray]]" = field(default_factory=dict)  # label: the first images
    drawn: dict[str, dict[str, Any]] = field(default_factory=dict)  # title: an example with a label map or boxes

    def add(self, example: "dict[str, Any]", title: str, drawn: bool) -> None:
        """Count an example, and keep it if it is to be drawn."""
        import numpy as np

        image = example["image"]
        self.shapes[image.shape] += 1
        self.dtypes.add(str(image.dtype))
        self.values += np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(image, -1, 0)])
        if "label" in example:
            self.labels[example["label"]] += 1
            if len(images := self.samples.setdefault(example["label"], [])) < _SHEET_COLUMNS:
                images.append(image)
        if "label_map" in example:
            counts = np.bincount(example["label_map"].ravel(), minlength=256)
            self.pixels, self.seen_in = self.pixels + counts, self.seen_in + (counts > 0)
        if drawn and example.keys() & {"label_map", "boxes"}:
            self.drawn[title] = example


def _tally(source: "Source", progress: "Progress") -> _Tally:
    tally = _Tally()
    if progress.disable:
        print(f"reading {len(source):,} examples of {source.split}", file=sys.stderr)
    drawn = {i * len(source) // _OVERLAYS for i in range(_OVERLAYS)}
    for index in progress.track(range(len(source)), description=f"reading {source.split}"):
        try:
            example = source[index]
        except UserError as error:
            tally.bad[index] = str(error)
        else:
            tally.add(example, source.file(index) or f"example {index}", index in drawn)
    return tally


def _report(source: "Source", tally: _Tally) -> None:
    import numpy as np

    from jaxcnn.safe_files import printable

    few = " ".join(f"{shape_text(shape)} ({count:,})" for shape, count in tally.shapes.most_common(3))
    more = f" and {len(tally.shapes) - 3:,} other shapes" if len(tally.shapes) > 3 else ""
    print(f"{source.name}, {source.split}: {len(source):,} examples")
    if tally.shapes:
        print(f"  image  {few}{more}, {' '.join(sorted(tally.dtypes))}")
        share = np.asarray(tally.values) / np.sum(tally.values, axis=-1, keepdims=True)
        mean = share @ np.arange(256) / 255
        std = np.sqrt(share @ np.arange(256) ** 2 / 255**2 - mean**2)
        print(f"  mean   {' '.join(f'{v:.4f}' for v in mean)}   std {' '.join(f'{v:.4f}' for v in std)}")
    if "label_map" in source.targets:
        _report_pixels(source, tally)
    if "label" in source.targets:
        _report_labels(source, tally)
    if "boxes" in source.targets:
        _report_boxes(cast("Boxed", source))
    if source.left_out:
        kinds = ", ".join(f"{count:,} {ending}" for ending, count in source.left_out.items())
        print(f"  {sum(source.left_out.values()):>9,}  other files are left out: {kinds}")
    if tally.bad:
        print(f"  {len(tally.bad):>9,}  bad: {_ranges(tally.bad)}")
        for error in list(tally.bad.values())[:_LISTED_BAD]:
            print(f"             {printable(error)}")


def _report_pixels(source: "Source", tally: _Tally) -> None:
    """Print the pixels of each class, their share of those that count, and the images that have some."""
    import numpy as np

    from jaxcnn.config import VOID

    pixels, images = (np.zeros(256, int) + counts for counts in (tally.pixels, tally.seen_in))
    total = max(1, int(pixels[: source.num_classes].sum()))
    for label in range(source.num_classes):
        count, title = pixels[label], class_title(label, source.class_names)
        print(f"  {count:>13,} pixels {count / total:>7.2%} in {images[label]:>7,} images  {title}")
    print(f"  {pixels[VOID]:>13,} pixels {'':>7} in {images[VOID]:>7,} images  void")


def _report_boxes(source: "Boxed") -> None:
    """Print the number of boxes, their sizes, and the boxes and images of each class."""
    import numpy as np

    labels, (x1, y1, x2, y2) = source.objects["labels"], source.objects["boxes"].T
    counts = np.diff(source.first)
    kinds = [f"{source.objects[kind].sum():,} {kind}" for kind in ("difficult", "crowd")]
    print(f"  boxes  {len(labels):,}, {', '.join(kinds)}; {source.dropped:,} without area are left out")
    if not len(labels):
        return
    print(
        f"         {source.most:,} at most, in {source.file(source.fullest)}; {(counts == 0).sum():,} images have none"
    )
    sides, levels = np.sqrt((x2 - x1) * (y2 - y1)), [0, 32, 96, np.inf]
    small, medium, large = np.histogram(sides, levels)[0]
    print(
        f"         √area {sides.min():,.0f} … {sides.max():,.0f} pixels, median {np.median(sides):,.0f}; "
        f"{small:,} below 32, {medium:,} below 96, {large:,} larger"
    )
    seen = np.unique(np.stack([labels, np.repeat(np.arange(len(counts)), counts)]), axis=1)[0]  # once an image
    for label in range(1, source.num_classes):
        count, images = (labels == label).sum(), (seen == label).sum()
        print(f"  {count:>9,} boxes in {images:>7,} images  {class_title(label, source.class_names)}")


def _report_labels(source: "Source", tally: _Tally) -> None:
    """Print the examples of each class, or, if there are many classes, of the rarest and the most frequent one."""
    import numpy as np

    counts = [tally.labels[label] for label in range(source.num_classes)]
    if len(counts) <= _LISTED_CLASSES:
        for label, count in enumerate(counts):
            print(f"  {count:>9,}  {class_title(label, source.class_names)}")
    else:
        few, many = int(np.argmin(counts)), int(np.argmax(counts))
        least, most = (f"{counts[n]:,} ({class_title(n, source.class_names)})" for n in (few, many))
        print(f"  each of {len(counts):,} classes has {least} to {most} examples, the median {np.median(counts):,.0f}")


def _ranges(indices: Iterable[int]) -> str:
    """Return rising numbers with runs drawn together: "3, 5-9"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
