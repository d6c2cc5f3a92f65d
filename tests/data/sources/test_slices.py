"""Slices of folders and packs: which examples they have, that parts fit together, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encode import png
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn import UserError
from jaxcnn.data.prepare.pack import Options, pack
from jaxcnn.data.sources import Source, eval_split, make_source
from jaxcnn.data.sources.slices import sliced, split_and_bounds
from jaxcnn.data.sources.toy import open_split

CLASSES, EACH = 3, 20


@pytest.fixture
def name(tmp_path: Path) -> str:
    for label in range(CLASSES):
        folder = tmp_path / "photos" / "train" / "abc"[label]
        folder.mkdir(parents=True)
        for i in range(EACH):
            (folder / f"{i:02}.png").write_bytes(png(np.full((4, 4, 3), label * EACH + i, np.uint8)))
    return f"folder:{tmp_path / 'photos'}"


def numbers(source: Source) -> list[int]:
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def test_two_slices_of_a_folder_share_nothing_lack_nothing_and_have_all_classes(name):
    train, val = (make_source(name, split) for split in ("train[:90%]", "train[90%:]"))
    assert sorted(numbers(train) + numbers(val)) == list(range(CLASSES * EACH))
    assert {val[i]["label"] for i in range(len(val))} == {0, 1, 2}
    assert numbers(val) == numbers(make_source(name, "train[90%:]"))
    assert val.class_names == ("a", "b", "c")
    assert val.sizes().tolist() == [[4, 4]] * 6


def test_an_example_of_a_slice_is_named_by_its_file(name):
    val = make_source(name, "train[90%:]")
    label, number = divmod(numbers(val)[3], EACH)
    assert val.file(3) == f"{'abc'[label]}/{number:02}.png"
    assert f"/train/{'abc'[label]}/{number:02}.png" in val.where(3)
    with pytest.raises(IndexError):
        val.read(6)


@given(st.integers(10, 3000), st.integers(0, 100))
def test_every_run_of_examples_has_its_share_of_every_slice(size, percent):
    source = open_split(f"synthetic:2:{size}", "train")
    if not 0 < (size * percent * 2 + 100) // 200 < size:
        return
    parts: list[Any] = [sliced(source, "t", bounds) for bounds in (("", f"{percent}%"), (f"{percent}%", ""))]
    low, high = (set(part.members) for part in parts)
    assert sorted(low | high) == list(range(len(source)))
    assert not low & high
    first = sum(member < size // 2 for member in low)
    assert abs(first - (size // 2) * percent / 100) <= 4


@pytest.mark.parametrize(
    ("text", "count"), [("[:10]", 10), ("[10:]", 50), ("[-10:]", 10), ("[:-25%]", 45), ("[25%:50]", 35), ("[:]", 60)]
)
def test_bounds_are_those_of_tfds(text, count, name):
    assert len(make_source(name, f"train{text}")) == count


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train[90%]", "no slice: write one such as train"),
        ("train[:1.5%]", "no slice"),
        ("train[:101%]", "100 at most"),
        ("train[:61]", "60 at most"),
        ("train[50:20]", "none of the 60 examples"),
        ("other[:5]", "no split 'other'"),
    ],
)
def test_what_is_no_slice_is_refused_in_words(split, words, name):
    with pytest.raises(UserError, match=words):
        make_source(name, split)


def test_a_pack_is_sliced_as_the_folder_that_it_is_of(name, tmp_path):
    pack(name, tmp_path / "pack", Options(), workers=1)
    theirs = make_source(f"packed:{tmp_path / 'pack'}", "train[90%:]")
    ours = make_source(name, "train[90%:]")
    assert [theirs[i]["label"] for i in range(6)] == [ours[i]["label"] for i in range(6)]
    assert np.abs(np.subtract(numbers(theirs), numbers(ours))).max() <= 3  # JPEG


def test_a_folder_without_val_is_refused_with_the_slices_to_take(name):
    with pytest.raises(UserError, match=r"train\[90%:\], with config.data.train_split=train\[:90%\]"):
        eval_split(name)


def test_a_split_without_brackets_has_no_bounds():
    assert split_and_bounds("train") == ("train", None)
    assert split_and_bounds("a[b][-5%:7]") == ("a[b]", ("-5%", "7"))
