"""What the spine promises every task, shown on a toy task that only the tests know (tests/helpers/toy.py)."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASSES, Blobs, Stop, Tiny, assert_same, build, fit, leaves, lines, steps, tiny_config
from toy import MODEL, TOYS, Two, Values, register

from jaxcnn import UserError
from jaxcnn.data.batches import on_devices
from jaxcnn.distributed.interrupt import Interrupted
from jaxcnn.models.layers import Classifier
from jaxcnn.tasks.base import Task
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.evaluation import evaluate

SGD = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.1, "optimizer__momentum": 0.0}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """Register the toys as a new task would be, and forget them after the test."""
    register(monkeypatch.setitem)


def toy_config(task: str = "toy", **values: Any) -> Any:
    return tiny_config(task__name=task, **SGD | values)


def one_step(task: str, **values: Any) -> tuple[float, dict[str, np.ndarray], float]:
    """Loss, parameters and the gradient's norm after one step of 32 rows, masked unequally."""
    data = Values(32)
    made = toy_config(task, global_batch_size=32, **values)
    state, (loss,) = steps(build(made, MODEL, data), 1, data)
    return loss, leaves(state.params), float(state.metrics["grad_norm"][0])


SPLITS = [
    {"mesh__data": devices, "optimizer__accumulate": parts, "norm__scope": scope}
    for devices in (1, 8) for parts in (1, 4) for scope in ("global", "shard")
]  # fmt: skip


@pytest.mark.parametrize("split", SPLITS[1:], ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("task", ["toy", "undivided"])
def test_parts_with_rows_masked_unequally_have_the_loss_and_gradients_of_the_undivided_batch(task, split):
    loss, params, norm = one_step(task, **split)
    expected_loss, expected, expected_norm = one_step(task)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert norm == pytest.approx(expected_norm, rel=1e-5)
    for path, x in params.items():
        np.testing.assert_allclose(x, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("split", SPLITS[1:], ids=lambda s: "-".join(map(str, s.values())))
def test_and_so_has_classification_whose_terms_share_a_weight(split):
    def run(**values: Any) -> Any:
        data = Values(32)
        return steps(build(tiny_config(**SGD, global_batch_size=32, **values), MODEL, data), 1, data)

    (state, losses), (whole, expected) = run(**split), run()
    assert losses == pytest.approx(expected, rel=1e-5)
    for (path, x), y in zip(leaves(state.params).items(), leaves(whole.params).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=path)


def test_the_objective_is_the_sum_over_terms_of_sum_by_weight():
    data = Values(32)
    rows = data.rows(1000, 32)
    program = build(toy_config(global_batch_size=32), MODEL, data)
    logits: Any = MODEL.apply(program.init().variables, data.preprocess(rows, None)["image"])
    logits = np.asarray(logits["logits"], np.float64)
    mask, known = rows["mask"], rows["mask"] * rows["known"]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    error = (((logits[:, :2] - rows["value"]) ** 2).sum(-1) * mask).sum()
    nll = -0.5 * (log_p[np.arange(32), rows["label"]] * known).sum() / known.sum()
    assert one_step("toy")[0] == pytest.approx(error / mask.sum() + nll, rel=1e-5)
    assert one_step("undivided")[0] == pytest.approx(error + nll, rel=1e-5)


@pytest.mark.parametrize("split", [{"optimizer__accumulate": 4}, {"mesh__data": 8, "norm__scope": "shard"}])
def test_a_weight_of_the_forward_pass_needs_the_undivided_batch_or_a_fixed_weight(split):
    with pytest.raises(UserError, match=r"class .*config\.optimizer\.accumulate=1"):
        one_step("late", **split)
    one_step("late", mesh__data=8)
    fixed = one_step("late", task__share=2.0, **split)
    assert fixed[0] == pytest.approx(one_step("late", task__share=2.0)[0], rel=1e-5)


def evaluation(batch: int, devices: int, seed: int = 0) -> tuple[dict[str, float], Any, Any]:
    """Scores, sums and rows of 37 examples."""
    data = Values(batch)
    program = build(toy_config(global_batch_size=batch, mesh__data=devices, seed=seed), MODEL, data)
    task: Any = program.task
    scores = evaluate(
        program.eval_step, program.init().variables, data.eval_batches(), task=task, mesh=program.mesh, examples=37
    )
    return scores, *task.seen


@pytest.mark.parametrize(("batch", "devices"), [(5, 1), (16, 8), (64, 4)])
def test_array_sums_are_exact_and_rows_come_once_an_example_in_order(batch, devices):
    scores, sums, rows = evaluation(batch, devices)
    data = Values()
    labels = data.rows(1, 37)["label"]
    assert sums["confusion"][0].dtype == np.int64
    guesses = np.zeros((CLASSES, CLASSES), int)
    np.add.at(guesses, (labels, rows["guess"]), 1)
    np.testing.assert_array_equal(sums["confusion"][0], guesses)
    assert sums["large"] == (37 * (2**25 + 1), 37)
    np.testing.assert_array_equal(rows["example"], np.arange(37))
    expected, _, expected_rows = evaluation(37, 1)
    assert scores == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(rows["draw"], expected_rows["draw"])  # a function of (seed, example)
    assert len(set(rows["draw"].tolist())) == 37


def test_draws_of_evaluation_depend_on_the_seed():
    assert not np.isin(evaluation(16, 1, seed=1)[2]["draw"], evaluation(16, 1)[2]["draw"]).any()


def test_a_run_of_a_task_keeps_the_checkpoint_with_the_smallest_score_and_shows_its_headline(tmp_path, capsys):
    data = Values()
    result = fit(toy_config(optimizer__learning_rate=0.02, eval_every=3), tmp_path, data, MODEL)
    errors = {line["step"]: line["eval/error"] for line in lines(tmp_path) if "eval/error" in line}
    best = min(errors, key=lambda step: errors[step])
    assert Checkpoints(tmp_path, ("error", "min")).resolve("best") == best
    assert result["best/eval/error"] == errors[best]
    assert "eval/top1" not in json.dumps(result)
    assert "error " in (said := capsys.readouterr().err)
    assert "top-1" not in said


def test_frozen_parameters_stay_have_no_optimizer_state_and_are_not_in_the_gradients_norm():
    values: dict[str, Any] = {"optimizer__name": "adam", "global_batch_size": 32}
    data = Values(32)
    program = build(toy_config("frozen", **values), MODEL, data)
    before = leaves(program.init().params)
    state, _ = steps(program, 2, data)
    after = leaves(state.params)
    assert {path for path in after if (after[path] == before[path]).all()} == {path for path in after if "conv" in path}
    assert not any("conv" in path for path in leaves(state.opt_state))
    # The user may freeze the same by its name, whatever the task says.
    named = build(toy_config(**values, optimizer__freeze="conv", optimizer__multipliers="head/bias=2"), MODEL, data)
    assert_same(steps(named, 2, data)[0].params, state.params)
    everything = one_step("toy")[2]
    assert one_step("frozen")[2] < everything


def test_frozen_parameters_are_the_same_over_eight_devices():
    loss, params, norm = one_step("frozen", mesh__data=8, mesh__placement="fsdp", ema__decay=0.9)
    expected = one_step("frozen", ema__decay=0.9)
    assert (loss, norm) == (pytest.approx(expected[0], rel=1e-5), pytest.approx(expected[2], rel=1e-5))
    for path, x in params.items():
        np.testing.assert_allclose(x, expected[1][path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("split", [{}, {"mesh__data": 8}, {"optimizer__accumulate": 4}, SPLITS[5]])
def test_players_take_turns_each_with_an_optimizer_of_its_own(split):
    data = Values(32)
    program = build(toy_config("players", global_batch_size=32, ema__decay=0.5, **split), Two(), data)
    state = program.init()
    assert set(state.opt_state) == {"judge", "maker"}
    assert set(state.ema) == {"params"}
    assert set(state.ema["params"]) == {"maker"}
    begin = jax.device_get(state.params)
    state, _ = steps(program, 1, data)
    rows = data.rows(1000, 32)
    images, mask = data.preprocess(rows, None)["image"], rows["mask"]

    def mean_logit(params: Any) -> Any:
        out: Any = Two().apply({"params": params}, images)
        return jnp.sum(out["logits"] * mask) / mask.sum()

    judge = jax.grad(mean_logit)(begin)["judge"]
    middle = begin | {"judge": jax.tree.map(lambda x, g: x + 0.1 * g, begin["judge"], judge)}
    maker = jax.grad(mean_logit)(middle)["maker"]
    expected = middle | {"maker": jax.tree.map(lambda x, g: x - 0.1 * g, begin["maker"], maker)}
    for (path, x), y in zip(leaves(expected).items(), leaves(state.params).values(), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6, err_msg=path)
    assert {"judge_grad_norm", "maker_grad_norm", "sum-1", "sum+1"} <= set(state.metrics)


def test_a_run_with_players_constants_and_a_partial_average_resumes_to_the_bit(tmp_path):
    made: dict[str, Any] = {"ema__decay": 0.5, "checkpoint_every": 6, "eval_every": 6, "optimizer__name": "adam"}
    fit(toy_config("players", **made), tmp_path / "one", Values(), Two())
    with pytest.raises(Interrupted):
        fit(toy_config("players", **made), tmp_path / "two", Values(), Two(), Stop(7))
    fit(toy_config("players", **made), tmp_path / "two", Values(), Two())
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    program = build(toy_config("players", **made), Two(), Values())
    first, second = (Checkpoints(tmp_path / name, ("gap", "max")) for name in ("one", "two"))
    assert_same(first.restore(12, program.state), second.restore(12, program.state))
    kept = first.restore_variables(12, program.variables)
    state = first.restore(12, program.state)
    assert_same(kept["params"], state.params | state.ema["params"])
    assert all(score < 0 for score in (line.get("eval/gap", -1) for line in lines(tmp_path / "one")))
    best = max((line["eval/gap"], line["step"]) for line in lines(tmp_path / "one") if "eval/gap" in line)[1]
    assert first.resolve("best") == best


def test_constants_are_arguments_of_the_program_and_no_part_of_a_checkpoint():
    data = Values()
    program = build(toy_config("players"), Two(), data)
    text = program.train_step.lower(program.state, program.largest_batch).as_text()
    assert "dense<[0.000000e+00, 1.000000e+00, 2.000000e+00" not in text
    state = program.init()
    np.testing.assert_array_equal(state.constants["offset"], np.arange(7))
    assert "constants" not in state.saved()
    batch = next(on_devices(data.train_batches(0, 1), program.mesh))
    np.testing.assert_array_equal(program.train_step(state, batch)[0].constants["offset"], np.arange(7))


class TwoShapes(Blobs):
    """Blobs of two shapes in turn."""

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.buckets = self.eval_buckets = ((5, 4), (4, 6))

    def train_batches(self, start: int, stop: int) -> Any:
        for step in range(start, stop):
            self.image_shape = (*self.buckets[step % 2], 3)
            yield self.rows(1000 + step, self.batch)

    def eval_batches(self) -> Any:
        for height, width in self.eval_buckets:
            self.image_shape = (height, width, 3)
            yield self.rows(1, 16) | {"mask": (np.arange(16) < 10).astype(np.float32)}


def test_buckets_are_compiled_before_the_first_batch_and_resume_to_the_bit(tmp_path):
    made: dict[str, Any] = {"eval_every": 6, "checkpoint_every": 6}
    result = fit(tiny_config(**made), tmp_path / "one", TwoShapes(eval_examples=20), Tiny())
    assert result["eval/examples"] == 20
    with pytest.raises(Interrupted):
        fit(tiny_config(**made), tmp_path / "two", TwoShapes(eval_examples=20), Tiny(), Stop(7))
    fit(tiny_config(**made), tmp_path / "two", TwoShapes(eval_examples=20), Tiny())
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    train_step = build(tiny_config(), Tiny(), TwoShapes()).compile_training()
    assert set(train_step.programs) == {(5, 4), (4, 6)}


TWO_PROCESSES = """
import json, sys
sys.path.insert(0, {helpers!r})
import jax
jax.distributed.initialize({address!r}, 2, int(sys.argv[1]))
from toy import MODEL, Values, register
from tiny import tiny_config
from jaxcnn.training.evaluation import evaluate
from jaxcnn.training.program import build_program
from jaxcnn.training.sharding import make_mesh

class Half(Values):
    def eval_batches(self):
        for batch in super().eval_batches():
            yield {{key: x[jax.process_index() * 8:][:8] for key, x in batch.items()}}

register()
data = Half(16)
program = build_program(tiny_config(task__name="toy"), MODEL, data, make_mesh(4))
scores = evaluate(program.eval_step, program.init().variables, data.eval_batches(),
                  task=program.task, mesh=program.mesh, examples=37)
sums, rows = program.task.seen
found = [scores, sums["confusion"][0].tolist(), {{k: x.tolist() for k, x in rows.items()}}]
open(sys.argv[2], "w").write(json.dumps(found))  # not stdout, where Gloo writes too
"""


def test_two_processes_see_every_row_once_and_the_same_scores_as_one(tmp_path):
    helpers = str(Path(__file__).parents[1] / "helpers")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    text = TWO_PROCESSES.format(helpers=helpers, address=address)
    env = os.environ | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "2"}
    started = [
        subprocess.Popen([sys.executable, "-c", text, str(i), str(tmp_path / f"{i}.json")], env=env) for i in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    assert found[0] == found[1]
    scores, confusion, rows = found[0]
    expected, sums, expected_rows = evaluation(37, 1)
    assert scores == pytest.approx(expected, rel=1e-6)
    assert confusion == sums["confusion"][0].tolist()
    for name, values in expected_rows.items():
        np.testing.assert_allclose(rows[name], values, rtol=1e-6)


def test_a_task_that_says_nothing_of_pictures_and_headlines_refuses_the_first_and_shows_its_best(tmp_path, capsys):
    for method, arguments in (("predict", ({},)), ("describe", ({}, ())), ("draw", ([], {}, ())), ("of_crops", ({},))):
        with pytest.raises(UserError, match="task Task has no"):
            getattr(Task(), method)(*arguments)
    fit(toy_config("late", mesh__data=1, steps=2), tmp_path, Values(), MODEL)  # its headline is Toy's
    assert "error " in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TOYS["toy"], "headline", ())
        result = fit(toy_config(steps=2), tmp_path / "bare", Values(), MODEL)
    assert "eval error " in capsys.readouterr().err
    assert {"train/loss", "eval/error"} <= result.keys()  # the objective is logged where a task has no loss of its own


class Flat(nn.Module):
    """A head on all pixels: its parameters are of one image size."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        return {"logits": Classifier(CLASSES, jnp.float32, name="head")(images.reshape(len(images), -1))}


def test_a_network_of_one_image_size_refuses_others_before_anything_is_read():
    with pytest.raises(UserError, match=r"4×6 .*config\.data\.eval_size"):
        build(tiny_config(), Flat(), TwoShapes())
