"""`jaxcnn predict`: the five likeliest classes of each image, by a run's network or by published weights."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, parse, set_up_jax
from jaxcnn.safe_files import MAX_JSON, printable, read_bytes

_CHUNK = 64  # images that are in memory and go through the network at once
_DRAWN = 36  # images in a picture


class Network(NamedTuple):
    """What predicts.

    Attributes:
      input: "image_shape", "mean", "std" and "class_names", as a run keeps them; where there is "resize", the shorter
        side in pixels before the crop, images are preprocessed as torchvision does.
    """

    model: Any
    variables: Any
    input: dict[str, Any]


class Result(NamedTuple):
    """An image (H, W, C) with the probabilities of the classes (classes,), or the error."""

    path: Path
    image: Any = None
    probabilities: Any = None
    error: str = ""


def main(argv: list[str]) -> int:
    """Predict as `argv` says; an unreadable image is reported, the rest go on, and the exit code is 2."""
    parser = Parser("jaxcnn predict", description=__doc__, epilog=OVERRIDES)
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="JPEG, PNG, WebP … files")
    parser.add_argument("--workdir", metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument("--checkpoint", metavar="STEP|best|last", help="which one of the run (default: last)")
    parser.add_argument("--model", metavar="NAME", help="network of --weights, such as resnet50_tv")
    parser.add_argument("--weights", metavar="FILE", type=Path, help="torchvision's .safetensors or .pth, or a run")
    parser.add_argument("--names", metavar="FILE", type=Path, help="names of the classes, one a line")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute type (default: the run's or float32)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, of broken images too")
    parser.add_argument("--save", metavar="PNG", type=Path, help="draw the images with their classes")
    parser.add_argument("--explain", metavar="PNG", type=Path, help="draw what speaks for the first class (Grad-CAM)")
    arguments, overrides = parse(parser, argv)
    _check(arguments, overrides)

    set_up_jax()
    network = _open(arguments, overrides)
    if arguments.names:
        network.input["class_names"] = read_names(arguments.names, network.model.num_classes)
    drawn, shown = [], 0
    for result in _results(network, arguments.images):
        _print(result, network.input["class_names"], arguments.json)
        shown += not result.error
        if not result.error and (arguments.save or arguments.explain) and len(drawn) < _DRAWN:
            drawn.append(result)
    if drawn:
        _draw(network, drawn, arguments.save, arguments.explain, shown)
    return 0 if shown == len(arguments.images) else 2


def _check(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    """Refuse what does not go together; a folder given as --weights becomes the --workdir that it is."""
    workdir, weights = arguments.workdir, arguments.weights
    if workdir and weights:
        raise UserError("--workdir DIR or --weights FILE, not both: which network is to predict?")
    if not workdir and not weights:
        raise UserError("no network: give --workdir DIR, a run's folder, or --model NAME --weights FILE")
    if workdir and arguments.model:
        raise UserError("--model NAME goes with --weights FILE: a run's folder knows its network")
    if weights and arguments.checkpoint:
        raise UserError("--checkpoint goes with --workdir DIR: --weights has but one set of weights")
    pictures = [out for out in (arguments.save, arguments.explain) if out]
    if len({out.resolve() for out in pictures}) < len(pictures):
        raise UserError(f"--save and --explain would both write {arguments.save}")
    for out in pictures:
        if out.suffix.lower() != ".png":
            raise UserError(f"{out}: pictures are written as PNG, name it {out.with_suffix('.png')}")
        if out.resolve() in {path.resolve() for path in arguments.images}:
            raise UserError(f"{out} is one of the images: name another file to write")
    if weights and weights.is_dir():
        arguments.workdir, arguments.weights = weights, None
    elif weights and not arguments.model:
        raise UserError("--weights FILE needs --model NAME, such as resnet50_tv: the file does not say")
    elif weights and overrides:
        raise UserError(f"--config.{overrides[0][0]} goes with --workdir DIR: --weights FILE has no config")


def _open(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> Network:
    import jax

    if arguments.weights:
        network = _published(arguments.model, arguments.weights, arguments.dtype or "float32")
    else:
        from jaxcnn.training.trained import open_run

        dtype = [("dtype", arguments.dtype)] if arguments.dtype else []
        run = open_run(arguments.workdir, arguments.checkpoint or "last", [*overrides, *dtype])
        if arguments.model not in (None, run.config.model.name):
            raise UserError(f"{arguments.workdir} holds {run.config.model.name}, not {arguments.model}")
        network = Network(run.model, run.variables, dict(run.input))
    # One device does: a run's variables are on all, and each would compute the same.
    return network._replace(variables=jax.device_put(network.variables, jax.local_devices()[0]))


def _published(name: str, file: Path, dtype: str) -> Network:
    """The network of torchvision's weights for our model `name`; ImageNet's names where there are 1,000 classes."""
    import jax
    import jax.numpy as jnp

    from jaxcnn.data.sources.imagenet import class_names
    from jaxcnn.models import create_model
    from jaxcnn.weights.entries import check_finite
    from jaxcnn.weights.files import read_state_dict
    from jaxcnn.weights.inputs import input_of
    from jaxcnn.weights.torchvision import from_state_dict

    variables = from_state_dict(name, read_state_dict(file))
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), variables)  # files may keep 16 bits
    check_finite(variables)  # XLA's ReLU on a CPU takes a NaN for 0: the output does not tell
    classes = len(variables["params"]["head"]["bias"])
    names = class_names() if classes == 1000 else tuple(map(str, range(classes)))
    return Network(create_model(name, classes, jnp.dtype(dtype)), variables, input_of(name, names))


def read_names(path: Path, classes: int) -> tuple[str, ...]:
    """The names of the classes in `path`, one a line.

    Raises:
      UserError: there are not as many as `classes`, or the file cannot be read.
    """
    try:
        names = read_bytes(path, MAX_JSON).decode("utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        reason = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        raise UserError(f"cannot read the names {path}: {reason}") from error
    if len(names) != classes:
        raise UserError(f"{path} has {len(names)} lines, but the network {classes} classes: one name a line is due")
    return tuple(printable(name.strip()) for name in names)


def _results(network: Network, paths: list[Path]) -> Iterator[Result]:
    """The results in the order of `paths`: read, computed and let go of in chunks of one size, by one program."""
    from jaxcnn.training.trained import classifier

    probabilities = classifier(network.model, network.input)
    size = min(len(paths), _CHUNK)
    for start in range(0, len(paths), size):
        results = [_read(path, network.input) for path in paths[start : start + size]]
        images = np.zeros((size, *network.input["image_shape"]), np.uint8)  # zeros where there is no image
        for i, result in enumerate(results):
            if not result.error:
                images[i] = result.image
        if all(result.error for result in results):
            yield from results
            continue
        for result, row in zip(results, np.asarray(probabilities(network.variables, images)), strict=False):
            if result.error or np.isfinite(row).all():
                yield result._replace(probabilities=row)
            else:
                yield result._replace(
                    error=f"the network's output for {result.path} is not finite: are its weights whole?"
                )


def _printable(path: Path) -> str:
    """The path as text that can be drawn: bytes that are no UTF-8 become �."""
    return os.fsencode(path).decode(errors="replace")


def _read(path: Path, input: dict[str, Any]) -> Result:
    from jaxcnn.data.images.crop import read_image

    try:
        return Result(path, image=read_image(path, input["image_shape"], input.get("resize")))
    except UserError as error:
        return Result(path, error=str(error))


def _print(result: Result, names: tuple[str, ...], as_json: bool) -> None:
    if result.error:
        print(f"jaxcnn: {printable(result.error)}", file=sys.stderr)
        if as_json:
            print(json.dumps({"image": str(result.path), "error": result.error}))
        return
    top = [
        {"class": names[i], "index": int(i), "probability": float(result.probabilities[i])}
        for i in np.argsort(-result.probabilities, kind="stable")[:5]
    ]
    words = ", ".join(f"{t['class']} {t['probability']:.1%}" for t in top)
    print(json.dumps({"image": str(result.path), "top5": top}) if as_json else f"{result.path}: {words}")


def _draw(network: Network, drawn: list[Result], save: Path | None, explain: Path | None, shown: int) -> None:
    """Write the pictures asked for."""
    from jaxcnn.figures.overlays import heat_cards, top5_cards

    names, titles = network.input["class_names"], [_printable(result.path) for result in drawn]
    images, probabilities = np.stack([r.image for r in drawn]), np.stack([r.probabilities for r in drawn])
    first = f" (the first {len(drawn)} of {shown} images)" if shown > len(drawn) else ""
    for out in filter(None, (save, explain)):
        out.parent.mkdir(parents=True, exist_ok=True)
    if save:
        top5_cards(images, titles, probabilities, names, save)
        print(f"predictions: {save}{first}", file=sys.stderr)
    if explain:
        best = np.argmax(probabilities, axis=-1)
        captions = [f"{names[i]} {row[i]:.0%}" for i, row in zip(best, probabilities, strict=True)]
        heat_cards(images, titles, _heat(network, images, best), captions, explain)
        print(f"explanations: {explain}{first}", file=sys.stderr)


def _heat(network: Network, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Grad-CAM of uint8 images (N, H, W, C) for classes (N,) -> float32 (N, H, W)."""
    import jax

    from jaxcnn.data.images.augment_device import normalize
    from jaxcnn.models.grad_cam import grad_cam

    @jax.jit
    def heat(variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        normalized = normalize(images, network.input["mean"], network.input["std"])
        return grad_cam(network.model, variables, normalized, classes)

    return np.asarray(heat(network.variables, images, classes))
