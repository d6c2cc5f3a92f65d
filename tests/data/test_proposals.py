"""Files of proposals, what is refused of them, their way into batches, and selective search."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from box_files import Thing, write_blocks, write_voc_boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn import UserError
from jaxcnn.config import base_config
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.prepare import propose as searching
from jaxcnn.data.proposals import Proposals, joined, method_of, read_proposals, selective_search
from jaxcnn.data.sources import make_source
from jaxcnn.tasks import create_task
from jaxcnn.weights.files import checked_input

ROOM = 4
BOX = (10, 20, 60, 50)  # an object, and the only proposal that is told from others by its place
GIVEN = {
    "train0": [BOX, (0, 0, 100, 60), (99, 10, 120, 40)],
    "train1": [(5, 5, 30, 40)] * 6,
    "test0": [],
}
SPLITS = {"train": [((60, 100), [Thing("a", BOX)]), ((100, 90), [])], "test": [((60, 100), [])]}


def made(given: dict[str, list[tuple[int, ...]]] = GIVEN, scores: list[float] | None = None) -> Proposals:
    boxes = np.array([box for boxes in given.values() for box in boxes], np.float32).reshape(-1, 4)
    counts = np.array([len(boxes) for boxes in given.values()], np.int32)
    return Proposals([*given], counts, boxes, None if scores is None else np.array(scores, np.float32), {"method": "m"})


@pytest.fixture
def voc(tmp_path) -> str:
    return write_voc_boxes(tmp_path / "VOC", SPLITS, ("a",))


def dataset(name: str, file: Any, **values: Any) -> Dataset:
    config = base_config("detection")
    config.data.name, config.data.eval_split, config.global_batch_size = name, "test", 1
    config.task.max_boxes, config.task.max_proposals, config.task.proposals = 2, ROOM, str(file)
    for key, value in values.items():
        config.data[key] = value
    return Dataset(config, targets=create_task(config).targets)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_file_gives_back_what_was_written_by_falling_score(tmp_path_factory, data):
    counts = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    rng, total = np.random.default_rng(data.draw(st.integers(0, 99))), sum(counts)
    corners = rng.integers(0, 500, (total, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 50, (total, 2))], 1).astype(np.float32)
    scores = rng.integers(0, 3, total).astype(np.float32) if data.draw(st.booleans()) else None
    names = [f"bild {i}ä" for i in range(len(counts))]
    written = Proposals(names, np.array(counts, np.int32), boxes, scores, {"method": "x"})
    path = tmp_path_factory.mktemp("file") / "p.npz"
    written.write(path)
    found = read_proposals(path)
    assert (list(found.names), found.counts.tolist(), found.method) == (names, counts, {"method": "x"})
    if scores is None:
        np.testing.assert_array_equal(found.boxes, boxes)
        assert found.digest == written.digest
    start = 0
    for count in counts:
        part = slice(start, start := start + count)
        mine = [*map(tuple, boxes[part])]
        if scores is not None:
            mine = [box for _, box in sorted(zip(-scores[part], mine, strict=True), key=lambda pair: pair[0])]
        assert [*map(tuple, found.boxes[part])] == mine
    assert [file.name for file in path.parent.iterdir()] == ["p.npz"]


def test_the_digest_tells_other_boxes_images_and_scores_apart():
    one = made()
    moved = made(GIVEN | {"train0": [(10, 20, 60, 51), *GIVEN["train0"][1:]]})
    renamed = made({f"x{name}": boxes for name, boxes in GIVEN.items()})
    assert len({one.digest, moved.digest, renamed.digest, made(scores=[0.5] * 9).digest}) == 4
    assert one.digest == made().digest


def save(path: Path, **arrays: Any) -> Path:
    good = {
        "names": np.array(["a", "b"]), "counts": np.array([1, 1]), "boxes": np.ones((2, 4), np.float32),
        "method": np.array("{}"),
    }  # fmt: skip
    np.savez(path, **{name: x for name, x in (good | arrays).items() if x is not None})
    return path


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"boxes": None}, "no array 'boxes'"),
        ({"counts": np.array([1, 2])}, "3 rows"),
        ({"counts": np.array([-1, 3])}, "counts"),
        ({"counts": np.array([2])}, "counts"),
        ({"names": np.array(["a", "a"])}, "twice"),
        ({"names": np.array(["a", None], object)}, "pickle"),
        ({"boxes": np.full((2, 4), np.nan, np.float32)}, "finite"),
        ({"boxes": np.array([[5, 0, 1, 1]] * 2, np.float32)}, "wrong order"),
        ({"boxes": np.ones((2, 4), "U3")}, "type"),
        ({"scores": np.ones(3, np.float32)}, "rows"),
        ({"method": np.array("[")}, "Expecting value"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, arrays, words):
    path = save(tmp_path / "p.npz", **arrays)
    with pytest.raises(UserError, match=rf"p\.npz.*{words}"):
        read_proposals(path)


def test_what_is_no_archive_or_is_cut_short_is_an_error(tmp_path):
    whole = save(tmp_path / "p.npz").read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:40] + b"\xff" * 20 + whole[60:]):
        (tmp_path / "p.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"p\.npz"):
            read_proposals(tmp_path / "p.npz")
    with pytest.raises(UserError, match=r"no file of proposals .*none\.npz"):
        read_proposals(tmp_path / "none.npz")


def test_a_small_file_cannot_take_a_large_memory(tmp_path):
    np.savez_compressed(tmp_path / "p.npz", boxes=np.zeros((2**20, 4), np.float32))
    with pytest.raises(UserError, match=r"p\.npz .*more than"):
        read_proposals(tmp_path / "p.npz")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_file_with_other_bytes_is_read_or_refused_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("file") / "p.npz"
    made(scores=[0.5] * 9).write(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found, refused = None, ""
    try:
        found = read_proposals(path)
    except UserError as error:
        refused = str(error)
    if found:
        assert len(found.boxes) == found.counts.sum()
    else:
        assert "p.npz" in refused
        assert "\n" not in refused


def test_files_are_joined_but_not_if_they_share_an_image():
    one, other = made(), made({"more": [BOX]})
    both = joined([one, other])
    assert [*both.names] == [*GIVEN, "more"]
    assert both.boxes[-1].tolist() == list(BOX)
    with pytest.raises(UserError, match="train0"):
        joined([one, made()])
    with pytest.raises(UserError, match="scores"):
        joined([one, made({"more": [BOX]}, [1.0])])


def test_detections_of_cocos_format_are_proposals_by_the_data_sets_numbers(voc, tmp_path):
    rows = [
        {"image_id": number, "category_id": 1, "bbox": [0, 0, side, 2 * side], "score": score}
        for number, side, score in ((1, 10, 0.2), (0, 20, 0.5), (1, 30, 0.9))
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    boxes = read_proposals(tmp_path / "found.json").of(make_source(voc, "train"))
    assert [x.tolist() for x in boxes] == [[[0, 0, 20, 40]], [[0, 0, 30, 60], [0, 0, 10, 20]]]
    (tmp_path / "found.json").write_text('[{"image_id": 1, "score": 1}]')
    with pytest.raises(UserError, match=r"found\.json.*bbox"):
        read_proposals(tmp_path / "found.json")


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, 4] * 2])
def test_a_detection_without_a_box_of_four_numbers_is_an_error_that_names_the_file(tmp_path, box):
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": 1, "bbox": box, "score": 0.5}]))
    with pytest.raises(UserError, match=r"p\.json \(it has a 'bbox' that is not four numbers"):
        read_proposals(tmp_path / "p.json")


def test_files_that_know_images_by_names_and_by_numbers_are_not_joined():
    parts = [replace(made(scores=[0.5] * 9), file="a.npz"), replace(made({}, []), file="b.json")]
    with pytest.raises(UserError, match=r"of a\.npz, b\.json some know images by their names, some by numbers"):
        joined(parts)


@pytest.mark.parametrize("augment", ["none", "flip", "rescale(0.4,2),flip,photometric"])
def test_proposals_move_with_their_objects_and_are_cut_by_rank(voc, tmp_path, augment):
    made().write(tmp_path / "p.npz")
    data = dataset(voc, tmp_path / "p.npz", augment=augment, image_size=128)
    seen = 0
    for batch in data.train_batches(0, 24):
        (proposals,), (boxes,), (valid,), (example,) = (batch[k] for k in ("proposals", "boxes", "valid", "example"))
        height, width = batch["sizes"][0]
        assert (proposals >= 0).all()
        assert (proposals <= [width, height, width, height]).all()
        real = (proposals[:, 2:] > proposals[:, :2]).all(1)
        assert not proposals[~real].any(), "what is cut off is left out, and padding is zeros"
        assert (np.diff(real.astype(int)) <= 0).all(), "padding comes last"
        if example == 0 and valid[0]:
            seen += 1
            np.testing.assert_array_equal(proposals[0], boxes[0])
        if example == 1 and augment == "none":
            assert real.sum() == ROOM, "six are too many"
    assert seen > 3
    (batch,) = data.eval_batches()
    assert not batch["proposals"].any()


def test_an_image_without_proposals_is_refused_before_training_with_image_and_file(voc, tmp_path):
    made({name: boxes for name, boxes in GIVEN.items() if name != "train1"}).write(tmp_path / "p.npz")
    with pytest.raises(UserError, match=r"train1\.jpg\) has no proposals in .*p\.npz"):
        dataset(voc, tmp_path / "p.npz")


def test_a_run_knows_its_proposals_by_their_content_from_several_files(voc, tmp_path):
    for name, boxes in GIVEN.items():
        made({name: boxes}).write(tmp_path / f"{name}.npz")
    files = ",".join(f"{tmp_path / name}.npz" for name in GIVEN)
    found = dataset(voc, files)
    assert found.position["proposals"] == made().digest
    assert "search" not in found.input


def test_how_a_search_was_made_is_kept_for_photographs_to_come(voc, tmp_path):
    replace(made(), method=method_of(320, 8)).write(tmp_path / "searched.npz")
    found = checked_input(dataset(voc, tmp_path / "searched.npz").input, 2)
    assert found["search"] == (320, 8)
    with pytest.raises(ValueError, match="'search'"):
        checked_input(found | {"search": (320, "8")}, 2)


def test_selective_search_has_the_same_order_each_time_and_finds_a_block():
    image = np.full((90, 120, 3), 120, np.uint8)
    image += np.random.default_rng(0).integers(0, 20, image.shape, dtype=np.uint8)
    image[30:70, 40:90] = (220, 30, 30)
    one, again = selective_search(image, 150), selective_search(image, 150)
    np.testing.assert_array_equal(one, again)
    assert len(one) == len(np.unique(one, axis=0)) > 2
    assert np.abs(one - [40, 30, 90, 70]).max(1).min() < 3
    assert ((one >= 0) & (one <= [120, 90, 120, 90])).all()
    sides = (one[:, 2:] - one[:, :2]) * 150 / 120
    assert sides.min() >= 19.9, "20 pixels of the resized image"
    assert len(selective_search(image, 150, min_side=100)) < len(one)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 300), (300, 1)])
def test_selective_search_takes_images_of_any_size(size):
    assert selective_search(np.zeros((*size, 3), np.uint8), 100).shape[1] == 4


def test_an_interrupted_search_goes_on_and_ends_as_one_that_was_not(tmp_path, monkeypatch):
    name = write_blocks(tmp_path / "data", {"train": 5})
    monkeypatch.setattr(searching, "_CHUNK", 2)
    monkeypatch.setattr(searching, "ProcessPoolExecutor", Here)
    whole = searching.propose(name, "train", tmp_path / "whole.npz", width=0)
    assert whole.searched == 5
    assert not list(tmp_path.glob(".*")), "no parts are left"
    Here.left = 2
    with pytest.raises(KeyboardInterrupt):
        searching.propose(name, "train", tmp_path / "p.npz", width=0)
    Here.left = 10**6
    done = searching.propose(name, "train", tmp_path / "p.npz", width=0)
    assert done.searched == 1, "two chunks of two were finished"
    assert done.proposals.digest == whole.proposals.digest == read_proposals(tmp_path / "p.npz").digest
    assert searching.propose(name, "train", tmp_path / "p.npz", width=0).searched == 0
    with pytest.raises(UserError, match=r"p\.npz has other proposals"):
        searching.propose(name, "train", tmp_path / "p.npz", width=50)


class Here:
    """An executor that does the work at once, in this process, and is interrupted after so many tasks."""

    left = 10**6

    def __init__(self, count: int, context: Any, start: Any, settings: Any):
        self.start, self.settings = start, settings

    def __enter__(self) -> "Here":
        searching._here = self.settings
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def submit(self, work: Any, *arguments: Any) -> Any:
        from concurrent.futures import Future

        if not Here.left:
            raise KeyboardInterrupt
        Here.left -= 1
        (future := Future[Any]()).set_result(work(*arguments))
        return future

    def shutdown(self, **_: Any) -> None:
        pass
