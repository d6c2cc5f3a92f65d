"""`jaxcnn train`: train a network from an experiment file; run again on the same folder, it resumes."""

import json
import shlex
import sys
from pathlib import Path

from jaxcnn.commands import options
from jaxcnn.commands.options import OVERRIDES, Parser, add_config, add_hosts, config_of, parse, set_up_jax, team_of
from jaxcnn.locations import Address, place


def main(argv: list[str]) -> int:
    """Train as `argv` says; 0 when done, 130 or 143 when stopped by Ctrl-C or SIGTERM after saving."""
    parser = Parser("jaxcnn train", description=__doc__, epilog=OVERRIDES)
    add_config(parser)
    parser.add_argument(
        "--workdir", metavar="DIR", type=place, help="folder of the run, or an address such as gs://BUCKET/RUN"
    )
    words = "compile, print the config, optimizer groups, steps, shapes and memory, and stop: nothing is written"
    parser.add_argument("--dry-run", action="store_true", help=words)
    add_hosts(parser)
    arguments, overrides = parse(parser, argv)
    workdir: Path | Address = arguments.workdir
    if not workdir and not arguments.dry_run:
        parser.error("the following arguments are required: --workdir")
    config = config_of(arguments, overrides)

    from jaxcnn.data import batches
    from jaxcnn.distributed.interrupt import Interrupted

    # Signals are handled from here on: loading JAX takes a while.
    with team_of(arguments, stops=True) as team, team.interrupt() as interrupt:
        set_up_jax(devices=False)  # The folder's lock comes before the memory of a GPU.
        from jaxcnn.training import run_log
        from jaxcnn.training.train import dry_run, train

        if arguments.dry_run:
            text = dry_run(config)
        else:
            try:
                result = train(config, workdir, team=team, interrupt=interrupt)
            except Interrupted as stop:
                if team.process == 0:
                    print(f"jaxcnn: {stop}; run the same command again to go on", file=sys.stderr)
                return stop.code
            finally:
                if batches.LEFT_BEHIND:
                    options.ENDS.append(options.end_at_once)
            text = json.dumps(run_log.headline(result))
    if team.process == 0:
        print(text)
        if not arguments.dry_run:
            run = shlex.quote(str(workdir))
            again = f"go on with `jaxcnn evaluate --workdir {run}` or `jaxcnn plot {run}`"
            print(f"done: {workdir}/result.json; {again}", file=sys.stderr)
    return 0
