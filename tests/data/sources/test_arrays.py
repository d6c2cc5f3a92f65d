"""Sources without labels: the static binarised MNIST, and images in one NumPy file."""

import pickle
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import UserError
from jaxcnn.config import base_config
from jaxcnn.configfile import set_key
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.sources import make_source, split_sizes

RNG = np.random.default_rng(0)
BITS = {"train": RNG.integers(0, 2, (5, 784)), "valid": RNG.integers(0, 2, (2, 784)), "test": np.ones((3, 784), int)}


@pytest.fixture
def amat(tmp_path: Path) -> Path:
    for part, bits in BITS.items():
        np.savetxt(tmp_path / f"binarized_mnist_{part}.amat", bits, fmt="%d")
    return tmp_path


@pytest.fixture
def save(tmp_path: Path):
    def write(array: np.ndarray, kind: str = "arrays") -> str:
        np.save(tmp_path / "images.npy", array)
        return f"{kind}:{tmp_path}/images.npy"

    return write


def test_the_binarised_digits_are_those_of_the_files(amat):
    name = f"binarized_mnist:{amat}"
    assert split_sizes(name) == {"train": 5, "validation": 2, "test": 3}
    source = make_source(name, "validation")
    assert (source.image_shape, source.levels, source.targets) == ((28, 28, 1), 2, ())
    images = np.stack([source[i]["image"] for i in range(2)])
    np.testing.assert_array_equal(images.reshape(2, 784), 255 * BITS["valid"])
    assert source.mean == pytest.approx([BITS["train"].mean()])
    assert set(source.read(0)) == {"image"}


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"0 1 2 " * 784, "784 times 0 or 1"), (b"0 1 " * 100, "784"), (b"", "784"), (b"0.5 " * 784, "784")],
)
def test_a_file_of_anything_else_is_named(amat, text, words):
    (amat / "binarized_mnist_train.amat").write_bytes(text)
    with pytest.raises(UserError, match=rf"binarized_mnist_train\.amat holds .*{words}"):
        make_source(f"binarized_mnist:{amat}")
    (amat / "binarized_mnist_test.amat").unlink()
    with pytest.raises(UserError, match=r"has no file binarized_mnist_test\.amat"):
        make_source(f"binarized_mnist:{amat}", "test")
    with pytest.raises(UserError, match="its splits are train, validation, test"):
        make_source(f"binarized_mnist:{amat}", "valid")


def test_an_array_is_divided_into_three_splits_that_never_change(save):
    images = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
    name = save(images)
    assert split_sizes(name) == {"train": 32, "validation": 4, "test": 4}
    sources = [make_source(name, split) for split in split_sizes(name)]
    read = [source[i]["image"] for source in sources for i in range(len(source))]
    assert sources[0].image_shape == (6, 5, 1)
    assert sorted(image.tobytes() for image in read) == sorted(image.tobytes() for image in images)
    again = pickle.loads(pickle.dumps(make_source(name, "train")))
    np.testing.assert_array_equal(again[3]["image"], read[3])
    training = np.stack(read[:32]) / 255
    assert (sources[1].mean, sources[1].std) == (pytest.approx([training.mean()]), pytest.approx([training.std()]))


def test_truth_values_are_black_and_white(save):
    source = make_source(save(RNG.random((30, 4, 4, 1)) < 0.5))
    assert source.levels == 2
    assert set(np.unique(source[0]["image"])) == {0, 255}


def test_of_the_frey_faces_200_each_are_held_out(save):
    assert split_sizes(save(np.zeros((450, 28, 20), np.uint8), "frey")) == {"train": 50, "validation": 200, "test": 200}
    with pytest.raises(UserError, match="holds 400 images, too few"):
        make_source(save(np.zeros((400, 28, 20), np.uint8), "frey"))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((40, 6, 5)), "values of type float64"),
        (np.zeros((40, 6), np.uint8), r"the shape \(40, 6\)"),
        (np.zeros((40, 6, 5, 2), np.uint8), r"the shape \(40, 6, 5, 2\)"),
        (np.zeros((3, 6, 5), np.uint8), "too few"),
        (np.array([{}], object), "no NumPy array"),
    ],
)
def test_an_array_of_other_things_is_named(save, array, words):
    with pytest.raises(UserError, match=words):
        make_source(save(array))


def test_a_file_that_is_no_array_or_is_not_there_is_named(tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(UserError, match=r"text\.npy is no NumPy array"):
        make_source(f"arrays:{tmp_path}/text.npy")
    with pytest.raises(UserError, match=r"there is no file .*none\.npy"):
        make_source(f"arrays:{tmp_path}/none.npy")


def test_pixels_have_the_range_that_a_task_asks_for_and_the_mean_is_that_of_training(save):
    images = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
    config = base_config("vae")
    for key, value in (("data.name", save(images)), ("global_batch_size", "4")):
        set_key(config, key, value)
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        data = Dataset(config, targets=lambda _: {}, pixel_range=(low, high))
        batch = data.preprocess({"image": jnp.array([0, 255], jnp.uint8).reshape(2, 1, 1, 1)}, None)
        np.testing.assert_allclose(np.ravel(batch["image"]), [low, high], atol=1e-6)
    training = [data.train[i]["image"] for i in range(32)]
    np.testing.assert_allclose(data.mean_image(), np.mean(training, axis=0) / 255)
    set_key(config, "data.mean", "0.5")
    with pytest.raises(UserError, match=r"config\.data\.mean=\(0\.5,\).*leave both out"):
        Dataset(config, targets=lambda _: {}, pixel_range=(0.0, 1.0))


def test_classification_needs_the_labels_that_they_lack(save):
    config = base_config()
    set_key(config, "data.name", save(np.zeros((40, 6, 5), np.uint8)))
    set_key(config, "global_batch_size", "4")
    with pytest.raises(UserError, match=r"needs 'label', which arrays:.* lacks"):
        Dataset(config, targets=lambda _: {"label": np.zeros((), np.int32)})
