"""`jaxcnn plot`: draw the loss and error curves of one or several runs into one PNG.

Finished runs that differ in their seed alone are one curve, their mean, with a band of ± their standard deviation.
"""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxcnn import UserError, stores
from jaxcnn.commands.compare import groups, read_run
from jaxcnn.commands.options import Parser, picture
from jaxcnn.locations import place


def main(argv: list[str]) -> int:
    """Plot as `argv` says, and print a line with the best and the last score of each run."""
    parser = Parser("jaxcnn plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", metavar="DIR", nargs="+", type=place, help="folders of runs")
    parser.add_argument("--out", metavar="PNG", type=picture, default=Path("curves.png"), help="default: curves.png")
    arguments = parser.parse_args(argv)

    from jaxcnn.figures.curves import curves
    from jaxcnn.training.run_files import read_metrics

    runs, tasks, about = {}, {}, []
    for workdir in {path.resolve(): path for path in arguments.workdir}.values():
        with stores.opened(workdir) as folder:
            lines, task = read_metrics(folder / "metrics.jsonl"), _task_of(folder)
            name = next(str(p) for p in (workdir.name, workdir, workdir.resolve()) if str(p) and str(p) not in runs)
            with suppress(UserError):  # A run without its config.json is drawn, too, by itself.
                about.append(read_run(folder, name))
        if not lines:
            raise UserError(f"{workdir} holds no metrics.jsonl with a line in it: is it the folder of a run?")
        runs[name], tasks[name] = lines, task

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # Runs of several tasks share the axes of the scores that they share.
    scores = {score.name: score for task in tasks.values() for score in task.headline}
    seeds = [[run.name for run in group] for group in groups(about) if len(group) > 1]
    curves(runs, list(scores.values()), arguments.out, seeds)
    width = max(map(len, runs))
    for name, lines in runs.items():
        print(f"{name:<{width}}  {_words(tasks[name], lines)}")
    print(f"curves: {arguments.out}")
    return 0


def _task_of(workdir: Path) -> Any:
    """Return the task of a run; the default one where its config.json is missing or of another version."""
    from jaxcnn.config import base_config
    from jaxcnn.configfile import from_json
    from jaxcnn.tasks import create_task

    try:
        return create_task(from_json(workdir / "config.json"))
    except UserError:
        return create_task(base_config())


def _words(task: Any, lines: list[dict[str, Any]]) -> str:
    """Return the best score of a run, of which the last of several, and its last one."""
    name, direction = task.best
    scores = [(line[f"eval/{name}"], line["step"]) for line in lines if f"eval/{name}" in line]
    if not scores:
        return "not evaluated yet"
    sign = 1 if direction == "max" else -1
    best, best_step = max(scores, key=lambda score: (sign * score[0], score[1]))
    last, last_step = scores[-1]
    shown = next((score.format for score in task.headline if score.name == name), f"{name} {{:.4g}}")
    alone = shown[shown.index("{") :]  # the number without the words before it
    return f"best {shown.format(best)} at step {best_step:,}, last {alone.format(last)} at step {last_step:,}"
