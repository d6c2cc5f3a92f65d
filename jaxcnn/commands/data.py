"""`jaxcnn data`: list the data sets at hand; prepare, pack and check them; show what training makes of their images."""

import argparse
import contextlib
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, add_config, config_of, count, parse, picture, save, set_up_jax
from jaxcnn.data.sources import KINDS
from jaxcnn.locations import location

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from rich.progress import Progress

    from jaxcnn.data.dataset import Dataset
    from jaxcnn.data.sources import Source

_SOURCES = ", ".join(kind.form for kind in KINDS.values())
_SHEET_CLASSES, _SHEET_COLUMNS = 25, 10
_LISTED_CLASSES, _LISTED_BAD = 25, 100  # lines of a report, at most
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".pdf": "PDF"}  # of contact sheets
_TILE = 112  # pixels of an image that `show` draws
_OVERLAYS = 12  # images with their label maps that `check` draws


def main(argv: list[str]) -> int:
    """Do what `argv` says; 0, or an error is raised."""
    parser = Parser("jaxcnn data", description=__doc__)
    commands = parser.add_subparsers(metavar="list | prepare | pack | check | show", required=True)
    folder = Parser(add_help=False)
    folder.add_argument("--data-dir", default="", metavar="DIR", help="folder of TFDS data sets (default: TFDS's own)")

    command = commands.add_parser("list", parents=[folder], help="the data sets at hand")
    command.set_defaults(run=_list)
    command = commands.add_parser("prepare", parents=[folder], help="build a TFDS data set; needs TensorFlow")
    command.add_argument("name", metavar="NAME", help="its name in TFDS, such as fashion_mnist")
    words = "folder with the files of cifar10, mnist, fashion_mnist or kmnist as their makers publish them: no download"
    command.add_argument("--from", dest="source_dir", metavar="DIR", help=words)
    words = "folder with the archives of a data set that cannot be downloaded, such as imagenet2012"
    command.add_argument("--manual-dir", metavar="DIR", help=words)
    command.set_defaults(run=_prepare)
    _add_pack(commands.add_parser("pack", parents=[folder], help="write a data set as shards of small JPEGs"))
    command = commands.add_parser("check", parents=[folder], help="read every example and draw some of them")
    command.add_argument("name", metavar="NAME", help=_SOURCES)
    command.add_argument("--out", type=_sheet, metavar="PNG", help="where to draw (default: NAME.png)")
    command.set_defaults(run=_check)

    command = commands.add_parser("show", help="draw what training sees of a config's images", epilog=OVERRIDES)
    _add_show(command)
    command.set_defaults(run=_show)

    if argv[:1] == ["show"]:
        arguments, overrides = parse(parser, argv)
        arguments.run(arguments, overrides)
    else:
        arguments = parser.parse_args(argv)
        arguments.run(arguments)
    return 0


def _list(arguments: argparse.Namespace) -> None:
    from jaxcnn.data.sources import describe_sources
    from jaxcnn.text_table import text_table

    rows = []
    for row in describe_sources(arguments.data_dir):
        splits = ", ".join(f"{split} {size:,}" for split, size in row["splits"].items())
        shape, classes = shape_text(row["image_shape"] or ()), str(row["num_classes"] or "")
        rows.append([row["name"], splits, shape, classes, row["status"]])
    print(text_table(["name", "examples", "image", "classes", "status"], rows))


def _prepare(arguments: argparse.Namespace) -> None:
    from jaxcnn.data.prepare.tfds import prepare

    folder, built = prepare(arguments.name, arguments.data_dir, arguments.source_dir, arguments.manual_dir)
    print(f"{'prepared' if built else 'already prepared, nothing to do:'} {folder}")
    where = f" --data-dir {shlex.quote(arguments.data_dir)}" if arguments.data_dir else ""
    print(f"look at it with: jaxcnn data check tfds:{arguments.name.removeprefix('tfds:')}{where}")


def _add_pack(command: argparse.ArgumentParser) -> None:
    command.description = """Write a data set as packed:OUT. Upright JPEGs, grey or RGB, within --max-side keep their
        bytes; all others are re-encoded. Stopped and run again with the same arguments, it goes on."""
    command.add_argument("source", metavar="SOURCE", help=_SOURCES)
    command.add_argument("out", type=location, metavar="OUT", help="a new folder")
    words = "shrink images whose LONGER side has more pixels (default: 400, a 3:2 photo is then 400×267; 0: keep all)"
    command.add_argument("--max-side", type=partial(count, least=0), default=400, metavar="PIXELS", help=words)
    words = "of the JPEGs that are re-encoded, 1 to 100 (default: 95)"
    command.add_argument("--quality", type=partial(count, most=100), default=95, metavar="N", help=words)
    words = "the splits to pack (default: all that have labels)"
    command.add_argument("--split", nargs="+", action="extend", default=[], metavar="NAME", help=words)
    cut = command.add_mutually_exclusive_group()
    cut.add_argument("--shards", type=count, default=0, metavar="N", help="number of files of each split")
    words = "size of a file, roughly (default: 256)"
    cut.add_argument("--shard-size", type=count, default=256, metavar="MB", help=words)
    words = "processes (default: one for each processor); each packs one file at a time"
    command.add_argument("--workers", type=count, default=0, metavar="N", help=words)
    words = "at a broken image stop (default), or leave it out and list it in OUT/manifest.json"
    command.add_argument("--on-error", choices=("stop", "skip"), default="stop", help=words)
    command.set_defaults(run=_pack)


def _pack(arguments: argparse.Namespace) -> None:
    from jaxcnn.data.prepare.pack import Options, pack

    options = Options(**{key: getattr(arguments, key) for key in Options._fields})
    name, out = _source_name(arguments.source, arguments.data_dir), arguments.out
    with _counted("packing", "examples") as progress:
        manifest, built = pack(name, out, options, arguments.split, arguments.data_dir, arguments.workers, progress)
    print(f"{'packed' if built else 'already packed, nothing to do:'} {out}")
    for split, about in manifest["splits"].items():
        size = sum(shard["bytes"] for shard in about["shards"])
        left_out = f", {len(about['skipped']):,} images left out" if about["skipped"] else ""
        files = f"{len(about['shards'])} files{left_out}"
        print(f"  {split}: {about['examples']:,} examples, {size / 1e6:,.1f} MB in {files}")
        for skipped in about["skipped"]:
            print(f"left out: {skipped['error']}", file=sys.stderr)
    print(f"look at it with: jaxcnn data check {shlex.quote(f'packed:{out}')}")


@dataclass
class _Tally:
    """The counts and faults of one split."""

    bad: dict[int, str] = field(default_factory=dict)  # index: what is wrong
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    dtypes: set[str] = field(default_factory=set)
    labels: Counter[int] = field(default_factory=Counter)
    pixels: "np.ndarray | int" = 0  # (256,): pixels of each number in the label maps
    seen_in: "np.ndarray | int" = 0  # (256,): images that have the number
    values: "np.ndarray | int" = 0  # (C, 256): how often each value occurs in each channel
    samples: "dict[int, list[np.ndarray]]" = field(default_factory=dict)  # label: the first images
    overlays: "list[tuple[str, np.ndarray, np.ndarray]]" = field(default_factory=list)  # title, image, label map

    def add(self, example: "dict[str, Any]", title: str, drawn: bool) -> None:
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
            if drawn:
                self.overlays.append((title, image, example["label_map"]))


def _check(arguments: argparse.Namespace) -> None:
    """Do what the arguments of `jaxcnn data check` say; splits without labels are passed over."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from jaxcnn.data.sources import labelled_splits, make_source

    name, data_dir = _source_name(arguments.name, arguments.data_dir), arguments.data_dir
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
        tallies = [_tally(source, progress) for source in sources]
    for source, tally in zip(sources, tallies, strict=True):
        _report(source, tally)
        bad += [f"{source.split} {_ranges(tally.bad)}"] if tally.bad else []
    if tallies and tallies[0].samples:
        names, samples = sources[0].class_names, tallies[0].samples
        rows = [(class_title(label, names), samples[label]) for label in sorted(samples)[:_SHEET_CLASSES]]
        save_sheet(contact_sheet(rows), out)
        print(f"examples of {sources[0].split} are drawn in {out}")
    elif tallies and tallies[0].overlays:
        from jaxcnn.figures.overlays import mask_cards

        titles, images, maps = zip(*tallies[0].overlays, strict=True)
        save(mask_cards(images, titles, {"labels": maps}, sources[0].class_names), out)
        print(f"examples of {sources[0].split} are drawn in {out}")
    if bad:
        first = next(error for tally in tallies for error in tally.bad.values())
        raise UserError(f"{name} has bad examples: {'; '.join(bad)}. The first: {first}")


def _verify(name: str) -> None:
    """Check the sums of a packed data set; UserError with the shards that are damaged."""
    from jaxcnn.data.sources.packed import read_manifest, verify

    total = sum(shard.bytes for shards in read_manifest(name).shards.values() for shard in shards)
    with _counted("verifying checksums", "bytes") as progress:
        if damaged := verify(name, lambda done: progress(done, total)):
            raise UserError(
                f"{name} has damaged shards, get them again or pack the data set again: {'; '.join(damaged)}"
            )


@contextlib.contextmanager
def _counted(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show `progress(done, total)`, which the block is given, as a bar; off a terminal as a line for each tenth."""
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


def _source_name(name: str, data_dir: str) -> str:
    """Return `name`, with `tfds:` before it where it is the bare name of a TFDS data set."""
    from jaxcnn.data.sources.tfds import STATISTICS, data_root

    base = re.split("[/:]", name)[0]
    is_source = base in ("", *KINDS)
    return f"tfds:{name}" if not is_source and (base in STATISTICS or (data_root(data_dir) / base).is_dir()) else name


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


def _report_labels(source: "Source", tally: _Tally) -> None:
    """Print the examples of each class; of many classes, of the rarest and of the most frequent one."""
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


def class_title(label: int, class_names: tuple[str, ...]) -> str:
    """Return number and name of a class; the number alone where that is its name."""
    return f"{label}" if class_names[label] == f"{label}" else f"{label} {class_names[label]}"


def shape_text(shape: Iterable[int | None]) -> str:
    """Return "8×?×1" for (8, None, 1)."""
    return "×".join("?" if n is None else str(n) for n in shape)


def contact_sheet(rows: "list[tuple[str, list[np.ndarray]]]", tile: int = 56) -> "Image":
    """Return a picture with a row for each (title, images uint8 (H, W, C)), in squares of `tile` pixels."""
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


def save_sheet(sheet: "Image", out: Path) -> None:
    """Write a picture in the format of its ending."""
    sheet.save(out, format=_FORMATS.get(out.suffix.lower(), "PNG"))


def _sheet(text: str) -> Path:
    """Return the path of a contact sheet, for argparse."""
    return picture(text, tuple(_FORMATS))


def _add_show(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.description = """Draw examples of a config's training split, a row each: what evaluation would see, then
        what training sees in epoch after epoch. The rows are one batch, so that mixing is seen too."""
    add_config(command, "config")
    command.add_argument(
        "--out", type=_sheet, default=Path("augmented.png"), metavar="PNG", help="default: %(default)s"
    )
    command.add_argument("--examples", type=count, default=8, metavar="N", help="rows (default: %(default)s)")
    command.add_argument("--epochs", type=count, default=8, metavar="N", help="columns (default: %(default)s)")


def _show(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    """Do what the arguments say."""
    if not arguments.out.resolve().parent.is_dir() or arguments.out.is_dir():
        raise UserError(f"--out {arguments.out}: name a PNG file in a folder that exists")
    config = config_of(arguments, overrides)
    set_up_jax()
    from jaxcnn.data.dataset import Dataset
    from jaxcnn.tasks import create_task

    data = Dataset(config, targets=create_task(config).targets)
    rows = min(arguments.examples, len(data.train))
    examples = [i * len(data.train) // rows for i in range(rows)]
    shown = _overlays if "label_map" in data.train.targets else _augmented
    columns = [shown(data, examples, epoch) for epoch in (None, *range(arguments.epochs))]
    raw = [data.train.read(i) for i in examples]
    titles = [class_title(x["label"], data.class_names)[:40] if "label" in x else f"example {i}"
              for i, x in zip(examples, raw, strict=True)]  # fmt: skip
    rows_of = list(zip(titles, map(list, zip(*columns, strict=True)), strict=True))
    save_sheet(contact_sheet(rows_of, _TILE), arguments.out)
    print(f"{rows} examples of {config.data.name}, then epochs 1 to {arguments.epochs} of '{config.data.augment}'")
    print(f"drawn in {arguments.out}")


def _overlays(data: "Dataset", examples: list[int], epoch: int | None) -> "list[np.ndarray]":
    """Return images uint8 with their label maps over them, changed as in an epoch of training; None: as they are."""
    from jaxcnn.figures.overlays import tinted

    drawn = []
    for example in examples:
        if epoch is None:
            raw = data.train[example]
            drawn.append(tinted(raw["image"], raw["label_map"], data.class_names))
            continue
        reader = next(r for r in data.train_readers if r.members is None or example in r.members)
        row = reader.train(epoch, example)
        drawn.append(tinted(row["image"], row["label_map"], data.class_names))
    return drawn


def _augmented(data: "Dataset", examples: list[int], epoch: int | None) -> "list[np.ndarray]":
    """Return images uint8 of one batch after host and device have changed them, before they are normalised.

    Args:
      epoch: None: as evaluation sees them.
    """
    import jax.numpy as jnp
    import numpy as np

    if epoch is None:
        return [data.train_readers[0].eval(example)["image"] for example in examples]
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
