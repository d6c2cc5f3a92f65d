"""Paths as users write them, and users without a home."""

import argparse
import os
import unicodedata
from pathlib import Path

import pytest

from jaxcnn import UserError
from jaxcnn.commands.options import picture, save
from jaxcnn.configfile import split_argument
from jaxcnn.data.sources import make_source
from jaxcnn.locations import cache_folder, location, place
from jaxcnn.training.trained import TrainedModel


def test_a_path_is_what_its_writer_means(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert location("~/run") == tmp_path / "run"
    assert location("run") == Path("run")
    assert location(".") == Path()
    for text in (f"file://{tmp_path}/a%20b", f"file:{tmp_path}/a%20b", f"FILE://{tmp_path}/a%20b"):
        assert location(text) == tmp_path / "a b"
        assert location(Path(text)) == tmp_path / "a b"  # in which two slashes are one
    (tmp_path / "~").mkdir()
    monkeypatch.chdir(tmp_path)
    assert location("./~") == Path("~")
    assert location("a:b/c") == Path("a:b/c")


@pytest.mark.parametrize("text", ["gs://bucket/run", "s3://bucket/run", "https://example.org/x", "hdfs://name/x"])
def test_an_address_is_refused_and_makes_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for written in (text, Path(text)):
        with pytest.raises(UserError, match=text):
            location(written)
    assert os.listdir() == []


@pytest.mark.parametrize("there", ["NFC", "NFD"])
def test_a_name_with_accents_is_found_in_either_form(there, tmp_path):
    name = unicodedata.normalize(there, "Fußgänger é.jpg")
    (tmp_path / name).touch()
    for form in ("NFC", "NFD"):
        assert location(tmp_path / unicodedata.normalize(form, name)).name == name
    assert location(tmp_path / "é") == tmp_path / "é"  # one to be made


def test_a_home_that_is_none_is_an_error_and_no_folder_of_that_name():
    with pytest.raises(UserError, match="HOME"):
        location("~nobody-of-this-name/run")


def test_a_user_without_a_home_has_no_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as Python answers where there is neither
    assert cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no/home")  # nobody can write there, not even root
    assert cache_folder() is None


@pytest.mark.parametrize(
    ("ending", "start"),
    [
        ("png", b"\x89PNG"), ("JPG", b"\xff\xd8"), ("jpeg", b"\xff\xd8"), ("pdf", b"%PDF"), ("svg", b"<?xml"),
        ("webp", b"RIFF"),
    ],
)  # fmt: skip
def test_a_picture_has_the_format_of_its_ending(ending, start, tmp_path):
    from matplotlib.figure import Figure

    out = picture(f"{tmp_path}/new/x.{ending}")
    save(Figure(figsize=(1, 1)), out)
    assert out.read_bytes().startswith(start)


def test_a_picture_of_another_ending_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match=r"x\.txt"):
        picture("x.txt")


def test_an_experiment_is_found_in_the_home_and_by_its_address(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (file := tmp_path / "e.py").write_text("")
    for text in ("~/e.py", f"file://{file}", str(file)):
        assert split_argument(text) == (file, ())
        assert split_argument(f"{text}:small") == (file, ("small",))


@pytest.mark.parametrize("text", ["https://example.org/a/cat.jpg", "http://example.org/run"])
def test_a_web_address_is_called_one_wherever_a_path_may_stand(text):
    names = [text, f"folder:{text}"]
    reads = [lambda: place(text), lambda: location(text), *(lambda name=name: make_source(name) for name in names)]
    for read in (*reads, lambda: TrainedModel.from_weights("resnet18", text)):
        with pytest.raises(UserError, match=f"{text} is a web address: download it"):
            read()
