"""`jaxcnn predict`: the five likeliest classes of each image, by a run's network."""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

from jaxcnn import UserError
from jaxcnn.commands.common import OVERRIDES, parse, set_up_jax


def main(argv: list[str]) -> int:
    """Predict as `argv` says; an unreadable image is reported, the rest go on, and the exit code is 2."""
    parser = argparse.ArgumentParser("jaxcnn predict", description=__doc__, epilog=OVERRIDES)
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="JPEG, PNG, WebP … files")
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="folder of the run")
    parser.add_argument("--checkpoint", metavar="STEP|best|last", default="last", help="which one (default: last)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--save", metavar="PNG", type=Path, help="draw the images with their classes")
    arguments, overrides = parse(parser, argv)

    set_up_jax()
    from jaxcnn.commands.run import open_run
    from jaxcnn.data.decode import read_image

    run = open_run(arguments.workdir, arguments.checkpoint, overrides)
    names = run.input["class_names"]
    images, paths = [], []
    for path in arguments.images:
        try:
            images.append(read_image(path, run.input["image_shape"]))
            paths.append(path)
        except UserError as error:
            print(f"jaxcnn: {error}", file=sys.stderr)
    if not images:
        return 2
    probabilities = run.probabilities(np.stack(images))
    for path, row in zip(paths, probabilities, strict=True):
        top = [{"class": names[i], "probability": float(row[i])} for i in np.argsort(-row, kind="stable")[:5]]
        words = ", ".join(f"{t['class']} {t['probability']:.1%}" for t in top)
        print(json.dumps({"image": str(path), "top5": top}) if arguments.json else f"{path}: {words}")
    if arguments.save:
        from jaxcnn.analysis.plots import prediction_grid

        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        prediction_grid(
            np.stack(images), None, probabilities, names, arguments.save, side=math.isqrt(len(images) - 1) + 1
        )
        print(f"predictions: {arguments.save}", file=sys.stderr)
    return 0 if len(paths) == len(arguments.images) else 2
