"""Evaluation counts every example once, whatever the batch and the devices."""

import itertools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Blobs, Tiny, build, steps, tiny_config

from jaxcnn.data.dataset import Dataset
from jaxcnn.tasks import create_task
from jaxcnn.training.evaluation import Evaluation, evaluate, evaluate_rows, means
from jaxcnn.training.sharding import make_mesh


def scores(program: Any, variables: Any, data: Any) -> dict[str, float]:
    return evaluate(
        program.eval_step, variables, data.eval_batches(),
        task=program.task, mesh=program.mesh, examples=data.eval_examples,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> Any:
    state, _ = steps(build(tiny_config()), 5)
    return jax.device_get({"params": state.params, "batch_stats": state.batch_stats})


@pytest.fixture(scope="module")
def by_hand(trained) -> dict[str, float]:
    """Of all 37 examples at once, without padding, in NumPy."""
    data = Blobs()
    rows = data.rows(1, 37)
    logits: Any = Tiny().apply(trained, data.preprocess(rows, None)["image"])
    logits = np.asarray(logits["logits"], np.float64)
    right = logits[np.arange(37), rows["label"]]
    rank = (logits > right[:, None]).sum(-1)
    loss = np.log(np.exp(logits).sum(-1)) - right
    return {"eval/loss": loss.mean(), "eval/top1": (rank < 1).mean(), "eval/top5": (rank < 5).mean()}


@pytest.mark.parametrize(("batch", "devices"), [(37, 1), (16, 1), (5, 1), (1, 1), (16, 8), (64, 4), (40, 8)])
def test_scores_do_not_depend_on_batch_or_devices_and_all_examples_are_counted(trained, by_hand, batch, devices):
    found = scores(build(tiny_config(global_batch_size=batch, mesh__data=devices)), trained, Blobs(batch))
    assert found.pop("eval/examples") == 37
    assert found == pytest.approx(by_hand, rel=1e-5)
    assert found["eval/top1"] == pytest.approx(by_hand["eval/top1"], abs=1e-12)  # a count, exactly


@given(sizes=st.lists(st.integers(0, 9), max_size=8), extra=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_sums_of_any_batches_divide_by_the_examples_in_them(sizes, extra):
    def count(_: Any, batch: Any) -> Any:
        mask = np.asarray(batch["mask"])
        total = (np.asarray(batch["label"]) * mask).sum()
        sums = {"loss": (total[None], mask.sum()[None])}
        return {"examples": mask.sum()[None], "sums": sums, "rows": {}}

    labels = np.arange(sum(sizes), dtype=np.float32)
    ends = np.cumsum([0, *sizes])
    batches = [
        {"label": np.pad(labels[a:b], (0, extra), constant_values=99), "mask": np.pad(np.ones(b - a, "f"), (0, extra))}
        for a, b in itertools.pairwise(ends)
    ]
    found = evaluate(
        count, None, iter(batches), task=create_task(tiny_config()), mesh=make_mesh(1), examples=len(labels)
    )
    mean = {"eval/loss": pytest.approx(labels.mean())} if len(labels) else {}
    assert found == mean | {"eval/examples": len(labels)}


@pytest.mark.parametrize("claimed", [36, 38])
def test_an_example_lost_or_counted_twice_is_a_fault(trained, claimed):
    data = Blobs()
    program = build(tiny_config())
    with pytest.raises(RuntimeError, match=f"counted 37 examples of {claimed}"):
        evaluate(program.eval_step, trained, data.eval_batches(), task=program.task, mesh=program.mesh,
                 examples=claimed)  # fmt: skip


def test_the_digits_are_all_counted_by_the_real_pipeline_at_batches_that_do_not_divide():
    found = []
    for batch, devices in ((200, 8), (101, 1)):
        config = tiny_config(global_batch_size=batch, mesh__data=devices)
        data = Dataset(config)
        assert data.eval_examples % batch
        program = build(config, Tiny(10), data)  # type: ignore[arg-type]
        state = program.init()
        found.append(scores(program, state.variables, data))
        assert found[-1]["eval/examples"] == data.eval_examples == 355
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_means_name_their_part_and_an_empty_sum_and_an_array_are_absent():
    sums: Any = {"loss": (np.float32(6), np.float32(4)), "top1": (np.float32(0), np.float32(0))}
    sums["confusion"] = (np.ones((2, 2)), np.float32(4))
    assert means("train", sums) == {"train/loss": 1.5}


def test_rows_are_in_the_order_of_the_examples_and_without_padding():
    def step(_: Any, batch: Any) -> Any:
        rows = {"example": batch["example"], "mask": batch["mask"], "double": 2 * batch["example"]}
        counted = {"examples": batch["mask"].sum(), "sums": {"loss": (batch["mask"].sum(), batch["mask"].sum())}}
        return jax.tree.map(lambda x: x[None], counted | {"rows": rows})

    batches = [
        {"example": np.array(examples), "mask": np.array(mask, np.float32)}
        for examples, mask in (([4, 3, 9], [1, 1, 0]), ([0, 2, 1], [1, 1, 1]))
    ]
    options: Any = {"task": create_task(tiny_config()), "mesh": make_mesh(1), "examples": 5}
    _, rows = evaluate_rows(step, None, iter(batches), **options)
    assert {name: x.tolist() for name, x in rows.items()} == {"example": [0, 1, 2, 3, 4], "double": [0, 2, 4, 6, 8]}


def test_an_error_in_evaluation_ends_the_reading():
    closed = []

    def batches() -> Any:
        try:
            while True:
                yield {"example": np.arange(2)}
        finally:
            closed.append(True)

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    options: Any = {"task": create_task(tiny_config()), "mesh": make_mesh(1), "examples": 2}
    with pytest.raises(ZeroDivisionError) as caught:
        evaluate(broken, None, batches(), **options)
    assert closed, caught  # The error keeps its frames, so nothing was closed by chance.


def test_the_image_of_an_example_has_the_size_of_its_bucket():
    def reader(name: str, members: set[int]) -> Any:
        return SimpleNamespace(members=members, eval=lambda example: {"image": (name, example)})

    data: Any = SimpleNamespace(eval_readers=[reader("tall", {0, 2}), reader("wide", {1})])
    task: Any = SimpleNamespace(draw_mistakes=lambda rows, names, images: images([1, 0, 2]))
    assert Evaluation({}, {}, task, data, ()).draw_mistakes() == [("wide", 1), ("tall", 0), ("tall", 2)]
