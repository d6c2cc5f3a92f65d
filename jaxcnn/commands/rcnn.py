"""`jaxcnn rcnn`: train R-CNN's SVMs and box regressions on the features of a fine-tuned classifier.

Run again on the same folder, it goes on where it was. The folder is a run: `jaxcnn evaluate` takes checkpoint 1, which
has the SVMs alone, or 2 with the regressions of boxes, the last one.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxcnn.commands.options import OVERRIDES, Parser, add_config, config_of, count, parse, set_up_jax
from jaxcnn.locations import location
from jaxcnn.safe_files import make_writable


def main(argv: list[str]) -> int:
    """Run the stages that are not done yet, and print what they took."""
    parser = Parser("jaxcnn rcnn", description=__doc__, epilog=OVERRIDES)
    add_config(parser)
    words = "folder of the run, of the stages' results and of the features"
    parser.add_argument("--workdir", metavar="DIR", type=location, required=True, help=words)
    words = "10⁹ bytes that features may take on the disk (default: 100); those of VOC 2007's trainval take about 85"
    parser.add_argument("--cache-gb", metavar="N", type=count, default=100, help=words)
    arguments, overrides = parse(parser, argv)
    config = config_of(arguments, overrides)
    make_writable(arguments.workdir, "--workdir")
    set_up_jax()
    from jaxcnn.rcnn.pipeline import run

    with _progress() as report:
        facts = run(config, arguments.workdir, arguments.cache_gb * 10**9, report)
    print(json.dumps(facts))
    folder = shlex.quote(str(arguments.workdir))
    again = f"go on with `jaxcnn evaluate --workdir {folder} --checkpoint 1,2`"
    print(f"done: {arguments.workdir}/rcnn.json; {again}", file=sys.stderr)
    return 0


@contextmanager
def _progress() -> Iterator[Any]:
    """Report each stage: by a bar on a terminal, else by a line for each tenth."""
    from rich.console import Console
    from rich.progress import Progress

    console, tasks = Console(stderr=True), dict[str, Any]()
    with Progress(console=console, disable=not console.is_terminal) as bar:

        def report(stage: str, done: int, total: int) -> None:
            if console.is_terminal:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage, total=total)
                bar.update(tasks[stage], completed=done)
            elif done * 10 // total > (done - 1) * 10 // total:
                console.print(f"{stage:<10} {done}/{total} images", highlight=False, markup=False, soft_wrap=True)

        yield report
