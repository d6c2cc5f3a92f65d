"""Checksums beside a checkpoint's files, and a folder of checkpoints that is put in order."""

import json
from pathlib import Path

import pytest

from jaxcnn import UserError
from jaxcnn.training.checksums import MANIFEST, PROMISE, fault, put_in_order, seal, set_back, sweep


def checkpoint(folder: Path, promise: bool = True) -> Path:
    """As Orbax leaves one, with our manifest."""
    for name, text in {
        "state/d/abc": "weights",
        "state/empty": "",
        "metrics/metrics": "{}",
        "info/metadata": "{}",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    seal(folder)
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": PROMISE if promise else {}}))
    (folder / "commit_success.txt").write_text("done")
    return folder


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def test_what_was_sealed_is_sound_wherever_it_is_moved(tmp_path):
    checkpoint(tmp_path / "3.tmp").rename(tmp_path / "3")
    assert fault(tmp_path / "3") == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("state/d/abc", "state/d/abc is missing"),
        ("state/empty", "state/empty is missing"),
        (MANIFEST, "checksums.json is missing"),
        ("_CHECKPOINT_METADATA", "_CHECKPOINT_METADATA is missing"),
        ("commit_success.txt", "commit_success.txt is missing"),
    ],
)
def test_a_file_that_is_missing_is_named(name, words, tmp_path):
    (checkpoint(tmp_path / "3") / name).unlink()
    assert fault(tmp_path / "3") == words


def test_a_file_that_was_changed_is_named_with_how(tmp_path):
    weights = checkpoint(tmp_path / "3") / "state" / "d" / "abc"
    flip(weights)
    assert fault(tmp_path / "3") == "state/d/abc has other bytes than were written"
    weights.write_text("weig")
    assert fault(tmp_path / "3") == "state/d/abc has 4 of 7 bytes"
    assert fault(tmp_path / "3", "metrics/") == ""


@pytest.mark.parametrize("text", ["", "[]", '{"state/d/abc": 7}', '{"state/d/abc": [7'])
def test_a_manifest_that_is_damaged_is_damage(text, tmp_path):
    (checkpoint(tmp_path / "3") / MANIFEST).write_text(text)
    assert fault(tmp_path / "3").endswith("is damaged")


def test_a_checkpoint_of_an_older_version_has_no_manifest_and_is_taken(tmp_path):
    (checkpoint(tmp_path / "3", promise=False) / MANIFEST).unlink()
    assert fault(tmp_path / "3") == ""


def test_damaged_newest_ones_and_damaged_scores_are_set_aside_and_a_step_can_be_damaged_twice(tmp_path):
    for _ in range(2):
        for step in (2, 9, 10, 11):
            if not (tmp_path / str(step)).exists():
                checkpoint(tmp_path / str(step))
        flip(tmp_path / "11" / "state" / "d" / "abc")
        flip(tmp_path / "10" / "info" / "metadata")
        flip(tmp_path / "2" / "metrics" / "metrics")
        said = put_in_order(tmp_path)
        assert [line.split(": now ")[1] for line in said] == [
            f"damaged-{step}, going on from step 9" for step in (11, 10, 2)
        ]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["9", "damaged-10", "damaged-11", "damaged-2"]
    assert put_in_order(tmp_path) == []


def test_where_all_are_damaged_none_is_moved(tmp_path):
    for step in (3, 6):
        flip(checkpoint(tmp_path / str(step)) / "info" / "metadata")
    for _ in range(2):
        with pytest.raises(UserError, match=r"6, info/metadata"):
            put_in_order(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "6"]


def test_a_folder_that_is_not_there_is_in_order(tmp_path):
    assert put_in_order(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_what_is_no_checkpoint_any_more_is_deleted(tmp_path):
    for name in ("3", ".deleted/1", "6.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir(parents=True)
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".deleted", "3"]


@pytest.mark.parametrize("finished", [False, True])
def test_a_checkpoint_that_was_set_back_is_there_again_unless_its_successor_is(finished, tmp_path):
    (checkpoint(tmp_path / "3") / "old").touch()
    set_back(tmp_path / "3")
    if finished:
        checkpoint(tmp_path / "3")
    put_in_order(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["3"]
    assert (tmp_path / "3" / "old").exists() != finished
