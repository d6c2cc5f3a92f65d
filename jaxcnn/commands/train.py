"""`jaxcnn train`: train a network from an experiment file, or on a data set by a default recipe.

Run again on the same folder, it resumes.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from jaxcnn.commands import options
from jaxcnn.commands.data_common import source_name
from jaxcnn.commands.options import OVERRIDES, Parser, add_config, add_hosts, config_of, parse, set_up_jax, team_of
from jaxcnn.locations import Address, place


def main(argv: list[str]) -> int:
    """Train as `argv` says; 0 when done, 130 or 143 when stopped by Ctrl-C or SIGTERM after saving."""
    parser = Parser("jaxcnn train", description=__doc__, epilog=OVERRIDES)
    words = "a data set, such as folder:photos, by a default recipe, which is printed; `jaxcnn new` writes it as a file"
    add_config(parser).add_argument("--data", metavar="SOURCE", help=words)
    parser.add_argument("--model", metavar="NAME", help="with --data: the network (default: by the task)")
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
    if arguments.model and not arguments.data:
        parser.error("--model goes with --data; with a config write --config.model.name=NAME")
    config = None if arguments.data else config_of(arguments, overrides)

    from jaxcnn.data import batches
    from jaxcnn.distributed.interrupt import Interrupted

    # Signals are handled from here on: loading JAX takes a while.
    with team_of(arguments, stops=True) as team, team.interrupt() as interrupt:
        set_up_jax(devices=False)  # The folder's lock comes before the memory of a GPU.
        from jaxcnn.training import run_log
        from jaxcnn.training.train import dry_run, train

        config = config or _by_recipe(arguments.data, arguments.model or "", overrides, says=team.process == 0)
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


def _by_recipe(data: str, model: str, overrides: list[tuple[str, str]], says: bool) -> Any:
    """Return the config of the default recipe with `overrides`, and print the recipe where this process `says` so."""
    from jaxcnn.config import validate
    from jaxcnn.configfile import set_key
    from jaxcnn.training.recipe import default_recipe

    data_dir = dict(overrides).get("data.dir", "")
    data = source_name(data, data_dir)
    recipe = default_recipe(data, model, data_dir)
    if says:
        file = f"`jaxcnn new {shlex.quote(data)}{f' --model {model}' if model else ''} > my.py`"
        head = f"recipe     the default; {file} writes it as a file to go on from"
        print("\n           ".join([head, *recipe.lines()]), file=sys.stderr)
    config = recipe.config()
    if "steps" in dict(overrides):
        config.epochs = 0.0  # a length in steps replaces that of the recipe
    for key, text in overrides:
        set_key(config, key, text)
    validate(config)
    return config
