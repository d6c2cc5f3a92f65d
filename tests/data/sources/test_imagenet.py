"""The names of ImageNet's classes."""

import pytest

from jaxcnn.data.sources import imagenet
from jaxcnn.weights.torchvision import input_of


@pytest.mark.parametrize(
    ("index", "wnid", "name"),
    [
        (0, "n01440764", "tench"),
        (1, "n01443537", "goldfish"),
        (134, "n02012849", "crane (bird)"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (517, "n03126707", "crane (machine)"),
        (638, "n03710637", "maillot"),
        (639, "n03710721", "maillot (tank suit)"),
        (933, "n07697313", "cheeseburger"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_classes_stand_in_the_order_of_the_class_index(index, wnid, name):
    assert list(imagenet.words_of_ids().items())[index] == (wnid, name)


def test_a_name_says_which_class_is_meant():
    names, wnids = imagenet.class_names(), list(imagenet.words_of_ids())
    assert len(names) == len({name.lower() for name in names}) == 1000
    assert all(name and name == name.strip() for name in names)
    assert wnids == sorted(set(wnids))


def test_published_weights_take_the_statistics_of_imagenet():
    expected = {"image_shape": (224, 224, 3), "mean": imagenet.MEAN, "std": imagenet.STD, "resize": 256}
    assert input_of("resnet50_tv", ["a", "b"]) == {**expected, "class_names": ("a", "b")}


def test_published_googlenet_takes_pixels_from_minus_one_to_one():
    found = input_of("googlenet_tv", ["a"])
    assert found["mean"] == found["std"] == (0.5, 0.5, 0.5)
