"""`jaxcnn predict`: the likeliest classes of image files, by a run's folder alone or by published weights."""

import json
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

import jaxcnn
from jaxcnn import UserError, cli
from jaxcnn.config import base_config
from jaxcnn.data.images.decode import read_image
from jaxcnn.data.sources import make_source
from jaxcnn.models import create_model
from jaxcnn.training import trained
from jaxcnn.training.predicting import whole
from jaxcnn.training.sharding import make_mesh
from jaxcnn.training.trained import TrainedModel
from jaxcnn.weights.files import read_names, write_safetensors
from jaxcnn.weights.torchvision import to_state_dict

PHOTOS = [str(Path(sklearn.datasets.__file__).parent / "images" / f"{name}.jpg") for name in ("china", "flower")]


@pytest.fixture
def digit(tmp_path) -> Any:
    """`digit(i)`: the path of a PNG of test digit i."""

    def save(i: int) -> str:
        path = tmp_path / f"{i}.png"
        Image.fromarray(make_source("digits", "test")[i]["image"][..., 0]).save(path)
        return str(path)

    return save


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_image_gets_five_classes_of_falling_probability(workdir, digit, capsys):
    paths = [digit(i) for i in range(3)]
    assert cli.main(["predict", "--workdir", str(workdir), "--json", *paths]) == 0
    found = objects(capsys.readouterr().out)
    assert [o["image"] for o in found] == paths
    for o in found:
        probabilities = [t["probability"] for t in o["top5"]]
        assert len({t["class"] for t in o["top5"]} & set("0123456789")) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-6


def test_a_folder_stands_for_its_images_by_name(workdir, digit, tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.png", "a.PNG", ".hidden.png", "deeper/c.png"):
        (folder / name).write_bytes(Path(digit(0)).read_bytes())
    (folder / "notes.txt").write_text("no image")
    assert cli.main(["predict", "--workdir", str(workdir), "--json", digit(1), str(folder)]) == 0
    found = [o["image"] for o in objects(capsys.readouterr().out)]
    assert found == [digit(1), str(folder / "a.PNG"), str(folder / "b.png")]


def test_a_folder_without_images_is_refused(workdir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(["predict", "--workdir", str(workdir), str(tmp_path / "empty")]) == 2
    assert "empty has no image (.jpg" in capsys.readouterr().err


def test_python_says_what_the_command_says_of_files_and_of_their_pixels(workdir, digit, capsys):
    paths = [digit(i) for i in range(3)]
    assert cli.main(["predict", "--workdir", str(workdir), "--json", *paths]) == 0
    printed, run = objects(capsys.readouterr().out), jaxcnn.open_run(workdir)
    predictions = run.predict(paths)
    assert [{"image": p.name, **p.summary} for p in predictions] == printed
    pixels = [np.asarray(Image.open(path)) for path in paths]
    assert [p.summary for p in run.predict(pixels)] == [p.summary for p in predictions]


def test_it_says_what_evaluation_counted(workdir, digit, capsys):
    """The share of right answers over many files is the run's top-1: same preprocessing, same weights."""
    source = make_source("digits", "test")
    paths = [digit(i) for i in range(len(source))]
    assert cli.main(["predict", "--workdir", str(workdir), "--json", *paths]) == 0
    guesses = [o["top5"][0]["class"] for o in objects(capsys.readouterr().out)]
    right = np.mean([guess == str(source[i]["label"]) for i, guess in enumerate(guesses)])
    assert cli.main(["evaluate", "--workdir", str(workdir)]) == 0
    assert right == pytest.approx(objects(capsys.readouterr().out)[-1]["eval/top1"], abs=0.003)


def test_a_broken_image_is_reported_and_the_rest_go_on(workdir, digit, tmp_path, capsys):
    (broken := tmp_path / "broken.png").write_text("no image")
    missing = tmp_path / "missing.png"
    words = ["predict", "--workdir", str(workdir), str(broken), digit(0), str(missing)]
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == [str(tmp_path / "0.png")]
    assert [str(path) in line for path, line in zip((broken, missing), err.splitlines(), strict=True)] == [True, True]


def test_it_draws_what_it_says(workdir, digit, tmp_path, capsys):
    out = tmp_path / "new" / "drawn.png"
    assert cli.main(["predict", "--workdir", str(workdir), "--save", str(out), digit(0), digit(1)]) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10


@pytest.mark.parametrize("resize", [None, 12])
@pytest.mark.parametrize("size", [(40, 20), (13, 30), (16, 16)])
def test_the_part_that_is_framed_is_what_the_network_sees(resize, size, tmp_path):
    ramp = np.add.outer(3.0 * np.arange(size[0]), 2.0 * np.arange(size[1])) + 20  # a plane: resizing keeps its means
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "ramp.png")
    network = SimpleNamespace(input={"image_shape": (8, 8, 1)} | ({"resize": resize} if resize else {}))
    pixels, (top, left, height, width) = whole(network, tmp_path / "ramp.png")
    given = read_image(tmp_path / "ramp.png", (8, 8, 1), resize)
    assert pixels.shape == (*size, 1)
    centre = 20 + 3 * (top + height / 2 - 0.5) + 2 * (left + width / 2 - 0.5)
    assert given.mean() == pytest.approx(centre, abs=6)
    assert height / width == pytest.approx(1, rel=0.05)  # the resized image has whole pixels


def test_a_large_photograph_is_drawn_smaller_with_the_same_part(tmp_path):
    Image.fromarray(np.zeros((600, 1280), np.uint8)).save(tmp_path / "large.png")
    pixels, part = whole(SimpleNamespace(input={"image_shape": (8, 8, 1)}), tmp_path / "large.png")
    assert pixels.shape == (300, 640, 1)
    assert part == pytest.approx((0, 170, 300, 300))


def test_many_images_are_drawn_as_a_square_not_as_a_row(workdir, digit, tmp_path, capsys):
    out = tmp_path / "many.png"
    assert cli.main(["predict", "--workdir", str(workdir), "--save", str(out), *(digit(i) for i in range(70))]) == 0
    with Image.open(out) as picture:
        assert 0.5 < picture.width / picture.height < 2
    assert "many.png (the first 36 of 70 images)" in capsys.readouterr().err


def test_it_needs_no_data_set(workdir, digit, capsys, monkeypatch):
    def gone(*args, **kwargs):
        raise AssertionError("the data set was opened")

    path = digit(0)
    monkeypatch.setattr("jaxcnn.data.sources.make_source", gone)
    assert cli.main(["predict", "--workdir", str(workdir), path]) == 0
    assert capsys.readouterr().out.startswith(path)


def test_a_folder_that_is_no_run_is_refused(tmp_path, digit, capsys):
    assert cli.main(["predict", "--workdir", str(tmp_path), digit(0)]) == 2
    assert "config.json does not exist" in capsys.readouterr().err


def test_json_has_a_line_for_every_image_in_order_whatever_the_chunk(workdir, digit, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty.png").touch()
    (tmp_path / "words.png").write_text("no image")
    broken = [str(tmp_path / name) for name in ("empty.png", "words.png", "missing.png")]
    paths = [digit(0), broken[0], digit(1), digit(2), *broken, digit(3), digit(0), broken[1]]

    def run(chunk: int) -> list[dict[str, Any]]:
        monkeypatch.setattr(trained, "_CHUNK", chunk)
        assert cli.main(["predict", "--workdir", str(workdir), "--json", *paths]) == 2
        out, err = capsys.readouterr()
        assert [line for line in err.splitlines() if "cannot read" not in line] == []
        assert len(err.splitlines()) == 5
        return objects(out)

    chunked, whole = run(3), run(64)
    assert [o["image"] for o in chunked] == [o["image"] for o in whole] == paths
    assert ["error" in o for o in chunked] == [path in broken for path in paths]
    for a, b in zip(chunked, whole, strict=True):
        assert a.get("error") == b.get("error")
        assert [t["index"] for t in a.get("top5", [])] == [t["index"] for t in b.get("top5", [])]


class Means:
    """A network whose logits are an image's mean colours over its variables."""

    def apply(self, variables: Any, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        return {"logits": images.mean(axis=(1, 2)) / variables}


def test_numbers_that_are_none_are_an_error_not_a_class(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 255)).save(tmp_path / "image.png")
    given = {"image_shape": [4, 4, 3], "mean": [0.0] * 3, "std": [1.0] * 3, "class_names": ["r", "g", "b"]}
    for divisor, error in ((1.0, ""), (0.0, f"the network's output for {tmp_path}/image.png is not finite")):
        model: Any = Means()
        network = TrainedModel(model, np.float32(divisor), base_config(), 0, given, make_mesh(), "means")
        (result,) = network.predictions([tmp_path / "image.png"])
        assert result.error.startswith(error)
        assert bool(result.error) == bool(error)


def test_a_run_may_ask_for_torchvisions_preprocessing(tmp_path):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 15:25] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    given = {"image_shape": [8, 8, 3], "mean": [0.0] * 3, "std": [1.0] * 3, "class_names": ["r", "g", "b"]}
    model: Any = Means()
    networks = [
        TrainedModel(model, np.float32(1), base_config(), 0, given | more, make_mesh(), "means")
        for more in ({}, {"resize": 16})
    ]
    fitted, cropped = (network.predict(tmp_path / "wide.png").image for network in networks)
    assert fitted.mean() < 150 < cropped.mean()
    assert (cropped == read_image(tmp_path / "wide.png", (8, 8, 3), resize=16)).all()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "no network: give --workdir DIR"),
        ("--workdir RUN --weights FILE --model resnet18", "not both"),
        ("--workdir RUN --model resnet18", "--model NAME goes with --weights"),
        ("--weights FILE", "cannot read the weights"),
        ("--weights FILE --model resnet18 --checkpoint 3", "--checkpoint goes with --workdir"),
        ("--weights FILE --model resnet18 --config.seed=3", "--config.seed goes with --workdir"),
        ("--weights FILE --model resnet18", "cannot read the weights"),
        ("--weights RUN --model resnet18", "holds tiny, not resnet18"),
        ("--workdir RUN --save a.png --explain ./b/../a.png", "would both write"),
        ("--workdir RUN --save ./image.png", "is one of the images"),
        ("--workdir RUN --explain a.txt", "a.txt"),
        ("--workdir RUN --dtype int8", "predict: argument --dtype: invalid choice"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(workdir, tmp_path, capsys, words, told):
    words = words.replace("RUN", str(workdir)).replace("FILE", str(tmp_path / "none.pth"))
    assert cli.main(["predict", *words.split(), "image.png"]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines()), told in err) == ("", 1, True)


def test_a_folder_of_weights_is_a_run(workdir, digit, capsys):
    outputs = []
    for words in (["--workdir", str(workdir)], ["--weights", str(workdir), "--dtype", "float32"]):
        assert cli.main(["predict", *words, digit(0)]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_names_are_one_a_line_and_as_many_as_classes(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufefftabby cat\nhen \n", encoding="utf-8")
    assert read_names(path, 2) == ("tabby cat", "hen")
    with pytest.raises(UserError, match="has 2 lines, but the network 3 classes"):
        read_names(path, 3)
    path.write_bytes(b"\xff\xfe\x00")
    for bad in (path, tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(UserError, match="cannot read the names"):
            read_names(bad, 2)


def entry(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """One entry of a state dict, as in tests/golden; the head is small, so that no class takes all."""
    normal = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(normal)
    if key.endswith(("running_mean", "bias")):
        return 0.1 * normal
    if len(shape) == 1:
        return 1 + 0.1 * normal
    return normal * np.float32(np.sqrt(2 / np.prod(shape[1:])) / (20 if key == "fc.weight" else 1))


@pytest.fixture(scope="session")
def state_dict() -> dict[str, np.ndarray]:
    """A ResNet-18 of torchvision's, drawn from seeds."""
    init = create_model("resnet18").init
    shapes: Any = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))
    empty = to_state_dict("resnet18", jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes))
    return {key: entry(key, array.shape) for key, array in empty.items()}


def test_published_weights_say_what_they_say_in_torchvision(state_dict, tmp_path, capsys):
    """torchvision 0.29.1 in float64: resnet18 of these weights on the photographs by its ImageClassification preset."""
    write_safetensors(tmp_path / "resnet18.safetensors", state_dict)
    words = ["--model", "resnet18", "--weights", str(tmp_path / "resnet18.safetensors"), "--json", *PHOTOS]
    drawn, explained = tmp_path / "drawn.png", tmp_path / "new" / "explained.png"
    assert cli.main(["predict", *words, "--save", str(drawn), "--explain", str(explained)]) == 0
    china, flower = objects(capsys.readouterr().out)
    expected = [0.028847, 0.022704, 0.020061, 0.016215, 0.007922]
    assert [t["index"] for t in china["top5"]] == [419, 545, 910, 335, 502]
    assert [t["probability"] for t in china["top5"]] == pytest.approx(expected, rel=1e-3)
    assert [t["class"] for t in flower["top5"]] == ["electric fan", "Band Aid", "wooden spoon", "fox squirrel", "clog"]
    for path in (drawn, explained):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 1000

    (tmp_path / "names.txt").write_text("\n".join(f"${i}_{{" for i in range(1000)))  # no formulas, for matplotlib
    assert cli.main(["predict", *words, "--names", str(tmp_path / "names.txt"), "--save", str(drawn)]) == 0
    assert objects(capsys.readouterr().out)[0]["top5"][0]["class"] == "$419_{"


def test_published_weights_that_are_not_finite_are_refused_though_the_output_is_finite(state_dict, tmp_path, capsys):
    kernel = state_dict["layer1.0.conv1.weight"].copy()
    kernel[0, 0, 0, 0] = np.nan
    write_safetensors(tmp_path / "nan.safetensors", {**state_dict, "layer1.0.conv1.weight": kernel})
    words = ["predict", "--model", "resnet18", "--weights", str(tmp_path / "nan.safetensors"), "image.png"]
    assert cli.main(words) == 2
    assert "not finite (1): params/stage1_block1/conv1/kernel" in capsys.readouterr().err


def test_classes_without_names_are_numbers_and_sixteen_bits_are_widened(state_dict, tmp_path):
    fewer = {key: array[:7] if key.startswith("fc.") else array for key, array in state_dict.items()}
    write_safetensors(tmp_path / "half.safetensors", {k: v.astype(np.float16) for k, v in fewer.items()})
    network = TrainedModel.from_weights("resnet18", tmp_path / "half.safetensors", {"dtype": "bfloat16"})
    model: Any = network.model
    assert network.input["class_names"] == tuple("0123456")
    assert (model.num_classes, model.dtype) == (7, jax.numpy.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(network.variables)} == {np.dtype(np.float32)}


class TestFeatures:
    def test_they_are_the_means_of_the_endpoint_in_the_order_of_the_images(self, tmp_path):
        network = drawn_resnet(tmp_path)
        pixels = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)  # more than a chunk
        paths = [str(tmp_path / f"{70 - i}.png") for i in range(70)]
        for path, image in zip(paths, pixels, strict=True):
            Image.fromarray(image).save(path)
        words = ["--weights", network, "--model", "resnet20", "--features", "stage3", "--out", str(tmp_path / "f.npz")]
        assert cli.main(["predict", *words, *paths]) == 0
        saved = np.load(tmp_path / "f.npz")
        opened = TrainedModel.from_weights("resnet20", network)
        stage3 = opened.model.apply(opened.variables, opened.normalize(pixels))["stage3"]  # type: ignore[index]
        assert saved["names"].tolist() == paths
        assert saved["features"].dtype == np.float32
        np.testing.assert_allclose(saved["features"], np.asarray(stage3).mean((1, 2)), rtol=1e-4, atol=1e-6)

    def test_they_are_written_where_the_user_says(self, workdir, digit, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        words = ["predict", "--workdir", str(workdir), "--features", "logits", digit(0)]
        assert cli.main([*words, "--out", "~/home.npz"]) == 0
        assert cli.main([*words, "--out", f"file://{tmp_path}/address.npz"]) == 0
        assert sorted(path.name for path in tmp_path.glob("**/*.npz")) == ["address.npz", "home.npz"]
        assert not (tmp_path / "~").exists()

    def test_a_broken_image_keeps_its_row(self, workdir, digit, tmp_path, capsys):
        (broken := tmp_path / "broken.png").write_text("no image")
        paths, out = [digit(0), str(broken), digit(1)], tmp_path / "new" / "f.npz"
        assert cli.main(["predict", "--workdir", str(workdir), "--features", "logits", "--out", str(out), *paths]) == 2
        assert str(broken) in capsys.readouterr().err
        saved = np.load(out)
        assert np.isnan(saved["features"]).all(1).tolist() == [False, True, False]
        assert [bool(error) for error in saved["errors"]] == [False, True, False]
        assert saved["names"].tolist() == paths

    def test_an_unknown_endpoint_lists_them(self, tmp_path, digit, capsys):
        words = ["--weights", drawn_resnet(tmp_path), "--model", "resnet20", "--features", "stage9"]
        assert cli.main(["predict", *words, "--out", str(tmp_path / "f.npz"), "none.png"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert all(name in line for name in ("stage9", "stem", "stage1", "stage2", "stage3", "logits"))
        assert not (tmp_path / "f.npz").exists()

    @pytest.mark.parametrize(
        ("words", "named"),
        [
            (["--features", "stem"], "--out"),
            (["--out", "f.npz"], "--features"),
            (["--features", "stem", "--out", "f.csv"], "f.npz"),
            (["--features", "stem", "--out", "f.npz", "--json"], "--json"),
            (["--features", "stem", "--out", "f.npz", "--save", "a.png"], "--save"),
        ],
    )
    def test_what_does_not_go_together(self, workdir, words, named, capsys):
        assert cli.main(["predict", "--workdir", str(workdir), "a.png", *words]) == 2
        assert named in capsys.readouterr().err

    def test_nothing_readable_writes_nothing(self, workdir, tmp_path, capsys):
        words = ["--workdir", str(workdir), "--features", "logits", "--out", str(tmp_path / "f.npz"), "none.png"]
        assert cli.main(["predict", *words]) == 2
        assert "none.png" in capsys.readouterr().err
        assert not (tmp_path / "f.npz").exists()


def drawn_resnet(folder: Path) -> str:
    """Return a file of random weights of ResNet-20 for ten classes."""
    shapes: Any = jax.eval_shape(create_model("resnet20", 10).init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.01, 0.1, x.shape).astype(np.float32), shapes)
    write_safetensors(folder / "resnet20.safetensors", to_state_dict("resnet20", variables))
    return str(folder / "resnet20.safetensors")
