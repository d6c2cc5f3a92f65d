"""The loop: what it writes, and that a run cut anywhere is the run that was never cut."""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny import Blobs, Stop, Tiny, assert_same, build, fit, leaves, lines, tiny_config

from jaxcnn import UserError
from jaxcnn.distributed.interrupt import Interrupted
from jaxcnn.training import loop
from jaxcnn.training.checkpoint import Checkpoints, save_variables
from jaxcnn.training.evaluation import evaluate
from jaxcnn.training.initial_state import load_variables, restore_or_init

BEST = ("top1", "max")
# 12 steps, 5 an epoch: lines of the log at 4, 8, 12; evaluations at 5, 10, 12; checkpoints at 3, 6, 9, 12.
EVERYTHING: dict[str, Any] = {
    "checkpoint_every": 3, "ema__decay": 0.9, "optimizer__accumulate": 2,
    "optimizer__warmup_steps": 12, "optimizer__weight_decay": 1e-3, "task__label_smoothing": 0.1, "keep_last": 9,
}  # fmt: skip
MODEL = Tiny(dropout=0.2)


class Crash(Exception):
    """Stands in for SIGKILL, as the data raises it: nothing is saved after it."""


class Crashing(Blobs):
    """Dies when the batch of step `last` + 1 is asked for, which draws the one two steps further on."""

    last = 0

    def train_batches(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for step, batch in enumerate(super().train_batches(start, stop), start):
            if step >= self.last + 2:
                raise Crash
            yield batch


def blobs(last: int | None = None) -> Blobs:
    data = Crashing(augment="pad_crop_flip") if last is not None else Blobs(augment="pad_crop_flip")
    if isinstance(data, Crashing):
        data.last = last or 0
    return data


def run(workdir: Path, stop_after: int | None = None, crash_after: int | None = None, **values: Any) -> Any:
    stop = Stop(stop_after) if stop_after is not None else None
    try:
        return fit(tiny_config(**EVERYTHING | values), workdir, blobs(crash_after), MODEL, stop)
    except Crash:
        while list(workdir.glob("checkpoints/*tmp*")):  # a kill would have taken the writing thread along
            time.sleep(0.01)
        raise


def final(workdir: Path, step: int = 12, **values: Any) -> Any:
    program = build(tiny_config(**EVERYTHING | values), MODEL)
    return Checkpoints(workdir, BEST).restore(step, program.state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing cut, for the signal during its last step found it complete. Not to be written to."""
    workdir = tmp_path_factory.mktemp("whole")
    run(workdir, stop_after=12)
    return workdir


def assert_is_the_whole(workdir: Path, whole: Path) -> None:
    assert lines(workdir) == lines(whole)
    assert_same(final(workdir), final(whole))


def improving(workdir: Path) -> set[int]:
    """The steps whose evaluation was better than every one before."""
    found, best = set(), -1.0
    for line in lines(workdir):
        if line.get("eval/top1", -1.0) > best:
            best = line["eval/top1"]
            found.add(int(line["step"]))
    return found


def test_the_log_has_a_line_where_it_should(whole):
    found = [(line["step"], [part for part in ("train", "eval") if f"{part}/loss" in line]) for line in lines(whole)]
    assert found == [(4, ["train"]), (5, ["eval"]), (8, ["train"]), (10, ["eval"]), (12, ["train"]), (12, ["eval"])]
    assert [line["epoch"] for line in lines(whole)] == [step / 5 for step, _ in found]
    train = {"loss", "top1", "top5", "learning_rate", "grad_norm", "images_per_sec", "data_wait_frac"}
    every = [json.loads(text) for text in (whole / "metrics.jsonl").read_text().splitlines()]
    assert set(every[0]) == {"step", "epoch"} | {f"train/{name}" for name in train}
    assert set(every[1]) == {"step", "epoch"} | {f"eval/{name}" for name in ("loss", "top1", "top5", "examples")}
    assert all(line["eval/examples"] == 37 for line in every if "eval/loss" in line)
    assert every[0]["train/images_per_sec"] > 0
    assert Checkpoints(whole, BEST).steps == sorted({3, 6, 9, 12} | improving(whole))


def test_a_line_is_of_the_steps_since_the_one_before(whole):
    """The mean rate tells which steps are in it: all are of the warm-up, at step t 0.01 · t / 12."""
    found = [line["train/learning_rate"] for line in lines(whole) if "train/loss" in line]
    assert found == pytest.approx([0.01 * t / 12 for t in (1.5, 5.5, 9.5)], rel=1e-5)


# Inside an interval of the log, at a checkpoint, at a line, and at an evaluation.
@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_stopped_after_any_step_and_run_again_it_is_the_run_never_stopped(after, whole, tmp_path):
    with pytest.raises(Interrupted, match=f"SIGTERM: stopped at step {after} of 12, saved in") as stop:
        run(tmp_path, stop_after=after)
    assert stop.value.code == 143
    assert Checkpoints(tmp_path, BEST).resolve("last") == after
    assert not (tmp_path / "result.json").exists()
    run(tmp_path)
    assert_is_the_whole(tmp_path, whole)


@pytest.mark.slow
def test_stopped_after_every_single_step_it_is_the_run_never_stopped(whole, tmp_path):
    for _ in range(11):
        with pytest.raises(Interrupted):
            run(tmp_path, stop_after=1)
    run(tmp_path)
    assert_is_the_whole(tmp_path, whole)


@pytest.mark.parametrize("after", [2, 8])  # before the first checkpoint, and two steps after the second
def test_killed_between_checkpoints_it_goes_on_from_the_last_and_is_the_run_never_killed(after, whole, tmp_path):
    with pytest.raises(Crash):
        run(tmp_path, crash_after=after)
    assert max((line["step"] for line in lines(tmp_path)), default=0) <= after
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "epoch": 2.2, "train/lo')  # a line torn by the kill
    run(tmp_path)
    assert_is_the_whole(tmp_path, whole)


def test_a_signal_before_the_first_step_of_a_process_loses_nothing_and_has_nothing_to_save(whole, tmp_path):
    for after, reached, words in ((0, 0, "nothing to save yet"), (4, 4, "saved in"), (0, 4, "saved in")):
        with pytest.raises(Interrupted, match=f"stopped at step {reached} of 12, {words}"):
            run(tmp_path, stop_after=after)
        assert Checkpoints(tmp_path, BEST).steps == [3, 4][: reached // 2]
    run(tmp_path)
    assert_is_the_whole(tmp_path, whole)


class Cutting(Blobs):
    """A signal comes while the second batch of evaluation `last` is awaited."""

    stop = Stop()
    evaluations = last = 0

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        self.evaluations += 1
        for number, batch in enumerate(super().eval_batches()):
            self.stop.now |= number == 1 and self.evaluations == self.last
            yield batch


@pytest.mark.parametrize(("evaluation", "step"), [(1, 5), (2, 10), (3, 12)])
def test_an_evaluation_that_a_signal_cuts_short_is_made_first_next_time(evaluation, step, whole, tmp_path):
    stop, data = Stop(), Cutting(augment="pad_crop_flip")
    data.stop, data.last = stop, evaluation
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 12, saved in"):
        fit(tiny_config(**EVERYTHING), tmp_path, data, MODEL, stop)
    assert [line for line in lines(tmp_path) if line["step"] == step and "eval/loss" in line] == []
    assert Checkpoints(tmp_path, BEST).info(step)["evaluation_due"]
    with contextlib.suppress(Interrupted):
        run(tmp_path, stop_after=0)  # and is not told twice, though the run stops again right after
    run(tmp_path)
    assert_is_the_whole(tmp_path, whole)
    assert Checkpoints(tmp_path, BEST).resolve("best") == Checkpoints(whole, BEST).resolve("best")


class Failing(Blobs):
    """Its reader gives up at step 7."""

    def train_batches(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        yield from super().train_batches(start, min(stop, 7 + 2))
        raise UserError("reading hangs")


def test_what_was_done_before_reading_failed_is_saved(whole, tmp_path):
    with pytest.raises(UserError, match="reading hangs"):
        fit(tiny_config(**EVERYTHING), tmp_path, Failing(augment="pad_crop_flip"), MODEL)
    assert Checkpoints(tmp_path, BEST).steps[-1] > 6
    run(tmp_path)
    assert_is_the_whole(tmp_path, whole)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before_and_nothing_else(whole, tmp_path, capsys):
    with pytest.raises(Interrupted):
        run(tmp_path, stop_after=10)
    (tmp_path / "checkpoints" / "10" / "state" / "_METADATA").write_text("")
    run(tmp_path)
    assert "10 is damaged (state/_METADATA has 0 of " in capsys.readouterr().err
    assert_is_the_whole(tmp_path, whole)


def test_the_result_of_a_run_that_was_shorter_is_not_taken_for_that_of_the_longer(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 8}))
    assert run(tmp_path / "copy")["step"] == 12
    assert json.loads(path.read_text())["step"] == 12


def test_resumed_on_other_devices_it_is_the_same_run_to_rounding_and_its_result_counts_all_of_it(whole, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, stop_after=7)
    before = Checkpoints(tmp_path, BEST).info(7)["spent"]
    result = run(tmp_path, mesh__data=8)
    for a, b in zip(lines(tmp_path), lines(whole), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    for path, x in leaves(final(tmp_path).params).items():
        np.testing.assert_allclose(x, leaves(final(whole).params)[path], rtol=1e-4, atol=1e-5, err_msg=path)
    assert result["images"] == 12 * 16
    assert result["images_per_sec"] == pytest.approx(192 / result["wall_time_s"])
    assert result["wall_time_s"] > before["wall_time_s"] + result["compile_time_s"] - before["compile_time_s"]
    assert result["device_count"] == 8


def test_a_run_made_longer_is_the_one_that_was_longer_from_the_start(whole, tmp_path):
    run(tmp_path, steps=8)
    assert (tmp_path / "result.json").exists()
    assert run(tmp_path)["step"] == 12
    assert [line for line in lines(tmp_path) if (line["step"], "eval/loss" in line) != (8, True)] == lines(whole)
    assert_same(final(tmp_path), final(whole))


def test_a_run_that_is_complete_does_nothing_when_run_again(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)

    def files() -> dict[Path, tuple[int, bytes]]:
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in copy.rglob("*") if p.is_file()}

    before = files()
    result = run(copy, crash_after=-2)  # no batch is asked for
    assert result == json.loads((whole / "result.json").read_text())
    assert files() == before


def test_other_data_is_refused_by_the_checkpoint(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    data = blobs()
    data.position |= {"examples": 81}
    with pytest.raises(UserError, match="was trained with examples 80, this run has 81"):
        fit(tiny_config(**EVERYTHING | {"steps": 20}), copy, data, MODEL)


@pytest.mark.parametrize(
    ("values", "logged", "evaluated", "saved"),
    [
        ({"log_every": 100}, [7], [5, 7], [5, 7]),  # more than there are: once, at the end
        ({"eval_every": 3, "log_every": 7}, [7], [3, 6, 7], [5, 7]),  # and what evaluates better
        ({"steps": 1, "checkpoint_every": 100}, [1], [1], [1]),
        ({"steps": 0, "epochs": 1.4, "log_every": 5}, [5, 7], [5, 7], [5, 7]),  # 1.4 epochs of 5 are 7 steps
    ],
)
def test_intervals_that_do_not_divide_the_run_still_end_with_its_last_step(values, logged, evaluated, saved, tmp_path):
    fit(tiny_config(**{"steps": 7} | values), tmp_path)
    found = lines(tmp_path)
    assert [line["step"] for line in found if "train/loss" in line] == logged
    assert [line["step"] for line in found if "eval/loss" in line] == evaluated
    assert Checkpoints(tmp_path, BEST).steps == sorted({*saved} | improving(tmp_path))[-3:]


def test_the_best_is_kept_although_nothing_else_is_saved_where_it_was_evaluated(tmp_path):
    fit(tiny_config(eval_every=2, checkpoint_every=11, keep_last=1), tmp_path)
    checkpoints = Checkpoints(tmp_path, BEST)
    scores = {line["step"]: line["eval/top1"] for line in lines(tmp_path) if "eval/top1" in line}
    best = max(improving(tmp_path))
    assert scores[best] == max(scores.values())
    assert checkpoints.steps == sorted({best, 12})
    assert checkpoints.resolve("best") == best


def test_a_run_that_is_past_its_end_is_refused_and_its_config_kept(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "config.json").write_text("as it was")
    (copy / "result.json").unlink()
    with pytest.raises(UserError, match="is at step 12, the config ends at 8"):
        fit(tiny_config(**EVERYTHING | {"steps": 8}), copy, blobs(), MODEL)
    with pytest.raises(UserError, match="asks for 99"):
        fit(tiny_config(**EVERYTHING | {"mesh__data": 99}), copy, blobs(), MODEL)
    assert (copy / "config.json").read_text() == "as it was"


@pytest.mark.parametrize("damaged", [6, 11])  # between two lines of the log, and the last batch
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_checkpoint(damaged, tmp_path):
    good = rf"checkpoints/{damaged // 2 * 2}\."
    message = rf"stopped at step {damaged + 1}: the loss is nan .* Last good checkpoint: \S*{good}"
    with pytest.raises(UserError, match=message) as error:
        fit(tiny_config(checkpoint_every=2, keep_last=9), tmp_path, Blobs(damaged=(damaged,)))
    assert "\n" not in str(error.value)
    checkpoints = Checkpoints(tmp_path, BEST)
    assert checkpoints.steps == sorted({*range(2, damaged + 1, 2)} | improving(tmp_path))
    for step in checkpoints.steps:
        assert all(np.isfinite(x).all() for x in leaves(checkpoints.restore(step, build(tiny_config()).state)).values())
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert not (tmp_path / "result.json").exists()


def test_what_is_not_finite_is_not_evaluated(tmp_path):
    with pytest.raises(UserError, match="stopped at step 5: the loss is nan"):
        fit(tiny_config(log_every=4, eval_every=5), tmp_path, Blobs(damaged=(4,)))
    assert [line["step"] for line in lines(tmp_path)] == [4]


class Inflating(nn.Module):
    """Its statistic becomes infinite at the second step, and neither loss nor gradient sees it."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        size = self.variable("batch_stats", "size", jnp.zeros, ())
        if train:
            size.value = size.value * 1e30 + 1e30
        return {"logits": jnp.zeros((len(images), 6)) + self.param("x", nn.initializers.zeros, (6,))}


class Watched(Blobs):
    """Says which batches were read, and whether reading that had begun was ended."""

    ended = True

    def train_batches(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        self.read, self.ended = [], False
        try:
            for step, batch in enumerate(super().train_batches(start, stop), start):
                self.read.append(step)
                yield batch
        finally:
            self.ended = True


RARELY = {"steps": 100, "log_every": 100, "eval_every": 100, "checkpoint_every": 100}


def test_a_loss_that_is_not_finite_is_noticed_long_before_the_next_line_of_the_log(tmp_path):
    data = Watched(damaged=(1,))
    with pytest.raises(UserError, match="step 2"):
        fit(tiny_config(**RARELY), tmp_path, data)
    assert max(data.read) < 10


def test_a_save_that_fails_meanwhile_ends_the_run_at_the_next_line_of_the_log(tmp_path, monkeypatch):
    def fail(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "check_for_errors", fail)
    data = Watched()
    with pytest.raises(UserError, match=f"{tmp_path}/checkpoints"):
        fit(tiny_config(**RARELY | {"log_every": 2}), tmp_path, data)
    assert max(data.read) < 10


def test_a_run_that_stops_ends_the_reading_and_knows_whether_it_has_anything_unsaved(tmp_path):
    for after in (0, 1):
        data, stop = Watched(), Stop(after)
        with pytest.raises(Interrupted) as caught:
            fit(tiny_config(), tmp_path, data, stop=stop)
        assert stop.unsaved == (after > 0)
        assert data.ended, caught  # The error keeps its frames, so nothing was closed by chance.


def test_what_was_logged_before_a_checkpoint_is_on_the_disk_when_it_begins(tmp_path, monkeypatch):
    def looked_at(checkpoints: Checkpoints, *arguments: Any) -> None:
        (events,) = (tmp_path / "tensorboard").iterdir()
        found.append(events.read_bytes().count(b"train/loss"))
        save(checkpoints, *arguments)

    found, save = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", looked_at)
    fit(tiny_config(log_every=4, checkpoint_every=4, eval_every=100), tmp_path)
    assert found == [1, 2, 3]


class Complaining(Blobs):
    def complaints(self, epoch: float) -> list[str]:
        return ["the last epoch lacked an example"] * (epoch == math.inf)


def test_what_is_left_to_say_of_the_data_is_said_at_the_end(tmp_path, capsys):
    fit(tiny_config(steps=1), tmp_path, Complaining())
    assert capsys.readouterr().err.count("the last epoch lacked an example") == 1


def test_a_state_lost_between_two_finite_losses_is_not_saved(tmp_path):
    with pytest.raises(UserError, match=r"step 2: .*checkpoints/1\b"):
        fit(tiny_config(checkpoint_every=1), tmp_path, model=Inflating())
    assert Checkpoints(tmp_path, BEST).steps == [1]


def test_a_signal_after_a_loss_that_is_not_finite_does_not_save_it(tmp_path):
    with pytest.raises(UserError, match=r"step 2: .*nan"):
        fit(tiny_config(), tmp_path, Blobs(damaged=(1,)), stop=Stop(2))
    assert Checkpoints(tmp_path, BEST).steps == []


class Leaky(Blobs):
    """Copies to the device in passing."""

    def train_batches(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in super().train_batches(start, stop):
            batch["mask"] = np.asarray(jnp.asarray(batch["mask"]) * 1)
            yield batch


class LeakyEvaluation(Blobs):
    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        for batch in super().eval_batches():
            yield batch | {"mask": np.asarray(jnp.asarray(batch["mask"]) * 1)}


@pytest.mark.parametrize("leak", [Leaky, LeakyEvaluation])
def test_an_implicit_transfer_inside_the_loop_is_an_error(leak, tmp_path):
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        fit(tiny_config(), tmp_path, leak())


def test_the_network_learns_and_its_best_checkpoint_stays_when_the_run_goes_on(tmp_path):
    fit(tiny_config(steps=30, optimizer__learning_rate=0.2, keep_last=1, log_every=10), tmp_path)
    loss = [line["train/loss"] for line in lines(tmp_path) if "train/loss" in line]
    assert max(loss[1:]) < loss[0]
    scores = {line["step"]: line["eval/top1"] for line in lines(tmp_path) if "eval/top1" in line}
    checkpoints = Checkpoints(tmp_path, BEST)
    best = checkpoints.resolve("best")
    assert scores[best] == max(scores.values())
    assert checkpoints.steps == sorted({best, 30})
    assert json.loads((tmp_path / "result.json").read_text())["best/eval/top1"] == scores[best]


def test_the_result_says_what_was_run_on_what_and_how_fast(whole):
    result = json.loads((whole / "result.json").read_text())
    last = {k: v for line in lines(whole) for k, v in line.items()}
    assert {k: result[k] for k in last} == last
    documented = {
        "step", "epoch", "train/loss", "eval/loss", "eval/top1", "eval/top5", "eval/examples", "parameters", "model",
        "config_hash", "commit", "versions", "device_kind", "device_count", "wall_time_s", "images_per_sec", "images",
    }  # fmt: skip
    assert documented <= set(result)
    assert result["images"] == 12 * 16
    assert result["images_per_sec"] == pytest.approx(result["images"] / result["wall_time_s"])
    assert result["wall_time_s"] > result["compile_time_s"] + result["train_time_s"] > result["train_time_s"] > 0
    assert result["parameters"] == sum(x.size for x in leaves(final(whole).params).values())
    assert result["device_count"] == 1
    assert {"jaxcnn", "jax", "flax", "optax"} <= set(result["versions"])


def test_the_wall_time_has_all_in_it_the_training_time_and_the_rates_have_training_alone(tmp_path, monkeypatch):
    """By the clock of the loop initialisation and each evaluation take a day, each batch to train on an hour."""
    slow, images, lap = 0.0, [], loop.run_log.Clock.lap

    class Clock:
        time = staticmethod(time.time)

        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + slow

    class Slow(Blobs):
        def train_batches(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
            nonlocal slow
            for batch in super().train_batches(start, stop):
                slow += 3600.0
                yield batch

    def slowly(call: Any) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal slow
            slow += 86400.0
            return call(*arguments, **options)

        return called

    for module in (loop, loop.run_log):
        monkeypatch.setattr(module, "time", Clock)
    for name in ("restore_or_init", "evaluate"):
        monkeypatch.setattr(loop, name, slowly(getattr(loop, name)))
    monkeypatch.setattr(loop.run_log.Clock, "lap", lambda clock, n: (images.append(n), lap(clock, n))[1])
    result = fit(tiny_config(steps=6, eval_every=2), tmp_path, Slow())
    assert result["wall_time_s"] > 4 * 86400
    assert 6 * 3600 <= result["train_time_s"] <= 86400 - result["compile_time_s"]
    assert images == [4 * 16, 2 * 16]


def test_evaluation_in_the_loop_is_of_the_moving_average(whole):
    config = tiny_config(**EVERYTHING)
    program, state = build(config, MODEL, blobs()), final(whole)

    def scores(variables: Any) -> dict[str, float]:
        return evaluate(program.eval_step, variables, Blobs().eval_batches(), task=program.task,
                        mesh=program.mesh, examples=37)  # fmt: skip

    logged = {k: v for k, v in lines(whole)[-1].items() if k.startswith("eval/")}
    assert scores(state.ema) == pytest.approx(logged, rel=1e-6)
    assert scores({"params": state.params, "batch_stats": state.batch_stats})["eval/loss"] != logged["eval/loss"]


def test_init_from_starts_with_the_weights_of_a_run_but_with_a_fresh_optimizer(whole, tmp_path):
    config = tiny_config(**EVERYTHING | {"init_from": str(whole)})
    data, program = blobs(), build(config, MODEL)
    start, state, spent = restore_or_init(config, program, data, Checkpoints(tmp_path, BEST, 1))
    source = Checkpoints(whole, BEST)
    assert (start, spent, int(state.step)) == (0, {}, 0)
    assert_same(state.ema, final(whole, source.resolve("best")).ema)
    assert_same({"params": state.params, "batch_stats": state.batch_stats}, state.ema)
    assert_same(state.opt_state, program.init().opt_state)
    run(tmp_path, init_from=str(whole / "checkpoints" / "3"), steps=2)
    run(tmp_path, init_from=str(whole / "checkpoints" / "3"), steps=3)  # resumes: it does not start from there again
    assert Checkpoints(tmp_path, BEST).resolve("last") == 3


@pytest.mark.parametrize(("model", "message"), [(Tiny(7), "reset_head"), (Tiny(norm=False), "missing")])
def test_init_from_a_run_of_another_model_is_refused(model, message, whole, tmp_path):
    with pytest.raises(UserError, match=message):
        fit(tiny_config(init_from=str(whole)), tmp_path, model=model)


def test_a_head_of_other_classes_starts_afresh_where_that_is_asked_for_and_resuming_leaves_it(whole, tmp_path, capsys):
    config = tiny_config(**EVERYTHING | {"init_from": str(whole), "reset_head": True, "steps": 2})
    data = blobs()
    program = build(config, Tiny(9), data)
    _, state, _ = restore_or_init(config, program, data, Checkpoints(tmp_path, BEST, 1))
    assert capsys.readouterr().err == f"the head starts afresh: 6 classes in {whole}, 9 here\n"
    best = final(whole, Checkpoints(whole, BEST).resolve("best")).ema
    assert_same(state.params["conv"], best["params"]["conv"])
    assert_same(state.batch_stats, best["batch_stats"])
    assert_same(state.params["head"], program.init().params["head"])
    assert_same(state.ema, {"params": state.params, "batch_stats": state.batch_stats})
    fit(config, tmp_path, data, Tiny(9))
    capsys.readouterr()
    fit(tiny_config(**EVERYTHING | {"init_from": str(whole), "reset_head": True, "steps": 3}), tmp_path, data, Tiny(9))
    assert "afresh" not in capsys.readouterr().err


@pytest.mark.parametrize("classes", [6, 9])
def test_init_from_moves_the_affine_of_norms_between_ordinary_and_frozen_ones(classes, whole, tmp_path):
    """From the best checkpoint, of which evaluation uses the moving average; then back from the frozen run."""
    start = {"init_from": str(whole), "reset_head": True, "steps": 1, "checkpoint_every": 1}
    frozen, data = Tiny(classes, frozen=True), Blobs()
    data.num_classes = classes
    program = build(tiny_config(**EVERYTHING | start), frozen, data)
    best = final(whole, Checkpoints(whole, BEST).resolve("best")).ema
    loaded, _ = load_variables(whole, program.init().variables, BEST, reset_head=True)
    assert_same(loaded["params"]["conv"], best["params"]["conv"])
    assert_same(loaded["batch_stats"]["norm"], best["batch_stats"]["norm"] | best["params"]["norm"])
    assert loaded["params"].keys() == {"conv", "head"}
    fit(tiny_config(**EVERYTHING | start), tmp_path, data, frozen)
    ordinary, _ = load_variables(tmp_path, build(tiny_config(), Tiny(classes), data).init().variables, BEST)
    assert_same(ordinary["params"]["norm"], best["params"]["norm"])
    assert_same(ordinary["batch_stats"], best["batch_stats"])


def test_a_folder_of_imported_weights_is_not_trained_in(tmp_path):
    variables = jax.device_get(build(tiny_config()).init().variables)
    save_variables(tmp_path, variables, {"step": 0, "model": "tiny", "num_classes": 6, "input": {}})
    with pytest.raises(UserError, match=r"--config\.init_from="):
        fit(tiny_config(), tmp_path)


@pytest.mark.parametrize("where", ["nowhere", "checkpoints/99"])
def test_init_from_what_is_not_there_is_refused(where, whole, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        fit(tiny_config(init_from=str(whole / where)), tmp_path)


class Picky(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        raise ValueError("224 pixels or more")


def test_a_network_that_does_not_take_the_images_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"does not take images of \(5, 4, 3\): 224 pixels or more"):
        fit(tiny_config(), tmp_path, model=Picky())
    assert not list(tmp_path.iterdir())
