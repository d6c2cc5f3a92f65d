"""`jaxcnn weights`: other frameworks' weights as a folder that stands for a run, and a run's weights as a file."""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, parse, set_up_jax

Overrides = list[tuple[str, str]]


def main(argv: list[str]) -> int:
    """Import or export as `argv` says; 0, or an error is raised."""
    parser = Parser("jaxcnn weights", description=__doc__)
    commands = parser.add_subparsers(metavar="import | export", required=True)

    words = "weights of torchvision, or that export wrote, as a folder like a run's"
    command = commands.add_parser("import", help=words, description=words, epilog=OVERRIDES)
    command.add_argument("--model", metavar="NAME", required=True, help="network of FILE, such as resnet50_tv")
    command.add_argument("--names", metavar="NAMES", type=Path, help="file with the names of the classes, one a line")
    command.add_argument("file", metavar="FILE", type=Path, help="safetensors or torch's .pth; tensors only")
    command.add_argument("out", metavar="OUT", type=Path, help="new folder: evaluate, predict and init_from take it")
    command.set_defaults(do=_import)

    words = "weights of a run's checkpoint, as evaluation uses them, as safetensors"
    command = commands.add_parser("export", help=words, description=words)
    command.add_argument("workdir", metavar="RUN", type=Path, help="folder of the run")
    command.add_argument("file", metavar="FILE", type=Path, help="where to write, NAME.safetensors")
    command.add_argument("--checkpoint", metavar="STEP|best|last", default="last", help="which one (default: last)")
    command.set_defaults(do=_export)

    arguments, overrides = parse(parser, argv)
    arguments.do(arguments, overrides)
    return 0


def _import(arguments: argparse.Namespace, overrides: Overrides) -> None:
    out: Path = arguments.out
    if out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already: name a new folder for the weights")
    set_up_jax()
    import jax.numpy as jnp

    from jaxcnn.commands.predict import read_names
    from jaxcnn.configfile import to_json
    from jaxcnn.models import create_model
    from jaxcnn.training.checkpoint import save_variables
    from jaxcnn.training.state import count_params
    from jaxcnn.weights import entries
    from jaxcnn.weights.files import read_state_dict
    from jaxcnn.weights.torchvision import from_state_dict

    arrays = read_state_dict(arguments.file)
    if not any(key.startswith("params/") for key in arrays):  # our own names have it, torch's have no slash
        arrays = entries.to_paths(from_state_dict(arguments.model, arrays))
    bias = arrays.get("params/head/bias")
    classes = len(bias) if bias is not None and bias.ndim == 1 else 1000
    with _new_folder(out) as folder:
        config, given = _config(arguments.file, arguments.model, classes, folder / "config.json", overrides)
        model = create_model(config.model.name, classes, jnp.dtype(config.dtype), **config.model.overrides)
        variables = entries.from_paths(model, given["image_shape"], arrays)
        entries.check_finite(variables)
        if arguments.names:
            given["class_names"] = read_names(arguments.names, classes)
        info = {"step": 0, "model": config.model.name, "num_classes": classes, "input": given}
        (folder / "config.json").write_text(to_json(config) + "\n")
        save_variables(folder, variables, info)
    params = count_params(variables["params"])
    print(f"imported: {out} ({config.model.name}, {params:,} parameters, {classes:,} classes)")
    print(f"go on with `jaxcnn predict --workdir {out} IMAGE` or train with --config.init_from={out}", file=sys.stderr)


def _config(file: Path, name: str, classes: int, path: Path, overrides: Overrides) -> tuple[Any, dict[str, Any]]:
    """The config of the folder to be, and its checkpoint's "input": the file's own where `export` wrote it.

    Else that of torchvision's weights: ImageNet's size, statistics and names. `path` is where the config is to be.
    """
    from jaxcnn.config import SIZES, base_config, height_width
    from jaxcnn.configfile import from_json, to_json
    from jaxcnn.data.sources.imagenet import class_names
    from jaxcnn.weights.inputs import input_of

    text, given = _exported(file, name, classes)
    if not text:
        given = input_of(name, class_names() if classes == 1000 else tuple(map(str, range(classes))))
        config = base_config()
        config.model.name, config.dtype, config.steps = name, "float32", 1
        height, width, _ = given["image_shape"]
        config.data.name = "tfds:imagenet2012"
        config.data.image_size = height if height == width else (height, width)
        config.data.mean, config.data.std = given["mean"], given["std"]
        text = to_json(config)
    path.write_text(text)
    config = from_json(path, overrides)
    keys = {key for key, _ in overrides}
    size = height_width(config.data.eval_size or config.data.image_size)
    if keys & SIZES and size:
        if "resize" in given:  # the crop keeps its share of the image
            given["resize"] = round(given["resize"] * max(size) / max(given["image_shape"][:2]))
        given["image_shape"] = (*size, given["image_shape"][2])
    given |= {leaf: getattr(config.data, leaf) for leaf in ("mean", "std") if f"data.{leaf}" in keys}
    return config, given


def _exported(file: Path, name: str, classes: int) -> tuple[str, dict[str, Any]]:
    """The config and the "input" that `export` wrote into `file`, or ("", {}) where it was not that."""
    import safetensors

    from jaxcnn.safe_files import parse_json
    from jaxcnn.weights.inputs import checked_input

    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            about = opened.metadata() or {}
        given = checked_input(parse_json(about["input"]), classes)
        if parse_json(about["config"])["model.name"] == name:
            return about["config"], given
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError):
        pass
    return "", {}


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` once all in it is written, and is gone if not."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; name another") from error
    try:
        yield folder
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _export(arguments: argparse.Namespace, overrides: Overrides) -> None:
    file: Path = arguments.file
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: safetensors is what is written, name it {file.with_suffix('.safetensors')}")
    set_up_jax()
    import jax

    from jaxcnn.configfile import to_json
    from jaxcnn.training.trained import open_run
    from jaxcnn.weights.entries import to_paths
    from jaxcnn.weights.files import write_safetensors
    from jaxcnn.weights.torchvision import NAMES, to_state_dict

    run = open_run(arguments.workdir, arguments.checkpoint, overrides)
    name, variables = run.config.model.name, jax.device_get(run.variables)
    arrays, kind = to_paths(variables), "jaxcnn"
    if name in NAMES:
        # Overrides, other sizes or channels of images: then it is a network of ours.
        with contextlib.suppress(UserError):
            arrays, kind = to_state_dict(name, variables), "torchvision"
    classes = str(len(variables["params"]["head"]["bias"]))
    about = {"model": name, "format": kind, "num_classes": classes}
    write_safetensors(file, arrays, about | {"config": to_json(run.config), "input": json.dumps(run.input)})
    print(f"exported: {file} ({name}, step {run.step}, {classes} classes, names of {kind})")
