"""Windows as the examples of a classifier: which there are, their labels, pixels, and shares of a batch."""

import pickle
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import pytest
from box_files import Thing, coordinates, write_voc_boxes

from jaxcnn import UserError
from jaxcnn.config import base_config, validate
from jaxcnn.configfile import set_key
from jaxcnn.data.batches import Layout, Slice
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.proposals import Proposals
from jaxcnn.data.sources import make_source
from jaxcnn.data.windows import make_windows, overlaps
from jaxcnn.warping import warp

CAT, DOG = (10.0, 10.0, 30.0, 30.0), (50.0, 20.0, 90.0, 55.0)
# Of the first image: half of the cat, the cat moved by a third, the dog but for an edge, and nothing.
GIVEN = [
    [(10, 10, 30, 20), (16, 10, 36, 30), (50, 20, 90, 50), (0, 40, 20, 60)],
    [(5, 5, 50, 50), (-9, 70, 300, 90), (0, 0, 20, 20), (30, 10, 80, 40), (60, 0, 99, 59)],
]
SIZE = (60, 100)
SIDE, CONTEXT = 24, 3


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """A folder in VOC's layout, and the file of its proposals."""
    root = tmp_path_factory.mktemp("windows") / "VOC"
    pictures = [(SIZE, [Thing("cat", CAT), Thing("dog", DOG, difficult=True)]), (SIZE, [])]
    name = write_voc_boxes(root, {"train": pictures, "test": pictures[:1]}, ("cat", "dog"))
    names = ["train0", "train1", "test0"]
    boxes = [*GIVEN, GIVEN[0]]
    counts = np.array([len(rows) for rows in boxes], np.int32)
    Proposals(names, counts, np.array(sum(boxes, []), np.float32)).write(root / "boxes.npz")
    return name, root / "boxes.npz"


@pytest.fixture
def windows(voc):
    from jaxcnn.data.proposals import read_proposals

    def made(**options: Any) -> Any:
        mean = (0.5, 0.4, 0.25)
        source = make_source(voc[0], "train")
        return make_windows(source, read_proposals(voc[1]), SIDE, CONTEXT, mean, **options)

    return made


def dataset(voc: Any, training: bool = True, part: Slice | None = None, **values: Any) -> Dataset:
    config = base_config()
    settings = {
        "data.name": voc[0], "global_batch_size": "4", "steps": "1", "data.windows": str(voc[1]),
        "data.image_size": str(SIDE), "data.context": str(CONTEXT), "data.eval_split": "test",
    }  # fmt: skip
    for key, value in (settings | {k.replace("__", "."): v for k, v in values.items()}).items():
        set_key(config, key, value)
    validate(config)
    return Dataset(config, part or Slice(), training=training)


def test_windows_are_objects_and_proposals_with_the_class_of_the_object_that_they_overlap_by_a_half(windows):
    found = windows()
    assert found.class_names == ("background", "cat", "dog")
    assert found.image.tolist() == [0] * 6 + [1] * 4
    assert found.labels.tolist() == [1, 2, 1, 1, 2, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(found.boxes[:2], [CAT, DOG])
    np.testing.assert_array_equal(found.boxes[2:6], GIVEN[0])
    assert found.boxes[6:8].tolist() == [[5, 5, 50, 50], [0, 0, 20, 20]], "what lies outside of the image is left out"


def test_overlaps_are_those_of_pixels_counted():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (2, 8, 2))
    a, b = np.concatenate([corners, corners + rng.integers(1, 9, (2, 8, 2))], -1)
    rows, columns = np.mgrid[:21, :21]

    def mask(box: np.ndarray) -> np.ndarray:
        return (box[0] <= columns) & (columns < box[2]) & (box[1] <= rows) & (rows < box[3])

    counted = [[(mask(x) & mask(y)).sum() / (mask(x) | mask(y)).sum() for y in b] for x in a]
    np.testing.assert_allclose(overlaps(a.astype(np.float32), b.astype(np.float32)), counted)


def test_pixels_are_the_warp_of_the_image_and_of_its_mean_outside(windows):
    found = windows()
    for i in range(len(found)):
        wanted = warp(coordinates(*SIZE), found.boxes[i], SIZE, SIDE, CONTEXT, 255 * np.array([0.5, 0.4, 0.25]))
        np.testing.assert_array_equal(found[i]["image"], np.rint(wanted))
        assert found[i]["label"] == found.labels[i]
    edge = found[5]["image"]  # the window of a box in the lower left corner
    assert (edge[:, 0] == np.rint([127.5, 102, 63.75])).all()


def test_a_sample_has_the_shares_of_a_batch_and_is_the_same_each_time(windows):
    found = windows(sample=2)
    assert np.count_nonzero(found.labels) == 0, "a quarter of 2 is none"
    found, again = windows(sample=4), windows(sample=4)
    assert np.count_nonzero(found.labels) == 1
    assert found.digest == again.digest != windows().digest


def test_every_batch_has_a_quarter_of_objects_whatever_the_processes_and_restarts(voc):
    whole = list(islice(dataset(voc, global_batch_size="8").train_batches(0, 30), 30))
    for batch in whole:
        assert np.count_nonzero(batch["label"]) == 2
        assert np.count_nonzero(batch["label"].reshape(2, 4), 1).tolist() == [1, 1], "each half has its share"
    parts = [list(dataset(voc, global_batch_size="8", part=Slice(p, 2)).train_batches(17, 30)) for p in range(2)]
    for wanted, *halves in zip(whole[17:], *parts, strict=True):
        for name in ("image", "label", "example", "epoch"):
            np.testing.assert_array_equal(wanted[name], np.concatenate([half[name] for half in halves]))
    drawn = np.concatenate([batch["example"][batch["label"] > 0] for batch in whole])  # 60 of 5 objects
    passes = drawn.reshape(-1, 5)
    assert (np.sort(passes, 1) == np.sort(passes[0])).all(), "each object comes once a pass"
    assert len({tuple(row) for row in passes.tolist()}) > 3, "in another order"
    epochs = np.concatenate([batch["epoch"][batch["label"] > 0] for batch in whole])
    np.testing.assert_array_equal(epochs, np.arange(60) // 5)


@pytest.mark.parametrize("batch", [4, 5, 7, 128])
def test_a_layout_gives_each_stratum_its_share_of_every_beginning(batch):
    layout = Layout([Fraction(1, 4), Fraction(3, 4)], batch)
    assert layout.counts == [batch // 4, batch - batch // 4]
    first = np.cumsum(np.array(layout.stratum) == 0)
    np.testing.assert_array_equal(first, np.arange(1, batch + 1) // 4)
    for stratum in (0, 1):
        ranks = [r for s, r in zip(layout.stratum, layout.rank, strict=True) if s == stratum]
        assert ranks == list(range(layout.counts[stratum]))


def test_a_data_set_of_windows_has_its_classes_its_size_and_another_position_with_other_windows(voc):
    data = dataset(voc)
    assert data.num_classes == 3
    assert data.image_shape == data.eval_image_shape == (SIDE, SIDE, 3)
    assert data.eval_examples == 6
    other = dataset(voc, data__context="4")
    assert data.position["windows"] != other.position["windows"]
    pickle.loads(pickle.dumps(data.train_readers[0]))  # as worker processes get it


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data__image_size": "0"}, "config.data.image_size"),
        ({"data__image_size": "(24, 30)"}, "config.data.image_size"),
        ({"data__image_size": "0", "data__buckets": "((24, 30), (24, 24))"}, ".buckets"),
        ({"data__context": "12"}, "config.data.context=12"),
        ({"data__windows": "nowhere.npz"}, "nowhere.npz"),
        ({"data__name": "digits", "data__eval_split": ""}, "digits has no boxes"),
        ({"global_batch_size": "3"}, "config.global_batch_size=3"),
    ],
)
def test_what_cannot_be_cut_is_an_error_that_names_the_key(voc, values, words):
    with pytest.raises(UserError) as caught:
        list(dataset(voc, **values).train_batches(0, 1))
    assert words in str(caught.value)


def test_windows_are_of_classification_alone(voc):
    config = base_config("detection")
    config.steps, config.data.windows = 1, str(voc[1])
    with pytest.raises(UserError, match=r"config\.data\.windows"):
        validate(config)


def test_without_a_background_there_is_nothing_to_tell_apart(voc, tmp_path):
    counts = np.array([0, 0, 0], np.int32)
    Proposals(["train0", "train1", "test0"], counts, np.zeros((0, 4), np.float32)).write(tmp_path / "none.npz")
    with pytest.raises(UserError, match="background"):
        dataset(voc, data__windows=str(tmp_path / "none.npz"))
