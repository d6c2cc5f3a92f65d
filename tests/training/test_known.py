"""What weights know, every command honours: the classes by name, the statistics, size and channels of the images."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

import jaxcnn
from jaxcnn import UserError
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.expected import find_classes
from jaxcnn.data.sources import make_source
from jaxcnn.training.initial_state import input_to_start_from, load_variables

CLASSES = ("bée", "cat", "dog")
OWN = (0.5, 0.25, 0.75)  # statistics that no data set has


def write(root: Path, folders: dict[str, str], splits: tuple[str, ...] = ("train", "val")) -> str:
    """Write two images a class; `folders` gives the name of the folder of each class."""
    for split in splits:
        for name, folder in folders.items():
            path = root / split / folder
            path.mkdir(parents=True)
            for i in range(2):
                rng = np.random.default_rng([i, CLASSES.index(name)])
                pixels = rng.integers(0, 100, (12, 12, 3), dtype=np.uint8)
                pixels[..., CLASSES.index(name)] += 120
                Image.fromarray(pixels).save(path / f"{i}.png")
    return f"folder:{root}"


def config(data: str, **values: Any) -> Any:
    small = {"steps": 2, "global_batch_size": 4, "data__name": data, "model__name": "tiny:Tiny"}
    return tiny_config(**small | values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("known")
    data = write(folder / "data", {name: name for name in CLASSES})
    jaxcnn.train(config(data, data__image_size=12, data__mean=OWN, data__std=OWN), folder / "run")
    return folder / "run", data


def test_a_run_that_goes_on_asks_its_newest_sound_checkpoint_and_not_the_weights(trained, tmp_path):
    run, data = trained
    shutil.copytree(run, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "2", checkpoints / "3")
    (checkpoints / "3" / "info" / "metadata").unlink()
    found = input_to_start_from(config(data, init_from=str(tmp_path / "gone")), tmp_path / "run")
    assert tuple(found["class_names"]) == CLASSES


def test_names_are_found_whatever_their_order_and_their_unicode():
    decomposed = unicodedata.normalize("NFD", "bée")
    assert find_classes(CLASSES, ("dog", decomposed), "a", "b") == (2, 0)
    assert find_classes(("0", "1", "2"), CLASSES, "a", "b") == (0, 1, 2), "numbers are no names"
    with pytest.raises(UserError, match="'owl'"):
        find_classes(CLASSES, ("cat", "owl", "dog"), "a", "b")
    with pytest.raises(UserError, match="'cat'"):
        find_classes(CLASSES, ("cat", "cat"), "a", "b")


def test_a_subset_in_another_unicode_form_is_scored_by_the_heads_classes(trained, tmp_path):
    run = trained[0]
    opened = jaxcnn.open_run(run)
    whole = opened.evaluation().rows
    some = write(tmp_path / "some", {"bée": unicodedata.normalize("NFD", "bée"), "dog": "dog"})
    part = opened.evaluation({"data.name": some}).rows
    assert part["label"].tolist() == [0, 0, 2, 2]
    kept = whole["label"] != 1
    np.testing.assert_allclose(part["class_probability"], whole["class_probability"][kept], rtol=1e-5)
    other = write(tmp_path / "other", {"bée": "bée", "cat": "cat", "dog": "owl"})
    with pytest.raises(UserError, match="'owl'"):
        opened.evaluate({"data.name": other})
    with pytest.raises(UserError, match=r"colour.*grey"):
        opened.evaluate({"data.name": "digits"})


def test_classes_without_names_are_said_to_be_taken_by_their_place(trained, tmp_path, capsys):
    numbered = write(tmp_path, {"bée": "0", "cat": "1", "dog": "2"})
    jaxcnn.open_run(trained[0]).evaluate({"data.name": numbered})
    assert "in their order, not by name: '0' is 'bée'" in capsys.readouterr().err
    jaxcnn.open_run(trained[0]).evaluate()
    assert "order" not in capsys.readouterr().err


def test_a_validation_split_may_lack_a_class(trained, tmp_path):
    data = write(tmp_path, {name: name for name in CLASSES})
    shutil.rmtree(tmp_path / "val" / "cat")
    source = make_source(data, "val")
    assert [source.read(i)["label"] for i in range(len(source))] == [0, 0, 2, 2]
    assert jaxcnn.open_run(trained[0]).evaluate({"data.name": data})["eval/examples"] == 4


def start(trained: tuple[Path, str], workdir: Path, data: str, **values: Any) -> dict[str, Any]:
    """Start from the trained run for no step to speak of; return what the new run's checkpoint expects."""
    begin = {"init_from": str(trained[0]), "steps": 1, "optimizer__learning_rate": 1e-12}
    jaxcnn.train(config(data, **begin | values), workdir)
    return jaxcnn.open_run(workdir).input


def test_init_from_takes_the_images_of_the_weights_unless_the_config_sets_its_own(trained, tmp_path, capsys):
    known = jaxcnn.open_run(trained[0]).input
    found = start(trained, tmp_path / "a", trained[1])
    assert found == known
    assert "mean (0.5, 0.25, 0.75)" in capsys.readouterr().err
    own = start(trained, tmp_path / "b", trained[1], data__mean=(0.1, 0.1, 0.1), data__image_size=24)
    assert (own["mean"], own["std"], own["image_shape"]) == ([0.1] * 3, list(OWN), [24, 24, 3])
    assert own["resize"] == 2 * known["resize"], "the crop keeps its share of the image"
    with pytest.raises(UserError, match=r"colour.*grey"):
        start(trained, tmp_path / "c", "digits")


def test_data_that_is_given_is_said_to_differ_from_what_the_weights_expect(trained, tmp_path, capsys):
    values = config(trained[1], init_from=str(trained[0]), steps=1, data__image_size=12)
    jaxcnn.train(values, tmp_path / "a", data=Dataset(values))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if str(trained[0]) in line)
    assert "mean (0.485, 0.456, 0.406), not (0.5, 0.25, 0.75)" in line
    values.data.mean, values.data.std = OWN, OWN
    jaxcnn.train(values, tmp_path / "b", data=Dataset(values))
    assert "warning" not in capsys.readouterr().err


def test_a_folder_with_an_evaluation_split_alone_is_evaluated(trained, tmp_path):
    opened = jaxcnn.open_run(trained[0])
    alone = write(tmp_path, {"cat": "cat", "dog": "dog"}, ("val",))
    rows = opened.evaluation({"data.name": alone}).rows
    assert rows["label"].tolist() == [1, 1, 2, 2]
    whole = opened.evaluation().rows
    np.testing.assert_allclose(rows["class_probability"], whole["class_probability"][2:], rtol=1e-5)
    with pytest.raises(UserError, match="train/CLASS"):
        jaxcnn.train(config(alone, data__image_size=12), tmp_path / "run")


def test_training_whose_evaluation_reads_nothing_ends_in_an_error_saved_and_goes_on_with_it(trained, tmp_path):
    data, sound = write(tmp_path, {name: name for name in CLASSES}), {}
    for file in (tmp_path / "val").rglob("*.png"):
        sound[file] = file.read_bytes()
        file.write_bytes(b"")
    values = config(data, data__image_size=12, data__on_error="skip", eval_every=1)
    for _ in range(2):  # the second time, the evaluation that is due comes first
        with pytest.raises(UserError, match="nothing of folder:"):
            jaxcnn.train(values, tmp_path / "run")
        assert jaxcnn.open_run(tmp_path / "run").step == 1
    for file, content in sound.items():
        file.write_bytes(content)
    result = jaxcnn.train(values, tmp_path / "run")
    assert (result["step"], result["eval/examples"]) == (2, 6)


def test_a_run_resumes_in_files_that_were_moved_to_a_file_system_that_decomposes_names(tmp_path):
    composed = write(tmp_path / "a", {name: unicodedata.normalize("NFC", name) for name in CLASSES})
    decomposed = write(tmp_path / "b", {name: unicodedata.normalize("NFD", name) for name in CLASSES})
    for root, name in (("a", "\u00e9.png"), ("b", "e\u0301.png")):
        for split in ("train", "val"):
            folder = next(f for f in (tmp_path / root / split).iterdir() if f.name not in CLASSES[1:])
            (folder / "0.png").rename(folder / name)
            (folder / "1.png").rename(folder / "f.png")
    sources = [make_source(data) for data in (composed, decomposed)]
    before, after = ([source.read(i)["image"] for i in range(6)] for source in sources)
    assert before == after, "in the same order"
    jaxcnn.train(config(composed, data__image_size=12, steps=1), tmp_path / "run")
    jaxcnn.train(config(decomposed, data__image_size=12, steps=2), tmp_path / "run")
    assert jaxcnn.open_run(tmp_path / "run").step == 2


def test_a_run_resumes_with_what_it_took_though_the_weights_are_gone(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "weights")
    values = {"init_from": str(tmp_path / "weights")}
    start(trained, tmp_path / "run", trained[1], **values)
    shutil.rmtree(tmp_path / "weights")
    jaxcnn.train(config(trained[1], **values | {"steps": 2, "optimizer__learning_rate": 1e-12}), tmp_path / "run")
    assert jaxcnn.open_run(tmp_path / "run").input["mean"] == list(OWN)


@pytest.mark.parametrize(("reset", "said"), [(False, "is kept"), (True, "afresh")])
def test_as_many_classes_of_other_names_are_said(reset, said, trained, tmp_path, capsys):
    other = write(tmp_path / "data", {"bée": "bée", "cat": "cat", "dog": "owl"})
    start(trained, tmp_path / "run", other, reset_head=reset)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "the head" in line)
    assert said in line
    assert "'dog'" in line
    assert "'owl'" in line


def test_a_head_of_the_same_names_in_another_order_follows_them(trained, tmp_path):
    opened = jaxcnn.open_run(trained[0])
    fresh = {key: opened.variables[key] for key in ("params", "batch_stats")}
    names = {"class_names": ("dog", "bée", "cat")}
    loaded, words = load_variables(trained[0], fresh, ("top1", "max"), names)
    best = jaxcnn.open_run(trained[0], "best").variables
    ours, theirs = (np.asarray(tree["params"]["head"]["kernel"]) for tree in (loaded, best))
    np.testing.assert_array_equal(ours, theirs[:, [2, 0, 1]])
    assert "follows" in words


def test_predict_heeds_overrides_of_a_run(trained):
    opened = jaxcnn.open_run(trained[0], overrides={"data.mean": (0.1, 0.2, 0.3), "data.eval_size": 24})
    assert (opened.input["mean"], opened.input["image_shape"]) == ([0.1, 0.2, 0.3], [24, 24, 3])
    assert json.dumps(opened.input)
