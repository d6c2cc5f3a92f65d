"""`jaxcnn new`: write a commented experiment for a data set, to go on from: jaxcnn new folder:photos > my.py.

It gives the config that `jaxcnn train --data SOURCE` takes. The images' sizes are read, and nothing is trained.
"""

from jaxcnn.commands.data_common import source_name
from jaxcnn.commands.options import Parser


def main(argv: list[str]) -> int:
    """Print an experiment for the data set that `argv` names."""
    parser = Parser("jaxcnn new", description=__doc__)
    parser.add_argument(
        "data", metavar="SOURCE", help="a data set, such as folder:photos; see `jaxcnn config data.name`"
    )
    parser.add_argument("--model", metavar="NAME", default="", help="a name of `jaxcnn models` (default: by the task)")
    parser.add_argument("--data-dir", metavar="DIR", default="", help="folder of TFDS data sets")
    arguments = parser.parse_args(argv)

    from jaxcnn.training.recipe import default_recipe

    name = source_name(arguments.data, arguments.data_dir)
    print(default_recipe(name, arguments.model, arguments.data_dir).experiment(), end="")
    return 0
