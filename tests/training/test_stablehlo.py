"""A network exported as a program gives what `predict` gives, for any number of images, without jaxcnn."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import export

from jaxcnn import UserError, cli
from jaxcnn.models import create_model
from jaxcnn.training.stablehlo import write_program
from jaxcnn.training.trained import TrainedModel, open_run
from jaxcnn.weights.files import to_paths, write_safetensors

SMALL = {
    "alexnet": {"small_images": True, "width": 0.125},
    "vgg11": {"small_images": True, "width": 0.125},
    "googlenet": {"small_images": True, "width": 0.25},
    "resnet20": {},
}


def network(name: str, folder: Path, **overrides: Any) -> TrainedModel:
    """Return a small network of 32 pixels and seven classes with random weights."""
    own = SMALL[name] | overrides
    shapes: Any = jax.eval_shape(create_model(name, 7, **own).init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32) ** 2, shapes)
    write_safetensors(file := folder / f"{name}.safetensors", to_paths(variables))
    config = {f"model.overrides.{key}": value for key, value in own.items()}
    return TrainedModel.from_weights(name, file, config | {"data.image_size": 32})


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", SMALL)
def test_every_family_is_exported_for_any_number_of_images(name, tmp_path):
    own = network(name, tmp_path)
    about = json.loads(write_program(own, tmp_path / "x.stablehlo", ["cpu", "cuda", "tpu"]).read_text())
    program = export.deserialize(bytearray((tmp_path / "x.stablehlo").read_bytes()))
    assert list(program.platforms) == about["platforms"] == ["cpu", "cuda", "tpu"]
    for count in (1, 3):
        found = program.call(pictures(count))["probabilities"]
        np.testing.assert_allclose(found, own.outputs(pictures(count))["probabilities"], atol=1e-5)
    assert about["outputs"]["probabilities"]["shape"] == ["n", 7]
    assert about["images"]["shape"] == ["n", 32, 32, 3]


# What the README shows, in a process that cannot import jaxcnn.
WITHOUT = """
import sys
sys.modules["jaxcnn"] = None
import json
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[3], program.call(np.load(sys.argv[2]))["probabilities"])
assert not [name for name in sys.modules if name.startswith(("jaxcnn.", "flax"))]
"""


def test_it_runs_where_jaxcnn_is_not(tmp_path):
    own = network("resnet20", tmp_path)
    folder, file = tmp_path / "run", tmp_path / "own.stablehlo"
    words = ["--model", "resnet20", str(tmp_path / "resnet20.safetensors"), str(folder)]
    assert cli.main(["weights", "import", *words, "--config.data.image_size=32"]) == 0
    assert cli.main(["weights", "export", str(folder), str(file), "--format", "stablehlo", "--platforms", "cpu"]) == 0
    np.save(tmp_path / "images.npy", pictures(5))
    program = [sys.executable, "-c", WITHOUT, file, tmp_path / "images.npy", tmp_path / "out.npy"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(program, check=True, cwd=tmp_path, env=clean)
    predicted = [p.outputs["probabilities"] for p in open_run(folder).predict(pictures(5))]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), predicted, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), own.outputs(pictures(5))["probabilities"], atol=1e-5)


def test_a_network_that_asks_for_the_number_of_images_is_refused(tmp_path, monkeypatch):
    own = network("resnet20", tmp_path)
    monkeypatch.setattr(type(own), "forward", lambda self, variables, images: {"x": images[: len(images)]})
    with pytest.raises(UserError, match="resnet20"):
        write_program(own, tmp_path / "x.stablehlo", ["cpu"])
    assert not (tmp_path / "x.stablehlo").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["x.stablehlo"], "--format"),
        (["x.safetensors", "--format", "stablehlo"], "x.stablehlo"),
        (["x.safetensors", "--platforms", "cpu"], "--platforms"),
        (["x.stablehlo", "--format", "stablehlo", "--platforms", "gpu"], "cuda"),
        (["x.stablehlo", "--format", "stablehlo", "--platforms", "cpu,cpu"], "once"),
        (["x.stablehlo", "--format", "stablehlo", "--config.mesh.data=1"], "config.mesh.data"),
        (["x.stablehlo", "--format", "stablehlo", "--config.data.eval_size=64"], "config.data.eval_size"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_a_line(words, named, capsys):
    assert cli.main(["weights", "export", "none", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
