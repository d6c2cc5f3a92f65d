"""A resident data set trains as a streamed one does: same batches, same evaluation, exact resume."""

from typing import Any

import numpy as np
import pytest
from tiny import Stop, Tiny, assert_same, build, fit, lines, tiny_config

from jaxcnn import UserError
from jaxcnn.data.dataset import Dataset
from jaxcnn.distributed.interrupt import Interrupted
from jaxcnn.training.resident import eval_feeds, load, train_feed
from jaxcnn.training.sharding import make_mesh

MODEL = Tiny(num_classes=10, dropout=0.3)


def run(folder, stop=None, **values):
    settings = {
        "data__name": "synthetic:10:70", "data__image_size": 8, "data__augment": "pad_crop(2),flip,cutmix(1)",
        "steps": 0, "epochs": 3.0, "log_every": 5, "eval_every": 0,
    }  # fmt: skip
    config = tiny_config(**(settings | values))
    fit(config, folder, Dataset(config), MODEL, stop)  # type: ignore[arg-type]
    return lines(folder)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("streamed"))


def close(got, want):
    assert [line.keys() for line in got] == [line.keys() for line in want]
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, rel=2e-4), a["step"]


@pytest.mark.parametrize(("steps", "devices"), [(0, 1), (1, 1), (4, 1), (100, 1), (4, 8)])
def test_it_is_the_streamed_run_whatever_the_steps_of_a_call_and_the_devices(streamed, tmp_path, steps, devices):
    resident = run(tmp_path, data__resident=True, data__steps_per_call=steps, mesh__data=devices)
    close(resident, streamed)
    assert [line["eval/examples"] for line in resident if "eval/examples" in line] == [17] * 3


def test_stopped_and_resumed_it_is_the_run_that_was_not(tmp_path):
    many = {"data__resident": True, "data__steps_per_call": 4}
    whole = run(tmp_path / "whole", **many)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", Stop(2), **many)
    assert run(tmp_path / "cut", **many | {"data__steps_per_call": 3}) == whole


def test_calls_end_where_the_host_has_something_to_do():
    config = tiny_config(data__name="synthetic:10:70", data__image_size=8, data__resident=True)
    data = Dataset(config)
    feed = train_feed(data, make_mesh(1), {}, 2, 21, 4, lambda step: step + 5 - step % 5)
    counts = [count for count, _ in feed]
    assert counts == [3, 4, 1, 4, 1, 4, 1, 1]


def test_the_whole_set_is_on_every_device_as_bytes():
    config = tiny_config(data__name="digits", data__resident=True)
    data = Dataset(config)
    loaded, mask = load(data, make_mesh(8), training=True)
    examples = loaded["examples"]
    assert examples["image"].dtype == np.uint8
    assert examples["image"].sharding.is_fully_replicated
    assert_same(
        np.asarray(examples["label"]), np.array([data.train[i]["label"] for i in range(len(data.train))], np.int32)
    )
    assert mask.all()


def test_one_program_takes_calls_of_any_length():
    config = tiny_config(data__name="synthetic:10:70", data__image_size=8, data__resident=True, data__steps_per_call=4)
    data = Dataset(config)
    program = build(config, MODEL, data)  # type: ignore[arg-type]
    step, state = program.train_step, program.init()
    examples, _ = load(data, program.mesh, training=True)
    for count, feed in train_feed(data, program.mesh, examples, 0, 6, 4, lambda step: 10):
        state, _ = step(state, feed)
        assert int(state.step) == {4: 4, 2: 6}[count]
    assert step._cache_size() == 1


def test_an_example_that_could_not_be_read_is_not_evaluated_nor_is_one_counted_twice():
    class Broken:
        image_shape, position, eval_examples = (1,), {"examples": 5}, 5

        def resident(self, training: bool) -> Any:
            return {"image": np.zeros((5, 1), np.uint8)}, np.array([1, 0, 1, 1, 1], np.float32)

    feeds = eval_feeds(Broken(), make_mesh(1), rows=2, global_batch_size=2)
    found = {key: np.concatenate([np.ravel(feed[key]) for feed in feeds]) for key in ("example", "mask")}
    assert found["mask"].tolist() == [1, 0, 1, 1, 1, 0]
    assert found["example"][:5].tolist() == [0, 1, 2, 3, 4]


def test_what_works_on_the_host_is_refused():
    with pytest.raises(UserError, match=r"config\.data\.augment=random_area\(0.1,1\)"):
        Dataset(tiny_config(data__resident=True, data__augment="random_area(0.1,1)"))


def test_a_set_that_does_not_fit_is_refused():
    data = Dataset(tiny_config(data__name="digits", data__resident=True))

    class Small:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 229_000}  # all 1,797 images have 115,008 bytes: just more than half

    class Mesh:
        devices = np.array([Small()])

    with pytest.raises(
        UserError,
        match=r"config\.data\.resident",
    ):
        load(data, Mesh(), training=True)  # type: ignore[arg-type]


def test_on_accelerators_a_call_takes_many_steps():
    from jaxcnn.training.resident import rows_of_tables

    class Mesh:
        devices = np.array([type("Chip", (), {"platform": "tpu"})()])

    config = tiny_config(data__resident=True)
    assert rows_of_tables(config, Mesh(), 1000, 100) == (50, 7)  # type: ignore[arg-type]
    assert rows_of_tables(config, Mesh(), 12, 100) == (12, 7)  # type: ignore[arg-type]
    assert rows_of_tables(config, make_mesh(1), 1000, 100) == (1, 1)
