"""Our training step and forward pass against plain Flax and PyTorch, on the same cores of this machine.

    python experiments/throughput/step.py --torch-python TORCH/bin/python --chart step.png > table.md

Each competitor is a process (see steppers.py for what it does). One at a time is asked for steps while the others are
stopped by a signal, round after round: what else the machine does meets all. PyTorch's threads spin while they wait,
which would take the cores from whoever shares them: OMP_WAIT_POLICY=passive is set. A ratio is another's time by ours,
within a round: above 1 ours is faster. An interpreter without a competitor's package leaves it out.
"""

import argparse
import itertools
import statistics
import sys
from pathlib import Path

from alternating import Competitor

NETWORKS = {  # name: side and batch
    "alexnet_tv": (224, 32), "vgg11": (224, 8), "vgg16": (224, 4), "googlenet_tv": (224, 16), "resnet18": (224, 16),
    "resnet50_tv": (224, 8), "resnet20": (32, 128), "resnet56": (32, 128),
}  # fmt: skip
KINDS = {"jaxcnn": "jaxcnn", "flax": "plain Flax", "torch": "PyTorch", "torch.compile": "PyTorch, compiled"}


def measure(name: str, dtype: str, what: str, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Return {kind: [{"wall", "cpu"} of each round]} of one network; a kind that does not start is named on stderr."""
    side, batch = NETWORKS[name]
    words = [name, str(side), str(max(1, batch // options.shrink)), dtype, what, str(options.cores)]
    pythons = {"torch": options.torch_python, "torch.compile": options.torch_python}
    script = str(Path(__file__).with_name("steppers.py"))
    settings = {"OMP_WAIT_POLICY": "passive", "JAX_PLATFORMS": "cpu"}
    entrants = {
        kind: Competitor([pythons.get(kind, sys.executable), script, kind, *words], settings) for kind in options.kinds
    }
    for kind in [kind for kind, entrant in entrants.items() if not entrant.ready]:
        print(f"{name}, {KINDS[kind]}, is left out: {entrants.pop(kind).end()}", file=sys.stderr)
    if len(counts := {int(entrant.ready) for entrant in entrants.values()}) > 1:
        raise SystemExit(f"the networks called {name} differ: they have {counts} parameters")
    steps = {kind: max(1, round(options.seconds / entrant.ask(1)["wall"])) for kind, entrant in entrants.items()}
    rounds = [{kind: entrant.ask(steps[kind]) for kind, entrant in entrants.items()} for _ in range(options.rounds)]
    for entrant in entrants.values():
        entrant.end()
    return {
        kind: [{key: seconds / steps[kind] for key, seconds in times[kind].items()} for times in rounds]
        for kind in entrants
    }


def cell(values: list[float], pattern: str = "{:.2f}") -> str:
    """Return a median with its extremes."""
    return f"{pattern} ({pattern} … {pattern})".format(statistics.median(values), min(values), max(values))


def draw(ratios: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the medians of the wall time's ratios, {row: {kind: ratio}}, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [kind for kind in KINDS if any(kind in row for row in ratios.values())]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.32 * len(ratios) * len(kinds)), layout="constrained")
    for number, kind in enumerate(kinds):
        places = [i + 0.8 * (number - (len(kinds) - 1) / 2) / len(kinds) for i in range(len(ratios))]
        bars = axes.barh(places, [row.get(kind, 0) for row in ratios.values()], 0.8 / len(kinds), label=KINDS[kind])
        axes.bar_label(bars, fmt="{:.2f}", padding=2, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.invert_yaxis()
    axes.set_xlabel("its time a step / ours (above 1: ours is faster)")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", metavar="PATH", default=sys.executable)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--what", nargs="+", choices=("training", "forward"), default=["training", "forward"])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2, help="of a measurement, at least one step")
    parser.add_argument("--shrink", type=int, default=1, help="divisor of the batches, for a quick look")
    parser.add_argument("--chart", type=Path, metavar="PNG", help="draw the ratios as bars")
    options = parser.parse_args()
    ratios: dict[str, dict[str, float]] = {}
    print("| network | step | competitor | ms a step | processor ms | its wall / ours | its processor time / ours |")
    print("|---|---|---|--:|--:|--:|--:|")
    for name, dtype, what in itertools.product(options.networks, options.dtypes, options.what):
        times = measure(name, dtype, what, options)
        for kind, rows in times.items():
            against = times.get("jaxcnn", rows)
            shares = {
                key: [row[key] / our[key] for row, our in zip(rows, against, strict=True)] for key in ("wall", "cpu")
            }
            if kind != "jaxcnn":
                ratios.setdefault(f"{name}, {dtype}, {what}", {})[kind] = statistics.median(shares["wall"])
            spent = [f"{1000 * statistics.median(row[key] for row in rows):.1f}" for key in ("wall", "cpu")]
            cells = [name, f"{dtype}, {what}", KINDS[kind], *spent, cell(shares["wall"]), cell(shares["cpu"])]
            print("|", " | ".join(cells), "|", flush=True)
    if options.chart:
        draw(ratios, options.chart)


if __name__ == "__main__":
    main()
