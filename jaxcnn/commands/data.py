"""`jaxcnn data`: list the data sets at hand; prepare, pack and check them, propose regions; show images of training."""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

from jaxcnn.commands import data_check, data_show
from jaxcnn.commands.data_common import counted, shape_text, sheet_path, source_name
from jaxcnn.commands.options import OVERRIDES, Parser, count, parse
from jaxcnn.data.sources import KINDS
from jaxcnn.locations import location
from jaxcnn.safe_files import make_writable

_SOURCES = ", ".join(kind.form for kind in KINDS.values())


def main(argv: list[str]) -> int:
    """Do what `argv` says; 0, or an error is raised."""
    parser = Parser("jaxcnn data", description=__doc__)
    commands = parser.add_subparsers(metavar="list | prepare | pack | propose | check | show", required=True)
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
    _add_propose(commands.add_parser("propose", parents=[folder], help="write region proposals by selective search"))
    command = commands.add_parser("check", parents=[folder], help="read every example and draw some of them")
    command.add_argument("name", metavar="NAME", help=_SOURCES)
    command.add_argument("--out", type=sheet_path, metavar="PNG", help="where to draw (default: NAME.png)")
    command.set_defaults(run=data_check.check)

    command = commands.add_parser("show", help="draw what training sees of a config's images", epilog=OVERRIDES)
    data_show.add_arguments(command)
    command.set_defaults(run=data_show.show_examples)

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
    forms = ", ".join(kind.form for kind in KINDS.values() if kind.is_path)
    rows.append(["files of yours", "", "", "", f"as {forms}"])
    print(text_table(["name", "examples", "image", "classes", "status"], rows))


def _prepare(arguments: argparse.Namespace) -> None:
    from jaxcnn.data.prepare.tfds import prepare
    from jaxcnn.data.sources.tfds import kind_at

    folder, built = prepare(arguments.name, arguments.data_dir, arguments.source_dir, arguments.manual_dir)
    print(f"{'prepared' if built else 'already prepared, nothing to do:'} {folder}")
    where = f" --data-dir {shlex.quote(arguments.data_dir)}" if arguments.data_dir else ""
    name = f"{kind_at(folder)}:{arguments.name.removeprefix('tfds:')}"
    print(f"look at it with: jaxcnn data check {name}{where}")


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
    name, out = source_name(arguments.source, arguments.data_dir), arguments.out
    with counted("packing", "examples") as progress:
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


def _add_propose(command: argparse.ArgumentParser) -> None:
    command.description = """Write the boxes that selective search finds in each image of a split, for
        config.task.proposals. Stopped and run again with the same arguments, it goes on."""
    command.add_argument("source", metavar="SOURCE", help=_SOURCES)
    command.add_argument("--split", required=True, metavar="NAME", help="one of the data set's splits")
    command.add_argument("--out", type=_npz, required=True, metavar="FILE.npz", help="a new file")
    words = "pixels to which images are resized before, 0: as they are (default: 500)"
    command.add_argument("--width", type=partial(count, least=0), default=500, metavar="PIXELS", help=words)
    words = "leave out boxes with a shorter side, in pixels of the resized image (default: 20)"
    command.add_argument("--min-side", type=partial(count, least=0), default=20, metavar="PIXELS", help=words)
    command.add_argument("--workers", type=count, default=0, metavar="N", help="processes (default: one a core)")
    command.set_defaults(run=_propose)


def _npz(text: str) -> Path:
    path = location(text, "--out")
    if path.suffix != ".npz":
        raise argparse.ArgumentTypeError(f"{text}: proposals are written as NPZ, name it {path.with_suffix('.npz')}")
    return path


def _propose(arguments: argparse.Namespace) -> None:
    from jaxcnn.data.prepare.propose import propose

    name, out = source_name(arguments.source, arguments.data_dir), arguments.out
    make_writable(out.parent, "the folder of --out")
    with counted("selective search", "images") as progress:
        done = propose(
            name, arguments.split, out, width=arguments.width, min_side=arguments.min_side,
            data_dir=arguments.data_dir, workers=arguments.workers, progress=progress,
        )  # fmt: skip
    found, images = done.proposals, len(done.proposals.names)
    print(f"{'proposals' if done.searched else 'already there, nothing to do:'} {out}")
    print(f"  {len(found.boxes):,} boxes of {images:,} images, {len(found.boxes) / images:,.0f} an image")
    if done.searched:
        print(f"  {done.seconds / done.searched:.2f} s an image, on one core")
    print(f"  SHA-256 of the content {found.digest}")
