"""`jaxcnn weights`: other frameworks' weights as a folder that stands for a run, a run's as a file, or made thinner."""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, parse, set_up_jax
from jaxcnn.locations import location, place

Overrides = list[tuple[str, str]]
_FACTORED = ("fc6", "fc7")  # layers of which `svd` makes two, in the order of `model.overrides.fc_ranks`
_PLATFORMS = ("cpu", "cuda", "tpu", "rocm")  # that jax.export knows


def main(argv: list[str]) -> int:
    """Import or export as `argv` says; 0, or an error is raised."""
    parser = Parser("jaxcnn weights", description=__doc__)
    commands = parser.add_subparsers(metavar="import | export | svd", required=True)

    words = (
        "weights of torchvision, of FCN under its authors' names or of a CIFAR ResNet's PyTorch port, or that export "
        "wrote, as a folder like a run's"
    )
    command = commands.add_parser("import", help=words, description=words, epilog=OVERRIDES)
    command.add_argument("--model", metavar="NAME", required=True, help="network of FILE, such as resnet50_tv")
    command.add_argument("--names", metavar="NAMES", type=location, help="names of the classes, one a line")
    command.add_argument("file", metavar="FILE", type=location, help="safetensors or torch's .pth; tensors only")
    command.add_argument(
        "out", metavar="OUT", type=location, help="new folder, which evaluate, predict and init_from take"
    )
    command.set_defaults(do=_import)

    words = "weights of a run's checkpoint, as evaluation uses them, as safetensors or as a program that runs by itself"
    command = commands.add_parser("export", help=words, description=words)
    command.add_argument("workdir", metavar="RUN", type=place, help="folder of the run")
    command.add_argument(
        "file", metavar="FILE", type=location, help="where to write, NAME.safetensors or NAME.stablehlo"
    )
    words = "safetensors (default), or stablehlo: network, weights and normalisation as a program of jax.export"
    command.add_argument("--format", choices=("safetensors", "stablehlo"), default="safetensors", help=words)
    words = "stablehlo: what the program is for, of cpu, cuda, tpu and rocm, joined by commas (default: cpu,cuda,tpu)"
    command.add_argument("--platforms", metavar="NAME,…", type=_platforms, help=words)
    command.add_argument("--checkpoint", metavar="STEP|best|last", default="last", help="which one (default: last)")
    command.set_defaults(do=_export)

    words = "fc6 and fc7 of a detector by their largest singular values, two thin layers each, as a folder like a run's"
    command = commands.add_parser("svd", help=words, description=words)
    command.add_argument("--workdir", metavar="RUN", type=place, required=True, help="folder of a run, or of `import`")
    command.add_argument("--checkpoint", metavar="STEP|best|last", default="last", help="which one (default: last)")
    words = "singular values that are kept of each layer: fc6=1024,fc7=256"
    command.add_argument("--ranks", metavar="LAYER=RANK,…", type=_ranks, required=True, help=words)
    words = "new folder, which evaluate, predict and init_from take"
    command.add_argument("--out", metavar="OUT", type=location, required=True, help=words)
    command.set_defaults(do=_svd)

    arguments, overrides = parse(parser, argv)
    arguments.do(arguments, overrides)
    return 0


def _ranks(text: str) -> dict[str, int]:
    pairs = [entry.partition("=") for entry in text.split(",")]
    ranks = {name: int(rank) for name, _, rank in pairs if rank.isascii() and rank.isdecimal()}
    if len(ranks) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: write LAYER=RANK, each once, such as fc6=1024,fc7=256")
    return ranks


def _svd(arguments: argparse.Namespace, overrides: Overrides) -> None:
    """Write the network with low ranks as a folder; print its errors, and parameters and MACs before and after."""
    out, ranks = arguments.out, arguments.ranks
    _check_new(out)
    set_up_jax()
    import jax

    from jaxcnn.configfile import to_json
    from jaxcnn.papers.cost import layers, total
    from jaxcnn.training.checkpoint import save_variables
    from jaxcnn.training.trained import open_run
    from jaxcnn.weights.low_rank import low_rank

    run = open_run(arguments.workdir, arguments.checkpoint, overrides)
    name, model = run.config.model.name, run.model
    if not hasattr(model, "fc_ranks") or not {*ranks} <= {*_FACTORED}:
        raise UserError(f"{name}, --ranks of {', '.join(ranks)}: they are of {' and '.join(_FACTORED)} of an R-CNN")
    kept = dict(zip(_FACTORED, model.fc_ranks or (0, 0), strict=True)) | ranks
    params, errors = low_rank(jax.device_get(run.variables["params"]), ranks)
    config = run.config.copy_and_resolve_references()
    config.model.overrides["fc_ranks"] = tuple(kept.values())
    thin = model.clone(fc_ranks=tuple(kept.values()))
    with _new_folder(out) as folder:
        (folder / "config.json").write_text(to_json(config) + "\n")
        info = {"step": run.step, "model": name, "num_classes": len(run.input["class_names"]), "input": run.input}
        save_variables(folder, jax.device_get(run.variables) | {"params": params}, info)
    size = (model.image_size, model.image_size, run.input["image_shape"][2])
    before, after = (layers(network, size) for network in (model, thin))
    for layer, error in errors.items():
        print(f"{layer}: rank {ranks[layer]:,}, error of the kernel {error:.2%} (Frobenius norm)")
    for what, attribute in (("parameters", "parameters"), (f"MACs at {size[0]} pixels", "macs")):
        counts = [total(rows, attribute) for rows in (before, after)]
        print(f"{what}: {counts[0]:,} before, {counts[1]:,} after ({counts[1] / counts[0]:.1%})")
    print(f"written: {out}")


def _check_new(out: Path) -> None:
    if out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already: name a new folder for the weights")


def _import(arguments: argparse.Namespace, overrides: Overrides) -> None:
    out: Path = arguments.out
    _check_new(out)
    set_up_jax()
    from jaxcnn.configfile import to_json
    from jaxcnn.training.checkpoint import save_variables
    from jaxcnn.training.state import count_params
    from jaxcnn.training.trained import TrainedModel
    from jaxcnn.weights.files import read_names

    network = TrainedModel.from_weights(arguments.model, arguments.file, overrides)
    name, classes = network.config.model.name, len(network.input["class_names"])
    names = {"class_names": read_names(arguments.names, classes)} if arguments.names else {}
    with _new_folder(out) as folder:
        (folder / "config.json").write_text(to_json(network.config) + "\n")
        info = {"step": 0, "model": name, "num_classes": classes, "input": network.input | names}
        save_variables(folder, network.variables, info)
    params = count_params(network.variables["params"])
    print(f"imported: {out} ({name}, {params:,} parameters, {classes:,} classes)")
    run = shlex.quote(str(out))
    print(f"go on with `jaxcnn predict --workdir {run} IMAGE` or train with --config.init_from={run}", file=sys.stderr)


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Make a folder that becomes `out` once all in it is written, and is removed if not."""
    # An empty folder that is there stays the same one: a shell may stand in it, or a disk be mounted there.
    folder = out / f".{os.getpid()}.tmp" if out.is_dir() else out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; name another") from error
    try:
        yield folder
        if folder.parent == out:
            for entry in sorted(folder.iterdir()):  # checkpoints, then config.json: without it there is no run
                entry.replace(out / entry.name)
        else:
            folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _platforms(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(_PLATFORMS) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: write some of {','.join(_PLATFORMS)}, each once")
    return names


def _export(arguments: argparse.Namespace, overrides: Overrides) -> None:
    file: Path = arguments.file
    if file.suffix != f".{arguments.format}":
        name = file.with_suffix(f".{arguments.format}")
        raise UserError(f"{file}: {arguments.format} is what is written, name it {name} or choose another --format")
    if arguments.format == "stablehlo":
        _export_program(arguments, overrides)
        return
    if arguments.platforms:
        raise UserError("--platforms goes with --format stablehlo: weights alone are of no platform")
    set_up_jax()
    import jax

    from jaxcnn.configfile import to_json
    from jaxcnn.training.trained import open_run
    from jaxcnn.weights.files import to_paths, write_safetensors
    from jaxcnn.weights.torchvision import CAFFE_NAMES, CIFAR_NAMES, NAMES, to_state_dict

    run = open_run(arguments.workdir, arguments.checkpoint, overrides)
    name, variables = run.config.model.name, jax.device_get(run.variables)
    arrays, kind = to_paths(variables), "jaxcnn"
    if name in (*NAMES, *CAFFE_NAMES, *CIFAR_NAMES):
        # With overrides, or with images of another size or channels, it is a network of ours alone.
        with contextlib.suppress(UserError):
            arrays = to_state_dict(name, variables)
            kind = "torchvision" if name in NAMES else "Caffe" if name in CAFFE_NAMES else "PyTorch"
    classes = str(len(run.input["class_names"]))
    about = {"model": name, "format": kind, "num_classes": classes}
    write_safetensors(file, arrays, about | {"config": to_json(run.config), "input": json.dumps(run.input)})
    print(f"exported: {file} ({name}, step {run.step}, {classes} classes, names of {kind})")


def _export_program(arguments: argparse.Namespace, overrides: Overrides) -> None:
    """Write the network as a program; of a config only what changes its arithmetic can be overridden."""
    for key, _ in overrides:
        if key != "dtype" and not key.startswith("model.overrides."):
            raise UserError(
                f"config.{key} is no part of an exported program: leave it out; dtype and model.overrides are"
            )
    set_up_jax()
    from jaxcnn.training.stablehlo import write_program
    from jaxcnn.training.trained import open_run

    run = open_run(arguments.workdir, arguments.checkpoint, overrides)
    platforms = arguments.platforms or ["cpu", "cuda", "tpu"]
    about = write_program(run, arguments.file, platforms)
    what = f"{run.config.model.name}, step {run.step}, {run.config.dtype}, for {', '.join(platforms)}"
    print(f"exported: {arguments.file} ({what}), described in {about}")
