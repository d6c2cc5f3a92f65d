"""Our input pipeline against tf.data, torchvision on Pillow, and OpenCV: the same JPEG files on the same cores.

    python experiments/throughput/input.py --tensorflow-python TF/bin/python --torch-python TORCH/bin/python > table.md

Each competitor is a process pinned to the cores of its table (see competitors.py for what it does). One at a time is
asked for batches while the others are stopped by a signal, round after round: what else the machine does meets all.
Where that takes part of a core, compare images per second of processor time; ratios are of these, within a round, where
there is one core, and of wall time where there are two. An interpreter without a competitor's package leaves it out.

The files are named 32 times each, for our shuffling without a table is slow for a few hundred examples. In evaluation,
which is in order, 16 batches of 64 are all 256 files four times.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import photographs
from alternating import Competitor

NAMES = 32  # of each file, by links: 8192 examples in all


class Entry(NamedTuple):
    """A row of a table: its name, the pipeline and interpolation of competitors.py, and its cores where they differ."""

    name: str
    kind: str
    how: str
    cores: int = 0


BILINEAR = [
    Entry("jaxcnn", "jaxcnn", "bilinear"),
    Entry("tf.data", "tf.data", "bilinear"),
    Entry("tf.data, its own crops", "tf.data, its own crops", "bilinear"),
    Entry("OpenCV", "opencv", "bilinear"),
]
TABLES = {  # title: its cores, and the rows, the first of which the others are compared with
    "training, bilinear": (1, BILINEAR),
    "training, bicubic": (1, [entry._replace(how="bicubic") for entry in BILINEAR]),
    "training, bilinear with antialiasing": (1, [
        Entry("jaxcnn", "jaxcnn", "antialias"),
        Entry("tf.data", "tf.data", "bilinear+antialias"),
        Entry("torchvision on Pillow", "torchvision", "bilinear"),
        Entry("jaxcnn, bilinear without (default)", "jaxcnn", "bilinear"),
    ]),
    "evaluation, 256 and centre 224": (1, [
        Entry("jaxcnn, antialiased", "jaxcnn", "eval"),
        Entry("tf.data, antialiased", "tf.data", "eval+antialias"),
        Entry("tf.data, bilinear", "tf.data", "eval"),
        Entry("torchvision on Pillow, antialiased", "torchvision", "eval"),
        Entry("OpenCV, INTER_AREA", "opencv", "eval"),
    ]),
    "training, bilinear, two cores": (2, [
        Entry("jaxcnn, 2 threads", "jaxcnn", "bilinear"),
        Entry("jaxcnn, 2 workers", "jaxcnn-workers", "bilinear"),
        Entry("jaxcnn, 1 thread", "jaxcnn", "bilinear", 1),
        Entry("jaxcnn, 1 worker", "jaxcnn-workers", "bilinear", 1),
        Entry("tf.data, 2 threads", "tf.data", "bilinear"),
        Entry("tf.data, 1 thread", "tf.data", "bilinear", 1),
    ]),
}  # fmt: skip


def run(title: str, pythons: dict[str, str], folder: Path, batch: int, batches: int, rounds: int) -> None:
    """Measure a table and print it."""
    cores, entries = TABLES[title]
    script = str(Path(__file__).with_name("competitors.py"))
    entrants: dict[Entry, Competitor] = {}
    for e in entries:
        python = pythons.get(e.kind.split(",")[0], sys.executable)
        entrants[e] = Competitor([python, script, e.kind, str(e.cores or cores), str(batch), str(folder), e.how])
    missing = {e.name: c.end() for e, c in entrants.items() if not c.ready}
    rates: dict[Entry, list[dict[str, float]]] = {e: [] for e, c in entrants.items() if c.ready}
    for _ in range(rounds):
        for entry, rows in rates.items():
            spent = entrants[entry].ask(batches)
            rows.append({"wall": spent["images"] / spent["seconds"], "cpu": spent["images"] / spent["cpu"]})
    for entry in rates:
        entrants[entry].end()
    judged = "wall" if cores > 1 else "cpu"
    print(f"\n| {title} | images/s | min … max | per second of processor | {entries[0].name} / this |")
    print("|---|--:|--:|--:|--:|")
    for entry, rows in rates.items():
        wall, cpu = ([row[kind] for row in rows] for kind in ("wall", "cpu"))
        ratios = [ours[judged] / row[judged] for ours, row in zip(rates[entries[0]], rows, strict=True)]
        cells = [
            f"{statistics.median(wall):.0f}",
            f"{min(wall):.0f} … {max(wall):.0f}",
            f"{statistics.median(cpu):.0f}",
        ]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
        print("|", " | ".join([entry.name, *cells]), "|", flush=True)
    for name, complaint in missing.items():
        print(f"\n{name} is left out: {complaint}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensorflow-python", metavar="PATH", default=sys.executable)
    parser.add_argument("--torch-python", metavar="PATH", default=sys.executable)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", metavar="WORD", default="", help="tables whose title has it")
    parser.add_argument("--quick", action="store_true", help="ours alone, on a few files, to see that it runs")
    options = parser.parse_args()
    pythons = {"tf.data": options.tensorflow_python, "torchvision": options.torch_python}
    if options.quick:
        options.files, options.batch, options.batches, options.rounds = 8, 4, 2, 1
        TABLES.clear()
        TABLES["training, bilinear"] = (1, BILINEAR[:1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = photographs.make(folder, options.files)
        sizes = [path.stat().st_size for path in paths]
        for path, number in ((path, number) for path in paths for number in range(1, NAMES)):
            os.link(path, path.with_stem(f"{number:02}-{path.stem}"))
        print(
            f"{len(paths)} JPEG files of {statistics.mean(sizes) / 1000:.0f} kB on average; {options.rounds} rounds of "
            f"{options.batches} batches of {options.batch}"
        )
        for title in (title for title in TABLES if options.only in title):
            run(title, pythons, folder, options.batch, options.batches, options.rounds)


if __name__ == "__main__":
    main()
