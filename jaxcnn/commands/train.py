"""`jaxcnn train`: train a network from an experiment file; run again on the same folder, it resumes."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, add_config, config_of, parse, set_up_jax
from jaxcnn.commands.several import ENDS, add_hosts, end_at_once, team_of

_OF_HOST = ("data.dir", "data.workers", "data.prefetch")  # keys that may differ from process to process


def main(argv: list[str]) -> int:
    """Train as `argv` says; 0 when done, 130 or 143 when stopped by Ctrl-C or SIGTERM after saving."""
    parser = Parser("jaxcnn train", description=__doc__, epilog=OVERRIDES)
    add_config(parser)
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="folder of the run")
    add_hosts(parser)
    arguments, overrides = parse(parser, argv)
    config = config_of(arguments, overrides)
    workdir: Path = arguments.workdir

    from jaxcnn.data import read_ahead
    from jaxcnn.distributed.interrupt import Interrupt, Interrupted

    with team_of(arguments) as team, Interrupt(team.stop) as interrupt, _one_run(team, config, workdir):
        set_up_jax(config)
        import jax.numpy as jnp

        from jaxcnn.data.batches import Slice
        from jaxcnn.data.dataset import Dataset
        from jaxcnn.models import create_model
        from jaxcnn.training.loop import train

        data = Dataset(config, Slice(team.process, team.processes))
        model = create_model(config.model.name, data.num_classes, jnp.dtype(config.dtype), **config.model.overrides)
        try:
            result = train(config, workdir, model, data, team.agree(interrupt))
        except Interrupted as stop:
            if team.process == 0:
                print(f"jaxcnn: {stop}; run the same command again to go on", file=sys.stderr)
            return stop.code
        finally:
            if read_ahead.LEFT_BEHIND:
                ENDS.append(end_at_once)
    if team.process == 0:
        _print_result(workdir, result)
    return 0


@contextmanager
def _one_run(team: Any, config: Any, workdir: Path) -> Iterator[None]:
    """Process 0 holds the folder for all; they must see the same folder and have the same config."""
    from jaxcnn.configfile import check_resume, to_json
    from jaxcnn.distributed.interrupt import only_trainer

    if team.process == 0:
        with only_trainer(workdir):
            check_resume(config, workdir)
            team.tell({"config": to_json(config), "lock": (workdir / ".lock").read_text()})
            yield
        return
    told = team.tell()
    mine, theirs = json.loads(to_json(config)), json.loads(told["config"])
    for key in mine:
        if mine[key] != theirs.get(key) and key not in _OF_HOST:
            raise UserError(f"config.{key} is {mine[key]!r} here and {theirs.get(key)!r} in process 0: they must agree")
    for _ in range(100):  # a file system on the network may need its time
        if (workdir / ".lock").is_file() and (workdir / ".lock").read_text() == told["lock"]:
            break
        time.sleep(0.1)
    else:
        raise UserError(f"--workdir {workdir} is not the folder of process 0: all hosts must see the same one")
    yield


def _print_result(workdir: Path, result: dict[str, Any]) -> None:
    keys = (
        "step", "epoch", "train/loss", "eval/loss", "eval/top1", "eval/top5", "eval/examples",
        "images_per_sec", "wall_time_s",
    )  # fmt: skip
    print(json.dumps({key: result.get(key) for key in keys}))
    print(
        f"done: {workdir}/result.json; go on with `jaxcnn evaluate --workdir {workdir}` or `jaxcnn plot {workdir}`",
        file=sys.stderr,
    )
