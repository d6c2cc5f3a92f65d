"""TFDS data sets with a class for each pixel."""

import numpy as np
import pytest
from encode import png

from jaxcnn import UserError
from jaxcnn.config import VOID
from jaxcnn.data.sources import BadExample, eval_split, make_source

MAP = np.array([[0, 1, 2, 1], [2, 2, 255, 0]], np.uint8)
IMAGE = png(np.full((2, 4, 3), 9, np.uint8))


def features(mask):
    import tensorflow_datasets as tfds

    return {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=5),
        "segmentation_mask": mask,
    }


def images(labels):
    return [({"image": IMAGE, "segmentation_mask": png(labels[..., None])}, 0)]


def test_trimaps_of_pets_count_from_one_and_the_set_is_one_of_labelled_images_too(write_tfds):
    import tensorflow_datasets as tfds

    pets = features(tfds.features.Image(shape=(None, None, 1)))
    stored = np.where(MAP == VOID, VOID, MAP + 1).astype(np.uint8)
    splits = {"train": images(stored), "test": images(stored + 1)}
    data_dir = write_tfds(splits, pets, folder="oxford_iiit_pet/3.2.0")
    name = "tfds_segmentation:oxford_iiit_pet"
    source = make_source(name, "train", data_dir=data_dir)
    assert source.class_names == ("pet", "background", "border")
    example = source[0]
    np.testing.assert_array_equal(example["label_map"], MAP)
    assert example["image"].shape == (2, 4, 3)
    assert make_source(name, "train[:1]", data_dir=data_dir).sizes().tolist() == [[2, 4]]
    assert eval_split(name, data_dir) == "test"
    with pytest.raises(BadExample, match=r"example 0: its mask cannot be used \(it has .* numbers are 1 … 3 and 255"):
        make_source(name, "test", data_dir=data_dir).read(0)
    assert make_source("tfds:oxford_iiit_pet", "train", data_dir=data_dir).read(0)["label"] == 0


def test_classes_without_names_are_refused(write_tfds):
    import tensorflow_datasets as tfds

    data_dir = write_tfds({"train": images(MAP)}, features(tfds.features.Image(shape=(None, None, 1))))
    with pytest.raises(UserError, match="does not name the classes of its masks"):
        make_source("tfds_segmentation:mini", data_dir=data_dir)


def test_a_set_without_masks_is_told_so(write_tfds):
    data_dir = write_tfds({"train": [(IMAGE, 0)]})
    with pytest.raises(UserError, match="features image, label, not 'image' and 'segmentation_mask'"):
        make_source("tfds_segmentation:mini", data_dir=data_dir)
