"""`jaxcnn data`: what it prints, draws and refuses."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcnn import UserError, cli
from jaxcnn.commands import data
from jaxcnn.data import sources
from jaxcnn.data.prepare import tfds as prepare_module
from jaxcnn.data.sources import Source


class TestList:
    def test_rows(self, tmp_path, capsys):
        assert data.main(["list", "--data-dir", str(tmp_path)]) == 0
        heading, *rows = capsys.readouterr().out.splitlines()
        assert heading.split() == ["name", "examples", "image", "classes", "status"]
        assert rows[0].split() == ["digits", "train", "1,442,", "test", "355", "8×8×1", "10", "ready"]
        names = [row.split()[0] for row in rows]
        assert names == ["digits", "synthetic", "synthetic_masks", "synthetic_boxes", "tfds:fashion_mnist", "files"]
        # Not a terminal: nothing is cut or wrapped, however long the line.
        assert f"jaxcnn data prepare fashion_mnist --data-dir {tmp_path}" in rows[4]
        assert "masks:DIR, voc:DIR, coco:DIR" in rows[5]

    def test_narrow_terminal(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "50")
        assert data.main(["list", "--data-dir", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        plain = re.sub(r"\x1b\[\d*m", "", out)
        assert max(map(len, plain.splitlines())) <= 50
        assert "…" not in plain


class TestPrepare:
    @pytest.mark.parametrize(
        ("built", "words"), [(True, "prepared /x"), (False, "already prepared, nothing to do: /x")]
    )
    def test_passes_on(self, monkeypatch, capsys, built, words):
        calls = []
        monkeypatch.setattr(prepare_module, "prepare", lambda *args: calls.append(args) or (Path("/x"), built))
        assert data.main(["prepare", "fashion_mnist", "--from", "a", "--data-dir", "b", "--manual-dir", "c"]) == 0
        assert calls == [("fashion_mnist", "b", "a", "c")]
        assert capsys.readouterr().out.splitlines() == [
            words,
            "look at it with: jaxcnn data check tfds:fashion_mnist --data-dir b",
        ]


@dataclass(frozen=True, eq=False, repr=False)
class Broken(Source):
    """Examples 2, 4, 5 and 6 cannot be read; the others differ in size."""

    def _read(self, index):
        if index in (2, 4, 5, 6):
            raise UserError(f"example {index} is damaged")
        return {"image": np.full((20 + index, 30, 3), index, np.uint8), "label": index % 2}


class TestPack:
    def test_packs_and_checks(self, tmp_path, capsys):
        out = tmp_path / "my pack"
        argv = ["pack", "synthetic:3:30", str(out), "--split", "train", "test", "--shards", "2", "--workers", "2"]
        assert data.main(argv) == 0
        told, progress = capsys.readouterr()
        lines = told.splitlines()
        assert lines[0] == f"packed {out}"
        assert lines[1].startswith("  train: 30 examples, 0.3 MB in 2 files")
        assert lines[-1] == f"look at it with: jaxcnn data check 'packed:{out}'"
        assert progress.splitlines()[-1] == "packing: 37 of 37 examples"
        assert data.main(argv) == 0
        assert capsys.readouterr().out.startswith("already packed, nothing to do")
        assert data.main(["check", f"packed:{out}", "--out", str(tmp_path / "x.png")]) == 0
        assert f"packed:{out}, test: 7 examples" in capsys.readouterr().out
        (out / "test-00001-of-00002.array_record").write_bytes(b"x")
        with pytest.raises(UserError, match=r"test-00001-of-00002\.array_record"):
            data.main(["check", f"packed:{out}", "--out", str(tmp_path / "x.png")])

    def test_lists_what_is_left_out(self, tmp_path, capsys):
        for number in range(3):
            path = tmp_path / f"images/train/cat/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9)).save(path)
        (tmp_path / "images/train/cat/1.png").write_bytes(b"text")
        argv = ["pack", f"folder:{tmp_path}/images", str(tmp_path / "out")]
        with pytest.raises(UserError, match=r"example 1 \(.*images/train/cat/1.png\) cannot be read"):
            data.main(argv)
        with pytest.raises(UserError, match="delete it"):
            data.main([*argv, "--on-error", "skip"])
        assert data.main([*argv[:2], str(tmp_path / "out2"), "--on-error", "skip"]) == 0
        told, progress = capsys.readouterr()
        assert "train: 2 examples" in told
        assert re.search(r"left out: .*images/train/cat/1\.png", progress)


class TestCheck:
    def test_digits(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert data.main(["check", "digits"]) == 0
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert lines[:3] == [
            "digits, train: 1,442 examples",
            "  image  8×8×1 (1,442), uint8",
            "  mean   0.3052   std 0.3760",
        ]
        assert lines[3].split() == ["143", "0"]
        assert "digits, test: 355 examples" in lines
        assert not list(tmp_path.iterdir())  # no picture that nobody asked for
        assert err.splitlines() == ["reading 1,442 examples of train", "reading 355 examples of test"]

    def test_measures_what_numpy_does(self, tmp_path, capsys):
        data.main(["check", "synthetic:3:9", "--out", str(tmp_path / "x.png")])
        source = sources.make_source("synthetic:3:9")
        pixels = np.stack([source[i]["image"] for i in range(9)]) / 255
        mean, std = (" ".join(f"{v:.4f}" for v in f((0, 1, 2))) for f in (pixels.mean, pixels.std))
        assert f"  mean   {mean}   std {std}\n" in capsys.readouterr().out

    def test_sheet(self, tmp_path):
        """A row for each class; the first image of a row is the first of its class, enlarged by whole pixels."""
        out = tmp_path / "sheet"  # PNG whatever its name
        data.main(["check", "digits", "--out", str(out)])
        with Image.open(out) as sheet:
            assert sheet.format == "PNG"
            pixels = np.asarray(sheet)
        assert pixels.shape[0] == 10 * 60
        tile = pixels[2:58, -600:-544]
        source = sources.make_source("digits")
        first = next(e["image"] for e in (source[i] for i in range(50)) if e["label"] == 0)
        np.testing.assert_array_equal(tile[3::7, 3::7], np.repeat(first, 3, axis=-1))

    def test_many_classes(self, tmp_path, capsys):
        data.main(["check", "synthetic:300:600", "--out", str(tmp_path / "x.png")])
        with Image.open(tmp_path / "x.png") as sheet:
            assert sheet.height == 25 * 60
        lines = capsys.readouterr().out.splitlines()
        assert lines[3] == "  each of 300 classes has 2 (0 class 0) to 2 (0 class 0) examples, the median 2"
        assert lines[4] == "synthetic:300:600, test: 150 examples"

    def test_reports_every_bad_example_after_reading_all(self, tmp_path, capsys, monkeypatch):
        source = Broken("broken", "train", 9, ("even", "odd"), (None, None, 3), (0.5,) * 3, (0.5,) * 3)
        monkeypatch.setattr(sources, "labelled_splits", lambda *_: ["train"])
        monkeypatch.setattr(sources, "make_source", lambda *_, **__: source)
        with pytest.raises(UserError) as caught:
            data.main(["check", "broken", "--out", str(tmp_path / "x.png")])
        assert str(caught.value) == "broken has bad examples: train 2, 4-6. The first: example 2 is damaged"
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == "  image  20×30×3 (1) 21×30×3 (1) 23×30×3 (1) and 2 other shapes, uint8"
        assert [line.split() for line in lines[3:6]] == [
            ["2", "0", "even"],
            ["3", "1", "odd"],
            ["4", "bad:", "2,", "4-6"],
        ]
        assert [line.strip() for line in lines[6:10]] == [f"example {n} is damaged" for n in (2, 4, 5, 6)]
        assert (tmp_path / "x.png").is_file()

    def test_folder_with_a_broken_file(self, tmp_path, capsys):
        for split, number in (("train", 1), ("train", 2), ("val", 3)):
            path = tmp_path / f"images/{split}/cat/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 5 + number)).save(path)
        broken = tmp_path / "images/train/cat/2.png"
        broken.write_bytes(b"text")
        with pytest.raises(UserError, match=f"bad examples: train 1. The first: .*{broken}"):
            data.main(["check", f"folder:{tmp_path}/images", "--out", str(tmp_path / "x.png")])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith("images, train: 2 examples")
        assert str(broken) in lines[5]
        assert lines[6].endswith("images, val: 1 examples")

    def test_bare_names(self, tmp_path):
        with pytest.raises(UserError, match="data set 'tfds:fashion_mnist' is not prepared"):
            data.main(["check", "fashion_mnist", "--data-dir", str(tmp_path)])
        with pytest.raises(UserError, match="no data set 'digit': did you mean digits"):
            data.main(["check", "digit", "--data-dir", str(tmp_path)])
        (tmp_path / "my_set").mkdir()
        with pytest.raises(UserError, match="data set 'tfds:my_set' is not prepared"):
            data.main(["check", "my_set", "--data-dir", str(tmp_path)])

    def test_folder_of_out_is_looked_at_first(self, tmp_path):
        with pytest.raises(UserError, match="there is no folder"):
            data.main(["check", "digits", "--out", str(tmp_path / "none" / "x.png")])


def test_help_is_quick():
    """It imports nothing heavy."""
    code = "import sys; from jaxcnn.commands.data import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "list | prepare | pack | propose | check" in result.stdout
    assert not {"numpy", "rich", "PIL", "jax", "tensorflow_datasets"} & set(result.stdout.split())


@pytest.mark.parametrize(
    "argv",
    [
        [], ["prepare"], ["check"], ["nothing"], ["list", "x"], ["pack", "digits"],
        ["pack", "digits", "x", "--quality", "101"],
        ["pack", "digits", "x", "--shards", "0"], ["pack", "digits", "x", "--shards", "2", "--shard-size", "3"],
    ],
)  # fmt: skip
def test_wrong_use(argv, capsys):
    assert cli.main(["data", *argv]) == 2
    told = capsys.readouterr().err
    assert told.startswith("jaxcnn: data")
    assert told.count("\n") == 1


class TestLeftOut:
    def test_a_pack_says_how_many_it_left_out(self, tmp_path, capsys):
        for name in ("a", "b"):
            (folder := tmp_path / "set" / "train" / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "0.png")
        (tmp_path / "set/train/a/1.png").touch()
        words = ["pack", f"folder:{tmp_path / 'set'}", str(tmp_path / "out"), "--on-error", "skip"]
        assert data.main(words) == 0
        assert "in 1 files, 1 images left out" in capsys.readouterr().out
