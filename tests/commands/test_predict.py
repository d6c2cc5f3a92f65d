"""`jaxcnn predict`: the likeliest classes of image files, by a run's folder alone."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcnn import cli
from jaxcnn.data.sources import make_source


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


def test_many_images_are_drawn_as_a_square_not_as_a_row(workdir, digit, tmp_path):
    out = tmp_path / "many.png"
    assert cli.main(["predict", "--workdir", str(workdir), "--save", str(out), *(digit(i) for i in range(70))]) == 0
    with Image.open(out) as picture:  # 9 columns and 8 rows
        assert 0.5 < picture.width / picture.height < 2


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
