"""The recipes of experiments/GUIDE.md run as they are written, one after the other, on drawn images and weights."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcnn.models import create_model
from jaxcnn.training.trained import open_run
from jaxcnn.weights.files import to_paths, write_safetensors
from jaxcnn.weights.torchvision import to_state_dict

ROOT = Path(__file__).parents[1]
CLASSES = ("amber", "blue")


def blocks() -> list[tuple[str, str]]:
    """Return (language, text) of each block of the section."""
    section = (ROOT / "experiments" / "GUIDE.md").read_text().split("\n## Recipes\n")[1].split("\n## ")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)


def test_there_are_blocks_for_the_shell_and_for_python():
    assert [language for language, _ in blocks()] == ["sh", "sh", "python", "sh", "python"]


def draw(folder: Path) -> None:
    """Draw photos/{train,val}/CLASS/… of two colours, and write a ResNet-18 of ImageNet's classes as its file."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for channel, name in zip((0, 2), CLASSES, strict=True):
            (place := folder / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (240, 320, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(place / f"{i}.jpg", quality=92)
    init = create_model("resnet18").init
    variables = jax.jit(init)(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    write_safetensors(folder / "resnet18.pth", to_state_dict("resnet18", jax.device_get(variables)))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run all blocks in a folder of their own, with `jaxcnn` on the path; return the folder and what each printed."""
    folder = tmp_path_factory.mktemp("recipes")
    draw(folder)
    (folder / "experiments").symlink_to(ROOT / "experiments")
    (command := folder / "bin" / "jaxcnn").parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m jaxcnn.cli "$@"\n')
    command.chmod(0o755)
    surroundings = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "XLA_FLAGS": ""}
    printed = []
    for language, text in blocks():
        words = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-W", "error", "-c", text]
        result = subprocess.run(words, cwd=folder, env=surroundings, capture_output=True, text=True)
        assert result.returncode == 0, text + result.stderr
        printed.append(result.stdout)
    return folder, printed


def arrays(run: Path) -> dict[str, Any]:
    return to_paths(jax.device_get(open_run(run).variables))


@pytest.mark.slow
def test_fine_tuning_moves_what_it_says_and_scores(done):
    folder, printed = done
    before, frozen, slower = (arrays(folder / "runs" / name) for name in ("resnet18", "frozen", "slower"))
    kernels = [key for key in before if key.endswith("kernel") and "head" not in key]
    assert len(kernels) == 20
    assert all(np.array_equal(before[key], frozen[key]) for key in kernels)
    assert all(not np.array_equal(before[key], slower[key]) for key in kernels)
    assert json.loads((folder / "runs" / "frozen" / "result.json").read_text())["eval/top1"] == 1  # two colours
    assert json.loads(printed[0].splitlines()[-1])["eval/examples"] == 8


@pytest.mark.slow
def test_the_features_tell_the_colours_apart(done):
    folder, printed = done
    saved = np.load(folder / "train.npz")
    assert saved["features"].shape == (16, 512)
    assert printed[2] == "linear probe: 100.00%\n"


@pytest.mark.slow
def test_the_program_says_what_predict_says(done):
    folder, printed = done
    files = sorted((folder / "photos" / "val").glob("*/*"))
    lines = [line.split() for line in printed[4].splitlines()]
    assert [Path(line[0]) for line in lines] == [file.relative_to(folder) for file in files]
    predictions = open_run(folder / "runs" / "slower", overrides={"dtype": "float32"}).predict(files)
    for line, prediction in zip(lines, predictions, strict=True):
        best = prediction.summary["top5"][0]
        assert line[1] == best["class"]
        assert float(line[2].rstrip("%")) / 100 == pytest.approx(
            best["probability"], abs=0.05
        )  # Pillow resizes and crops in one step
