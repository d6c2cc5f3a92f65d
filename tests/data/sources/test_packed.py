"""Packed data sets: what is kept of the images, that a pack is whole or none, and what is said of a damaged one."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encode import png
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxcnn import UserError
from jaxcnn.data.images.decode import decode
from jaxcnn.data.prepare.pack import Options, _shard_count, fit, pack, record, shrink
from jaxcnn.data.sources import BadExample, Source, eval_split, make_source, packed, split_sizes


def smooth(width, height, mode="RGB"):
    """An image without edges, which JPEG keeps well."""
    ramps = np.linspace(0, 255, width)[None, :, None], np.linspace(0, 255, height)[:, None, None]
    pixels = np.concatenate(np.broadcast_arrays(*ramps, 128.0), -1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


class TestShrink:
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": turned(1)}])
    @pytest.mark.parametrize("max_side", [60, 0])
    def test_a_plain_jpeg_keeps_its_bytes(self, mode, options, max_side):
        image = encoded(smooth(60, 40, mode), **options)
        assert shrink(image, 3, max_side, 50) is image

    @pytest.mark.parametrize(
        ("image", "size"),
        [
            (encoded(smooth(60, 40)), (30, 20)),
            (encoded(smooth(40, 60)), (20, 30)),
            (encoded(smooth(30, 20, "CMYK")), (30, 20)),
            (encoded(smooth(30, 20), "PNG"), (30, 20)),
            (encoded(smooth(30, 20), exif=turned(6)), (20, 30)),
            (encoded(smooth(60, 40), exif=turned(8)), (20, 30)),
            (np.asarray(smooth(30, 20)), (30, 20)),
            (encoded(smooth(60, 1), "BMP"), (30, 1)),
        ],
    )
    def test_all_else_becomes_one(self, image, size):
        small = shrink(image, 3, 30, 95)
        with Image.open(io.BytesIO(small)) as opened:
            assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", size)
            assert opened.getexif().get(274, 1) == 1
        upright = Image.fromarray(decode(image, 3)).resize(size, Image.Resampling.BILINEAR)
        assert np.abs(decode(small, 3).astype(int) - np.asarray(upright)).mean() < 3

    def test_grey_stays_grey(self):
        for image, channels in ((encoded(smooth(60, 40, "L")), 3), (np.asarray(smooth(60, 40, "L"))[..., None], 1)):
            with Image.open(io.BytesIO(shrink(image, channels, 30, 95))) as opened:
                assert (opened.mode, opened.size) == ("L", (30, 20))

    def test_quality(self):
        image = encoded(smooth(300, 200), "PNG")
        assert len(shrink(image, 3, 0, 20)) < len(shrink(image, 3, 0, 95))

    @pytest.mark.parametrize("cut", [0, 1, 100, -200])
    def test_a_cut_image_is_broken(self, cut):
        image = encoded(Image.effect_noise((60, 40), 90).convert("RGB"), quality=95)
        for max_side in (0, 30):
            with pytest.raises(ValueError, match=r"\S"):
                shrink(image[:cut], 3, max_side, 95)

    @settings(max_examples=50, deadline=None)
    @given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.integers(1, 5000))
    def test_fits(self, size, side):
        fitted = fit(size, side)
        assert max(fitted) == min(max(size), side)
        assert min(fitted) >= 1
        assert all(abs(a - b * max(fitted) / max(size)) <= 0.5 or a == 1 for a, b in zip(fitted, size, strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class Slow(Source):
    """Ever slower, up to `delay` seconds for the last example."""

    delay: float

    def _read(self, index):
        time.sleep(self.delay * (index / self.size) ** 4)
        return {"image": np.full((4, 4, 3), index, np.uint8), "label": index % 2}


@pytest.fixture
def folder(tmp_path):
    """Eleven images of two classes to train on and two to evaluate, one of them a JPEG."""
    for number in range(13):
        path = tmp_path / f"in/{'train' if number < 11 else 'val'}/{'ab'[number % 2]}/{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((8, 9 + number, 3), 9 * number, np.uint8)))
    (tmp_path / "in/val/b/11.png").write_bytes(encoded(smooth(9, 9)))
    return f"folder:{tmp_path}/in"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A pack of synthetic images: 40 to train on, in three shards, and 10 to test."""
    path = tmp_path_factory.mktemp("packed") / "out: ü"
    pack("synthetic:4:40", path, Options(shards=3), workers=1)
    return path


def mtimes(path):
    return {p: p.stat().st_mtime_ns for p in path.rglob("*")}


class TestPack:
    def test_keeps_order_labels_and_bytes(self, folder, tmp_path):
        manifest, built = pack(folder, tmp_path / "out", Options(shards=2), workers=2)
        name = f"packed:{tmp_path}/out"
        assert built
        assert split_sizes(name) == {"train": 11, "val": 2}
        assert eval_split(name) == "val"
        for split in ("train", "val"):
            before, after = make_source(folder, split), make_source(name, split)
            assert (after.class_names, after.image_shape, after.mean) == (("a", "b"), (None, None, 3), before.mean)
            for i in range(len(before)):
                assert after[i]["label"] == before[i]["label"]
                np.testing.assert_allclose(after[i]["image"], before[i]["image"], atol=2)
        assert after.read(1)["image"] == before.read(1)["image"]
        assert sorted(os.listdir(tmp_path / "out")) == sorted(
            ["manifest.json", *(s["file"] for split in manifest["splits"].values() for s in split["shards"])]
        )

    def test_fixed_shapes_stay_fixed(self, out, tmp_path):
        assert make_source(f"packed:{out}").image_shape == (32, 32, 3)
        pack("synthetic:2:4", tmp_path / "small", Options(max_side=16), ["train"], workers=1)
        source = make_source(f"packed:{tmp_path}/small")
        assert source[0]["image"].shape == source.image_shape == (16, 16, 3)
        pack("digits", tmp_path / "digits", Options(), ["test"], workers=1)
        digits = make_source(f"packed:{tmp_path}/digits", "test")
        assert digits[0]["image"].shape == digits.image_shape == (8, 8, 1)

    def test_size_of_shards(self):
        source = make_source("synthetic:4:4000")
        size = len(record(source, 0, Options()))
        assert size * 4000 / 1e6 < 16 < 4000 / 64, "at least 16, so that as many processes have something to do"
        assert _shard_count(source, Options()) == _shard_count(source, Options(shard_size=1)) == 16
        large = make_source("synthetic:4:40000")
        assert _shard_count(large, Options(shard_size=1)) == pytest.approx(size * 40000 / 1e6, rel=0.05)
        assert _shard_count(make_source("synthetic:4:100"), Options()) == 1
        assert _shard_count(source, Options(shards=9999)) == 4000

    def test_again_does_nothing_and_other_options_are_refused(self, out):
        before = mtimes(out)
        assert pack("synthetic:4:40", out, Options(shards=3)) == (
            json.loads((out / "manifest.json").read_text()),
            False,
        )
        for name, options in (("synthetic:4:40", Options(shards=3, quality=90)), ("synthetic:4:41", Options(shards=3))):
            with pytest.raises(UserError, match="another packed data set"):
                pack(name, out, options)
        assert mtimes(out) == before

    def test_a_folder_of_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(UserError, match="exists and is no pack: name a new folder"):
            pack("digits", tmp_path, Options())
        assert os.listdir(tmp_path) == ["thesis.tex"]

    def test_images_without_labels(self, tmp_path):
        with pytest.raises(UserError, match="synthetic_masks has label_map, no labels: pack what has labels"):
            pack("synthetic_masks", tmp_path / "out", Options())
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("how", ["kill", "interrupt"])
    def test_interrupted(self, tmp_path, monkeypatch, how):
        """Finished shards are kept, nothing unfinished is taken for a pack, and no process is left behind."""
        code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2] / "helpers")!r}]
from test_packed import Slow
from jaxcnn.data.prepare import pack
if __name__ == "__main__":
    source = Slow("slow", "train", 40, ("a", "b"), (4, 4, 3), (0.5,) * 3, (0.5,) * 3, 1.0)
    pack.make_source = lambda *_, **__: source
    pack.pack("slow", pack.Path({str(tmp_path / "out")!r}), pack.Options(shards=8), ["train"], workers=2)
"""
        script = tmp_path / "script.py"
        script.write_text(code)
        process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, start_new_session=True)
        files = lambda: sorted((tmp_path / "out").glob("train-*"))  # noqa: E731
        while len(files()) < 4:
            time.sleep(0.02)
            assert process.poll() is None, process.stderr and process.stderr.read()
        process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
        process.communicate()  # returns when all processes have let go of stderr
        kept = {path: path.stat().st_mtime_ns for path in files()}
        name = f"packed:{tmp_path}/out"
        with pytest.raises(UserError, match="no packed data set, or is not finished"):
            make_source(name)
        source = Slow("slow", "train", 40, ("a", "b"), (4, 4, 3), (0.5,) * 3, (0.5,) * 3, 0.0)
        monkeypatch.setattr("jaxcnn.data.prepare.pack.make_source", lambda *_, **__: source)
        with pytest.raises(UserError, match="half of another pack"):
            pack("slow", tmp_path / "out", Options(shards=7), ["train"])
        pack("slow", tmp_path / "out", Options(shards=8), ["train"], workers=1)
        assert mtimes(tmp_path / "out").items() >= kept.items()
        packed_source = make_source(name)
        assert [packed_source[i]["image"][0, 0, 0] for i in range(40)] == list(range(40))
        assert len(os.listdir(tmp_path / "out")) == 9  # eight shards and the manifest

    def test_goes_on_where_it_stopped(self, folder, tmp_path):
        broken = tmp_path / "in/train/b/09.png"
        good = broken.read_bytes()
        broken.write_bytes(b"text")
        with pytest.raises(UserError, match=f"example 10 .{broken}. cannot be read"):
            pack(folder, tmp_path / "out", Options(shards=11), workers=1)
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train*")}
        assert len(kept) == 10
        broken.write_bytes(good)
        pack(folder, tmp_path / "out", Options(shards=11), workers=1)
        assert mtimes(tmp_path / "out").items() >= kept.items()
        pack(folder, tmp_path / "whole", Options(shards=11), workers=2)
        one, two = (json.loads((tmp_path / o / "manifest.json").read_text()) for o in ("out", "whole"))
        assert one == two  # the same to the last bit

    def test_broken_images_can_be_left_out(self, folder, tmp_path):
        (tmp_path / "in/train/a/02.png").write_bytes(b"text")
        manifest, _ = pack(folder, tmp_path / "out", Options(shards=11, on_error="skip"), workers=1)
        (skipped,) = manifest["splits"]["train"]["skipped"]
        assert skipped["index"] == 1
        assert "in/train/a/02.png" in skipped["error"]
        source = make_source(f"packed:{tmp_path}/out")
        assert [source[i]["label"] for i in range(len(source))] == [0] * 5 + [1] * 5
        assert packed.verify(f"packed:{tmp_path}/out") == []

    def test_a_full_disk(self, tmp_path):
        code = f"""
import resource
from pathlib import Path
from jaxcnn import UserError
from jaxcnn.data.prepare.pack import Options, pack
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        pack("synthetic:2:400", Path({str(tmp_path / "out")!r}), Options(shards=2), workers=1)
    except UserError as error:
        print(error)
"""
        (tmp_path / "script.py").write_text(code)
        told = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
        assert f"cannot write {tmp_path}/out/train-00000-of-00002.array_record (" in told.stdout, told.stderr
        assert told.stdout.endswith("run it again to go on, finished shards stay\n")
        assert os.listdir(tmp_path / "out") == [".packing"]
        assert os.listdir(tmp_path / "out/.packing") == ["plan.json"]


class TestRead:
    def test_picklable_and_safe_in_threads(self, out):
        source = make_source(f"packed:{out}")
        source.read(0)
        copy = pickle.loads(pickle.dumps(source))
        expected = [copy.read(i) for i in range(40)]
        wrong = []

        def read():
            wrong.extend(i for i in np.random.permutation(40) if source.read(i) != expected[i])

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert repr(source) == "<packed, train: 40 examples>"

    def test_damage_names_the_shard(self, out, tmp_path):
        copy = tmp_path / "copy"
        copy.mkdir()
        for file in out.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        shard = copy / "train-00001-of-00003.array_record"
        data = bytearray(shard.read_bytes())
        data[data.index(b"jcn\1") + 600] ^= 255
        shard.write_bytes(data)
        assert packed.verify(f"packed:{copy}") == [f"{shard.name} has another checksum than the manifest"]
        source = make_source(f"packed:{copy}")
        assert source[0]["label"] == 0
        with pytest.raises(UserError, match=rf"example 13 \({shard.name}\)"):
            source[13]
        shard.write_bytes(data[:1000])
        with pytest.raises(UserError, match=f"{shard} .*1000.* {len(data)}"):
            make_source(f"packed:{copy}")
        shard.unlink()
        with pytest.raises(UserError, match=f"{shard} is missing"):
            make_source(f"packed:{copy}")
        assert packed.verify(f"packed:{copy}") == [f"{shard.name} cannot be read (No such file or directory)"]

    def test_a_record_of_another_format_is_a_bad_example(self, out):
        source: Any = make_source(f"packed:{out}")
        other = replace(source, records=[packed.HEADER.pack(b"else", 0) + source.read(0)["image"]])
        with pytest.raises(BadExample, match="example 0 "):
            other.read(0)

    def test_split(self, out):
        with pytest.raises(UserError, match="has no split 'val': its splits are train, test"):
            make_source(f"packed:{out}", "val")

    def test_bare_path(self, out):
        with pytest.raises(UserError, match=f"it is a folder, write packed:{out}"):
            make_source(str(out))
        with pytest.raises(UserError, match="write packed:DIR"):
            make_source("packed:")


SHARD = ("splits", "train", "shards", 0)


class TestManifest:
    """It may come from anywhere."""

    @pytest.mark.parametrize(
        ("where", "value"),
        [
            ((*SHARD, "file"), "../train-00000-of-00003.array_record"),
            ((*SHARD, "file"), "/etc/passwd"),
            ((*SHARD, "file"), ".."),
            ((*SHARD, "file"), ""),
            ((*SHARD, "file"), "a\\b"),
            ((*SHARD, "file"), "a\0b"),
            ((*SHARD, "file"), "a\x1b[2J"),
            ((*SHARD, "file"), "train-00001-of-00003.array_record"),
            ((*SHARD, "file"), None),
            ((*SHARD, "examples"), -1),
            ((*SHARD, "examples"), 1e9),
            ((*SHARD, "examples"), True),
            ((*SHARD, "examples"), 10**30),
            ((*SHARD, "bytes"), "1"),
            ((*SHARD, "sha256"), 7),
            (("splits", "train", "examples"), 39),
            (("splits", "train", "shards"), {}),
            (("splits", "train", "shards"), []),
            (("splits",), []),
            (("splits",), {}),
            (("classes",), []),
            (("classes",), [1, 2]),
            (("image_shape",), [32, 32]),
            (("image_shape",), [32, 32, 4]),
            (("image_shape",), [-32, 32, 3]),
            (("mean",), [0.5]),
            (("mean",), [0.5, 0.5, float("nan")]),
            (("std",), ["0.5"] * 3),
            (("format",), "other"),
            (("version",), 2),
        ],
    )
    def test_wrong(self, out, tmp_path, where, value):
        manifest = json.loads((out / "manifest.json").read_text())
        inner = manifest
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = value
        self.fails(tmp_path, json.dumps(manifest))

    @pytest.mark.parametrize("text", ["", "{", "[]", "1", '"x"', "[" * 100_000, "\udcff"])
    def test_no_manifest(self, tmp_path, text):
        self.fails(tmp_path, text)

    def fails(self, folder, text):
        (folder / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=r"manifest\.json (is damaged|cannot be read)") as caught:
            make_source(f"packed:{folder}")
        assert "\n" not in str(caught.value)
