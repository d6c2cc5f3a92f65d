"""`jaxcnn data propose`: the file that it writes, by processes of its own, and what it prints."""

import re

import pytest
from box_files import write_blocks

from jaxcnn import cli
from jaxcnn.data.proposals import read_proposals


@pytest.mark.slow
def test_propose_writes_the_boxes_of_a_split_once(tmp_path, capsys):
    name, out = write_blocks(tmp_path / "data", {"train": 3, "val": 9}), tmp_path / "new" / "val.npz"
    arguments = ["data", "propose", name, "--split", "val", "--out", str(out), "--width", "0", "--workers", "2"]
    assert cli.main(arguments) == 0
    printed, found = capsys.readouterr().out, read_proposals(out)
    assert [*found.names] == [f"val{i}" for i in range(9)]
    assert f"proposals {out}\n  {len(found.boxes)} boxes of 9 images" in printed
    assert re.search(r"\d s an image", printed)
    assert f"SHA-256 of the content {found.digest}\n" in printed
    assert cli.main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--split", "val", "--out", "p.txt"], r"p\.npz"), (["--out", "p.npz"], "--split")]
)
def test_wrong_use_is_one_line(arguments, words, capsys):
    assert cli.main(["data", "propose", "voc:nowhere", *arguments]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_a_split_that_is_not_there_is_named(tmp_path, capsys):
    name = write_blocks(tmp_path / "data", {"train": 2})
    assert cli.main(["data", "propose", name, "--split", "test", "--out", str(tmp_path / "p.npz")]) == 2
    assert "no split 'test'" in capsys.readouterr().err
