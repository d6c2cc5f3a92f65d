"""Sources of label maps: what their folders hold, and the one line about what is wrong in them."""

import shutil

import numpy as np
import pytest
from label_files import PALETTE, save, scene, write_camvid, write_masks, write_sbd, write_voc
from PIL import Image

from jaxcnn import UserError
from jaxcnn.config import VOID
from jaxcnn.data.expected import Network, brought_to
from jaxcnn.data.sources import BadExample, camvid, eval_split, labelled_splits, make_source, split_sizes


def maps(source):
    return [source.read(i)["label_map"] for i in range(len(source))]


class TestMasks:
    @pytest.mark.parametrize("form", ["images/SPLIT", "SPLIT/images", "SPLIT"])
    def test_images_and_masks_are_found_in_each_form(self, tmp_path, form):
        name = write_masks(tmp_path / "set", {"train": [(12, 16)] * 3, "val": [(9, 7)]}, form)
        assert split_sizes(name) == {"train": 3, "val": 1}
        assert eval_split(name) == "val"
        source = make_source(name)
        assert source.class_names == ("ground", "cat", "dog")
        assert source.targets == ("label_map",)
        for i, labels in enumerate(maps(source)):
            np.testing.assert_array_equal(labels, scene(i)[1])
            np.testing.assert_array_equal(source[i]["image"], scene(i)[0])
        assert source.file(1).endswith("01.bmp")
        assert make_source(name, "val").sizes().tolist() == [[9, 7]]

    def test_deeper_folders_are_followed_and_a_class_called_void_is_none(self, tmp_path):
        name = write_masks(tmp_path, {"train": [(12, 16)]})
        (tmp_path / "classes.txt").write_text("ground\nVoid\ndog\n")
        save(tmp_path / "images/train/deep/x.png", scene(0)[0])
        save(tmp_path / "masks/train/deep/x.png", scene(0)[1], palette=True)
        source = make_source(name)
        assert source.class_names == ("ground", "dog")
        first, second = maps(source)
        np.testing.assert_array_equal(first, second)
        assert set(np.unique(first)) == {0, VOID}  # the block of scene 0 is of number 1

    def test_what_is_missing_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"no classes\.txt"):
            make_source(f"masks:{tmp_path}")
        name = write_masks(tmp_path, {"train": [(12, 16)]})
        with pytest.raises(UserError, match="no split 'val': its splits are train"):
            make_source(name, "val")
        (tmp_path / "masks/train/00.png").unlink()
        with pytest.raises(UserError, match=r"00\.bmp has no mask .*00\.png"):
            make_source(name)
        (tmp_path / "classes.txt").write_text("a\na\n")
        with pytest.raises(UserError, match=r"classes\.txt has 'a' twice"):
            make_source(name)

    @pytest.mark.parametrize(
        ("mask", "words"),
        [
            (np.zeros((12, 16, 3), np.uint8), r"holds colours \(RGB\)"),
            (np.zeros((11, 16), np.uint8), "has 11×16 pixels, its image 12×16"),
            (np.full((12, 16), 3, np.uint8), r"has 3 at row 0, column 0, but its numbers are 0 … 2 and 255"),
            (PALETTE[scene(0)[1], 1], "has 255|has 254 at row 0.*shades of grey"),
        ],
    )
    def test_a_bad_mask_is_one_line_with_its_file_and_value(self, tmp_path, mask, words):
        name = write_masks(tmp_path, {"train": [(12, 16)] * 2})
        save(tmp_path / "masks/train/01.png", mask)
        source = make_source(name)
        with pytest.raises(BadExample, match=rf"example 1 \(.*01\.bmp\): the mask .*01\.png .*{words}") as caught:
            source.read(1)
        assert "\n" not in str(caught.value)
        assert source.read(0)["label_map"].shape == (12, 16)

    def test_a_broken_mask_is_named_too(self, tmp_path):
        name = write_masks(tmp_path, {"train": [(12, 16)]})
        (path := tmp_path / "masks/train/00.png").write_bytes(path.read_bytes()[:50])
        with pytest.raises(BadExample, match=r"the mask .*00\.png cannot be used"):
            make_source(name).read(0)


class TestCamVid:
    def test_a_list_has_paths_of_another_machine_and_void_is_no_class(self, tmp_path):
        name = write_camvid(tmp_path / "CamVid")
        assert split_sizes(name) == {"train": 4, "val": 4, "test": 4}
        source = make_source(f"camvid:{tmp_path}", "test")  # the folder that has CamVid does, too
        assert source.class_names == camvid.CLASSES
        assert len(camvid.CLASSES) == 11
        for i, labels in enumerate(maps(source)):
            assert (labels[0, :5] == VOID).all()
            np.testing.assert_array_equal(labels[1:], scene(i)[1][1:])
        assert source.file(2) == "test/2.png"

    def test_a_damaged_list_is_named_with_its_line(self, tmp_path):
        name = write_camvid(tmp_path)
        (tmp_path / "val.txt").write_text("val/0.png valannot/0.png\nval/1.png\n")
        with pytest.raises(UserError, match=r"val\.txt:2 is no image and its mask"):
            make_source(name, "val")
        (tmp_path / "val.txt").write_text("val/.. val/0.png\n")
        with pytest.raises(UserError, match=r"val\.txt:1"):
            make_source(name, "val")
        with pytest.raises(UserError, match=r"no train\.txt"):
            make_source(f"camvid:{tmp_path}/nowhere")


class TestVoc:
    def test_masks_have_a_palette_and_void_borders(self, tmp_path):
        root = write_voc(tmp_path / "VOCdevkit")
        (root / "ImageSets/Segmentation/test.txt").write_text("z\n")
        for name in (tmp_path, tmp_path / "VOCdevkit", root):
            assert split_sizes(f"voc_segmentation:{name}") == {"test": 1, "train": 2, "trainval": 4, "val": 2}
        name = f"voc_segmentation:{root}"
        assert labelled_splits(name) == ["train", "trainval", "val"]
        source = make_source(name, "trainval")
        assert source.num_classes == 21
        for i, labels in enumerate(maps(source)):
            assert (labels[-1] == VOID).all()
            np.testing.assert_array_equal(labels[:-1], scene(i, classes=21)[1][:-1])
        write_voc(tmp_path / "VOCdevkit", "VOC2011")
        with pytest.raises(UserError, match=r"several years.*VOC2011, .*VOC2012"):
            make_source(f"voc_segmentation:{tmp_path}/VOCdevkit")

    def test_a_list_of_ones_own_is_a_split_and_masks_may_be_augmented(self, tmp_path):
        root = write_voc(tmp_path)
        (root / "ImageSets/Segmentation/mine.txt").write_text("a\ne\n")
        save(root / "JPEGImages/e.jpg", scene(4)[0])
        with pytest.raises(UserError, match=r"no .*SegmentationClass/e\.png or .*SegmentationClassAug/e\.png"):
            make_source(f"voc_segmentation:{root}", "mine")
        save(root / "SegmentationClassAug/e.png", scene(4)[1])
        np.testing.assert_array_equal(maps(make_source(f"voc_segmentation:{root}", "mine"))[1], scene(4)[1])
        (root / "ImageSets/Segmentation/mine.txt").write_text("../a\n")
        with pytest.raises(UserError, match=r"mine\.txt names '\.\./a'"):
            make_source(f"voc_segmentation:{root}", "mine")

    def test_sbd_brings_its_masks_and_what_is_left_to_validate_on(self, tmp_path):
        root = write_voc(tmp_path, "VOC2011")
        write_sbd(tmp_path / "benchmark_RELEASE/dataset", {"train": ("a", "c"), "val": ("b",)})
        name = f"voc_segmentation:{root}"
        assert split_sizes(name) == {
            "sbd_train": 2, "sbd_val": 1, "seg11valid": 1, "train": 2, "trainval": 4, "val": 2
        }  # fmt: skip
        for labels in maps(make_source(name, "sbd_train")):
            assert (labels == 7).all()
        source = make_source(name, "seg11valid")
        assert source.file(0) == "JPEGImages/d.jpg"
        np.testing.assert_array_equal(maps(source)[0][:-1], scene(3, classes=21)[1][:-1])
        (path := tmp_path / "benchmark_RELEASE/dataset/cls/c.mat").write_bytes(path.read_bytes()[:200])
        with pytest.raises(BadExample, match=r"c\.mat cannot be used \(it is no MAT file"):
            make_source(name, "sbd_train").read(1)

    def test_a_file_that_inflates_without_end_is_refused(self, tmp_path, monkeypatch):
        from jaxcnn.data.sources import voc_segmentation

        write_sbd(tmp_path / "sbd", {"train": ("a",)})
        monkeypatch.setattr(voc_segmentation, "MAX_PIXELS", 20)
        with pytest.raises(ValueError, match="no MAT file"):
            voc_segmentation.read_sbd((tmp_path / "sbd/cls/a.mat").read_bytes())


def test_label_maps_follow_the_classes_of_a_network_by_name(tmp_path):
    source = make_source(write_masks(tmp_path, {"train": [(12, 16)] * 2}))
    network = Network("the run", 3, ("dog", "cat", "other", "ground"))
    moved = brought_to(network, source)
    assert moved.targets == ("label_map",)
    for before, after in zip(maps(source), maps(moved), strict=True):
        np.testing.assert_array_equal(np.array([3, 1, 0])[before], after)
    assert moved.sizes().tolist() == [[12, 16]] * 2


def test_a_copy_of_a_folder_is_the_same_data_and_an_image_turned_by_its_camera_no_longer_fits_its_mask(tmp_path):
    name = write_masks(tmp_path / "one", {"train": [(12, 16)] * 2})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert repr(make_source(name)) == repr(make_source(f"masks:{tmp_path / 'two'}"))
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "one/images/train/00.bmp").unlink()
    save(tmp_path / "one/images/train/00.jpg", scene(0)[0], exif=turned)
    with pytest.raises(BadExample, match="has 12×16 pixels, its image 16×12"):
        make_source(name).read(0)
