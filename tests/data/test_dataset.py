"""What a config says of sizes, buckets and targets, and the batches that come of it."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxcnn import UserError
from jaxcnn.config import base_config, validate
from jaxcnn.configfile import from_json, set_key, to_json
from jaxcnn.data.batches import WHOLE, Schedule, Slice, eval_batches, nearest_bucket, train_batches
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.images.augment_host import parse
from jaxcnn.data.images.decode import read_image
from jaxcnn.data.reader import Reader
from jaxcnn.data.sources import Source

SHAPES = ((30, 40), (40, 30), (36, 36))  # of the folder's images, in turn: landscape, portrait, square
BUCKETS = "((24, 32), (32, 24))"
VAL = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """DIR/{train,val}/{a,b}/NN.png, an image's pixels are its number."""
    root = tmp_path_factory.mktemp("shapes")
    for split, count in (("train", 20), ("val", VAL)):
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((*SHAPES[i % 3], 3), 10 * i, np.uint8)).save(path)
    return root


def dataset(folder, part: Slice = WHOLE, targets: Any = None, **values: Any):
    config = base_config()
    settings = {"data.name": f"folder:{folder}", "global_batch_size": "4", "steps": "1"}
    for key, value in (settings | {k.replace("__", "."): v for k, v in values.items()}).items():
        set_key(config, key, value)
    validate(config)
    return Dataset(config, part, targets=targets)


def names(batches):
    return [list(zip(b["epoch"].tolist(), b["example"].tolist(), strict=True)) for b in batches]


def test_training_and_evaluation_have_their_own_sizes_also_where_they_are_no_square(folder, tmp_path):
    data = dataset(folder, data__image_size="20,28", data__eval_size="(24, 16)", data__augment="vgg,erase(0.5)")
    assert (data.image_shape, data.eval_image_shape) == ((20, 28, 3), (24, 16, 3))
    assert (data.buckets, data.eval_buckets) == (((20, 28),), ((24, 16),))
    assert next(data.train_batches(0, 1))["image"].shape == (4, 20, 28, 3)
    batch = next(data.eval_batches())
    assert batch["image"].shape == (4, 24, 16, 3)
    # A checkpoint keeps what prediction needs to see what evaluation saw.
    ramp = np.mgrid[:90, :70][0].astype(np.uint8)
    Image.fromarray(ramp).convert("RGB").save(tmp_path / "ramp.png")
    seen = replace(data.eval_readers[0], source=OneFile(tmp_path / "ramp.png")).eval(0)["image"]
    assert data.input["image_shape"] == data.eval_image_shape
    predicted = read_image(tmp_path / "ramp.png", data.eval_image_shape, data.input["resize"])
    assert np.abs(seen.astype(int) - predicted).max() <= 1
    assert dataset(folder, data__image_size="16").eval_image_shape == (16, 16, 3)


class OneFile(Source):
    def __init__(self, path):
        super().__init__("one", "all", 1, ("a",), (None, None, 3), (0.5,) * 3, (0.5,) * 3)
        object.__setattr__(self, "path", path)

    def _read(self, index):
        return {"image": self.path.read_bytes(), "label": 0}  # type: ignore[attr-defined]


def test_sizes_in_a_config_are_kept_and_wrong_ones_are_named(folder, tmp_path):
    config = base_config()
    config.steps, config.data.image_size, config.data.eval_size = 1, (96, 128), 64
    set_key(config, "data.buckets", "()")
    (tmp_path / "config.json").write_text(to_json(config))
    back = from_json(tmp_path / "config.json")
    assert (back.data.image_size, back.data.eval_size, back.data.buckets) == ((96, 128), 64, ())
    for key, value in (("image_size", "(8,)"), ("image_size", "8.5"), ("eval_size", "0,8"), ("buckets", "(8,8)")):
        with pytest.raises(UserError, match=rf"config\.data\.{key}"):
            dataset(folder, WHOLE, None, **{f"data__{key}": value})
    for values, key in (
        ({"data__image_size": "32", "data__resize": "31"}, "resize"),
        ({"data__image_size": "16", "data__eval_size": "20,32", "data__resize": "31"}, "resize"),
        ({"data__image_size": "32", "data__buckets": BUCKETS}, "buckets"),
        ({"data__buckets": "((8, 16), (16, 32))"}, "buckets"),
        ({"data__buckets": BUCKETS, "data__resident": "true"}, "resident"),
    ):
        with pytest.raises(UserError, match=rf"config\.data\.{key}"):
            dataset(folder, WHOLE, None, **values)


sizes = st.lists(st.integers(1, 50), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_a_schedule_gives_each_bucket_its_batches_in_turn_and_as_many_as_it_has_examples(sizes, batch, seed):
    schedule = Schedule(sizes, batch, seed)
    counts = [0] * len(sizes)
    for step in range(40):
        bucket, before = schedule[step]
        assert before == counts[bucket], "the batches of a bucket follow one another"
        counts[bucket] += 1
    for count, size in zip(counts, sizes, strict=True):
        # Never more than one epoch's share and a batch away from what is due.
        assert abs(count - 40 * size / sum(sizes)) <= size / batch + len(sizes)


def test_an_image_goes_where_its_aspect_is_nearest_in_the_logarithm():
    buckets = ((32, 24), (10, 10), (24, 32), (8, 64))
    rng = np.random.default_rng(0)
    shapes = rng.integers(1, 3000, (500, 2))
    logs = np.log(shapes[:, 0] / shapes[:, 1])[:, None] - np.log([h / w for h, w in buckets])
    np.testing.assert_array_equal(nearest_bucket(shapes, buckets), np.abs(logs).argmin(1))
    assert nearest_bucket(np.array([[3, 4]]), ((5, 5),)).tolist() == [0]


def test_batches_of_several_shapes_have_every_example_once_an_epoch_of_its_bucket(folder):
    data = dataset(folder, data__buckets=BUCKETS)
    assert data.buckets == data.eval_buckets == ((24, 32), (32, 24))
    assert data.image_shape == data.eval_image_shape == (24, 32, 3)
    streams: dict[Any, list[Any]] = {}
    batches = list(data.train_batches(0, 30))
    for batch in batches:
        streams.setdefault(batch["image"].shape[1:3], []).extend(*names([batch]))
    assert streams.keys() == {*data.buckets}
    for stream, members in zip(
        (streams[size] for size in data.buckets), map(members_of, data.train_readers), strict=True
    ):
        for epoch in range(3):
            part = stream[epoch * len(members) : (epoch + 1) * len(members)]
            assert part[0][0] == part[-1][0] == epoch
            assert sorted(example for _, example in part) == members
    landscapes = {i for i in range(20) if data.train[i]["image"].shape[:2] == (30, 40)}
    assert landscapes <= {*members_of(data.train_readers[0])}
    # Any step is the same after a restart, and whatever the number of processes.
    halves = [dataset(folder, Slice(p, 2), data__buckets=BUCKETS).train_batches(17, 30) for p in range(2)]
    for whole, *parts in zip(batches[17:], *halves, strict=True):
        np.testing.assert_array_equal(np.concatenate([part["image"] for part in parts]), whole["image"])
        np.testing.assert_array_equal(np.concatenate([part["example"] for part in parts]), whole["example"])
    assert names([batches[5]]) == names(data.train_batches(5, 6))


def members_of(reader):
    return [reader.example(place) for place in range(len(reader))]


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_in_several_shapes_counts_every_example_once(folder, processes):
    parts = [dataset(folder, Slice(p, processes), data__buckets=BUCKETS) for p in range(processes)]
    rounds = list(zip(*(data.eval_batches() for data in parts), strict=True))
    assert all(len({batch["image"].shape for batch in batches}) == 1 for batches in rounds)
    seen = [batch for batches in rounds for batch in batches]
    counted = [int(i) for batch in seen for i in batch["example"][batch["mask"] == 1]]
    assert sorted(counted) == list(range(VAL))
    assert all((batch["image"][batch["mask"] == 0] == 0).all() for batch in seen)
    one = dataset(folder, data__buckets=BUCKETS, data__eval_size="16")
    assert one.eval_buckets == ((16, 16),)


def test_the_position_proves_the_buckets_and_is_as_before_where_there_is_one_shape(folder):
    plain, several = dataset(folder, data__image_size="24").position, dataset(folder, data__buckets=BUCKETS).position
    assert {k: v for k, v in several.items() if k != "buckets"} == plain
    other = dataset(folder, data__buckets="((24, 32), (32, 24), (24, 24))").position
    assert len(several["buckets"]) == 2
    assert len(other["buckets"]) == 3


@dataclass(frozen=True, eq=False, repr=False)
class Objects(Source):
    """Example i is 40 × 60 with i boxes, each in its own colour; the label map has the number of the box, from 1."""

    targets: ClassVar[tuple[str, ...]] = ("boxes", "labels", "label_map")

    def _read(self, index):
        image, labels = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
        boxes = [[4 + 18 * k, 6, 16 + 18 * k, 30] for k in range(index)]
        for k, (x1, y1, x2, y2) in enumerate(boxes):
            labels[y1:y2, x1:x2] = k + 1
            image[y1:y2, x1:x2] = 80 * min(3, k + 1)
        raw = {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "labels": np.arange(index) + 1}
        return {"image": image, "label_map": labels, **raw}


SPECS: dict[str, Any] = {
    "boxes": ((4, 4), np.dtype(np.float32)), "labels": ((4,), np.dtype(np.int32)), "valid": ((4,), np.dtype(bool)),
    "label_map": ((20, 20), np.dtype(np.uint8)),
}  # fmt: skip


def objects(size=4, **kwargs):
    source = Objects("objects", "all", size, ("a", "b"), (None, None, 3), (0.5,) * 3, (0.5,) * 3)
    return Reader(source, (20, 20), 23, parse("random_area(0.3,0.5)"), targets=SPECS, mirror=True, **kwargs)


def test_rows_are_padded_and_every_target_moves_with_its_image():
    mirrored, lost = set(), 0
    for batch in train_batches([objects()], 4, 0, 25):
        assert {k: (v.shape[1:], v.dtype) for k, v in batch.items() if k in SPECS} == SPECS
        for image, boxes, labels, valid, label_map, example in zip(
            *(batch[key] for key in ("image", "boxes", "labels", "valid", "label_map", "example")), strict=True
        ):
            count = int(valid.sum())
            lost += int(example) - count
            assert valid[:count].all()
            assert (labels[:count] > 0).all()
            assert not boxes[count:].any()
            assert not labels[count:].any()
            assert {*np.unique(label_map)} <= {0, *labels[:count].tolist()}, "what is seen has a box"
            for (x1, y1, x2, y2), label in zip(boxes[:count], labels[:count], strict=True):
                inside = np.zeros((20, 20), bool)
                inside[round(float(y1)) : round(float(y2)), round(float(x1)) : round(float(x2))] = True
                assert (inside[label_map == label]).mean() > 0.8 if (label_map == label).any() else True
                if x2 - x1 > 3 and y2 - y1 > 3:
                    y, x = int((y1 + y2) / 2), int((x1 + x2) / 2)
                    assert image[y, x, 0] == 80 * label
                    assert label_map[y, x] == label
            if {1, 2} <= {*labels[:count].tolist()}:
                mirrored.add(bool(boxes[list(labels).index(1), 0] > boxes[list(labels).index(2), 0]))
    assert mirrored == {True, False}
    assert lost > 0


def test_in_evaluation_targets_are_those_of_the_centre_and_padding_has_none():
    (batch,) = eval_batches([objects(size=3)], 4)
    assert batch["valid"].sum(1).tolist() == [0, 1, 2, 0]
    assert batch["mask"].tolist() == [1, 1, 1, 0]
    short = SPECS | {"labels": ((1,), np.dtype(np.int32))}
    with pytest.raises(UserError, match=r"example 2 has 2 rows of 'labels'"):
        replace(objects(), targets=short).eval(2)


@dataclass
class Spec:
    shape: tuple[int, ...]
    dtype: Any


def test_a_task_is_given_its_targets_or_told_what_is_missing(folder):
    seen = []

    def no_targets(images):
        seen.append((images.num_classes, images.image_shape))
        return {}

    data = dataset(folder, targets=no_targets, data__buckets=BUCKETS, data__augment="flip")
    assert {*seen} >= {(2, (24, 32, 3)), (2, (32, 24, 3))}
    assert next(data.train_batches(0, 1)).keys() == {"image", "mask", "epoch", "example"}
    assert data.preprocess(next(data.train_batches(0, 1)), np.uint32(0)).keys() >= {"image"}  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"config\.data\.augment: mixup"):
        dataset(folder, targets=no_targets, data__image_size="16", data__augment="mixup(0.2)")
    with pytest.raises(UserError, match=r"needs 'boxes', which folder:"):
        dataset(folder, targets=lambda _: {"boxes": Spec((4, 4), np.float32)}, data__image_size="16")


def test_what_the_device_draws_is_a_function_of_seed_epoch_and_example(folder):
    data = dataset(folder, data__image_size="24,32", data__augment="pad_crop_flip")
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)

    def changed(seed: int | None, epoch: int, examples: list[int]) -> np.ndarray:
        rows: Any = {"image": np.stack([image] * len(examples)), "epoch": np.full(len(examples), epoch)}
        found = data.preprocess(rows | {"example": np.array(examples)}, None if seed is None else np.uint32(seed))  # type: ignore[arg-type]
        return np.asarray(found["image"])

    examples = list(range(8))
    rows = changed(0, 1, examples)
    assert len({row.tobytes() for row in rows}) > 5
    np.testing.assert_array_equal(changed(0, 1, examples[::-1]), rows[::-1])
    for seed, epoch in ((1, 1), (0, 2)):
        assert (changed(seed, epoch, examples) != rows).any((1, 2, 3)).sum() > 5
    assert len({row.tobytes() for row in changed(None, 1, examples)}) == 1


def test_a_deviation_of_zero_is_refused(folder):
    with pytest.raises(UserError, match=r"data\.std"):
        dataset(folder, data__image_size="24,32", data__std="(0.5, 0.0, 0.5)")
