"""The loop: one for every model, task and number of devices, in the order in which things happen."""

import json
import math
import signal
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.configfile import config_hash, to_json
from jaxcnn.data.batches import on_devices
from jaxcnn.distributed.interrupt import Cut, Interrupt, Interrupted, Preemption
from jaxcnn.safe_files import write_atomically
from jaxcnn.training import resident, run_log
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.evaluation import check_scored, evaluate, means
from jaxcnn.training.initial_state import restore_or_init
from jaxcnn.training.program import Data, Program, build_program
from jaxcnn.training.run_files import read_result
from jaxcnn.training.run_log import RunLog
from jaxcnn.training.samples import tiled, write_picture
from jaxcnn.training.sharding import make_mesh, on_all
from jaxcnn.training.state import TrainState, zeros_like

AHEAD = 2  # steps that the host may be ahead of the device: enough to keep it busy, few enough to stop soon


def train(
    config: Config, workdir: Path, model: nn.Module, data: Data, interrupt: Interrupt | Preemption
) -> dict[str, Any]:
    """Train `model` to the end of `config`, from the newest checkpoint in `workdir` if there is one.

    Returns:
      What it writes to result.json; {} in all processes but the first.

    Raises:
      UserError: the config, the data or a checkpoint do not fit together, or the loss is no longer finite.
      Interrupted: a signal came; what was done is saved, and an evaluation that it cut short is made first next time.
    """
    began, commit = time.monotonic(), run_log.commit()  # now: the files may change while this runs
    program = build_program(config, model, data, make_mesh(config.mesh.data, config.mesh.model))
    total, on_mesh = program.total_steps, partial(on_all, program.mesh)
    checkpoints = Checkpoints(workdir, program.task.best, keep_last=config.keep_last)
    start, state, spent = restore_or_init(config, program, data, checkpoints)
    clock = run_log.Clock(spent, began)
    if start > total:
        raise UserError(f"the run in {workdir} is at step {start}, the config ends at {total}: take another --workdir")
    due = start > 0 and checkpoints.info(start).get("evaluation_due", False)
    if start == total and not due and (done := read_result(workdir)).get("step") == total:
        return done

    def epoch_of(step: int) -> float:
        return float(step / data.steps_per_epoch)

    cadence = Cadence(config, data.steps_per_epoch, total)
    calls, evaluation = feeds(config, data, program, start, cadence)
    if jax.process_index() == 0:
        write_atomically(workdir / "config.json", to_json(config) + "\n")  # all that could refuse it has passed
    log = RunLog(
        workdir,
        program.task.headline,
        program.task.best[0],
        start,
        total,
        writes=jax.process_index() == 0,
        evaluation_due=due,
    )
    try:
        # Compile the very programs that the loop runs, before the first batch: a shape that changes later is an error.
        log.say(run_log.start_lines(config, program, data, start))
        compiling = time.monotonic()
        with clock.measuring("compile_time_s"):
            train_step, eval_step = program.compile_training(), program.compile_evaluation()
        log.say(run_log.compiled_line(train_step, time.monotonic() - compiling))

        def save(step: int, scores: dict[str, float], due: bool = False) -> None:
            stop_if_not_finite(state, checkpoints, program.task.players)
            if step and (scores or step not in checkpoints.steps):  # scores of an evaluation that was due are new
                info = {
                    "step": step, "position": data.position | {"next_step": step}, "spent": clock.totals(),
                    "model": config.model.name, "num_classes": data.num_classes, "input": data.input,
                    "config_hash": config_hash(config), "normalised": program.normalised,
                } | ({"evaluation_due": True} if due else {})  # fmt: skip
                log.flush()
                checkpoints.save(state, info, scores)

        def take(items: Any, *default: Any) -> Any:
            """The next of what is read; where there is none, for a fault of the data, what was done is saved."""
            try:
                return interrupt.next(items, *default)
            except UserError:
                if jax.process_count() == 1:
                    save(step, {}, due)
                    checkpoints.wait()
                raise

        step, logged, flying = start, start, deque[Any]()
        clock.start()
        try:
            with jax.transfer_guard("disallow"):
                while step < total or due:
                    if not due:  # else an evaluation that a signal cut short comes first
                        # Step: one, or with resident data many.
                        if interrupt.signal:
                            raise Cut
                        with clock.waiting_for_data(flying):
                            count, batch = take(calls)
                        interrupt.unsaved = True
                        state, loss = train_step(state, batch)
                        step += count
                        flying.append(loss)
                        arrived = float(jax.device_get(flying.popleft())) if len(flying) > AHEAD else None
                        if arrived is not None and not math.isfinite(arrived):
                            stop_if_not_finite(state, checkpoints, program.task.players)
                        log.advance(step, epoch_of(step), arrived)
                        # Log: here the host waits for the device to have done all it was given.
                        if cadence.due("log", step):
                            values = means("train", state.metrics)
                            clock.stop(state)
                            stop_if_not_finite(state, checkpoints, program.task.players)
                            checkpoints.check()
                            state = state.replace(metrics=jax.tree.map(on_mesh, zeros_like(program.metrics)))
                            values |= clock.lap((step - logged) * config.global_batch_size)
                            log.metrics(step, epoch_of(step), values)
                            for words in program.task.alarms(values):
                                log.say(words)
                            logged = step
                        due = cadence.due("eval", step)
                    # Evaluate.
                    scores: dict[str, float] = {}
                    if due:
                        clock.stop(state)
                        stop_if_not_finite(state, checkpoints, program.task.players)
                        scores = evaluate(
                            eval_step, state.variables, evaluation(),
                            task=program.task, mesh=program.mesh, examples=data.eval_examples,
                            broken=lambda: data.eval_broken, take=take,
                        )  # fmt: skip
                        if "eval/broken" in scores and not scores["eval/examples"]:
                            # Run again, once there are files that can be read, it begins with the evaluation.
                            save(step, {}, due)
                            checkpoints.wait()
                            check_scored(scores, data, config.data.name)
                        due = False
                        log.metrics(step, epoch_of(step), scores)
                        if program.samples:
                            save_samples(workdir, step, program.samples(state.variables))
                        clock.start()
                    for words in data.complaints(epoch_of(step)):
                        log.say(words, everywhere=True)
                    # Save: when it is time, and what evaluates better than all that is kept.
                    if cadence.due("save", step) or checkpoints.is_better(scores):
                        save(step, scores)
        except Cut:
            save(step, {}, due)
            checkpoints.wait()
            saved = f"saved in {checkpoints.folder}" if step else "nothing to save yet"
            number = interrupt.signal or signal.SIGTERM
            raise Interrupted(number, f"stopped at step {step} of {total}, {saved}") from None
        checkpoints.close()
        for words in data.complaints(math.inf):
            log.say(words, everywhere=True)
    finally:
        calls.close()
        log.close()
    if jax.process_index():
        return {}
    result = run_log.result(config, program, workdir, commit, total * config.global_batch_size, clock.totals())
    write_atomically(workdir / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def save_samples(workdir: Path, step: int, images: jax.Array) -> None:
    """Write a square picture of generated images, uint8 (N, H, W, C), into the folder of the run."""
    if jax.process_index() == 0:
        write_picture(tiled(jax.device_get(images), math.isqrt(len(images))), workdir / "samples" / f"{step:08}.png")


class Cadence:
    """Which steps are followed by what: every so many steps, or at the first step by which another epoch is complete.

    An epoch need not be a whole number of steps.
    """

    def __init__(self, config: Config, steps_per_epoch: Fraction | int, total: int):
        self.total = total
        self.every = {
            "log": Fraction(config.log_every),
            "eval": Fraction(config.eval_every or steps_per_epoch),
            "save": Fraction(config.checkpoint_every or steps_per_epoch),
        }

    def due(self, what: str, step: int) -> bool:
        """Whether "log", "eval" or "save" comes after `step`; the last step is followed by all three."""
        return step == self.total or step // self.every[what] > (step - 1) // self.every[what]

    def next_stop(self, step: int) -> int:
        """The first step after `step` that something follows."""
        return min(self.total, *(math.ceil((step // every + 1) * every) for every in self.every.values()))


def feeds(config: Config, data: Data, program: Program, start: int, cadence: Cadence) -> tuple[Any, Any]:
    """What training takes from step `start`, (number of steps, batch) each, and what begins an evaluation."""
    mesh, total = program.mesh, program.total_steps
    if not config.data.resident:
        return streamed(data, mesh, start, total), data.eval_batches
    most, rows = (next(iter(x.values()))["example"].shape[0] for x in (program.batch, program.eval_batch))
    examples, _ = resident.load(data, mesh, training=True)
    whole = resident.eval_feeds(data, mesh, rows, config.global_batch_size)
    return resident.train_feed(data, mesh, examples, start, total, most, cadence.next_stop), lambda: iter(whole)


def streamed(data: Data, mesh: Mesh, start: int, stop: int) -> Generator[tuple[int, Any]]:
    """Yield (1, batch) for each step from `start` to `stop`; closing it closes all that reads."""
    with closing(on_devices(data.train_batches(start, stop), mesh)) as batches:
        for batch in batches:
            yield 1, batch


def stop_if_not_finite(state: TrainState, checkpoints: Checkpoints, players: Sequence[str]) -> None:
    """Raise a UserError if loss, gradient or weights of some step were not finite; called before anything is saved."""
    fault = jax.device_get(state.fault)
    if fault["step"] < 0:
        return
    checkpoints.wait()
    good = f"{checkpoints.folder / str(checkpoints.steps[-1])}" if checkpoints.steps else "none yet"
    loss, norm, player = float(fault["loss"]), float(fault["grad_norm"]), players[int(fault["player"])]
    whose = f" of the {player}" if player else ""
    after = ", the weights after it are not finite" if math.isfinite(loss) and math.isfinite(norm) else ""
    raise UserError(
        f"stopped at step {int(fault['step']) + 1}: the loss{whose} is {loss} and the gradient's norm {norm}{after}. "
        f"Last good checkpoint: {good}. Lower config.optimizer.learning_rate, add warm-up or set "
        "config.optimizer.clip_norm, in a new --workdir; config.init_from starts it from a checkpoint"
    )
