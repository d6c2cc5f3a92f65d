"""`jaxcnn sample`, and what the other commands say of a VAE, on a run of two steps."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxcnn
from jaxcnn import cli
from jaxcnn.config import base_config
from jaxcnn.configfile import set_key

SIDES = (6, 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (80, *SIDES), dtype=np.uint8))
    config = base_config("vae")
    for key, value in {
        "steps": "2", "global_batch_size": "8", "data.name": f"arrays:{folder}/images.npy", "dtype": "float32",
        "model.name": "vae_mlp", "model.overrides.hidden": "(4,)", "model.overrides.latent": "2",
        "task.eval_samples": "3", "task.output_bias": "mean",
    }.items():  # fmt: skip
        set_key(config, key, value)
    jaxcnn.train(config, folder / "run")
    return folder / "run"


def read(picture: Path) -> np.ndarray:
    with Image.open(picture) as image:
        return np.asarray(image)


def sample(run: Path, out: Path, *options: str) -> np.ndarray:
    assert cli.main(["sample", "--workdir", str(run), "--save", str(out), *options]) == 0
    return read(out)


def tiles(picture: np.ndarray, columns: int) -> np.ndarray:
    """A picture cut into its images, (N, 6, 5)."""
    rows = picture.shape[0] // SIDES[0]
    return picture.reshape(rows, SIDES[0], columns, SIDES[1]).swapaxes(1, 2).reshape(-1, *SIDES)


def test_draws_are_a_function_of_the_seed(run, tmp_path, capsys):
    first = sample(run, tmp_path / "a.png", "--grid", "2x3", "--seed", "4")
    assert first.shape == (2 * SIDES[0], 3 * SIDES[1])
    assert "samples: " in capsys.readouterr().out
    np.testing.assert_array_equal(first, sample(run, tmp_path / "b.png", "--grid", "2x3", "--seed", "4"))
    assert (first != sample(run, tmp_path / "b.png", "--grid", "2x3")).any()


def test_training_has_left_a_picture_of_its_own_draws(run):
    assert read(run / "samples" / "00000002.png").shape == (8 * SIDES[0], 8 * SIDES[1])


def test_rows_of_interpolation_go_from_one_draw_to_another_and_truncation_keeps_them_near(run, tmp_path):
    rows = tiles(sample(run, tmp_path / "a.png", "--grid", "3x5", "--interpolate"), 5).reshape(3, 5, -1).astype(int)
    ends = np.abs(rows[:, 0] - rows[:, -1]).sum(-1)
    assert (ends > 0).all()
    steps = np.abs(np.diff(rows, axis=1)).sum(-1)
    assert (steps.sum(1) <= ends + 4 * 30).all()  # no detours, but for rounding
    wide, near = (
        tiles(sample(run, tmp_path / "b.png", *options), 8).astype(float).std(0).mean()
        for options in ((), ("--truncate", "0.1"))
    )
    assert near < wide


def test_reconstructions_lie_under_their_images(run, tmp_path):
    found = tiles(sample(run, tmp_path / "a.png", "--grid", "2x4", "--reconstruct"), 4)
    opened = jaxcnn.open_run(run)
    np.testing.assert_array_equal(found[:4], opened.examples(4)["image"][..., 0])
    expected = opened.outputs(opened.examples(4)["image"])["reconstruction"][..., 0]
    np.testing.assert_allclose(found[4:] / 255, expected, atol=0.5 / 255 + 1e-6)


def test_the_manifold_is_in_equal_steps_of_probability_and_needs_two_latents(run, tmp_path):
    assert sample(run, tmp_path / "a.png", "--grid", "3x3", "--manifold").shape == (18, 15)
    opened = jaxcnn.open_run(run)
    z = np.array([[0, 0]], np.float32)  # the middle one
    middle = opened.task.generate(opened.model, opened.variables, z, (*SIDES, 1))[0, ..., 0]
    np.testing.assert_allclose(tiles(read(tmp_path / "a.png"), 3)[4] / 255, middle, atol=0.01)


def test_predict_gives_mean_logvar_and_bound_and_codes_as_an_array(run, tmp_path, capsys):
    Image.fromarray(np.zeros(SIDES, np.uint8)).save(tmp_path / "x.png")
    image = str(tmp_path / "x.png")
    assert cli.main(["predict", "--workdir", str(run), image, "--json", "--save", str(tmp_path / "pair.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (len(found["mean"]), len(found["logvar"])) == (2, 2)
    assert found["bound"] < 0
    out = str(tmp_path / "codes.npz")
    assert cli.main(["predict", "--workdir", str(run), image, "--features", "mean", "--out", out]) == 0
    np.testing.assert_allclose(np.load(out)["features"], [found["mean"]], rtol=1e-5)


def test_evaluate_writes_the_bounds_of_each_example(run, tmp_path, capsys):
    table = tmp_path / "bounds.csv"
    assert cli.main(["evaluate", "--workdir", str(run), "--predictions", str(table)]) == 0
    found = json.loads(capsys.readouterr().out)
    with open(table, newline="") as file:
        bounds = [float(row["iwae"]) for row in csv.DictReader(file)]
    assert len(bounds) == 8
    assert np.mean(bounds) == pytest.approx(found["eval/iwae"], rel=1e-5)


def test_a_run_without_features_has_no_reference_to_compare_with(run, capsys):
    assert cli.main(["evaluate", "--workdir", str(run), "--reference", "train"]) == 2
    assert "has no features to compare: set --config.task.features=DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--grid", "8"], "ROWSxCOLUMNS"),
        (["--grid", "0x3"], "1 to 100"),
        (["--truncate", "-1"], "a positive number"),
        (["--reconstruct", "--grid", "3x3"], "an even number of rows"),
        (["--reconstruct", "--truncate", "1"], "leave it out"),
        (["--reconstruct", "--grid", "2x50"], "--grid needs 50 images"),
        (["--manifold", "--interpolate"], "not allowed with"),
    ],
)
def test_wrong_use_is_refused_in_words(run, tmp_path, capsys, options, words):
    assert cli.main(["sample", "--workdir", str(run), "--save", str(tmp_path / "x.png"), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_model_of_another_task_is_refused_before_anything_is_read(tmp_path):
    config = base_config("vae")
    config.steps = 1
    with pytest.raises(jaxcnn.UserError, match=r"model resnet20 is for task\.name=classification, not vae"):
        jaxcnn.train(config, tmp_path / "run")
