"""Folders of images: what is found in them, in which order, and what is said where they do not fit together."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from encode import png
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn import UserError
from jaxcnn.data.sources import BadExample, eval_split, imagenet, labelled_splits, make_source, split_sizes


@pytest.fixture
def memory():
    """A file system in memory, which is empty before and after; it stands for an object store."""
    fs: Any = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


@pytest.fixture
def write_folder(tmp_path):
    """`write_folder(paths, folder) -> name`: an image in each file; its first byte of red is its number."""

    def write(*paths, folder="my: folder ü"):
        for number, path in enumerate(paths):
            file = tmp_path / folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(np.full((4, 5 + number, 3), number, np.uint8)))
        return f"folder:{tmp_path / folder}"

    return write


def numbers(source):
    return [(int(source[i]["image"][0, 0, 0]), source[i]["label"]) for i in range(len(source))]


class TestExamples:
    def test_stand_by_class_folder_and_file(self, write_folder):
        name = write_folder(
            "train/b/1.png", "train/b/deep/er/0.JPG", "train/b/10.Tiff", "train/a/z.webp", "train/b/deep/9.ppm",
            "train/b/deep-er/x.bmp", "val/a/1.pgm", "val/b/x.jpeg",
        )  # fmt: skip
        source = make_source(name)
        assert numbers(source) == [(3, 0), (0, 1), (2, 1), (4, 1), (5, 1), (1, 1)]
        assert (source.class_names, source.image_shape) == (("a", "b"), (None, None, 3))
        assert (source.mean, source.std) == (imagenet.MEAN, imagenet.STD)
        assert source[4]["image"].shape == (4, 10, 3)
        assert split_sizes(name) == {"train": 6, "val": 2}
        assert numbers(make_source(name, "val")) == [(6, 0), (7, 1)]

    @settings(max_examples=25, deadline=None)
    @given(
        paths=st.sets(st.lists(st.sampled_from(["a", "b", "a-b", "B", "ü", "a b"]), min_size=2, max_size=4).map(tuple))
    )
    def test_are_those_of_a_plain_walk(self, paths, tmp_path_factory):
        root = tmp_path_factory.mktemp("walk")
        for path in {*paths, ("a", "a")}:
            (root / "train").joinpath(*path[:-1]).mkdir(parents=True, exist_ok=True)
            (root / "train").joinpath(*path[:-1], f"{path[-1]}.png").write_bytes("/".join(path).encode())
        expected = []
        for label, name in enumerate(sorted(os.listdir(root / "train"))):
            for folder, _, files in sorted(os.walk(root / "train" / name)):
                expected += [(Path(folder, file).read_bytes(), label) for file in sorted(files)]
        source = make_source(f"folder:{root}")
        assert [tuple(source.read(i).values()) for i in range(len(source))] == expected

    def test_hidden_and_other_files_are_left_out(self, write_folder):
        name = write_folder(
            "train/a/1.png", "train/a/._1.png", "train/a/.git/1.png", "train/.cache/1.png", ".hidden/a/1.png",
            "train/a/Thumbs.db", "train/1.png", "train/a/jpg",
        )  # fmt: skip
        assert split_sizes(name) == {"train": 1}

    @pytest.mark.parametrize("ending", ["jpg", "JPEG", "jpe", "jfif", "gif", "avif", "tif"])
    def test_an_ending_of_an_image_is_one(self, write_folder, ending):
        assert split_sizes(write_folder(f"train/a/1.{ending}")) == {"train": 1}

    def test_other_files_are_counted_by_their_ending(self, write_folder):
        source = make_source(
            write_folder("train/a/1.png", "train/a/2.HEIC", "train/b/3.heic", "train/b/4.jpg", "train/b/x")
        )
        assert source.left_out == {".heic": 2, "without an ending": 1}

    def test_folders_without_images_are_no_splits(self, write_folder):
        name = write_folder(
            "train/a/1.png", "val/a/1.png", "annotations/xmls/1.xml", "__MACOSX/train/1.png", "__MACOSX/val/1.png",
            "train/__MACOSX/2.png", "docs/a/._1.jpg",
        )  # fmt: skip
        assert split_sizes(name) == {"train": 1, "val": 1}
        assert make_source(name).class_names == ("a",)

    def test_class_names_are_composed(self, write_folder):
        name = write_folder("train/caf\u00e9/1.png", "val/cafe\u0301/1.png")
        assert make_source(name).class_names == make_source(name, "val").class_names == ("caf\u00e9",)
        write_folder("train/cafe\u0301/2.png")
        with pytest.raises(UserError, match="twice"):
            make_source(name)

    def test_links_are_followed_but_not_in_a_circle(self, write_folder, tmp_path):
        name = write_folder("train/a/1.png")
        write_folder("b/2.png", "b/3.png", folder="elsewhere")
        train = tmp_path / "my: folder ü/train"
        (train / "b").symlink_to(tmp_path / "elsewhere/b")
        (train / "a/up").symlink_to(train)
        (train / "a/2.png").symlink_to(tmp_path / "elsewhere/b/3.png")
        assert [label for _, label in numbers(make_source(name))] == [0, 0, 0, 0, 1, 1]  # a/1, a/2, a/up/b/2, …

    def test_home(self, write_folder, tmp_path, monkeypatch):
        write_folder("train/a/1.png")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert len(make_source("folder:~/my: folder ü")) == 1

    def test_pickled(self, write_folder):
        source = make_source(write_folder("train/a/1.png", "train/b/1.png"))
        assert numbers(pickle.loads(pickle.dumps(source))) == numbers(source)
        assert repr(source) == "<folder, train: 2 examples>"

    def test_a_name_that_is_no_text(self, write_folder, tmp_path):
        name = write_folder("train/a/1.png")
        odd = os.fsencode(tmp_path / "my: folder ü/train") + b"/\xff\x1b["
        os.mkdir(odd)
        with open(odd + b"/\xfe.png", "wb") as file:
            file.write(png(np.zeros((3, 3, 3), np.uint8)))
        source = make_source(name)
        assert source.class_names == ("a", "??[")
        assert source[1]["label"] == 1


def test_imagenet_has_words(write_folder):
    name = write_folder("train/n01443537/1.png", "train/n01440764/1.png")
    assert make_source(name).class_names == ("tench", "goldfish")
    assert make_source(write_folder("train/dog/1.png")).class_names == ("dog", "n01440764", "n01443537")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [(["test", "train", "val"], "val"), (["test", "train"], "test"), (["train", "validation"], "validation")],
)
def test_eval_split(write_folder, splits, expected):
    assert eval_split(write_folder(*(f"{split}/a/1.png" for split in splits))) == expected


def test_a_relative_folder_read_from_elsewhere_says_so(write_folder, tmp_path, monkeypatch):
    write_folder("train/a/1.png", folder="data")
    monkeypatch.chdir(tmp_path)
    assert len(make_source("folder:data")) == len(make_source("folder:./data")) == 1
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match=r"config\.data\.name"):
        make_source("folder:data")


@pytest.mark.parametrize("below", ["train", "train/b", "..", "../other: train"])
def test_a_folder_one_level_off_is_told_which_one_is_meant(below, write_folder, tmp_path):
    name = write_folder("train/a/0.png", "train/b/1.png", "val/a/2.png", folder="own/photos")
    write_folder("a/0.png", folder="own/other: train")
    wrong = name.removesuffix("/photos") if below.startswith("..") else f"{name}/{below}"
    if "other" in below:  # classes alone: no folder of this form is near
        wrong, meant = f"{wrong}/other: train", "move them into .*other: train/train.*eval_split=train.80%:."
    else:
        meant = f"write {re.escape(name)}$"
    for read in (make_source, labelled_splits):
        with pytest.raises(UserError, match=meant):
            read(wrong)


@pytest.mark.parametrize(("end", "rest"), [("[:80%]", "[80%:]"), ("/train[20:]", "[:20]"), ("/[10%:90%]", "[90%:]")])
def test_a_slice_behind_the_folder_is_told_where_it_belongs(end, rest, write_folder):
    name = write_folder("train/a/0.png", "val/a/1.png")
    with pytest.raises(UserError) as error:
        make_source(name + end)
    bounds = end[end.index("[") :]
    for words in (f"write {name},", f"train_split=train{bounds}", f"eval_split=train{rest}"):
        assert words in str(error.value)


class TestErrors:
    def fails(self, name, *words, split="train"):
        with pytest.raises(UserError) as caught:
            make_source(name, split)
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    def test_no_folder(self, tmp_path):
        self.fails(f"folder:{tmp_path}/none", f"there is no folder {tmp_path}/none", "train/CLASS")
        self.fails("folder:", "write folder:DIR")
        self.fails("folder:a\0b", "write folder:DIR")
        self.fails(f"folder:{tmp_path}", f"{tmp_path} has no train/CLASS folders")

    def test_no_split(self, write_folder):
        name = write_folder("train/a/1.png", "val/1.png", "test/a/1.png")
        self.fails(name, "has no split 'valid': its splits are test, train", split="valid")
        self.fails(name, "no split 'val'", "/val has no folders, one of each class", split="val")
        assert split_sizes(name) == {"test": 1, "train": 1}
        with pytest.raises(UserError, match="no labelled val"):
            eval_split(write_folder("train/a/1.png", folder="alone"))

    def test_classes_differ(self, write_folder):
        name = write_folder("train/a/1.png", "train/b/1.png", "val/a/1.png", "test/a/1.png", "test/b/1.png", "test/c/x")
        assert make_source(name, "val").class_names == ("a", "b"), "a split may lack a class"
        self.fails(name, "/test has class 'c'", split="test")

    def test_empty_class(self, write_folder):
        self.fails(write_folder("train/a/1.png", "train/b/1.txt"), "/train/b has no image (.jpg ", "remove the folder")

    @pytest.mark.parametrize("damage", [b"", b"text", None])
    def test_broken_image(self, write_folder, tmp_path, damage):
        source = make_source(write_folder("train/a/1.png", "train/a/2.png"))
        file = tmp_path / "my: folder ü/train/a/2.png"
        file.write_bytes(damage) if damage is not None else file.unlink()
        assert source[0]["label"] == 0
        with pytest.raises(UserError, match="example 1") as caught:
            source[1]
        assert str(caught.value).count(str(file)) == 1
        assert str(caught.value).endswith("replace the file")


class TestOnAnObjectStore:
    PATHS = (
        "train/b/1.png", "train/b/deep/0.JPG", "train/a b/z.webp", "train/b/note.txt", "train/.x/1.png",
        "train/b/.hidden.png", "val/b/x.png", "notes/x.txt",
    )  # fmt: skip

    def test_the_images_are_those_of_the_folder(self, write_folder, memory, tmp_path):
        local = write_folder(*self.PATHS)
        memory.put(f"{tmp_path}/my: folder ü", "/bucket/set", recursive=True)
        name = "folder:memory://bucket/set"
        assert split_sizes(name) == split_sizes(local) == {"train": 3, "val": 1}
        for split in ("train", "val"):
            here, there = make_source(local, split), pickle.loads(pickle.dumps(make_source(name, split)))
            assert numbers(there) == numbers(here)
            assert there.class_names == here.class_names == ("a b", "b")
            assert there.left_out == here.left_out
            assert [there.file(i) for i in range(len(there))] == [here.file(i) for i in range(len(here))]
        assert "(memory://bucket/set/train/b/deep/0.JPG)" in make_source(name).where(2)

    def test_what_is_wrong_there_is_named_by_its_address(self, write_folder, memory, tmp_path):
        name = "folder:memory://bucket/set"
        TestErrors().fails(name, "no folder memory://bucket/set: ")
        write_folder("train/a/1.png", "train/a/2.png", "train/a/3.png", "test/b/1.png")
        memory.put(f"{tmp_path}/my: folder ü", "/bucket/set", recursive=True)
        TestErrors().fails(name, "no split 'val'", split="val")
        TestErrors().fails(name, "memory://bucket/set/test has class 'b'", split="test")
        source = make_source(name)
        memory.pipe_file("/bucket/set/train/a/1.png", b"text")
        memory.rm("/bucket/set/train/a/2.png")
        for index in (0, 1):
            with pytest.raises(BadExample, match=rf"memory://bucket/set/train/a/{index + 1}\.png"):
                source[index]
        assert source[2]["label"] == 0

    def test_a_store_that_fails_is_no_broken_image(self, write_folder, memory, tmp_path, monkeypatch):
        def fail(*_: Any, **__: Any) -> None:
            raise ConnectionError("the network is down")

        write_folder("train/a/1.png")
        memory.put(f"{tmp_path}/my: folder ü", "/bucket/set", recursive=True)
        source = make_source("folder:memory://bucket/set")
        monkeypatch.setattr(type(memory), "cat_file", fail)
        with pytest.raises(UserError, match=r"memory://bucket/set/train/a/1\.png") as caught:
            source.read(0)
        assert not isinstance(caught.value, BadExample)

    @pytest.mark.parametrize("name", ["packed:memory://bucket/set", "tfds:mnist"])
    def test_other_kinds_are_refused_by_their_address(self, name):
        with pytest.raises(UserError, match="memory://bucket/set"):
            make_source(name, data_dir="memory://bucket/set")
