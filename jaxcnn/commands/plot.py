"""`jaxcnn plot`: draw the loss and error curves of one or several runs into one PNG."""

from pathlib import Path

from jaxcnn import UserError
from jaxcnn.commands.options import Parser


def main(argv: list[str]) -> int:
    """Plot as `argv` says, and print a line with the best and the last score of each run."""
    parser = Parser("jaxcnn plot", description=__doc__)
    parser.add_argument("workdir", metavar="DIR", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", metavar="PNG", type=Path, default=Path("curves.png"), help="default: curves.png")
    arguments = parser.parse_args(argv)

    from jaxcnn.training.run_log import read_metrics

    runs = {}
    for workdir in {path.resolve(): path for path in arguments.workdir}.values():
        lines = read_metrics(workdir / "metrics.jsonl")
        if not lines:
            raise UserError(f"{workdir} holds no metrics.jsonl with a line in it: is it the folder of a run?")
        name = next(str(p) for p in (workdir.name, workdir, workdir.resolve()) if str(p) and str(p) not in runs)
        runs[name] = lines

    from jaxcnn.figures.runs import curves

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    curves(runs, arguments.out)
    width = max(map(len, runs))
    for name, lines in runs.items():
        scores = [(line["eval/top1"], line["step"]) for line in lines if "eval/top1" in line]
        words = "not evaluated yet"
        if scores:
            (best, best_step), (last, last_step) = max(scores), scores[-1]
            words = f"best top-1 {best:.2%} at step {best_step:,}, last {last:.2%} at step {last_step:,}"
        print(f"{name:<{width}}  {words}")
    print(f"curves: {arguments.out}")
    return 0
