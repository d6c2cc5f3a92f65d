"""`jaxcnn weights`: published weights as a folder that the other commands take, and a run's weights as a file."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors
import sklearn.datasets

from jaxcnn import cli
from jaxcnn.models import create_model
from jaxcnn.training.trained import open_run
from jaxcnn.weights.files import exported, network_of_file, read_state_dict, to_paths, write_safetensors
from jaxcnn.weights.torchvision import to_state_dict

PHOTO = str(Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg")
CLASSES = 5


def drawn(name: str, side: int, classes: int = CLASSES, **overrides: Any) -> Any:
    """Variables of a network, of small numbers that differ."""
    init = create_model(name, classes, **overrides).init
    shapes: Any = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), np.float32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.01, 0.02, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return to_state_dict("resnet18", drawn("resnet18", 224))


@pytest.fixture(scope="module")
def published(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "resnet18.safetensors"
    write_safetensors(path, state)
    return path


@pytest.fixture(scope="module")
def imported(published) -> Path:
    """A folder made of `published`, not to be written to."""
    out = published.with_name("imported")
    assert cli.main(["weights", "import", "--model", "resnet18", str(published), str(out)]) == 0
    return out


@pytest.fixture
def refused(capsys) -> Any:
    """`refused(*words)`: the one line on stderr."""

    def refuse(*words: Any) -> str:
        capsys.readouterr()
        assert cli.main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        return line

    return refuse


def test_an_imported_folder_predicts_as_the_file_does(imported, published, capsys):
    outputs = []
    for words in (
        ["--workdir", imported], ["--workdir", imported, "--checkpoint", "best"],
        ["--weights", imported, "--model", "resnet18"], ["--weights", published, "--model", "resnet18"],
    ):  # fmt: skip
        assert cli.main(["predict", *map(str, words), "--json", PHOTO]) == 0
        outputs.append(json.loads(capsys.readouterr().out)["top5"])
    assert outputs[0] == outputs[1] == outputs[2] == outputs[3]
    assert {t["class"] for t in outputs[0]} == set("01234")


def test_what_is_exported_is_what_was_imported_bit_for_bit(imported, state, tmp_path, capsys):
    out = tmp_path / "back.safetensors"
    assert cli.main(["weights", "export", str(imported), str(out)]) == 0
    back = read_state_dict(out)
    assert back.keys() == state.keys()
    assert all(back[key].tobytes() == state[key].tobytes() for key in state)
    with safetensors.safe_open(out, framework="numpy") as opened:
        about = opened.metadata() or {}
    assert {k: about[k] for k in ("model", "format", "num_classes")} == {
        "model": "resnet18", "format": "torchvision", "num_classes": "5",
    }  # fmt: skip


def test_an_imported_folder_evaluates_and_says_where_the_data_does_not_fit(imported, refused, capsys):
    words = ["evaluate", "--workdir", str(imported), "--config.data.image_size=32", "--config.global_batch_size=16"]
    assert cli.main([*words, "--config.data.name=synthetic:5:48"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["model"] == "resnet18"
    assert scores["eval/examples"] > 0
    assert "5 classes, 7 there" in refused(*words, "--config.data.name=synthetic:7:48")
    grey = [*words, "--config.data.name=digits", "--config.data.mean=", "--config.data.std="]
    assert "imported takes images of 3 channels (colour)" in refused(*grey)


def test_images_of_another_shape_than_the_weights_are_told(tmp_path, refused, capsys):
    source = tmp_path / "ours.safetensors"
    write_safetensors(source, to_paths(drawn("resnet20", 32, 10)))
    assert cli.main(["weights", "import", "--model", "resnet20", str(source), str(tmp_path / "out")]) == 0
    grey = ["--config.data.name=digits", "--config.data.mean=", "--config.data.std=", "--config.data.image_size=0"]
    line = refused("evaluate", "--workdir", tmp_path / "out", *grey)
    assert "3 channels (colour)" in line
    assert "1 channel (grey)" in line


def test_names_of_classes_can_be_given(published, tmp_path, refused, capsys):
    (names := tmp_path / "names.txt").write_text("ant\nbee\ncow\ndog\nelk\n")
    words = ["weights", "import", "--model", "resnet18", "--names", str(names), str(published)]
    assert cli.main([*words, str(tmp_path / "out")]) == 0
    assert open_run(tmp_path / "out", "last", []).input["class_names"] == ["ant", "bee", "cow", "dog", "elk"]
    names.write_text("ant\n")
    assert "has 1 lines, but the network 5 classes" in refused(*words, tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["names.txt", "out"]


def test_a_segmentation_network_comes_in_with_vocs_classes_and_goes_out_as_it_was(tmp_path, capsys):
    published, out, back = tmp_path / "fcn.safetensors", tmp_path / "out", tmp_path / "back.safetensors"
    state = to_state_dict("fcn_resnet50_tv", drawn("fcn_resnet50_tv", 32, 21))
    write_safetensors(published, state)
    assert cli.main(["weights", "import", "--model", "fcn_resnet50_tv", str(published), str(out)]) == 0
    assert "fcn_resnet50_tv, 35,322,218 parameters, 21 classes" in capsys.readouterr().out
    run = open_run(out, "last", [])
    assert (run.config.task.name, run.config.data.min_size) == ("segmentation", 520)
    assert (run.input["min_size"], run.input["class_names"][15]) == (520, "person")
    assert cli.main(["weights", "export", str(out), str(back)]) == 0
    assert "names of torchvision" in capsys.readouterr().out
    for key, value in read_state_dict(back).items():
        np.testing.assert_array_equal(value, state[key])


def test_another_size_keeps_the_share_of_the_image_that_is_seen(published, tmp_path, capsys):
    words = ["weights", "import", "--model", "resnet18", str(published), str(tmp_path / "out")]
    assert cli.main([*words, "--config.data.image_size=112", "--config.data.mean=0.5,0.5,0.5"]) == 0
    kept = open_run(tmp_path / "out", "last", []).input
    assert (kept["image_shape"], kept["resize"], kept["mean"]) == ([112, 112, 3], 128, [0.5] * 3)
    assert kept["std"] == [0.229, 0.224, 0.225]


def test_a_network_of_ours_goes_out_and_comes_in_with_its_input(workdir, tmp_path, capsys):
    """The moving average of the run, which evaluation uses, under our own names."""
    file, out = tmp_path / "tiny.safetensors", tmp_path / "out"
    assert cli.main(["weights", "export", str(workdir), str(file), "--checkpoint", "20"]) == 0
    assert cli.main(["weights", "import", "--model", "tiny", str(file), str(out)]) == 0
    capsys.readouterr()
    before, after = open_run(workdir, "20", []), open_run(out, "last", [])
    assert read_state_dict(file).keys() == to_paths(before.variables).keys()
    for a, b in zip(jax.tree.leaves(before.variables), jax.tree.leaves(after.variables), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert after.input == before.input
    scores = []
    for words in (["--workdir", str(workdir), "--checkpoint", "20"], ["--workdir", str(out)]):
        assert cli.main(["evaluate", *words]) == 0
        scores.append(json.loads(capsys.readouterr().out.splitlines()[-1])["eval/loss"])
    assert scores[0] == scores[1]


def test_what_an_exported_file_knows_is_not_ignored(workdir, tmp_path, refused):
    """Of two networks with the same arrays, too; a module of the user's own is recorded by its class."""
    file, damaged = tmp_path / "tiny.safetensors", tmp_path / "damaged.safetensors"
    assert cli.main(["weights", "export", str(workdir), str(file)]) == 0
    line = refused("predict", "--model", "tiny2", "--weights", file, PHOTO)
    assert "holds tiny, not tiny2" in line
    assert "says that it holds tiny" in refused("weights", "import", "--model", "resnet2000", file, tmp_path / "out")
    assert network_of_file(file, "module:tiny") == "module:tiny"
    assert exported(file, 10)[1]["class_names"] == [str(digit) for digit in range(10)]
    with safetensors.safe_open(file, "numpy") as opened:
        about = opened.metadata() | {"input": "{}"}
    write_safetensors(damaged, read_state_dict(file), about)
    assert "metadata" in refused("predict", "--model", "tiny", "--weights", damaged, PHOTO)


def test_an_exported_file_names_its_network_but_no_module_to_execute(workdir, tmp_path, refused, capsys):
    file, other = tmp_path / "tiny.safetensors", tmp_path / "module.safetensors"
    assert cli.main(["weights", "export", str(workdir), str(file)]) == 0
    assert cli.main(["weights", "import", str(file), str(tmp_path / "out")]) == 0
    assert "(tiny, " in capsys.readouterr().out
    assert cli.main(["predict", "--weights", str(file), PHOTO]) == 0
    with safetensors.safe_open(file, "numpy") as opened:
        about = opened.metadata()
    config = json.loads(about["config"]) | {"model.name": "evil:Net"}
    write_safetensors(other, read_state_dict(file), about | {"config": json.dumps(config)})
    (tmp_path / "evil.py").write_text("raise SystemExit(7)")
    assert "evil:Net" in refused("predict", "--weights", other, PHOTO)


def test_a_file_that_does_not_name_its_network_needs_a_name_that_is_one(published, tmp_path, refused):
    assert "does not say" in refused("predict", "--weights", published, PHOTO)
    line = refused("weights", "import", "--model", "resnet19", published, tmp_path / "out")
    assert "resnet18" in line
    assert len(line) < 300  # the nearest names, not all of them


def test_lightnings_checkpoint_is_imported_and_what_is_beside_the_network_said(state, imported, tmp_path, capsys):
    file, out = tmp_path / "model.safetensors", tmp_path / "out"
    write_safetensors(file, {"criterion.weight": np.ones(5)} | {f"model.{key}": state[key] for key in state})
    capsys.readouterr()
    assert cli.main(["weights", "import", "--model", "resnet18", str(file), str(out)]) == 0
    assert "criterion.weight" in capsys.readouterr().err.splitlines()[0]
    for a, b in zip(*(jax.tree.leaves(open_run(run).variables) for run in (imported, out)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_form_that_torchvision_has_not_keeps_our_names(tmp_path, capsys):
    source, out, back = tmp_path / "small.safetensors", tmp_path / "out", tmp_path / "back.safetensors"
    write_safetensors(source, to_paths(drawn("resnet18", 32, small_images=True)))
    small = ["--config.model.overrides.small_images=True", "--config.data.image_size=32"]
    assert cli.main(["weights", "import", "--model", "resnet18", str(source), str(out), *small]) == 0
    assert cli.main(["weights", "export", str(out), str(back)]) == 0
    assert read_state_dict(back).keys() == read_state_dict(source).keys()
    assert "names of jaxcnn" in capsys.readouterr().out
    assert cli.main(["weights", "import", "--model", "resnet18", str(back), str(tmp_path / "again")]) == 0


class Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("import pathlib; pathlib.Path(PATH).write_text('executed')",))


def test_a_malicious_file_is_refused_and_nothing_is_executed(tmp_path, refused):
    witness = tmp_path / "witness"
    poison = pickle.dumps({"fc.bias": Bomb()}, protocol=2).replace(b"PATH", repr(str(witness)).encode())
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
        archive.writestr("archive/data.pkl", poison)
    assert "only tensors are read" in refused(
        "weights", "import", "--model", "resnet18", tmp_path / "bad.pth", tmp_path / "out"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pth"]


def test_a_failed_import_leaves_nothing_behind(state, published, imported, tmp_path, refused):
    def fails(change: dict[str, Any], *words: str, model: str = "resnet18") -> str:
        write_safetensors(tmp_path / "file.safetensors", state | change)
        line = refused("weights", "import", "--model", model, tmp_path / "file.safetensors", tmp_path / "out", *words)
        assert [p.name for p in tmp_path.iterdir()] == ["file.safetensors"]
        return line

    assert "extra (1): more" in fails({"more": np.zeros(1)})
    assert "not finite (1): params/stage1_block1/norm1/scale" in fails(
        {"layer1.0.bn1.weight": np.full(64, np.nan, "f")}
    )
    assert "do not fit resnet34: missing (80): layer1.2.conv1.weight" in fails({}, model="resnet34")
    assert "resnet50 is our resnet50_tv" in fails({}, model="resnet50")
    assert "params/stem_conv/kernel (7, 7, 3, 64) where (3, 3, 3, 64) is due" in fails(
        {}, "--config.model.overrides.small_images=True"
    )
    assert "did you mean 'data.image_size'" in fails({}, "--config.data.imagesize=3")
    assert "no such file" in refused("weights", "import", "--model", "resnet18", tmp_path / "none", tmp_path / "out")


def test_a_folder_that_is_there_is_left_alone(published, imported, tmp_path, refused, capsys):
    for there in (imported, published):
        assert "is there already" in refused("weights", "import", "--model", "resnet18", published, there)
    (tmp_path / "empty").mkdir()
    assert cli.main(["weights", "import", "--model", "resnet18", str(published), str(tmp_path / "empty")]) == 0


def test_only_safetensors_is_written(imported, tmp_path, refused):
    assert "name it " in refused("weights", "export", imported, tmp_path / "out.pth")
    assert "No such file" in refused("weights", "export", imported, tmp_path / "none" / "out.safetensors")
    assert not list(tmp_path.iterdir())


EXPERIMENT = """
from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.model.name = "resnet18"
    config.data.name = "synthetic:CLASSES:16"
    config.dtype = "float32"
    config.global_batch_size = 8
    config.steps = 1
    config.data.image_size = 32
    return config
"""


@pytest.mark.slow
def test_training_starts_from_an_imported_folder(imported, published, tmp_path, refused, capsys):
    (same := tmp_path / "same.py").write_text(EXPERIMENT.replace("CLASSES", "5"))
    (more := tmp_path / "more.py").write_text(EXPERIMENT.replace("CLASSES", "7"))

    def words(experiment: Path, source: Path, *overrides: str) -> list[str]:
        run = tmp_path / f"run_{experiment.stem}"
        return ["train", "--config", str(experiment), "--workdir", str(run), f"--config.init_from={source}", *overrides]

    assert cli.main(words(same, imported)) == 0
    assert "weights import --model NAME" in refused(*words(more, published))
    assert "has 5 classes, this run 7: config.reset_head=True" in refused(*words(more, imported))
    assert cli.main(words(more, imported, "--config.reset_head=True")) == 0
    assert f"the head starts afresh: 5 classes in {imported}, 7 here" in capsys.readouterr().err
