"""Checkpoints that are damaged on the disk: noticed, named, and the one before used."""

import random
import shutil
from pathlib import Path

import pytest
from campaign import TOTAL, assert_same_run, run, start, steps, wait_until

from jaxcnn.training import checksums

pytestmark = pytest.mark.faults


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


@pytest.fixture
def stopped(experiment, tmp_path) -> Path:
    """A run that was killed half way, with three checkpoints and more."""
    with start(experiment, tmp_path / "run") as process:
        assert wait_until(process, lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        assert wait_until(process, lambda: len(steps(tmp_path / "run")) > 2)
        process.kill()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / ".deleted", ignore_errors=True)
    return tmp_path / "run"


def test_every_kind_of_damage_to_every_file_is_noticed(whole, tmp_path, rng, row):
    good = whole / "checkpoints" / str(TOTAL)
    files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())
    harmless = {Path("_CHECKPOINT_METADATA"), Path("commit_success.txt")}  # times and names that nothing depends on
    noticed = {}
    for damage, times in ((flip, 20), (cut, 3), (remove, 1)):
        tried = found = 0
        for name in files:
            for _ in range(times):
                shutil.copytree(good, bad := tmp_path / "bad")
                damage(bad / name, rng)
                tried, missed = tried + 1, checksums.fault(bad) == ""
                found += not missed
                assert not missed or (name in harmless and damage is not remove), (damage, name)
                shutil.rmtree(bad)
        noticed[damage.__name__] = f"{found} of {tried}"
    row(
        "one bit flipped, a file cut short, a file missing, in each file of a checkpoint", len(files) * 24,
        f"noticed: {noticed['flip']} flips, {noticed['cut']} cuts, {noticed['remove']} missing; the others were in two "
        "notes of Orbax (times, names) on which nothing depends", "nothing",
    )  # fmt: skip


@pytest.mark.parametrize("damage", [flip, cut, remove])
def test_the_newest_damaged_the_one_before_is_used(damage, stopped, experiment, whole, rng, row):
    *_, before, newest = steps(stopped)
    folder = stopped / "checkpoints" / str(newest)
    arrays = [path for path in (folder / "state").rglob("*") if path.is_file() and path.stat().st_size]
    damage(rng.choice(arrays), rng)
    code, err = run(experiment, stopped)
    assert code == 0
    assert f"checkpoint {folder.resolve()} is damaged (state/" in err
    assert f"now damaged-{newest}, going on from step {before}" in err
    assert f"resuming   from the checkpoint of step {before}" in err
    assert_same_run(stopped, whole)
    row(
        f"newest checkpoint: {damage.__name__}", 1, "named and set aside, went on from the one before, to the bit",
        "the steps since the one before, made again",
    )  # fmt: skip


def test_all_damaged_it_stops_and_does_not_begin_anew(stopped, experiment, rng, row):
    for step in steps(stopped):
        flip(stopped / "checkpoints" / str(step) / "info" / "metadata", rng)
    left = steps(stopped)
    for _ in range(2):
        code, err = run(experiment, stopped)
        assert code == 2
        assert "every checkpoint in" in err.splitlines()[-1]
        assert "info/metadata has other bytes than were written" in err.splitlines()[-1]
        assert steps(stopped) == left
    row("every checkpoint damaged", 1, "exit 2, one line; nothing is begun anew, nothing removed", "what was damaged")
