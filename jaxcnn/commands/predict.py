"""`jaxcnn predict`: what images show, or each of their pixels, by a run's network or by published weights."""

import argparse
import io
import json
import math
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, parse, picture, save, set_up_jax
from jaxcnn.locations import location, place
from jaxcnn.safe_files import make_writable, printable, write_atomically

_DRAWN = 36  # images in a picture


def main(argv: list[str]) -> int:
    """Predict as `argv` says; an unreadable image is reported, the rest go on, and the exit code is 2."""
    parser = Parser("jaxcnn predict", description=__doc__, epilog=OVERRIDES)
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", type=location, help="JPEG, PNG, WebP … files, or folders of them"
    )
    parser.add_argument("--workdir", metavar="DIR", type=place, help="folder of the run")
    parser.add_argument("--checkpoint", metavar="STEP|best|last", help="which one of the run (default: last)")
    parser.add_argument("--model", metavar="NAME", help="network of --weights, such as resnet50_tv, if it does not say")
    parser.add_argument("--weights", metavar="FILE", type=location, help="torchvision's .safetensors or .pth, or a run")
    parser.add_argument("--names", metavar="FILE", type=location, help="names of the classes, one a line")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute type (default: the run's or float32)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, of broken images too")
    parser.add_argument("--save", metavar="PNG", type=picture, help="draw the images with what they show")
    words = "of detection: least score of a box (default: 0.5, of R-CNN 0, in pictures and words; --json has all)"
    parser.add_argument("--threshold", metavar="T", type=_score, help=words)
    words = "write the classes of each image's pixels as an index PNG of its size and name; of segmentation"
    parser.add_argument("--masks", metavar="DIR", type=location, help=words)
    parser.add_argument("--explain", metavar="PNG", type=picture, help="draw where the first class is seen (Grad-CAM)")
    words = "write features of the images instead: an endpoint's mean over space, such as stage4; needs --out"
    parser.add_argument("--features", metavar="ENDPOINT", help=words)
    words = "--features: features float32 (N, C), NaN of a broken image; names and errors (N,)"
    parser.add_argument("--out", metavar="NPZ", type=_npz, help=words)
    arguments, overrides = parse(parser, argv)
    arguments.images = [image for path in arguments.images for image in _files(path)]
    _check(arguments, overrides)

    set_up_jax()
    network = _open(arguments, overrides)
    if arguments.threshold is not None:
        network.task.show_from(arguments.threshold)
    if arguments.features:
        return _write_features(network, arguments)
    drawn, shown = [], 0
    if arguments.masks and network.config.task.name != "segmentation":
        raise UserError(f"--masks writes a class for each pixel, and {network.source} gives none: leave it out")
    for prediction in network.predictions(arguments.images):
        _print(prediction, arguments.json)
        if arguments.masks and not prediction.error:
            _write_mask(prediction, arguments.masks)
        shown += not prediction.error
        if not prediction.error and (arguments.save or arguments.explain) and len(drawn) < _DRAWN:
            drawn.append(prediction)
    if drawn:
        first = f" (the first {len(drawn)} of {shown} images)" if shown > len(drawn) else ""
        for what, out, draw in (("predictions", arguments.save, _cards), ("explanations", arguments.explain, _heat)):
            if out:
                save(draw(network, drawn), out)
                print(f"{what}: {out}{first}", file=sys.stderr)
    return 0 if shown == len(arguments.images) else 2


def _files(path: Path) -> list[Path]:
    """Return the images of a folder, sorted by name, without those of the folders in it; anything else as it is."""
    if not path.is_dir():
        return [path]
    from jaxcnn.data.sources.folder import EXTENSIONS

    # Hidden files are none of the user's: macOS leaves one beside each image.
    images = (file for file in path.iterdir() if not file.name.startswith(".") and file.is_file())
    found = sorted(file for file in images if file.suffix.lower() in EXTENSIONS)
    if not found:
        raise UserError(f"{path} has no image ({' '.join(EXTENSIONS)}): give another folder, or files")
    return found


def _check(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    """Refuse what does not go together; a folder given as --weights becomes the --workdir that it is."""
    workdir, weights = arguments.workdir, arguments.weights
    if workdir and weights:
        raise UserError("--workdir DIR or --weights FILE, not both: which network is to predict?")
    if not workdir and not weights:
        raise UserError("no network: give --workdir DIR, a run's folder, or --weights FILE (with --model NAME)")
    if workdir and arguments.model:
        raise UserError("--model NAME goes with --weights FILE: a run's folder knows its network")
    if weights and arguments.checkpoint:
        raise UserError("--checkpoint goes with --workdir DIR: --weights has but one set of weights")
    if (arguments.features is None) != (arguments.out is None):
        raise UserError("--features ENDPOINT and --out NPZ go together: give both, or neither")
    if arguments.features and (arguments.json or arguments.save or arguments.explain or arguments.masks):
        raise UserError("--features writes features alone: leave --json, --save, --explain and --masks out")
    pictures = [out.resolve() for out in (arguments.save, arguments.explain, arguments.out) if out]
    if len(set(pictures)) < len(pictures):
        raise UserError(f"--save and --explain would both write {arguments.save}")
    for path in arguments.images:
        if path.resolve() in pictures:
            raise UserError(f"{path} is one of the images: name another file to write")
    if arguments.masks:
        _check_masks(arguments.images, arguments.masks)
    if weights and weights.is_dir():
        arguments.workdir, arguments.weights = weights, None
    elif weights and overrides:
        raise UserError(f"--config.{overrides[0][0]} goes with --workdir DIR: --weights FILE has no config")


def _check_masks(images: list[Path], folder: Path) -> None:
    """Refuse, before anything is predicted, where masks cannot be written or would replace one another or an image."""
    written: dict[Path, Path] = {}
    for image in images:
        mask = _mask_of(image, folder).resolve()
        if (other := written.setdefault(mask, image)) != image:
            raise UserError(f"{other} and {image} would both be written to {mask}: predict one of them at a time")
        if mask in [path.resolve() for path in images]:
            raise UserError(f"--masks {folder} would replace the image {mask}: name another folder")
    make_writable(folder, "--masks")


def _mask_of(image: Path, folder: Path) -> Path:
    return folder / f"{image.stem}.png"


def _write_mask(prediction: Any, folder: Path) -> None:
    from jaxcnn.data.images.label_maps import write_index_png
    from jaxcnn.figures.overlays import class_colours

    png = write_index_png(prediction.outputs["label_map"], class_colours())
    write_atomically(_mask_of(Path(prediction.name), folder), png)


def _score(text: str) -> float:
    """Return a finite number, for argparse; the task knows whether it has such scores."""
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise argparse.ArgumentTypeError(f"{text!r}: write a score, such as 0.5")


def _npz(text: str) -> Path:
    """Return the path of an .npz to write, for argparse."""
    path = location(text, "--out")
    if path.suffix != ".npz":
        raise argparse.ArgumentTypeError(f"{text}: arrays are written as NPZ, name it {path.with_suffix('.npz')}")
    return path


def _write_features(network: Any, arguments: argparse.Namespace) -> int:
    """Write a row for each image, in their order: of one that cannot be read NaN, and why. 2 if there is such a one."""
    found = list(network.features(arguments.images, arguments.features))
    good = [row for row, prediction in enumerate(found) if not prediction.error]
    for prediction in found:
        if prediction.error:
            print(f"jaxcnn: {printable(prediction.error)}", file=sys.stderr)
    if not good:
        raise UserError(f"no image could be read: {arguments.out} is not written")
    width = len(found[good[0]].outputs["features"])
    rows = np.full((len(found), width), np.nan, np.float32)
    rows[good] = [found[row].outputs["features"] for row in good]
    file = io.BytesIO()
    errors = np.array([prediction.error for prediction in found])
    names = np.array([prediction.name for prediction in found])
    np.savez(file, features=rows, names=names, errors=errors, endpoint=arguments.features)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out, file.getvalue())
    print(f"features: {arguments.out} ({len(good):,} of {len(found):,} images, {width:,} of {arguments.features})")
    return 0 if len(good) == len(found) else 2


def _open(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> Any:
    from jaxcnn.training.trained import TrainedModel, open_run
    from jaxcnn.weights.files import read_names

    if arguments.weights:
        dtype = {"dtype": arguments.dtype or "float32"}
        network = TrainedModel.from_weights(arguments.model, arguments.weights, dtype)
    else:
        dtype = [("dtype", arguments.dtype)] if arguments.dtype else []
        network = open_run(arguments.workdir, arguments.checkpoint or "last", [*overrides, *dtype])
        if arguments.model not in (None, network.config.model.name):
            raise UserError(f"{arguments.workdir} holds {network.config.model.name}, not {arguments.model}")
    if not arguments.names:
        return network
    names = read_names(arguments.names, len(network.input["class_names"]))
    return replace(network, input=network.input | {"class_names": names})


def _print(prediction: Any, as_json: bool) -> None:
    """Print a line for an image; an error goes to stderr, too."""
    if prediction.error:
        print(f"jaxcnn: {printable(prediction.error)}", file=sys.stderr)
    if as_json:
        about = {"error": prediction.error} if prediction.error else prediction.summary
        print(json.dumps({"image": prediction.name, **about}))
    elif not prediction.error:
        print(f"{printable(prediction.name)}: {prediction.text}")


def _titles(drawn: list[Any]) -> list[str]:
    """Return the names as text that can be drawn: bytes that are no UTF-8 become �."""
    return [os.fsencode(prediction.name).decode(errors="replace") for prediction in drawn]


def _cards(network: Any, drawn: list[Any]) -> Any:
    if "top5" in drawn[0].summary:
        return _top5(network, drawn)
    outputs = {key: _together([prediction.outputs[key] for prediction in drawn]) for key in drawn[0].outputs}
    images = _together([prediction.image for prediction in drawn])
    return network.task.draw(images, outputs, network.input["class_names"], _titles(drawn))


def _top5(network: Any, drawn: list[Any]) -> Any:
    """Draw the whole photographs, and what the network has seen of them."""
    from jaxcnn.figures.overlays import top5_cards
    from jaxcnn.training.predicting import whole

    images, boxes = zip(*(whole(network, Path(prediction.name)) for prediction in drawn), strict=True)
    probabilities = np.stack([prediction.outputs["probabilities"] for prediction in drawn])
    return top5_cards(images, _titles(drawn), probabilities, network.input["class_names"], boxes)


def _together(arrays: list[np.ndarray]) -> Any:
    """Return arrays of one shape as one, (N, …); of several, as they are."""
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays


def _heat(network: Any, drawn: list[Any]) -> Any:
    """Draw the images, each beside its Grad-CAM for the likeliest class."""
    from jaxcnn.figures.overlays import heat_cards

    if "top5" not in drawn[0].summary:
        raise UserError("--explain draws what speaks for a class: it goes with runs of classification alone")
    images, top = np.stack([p.image for p in drawn]), [p.summary["top5"][0] for p in drawn]
    heat = network.explain(images, np.array([best["index"] for best in top]))
    captions = [f"{best['class']} {best['probability']:.0%}" for best in top]
    return heat_cards(images, _titles(drawn), heat, captions)
