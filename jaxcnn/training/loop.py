"""The loop: one for every model, task and number of devices, in the order in which things happen."""

import json
import math
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.configfile import config_hash, to_json
from jaxcnn.training import report, resident
from jaxcnn.training.cadence import Cadence
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.evaluate import evaluate, means
from jaxcnn.training.guard import Interrupt, Interrupted
from jaxcnn.training.init_from import load_variables
from jaxcnn.training.log import RunLog, write_atomically
from jaxcnn.training.mesh import make_mesh, on_all, on_devices
from jaxcnn.training.program import Data, Program, build_program
from jaxcnn.training.state import TrainState, zero_metrics

AHEAD = 2  # steps that the host may be ahead of the device: enough to keep it busy, few enough to stop soon


def train(config: Config, workdir: Path, model: nn.Module, data: Data, interrupt: Interrupt) -> dict[str, Any]:
    """Train `model` to the end of `config`, from the newest checkpoint in `workdir` if there is one.

    Returns:
      What it writes to result.json; {} in all processes but the first.

    Raises:
      UserError: the config, the data or a checkpoint do not fit together, or the loss is no longer finite.
      Interrupted: a signal came between two steps; what was done is saved.
    """
    began, commit = time.monotonic(), report.commit()  # now: the files may change while this runs
    program = build_program(config, model, data, make_mesh(config.mesh.data, config.mesh.model))
    total, on_mesh = program.total_steps, partial(on_all, program.mesh)
    checkpoints = Checkpoints(workdir, f"eval/{program.task.best}", keep_last=config.keep_last)
    start, state, spent = restore_or_init(config, program, data, checkpoints)
    clock = report.Clock(spent, began)
    if start > total:
        raise UserError(f"the run in {workdir} is at step {start}, the config ends at {total}: take another --workdir")
    if start == total and (workdir / "result.json").exists():
        return json.loads((workdir / "result.json").read_text())
    cadence = Cadence(config, data.steps_per_epoch, total)
    calls, evaluation = feeds(config, data, program, start, cadence)
    if jax.process_index() == 0:
        write_atomically(workdir / "config.json", to_json(config) + "\n")  # all that could refuse it has passed
    log = RunLog(workdir, start, total, writes=jax.process_index() == 0)
    try:
        # Compile the very programs that the loop runs, before the first batch: a shape that changes later is an error.
        log.say(report.plan(config, program, data, start))
        compiling = time.monotonic()
        with clock.measuring("compile_time_s"):
            sums = jax.tree.map(on_mesh, zero_metrics(program.task.metrics))
            train_step = program.train_step.lower(state, program.batch).compile()
            eval_step = program.eval_step.lower(state.variables, sums, program.eval_batch).compile()
        log.say(report.compiled(train_step, time.monotonic() - compiling))

        def save(step: int, scores: dict[str, float]) -> None:
            stop_if_not_finite(state, checkpoints)
            if step and step not in checkpoints.steps:
                info = {
                    "step": step, "position": data.position | {"next_step": step}, "spent": clock.totals(),
                    "model": config.model.name, "num_classes": data.num_classes, "input": data.input,
                    "config_hash": config_hash(config), "normalised": program.normalised,
                }  # fmt: skip
                log.flush()
                checkpoints.save(state, info, scores)

        step, logged, flying = start, start, deque[Any]()
        clock.start()
        with jax.transfer_guard("disallow"):
            while step < total:
                if interrupt.signal:
                    save(step, {})
                    checkpoints.wait()
                    saved = f"saved in {checkpoints.folder}" if step else "nothing to save yet"
                    raise Interrupted(interrupt.signal, f"stopped at step {step} of {total}, {saved}")
                # Step: one, or with resident data many.
                with clock.waiting_for_data(flying):
                    count, batch = next(calls)
                state, loss = train_step(state, batch)
                step += count
                epoch = float(step / data.steps_per_epoch)
                flying.append(loss)
                arrived = float(jax.device_get(flying.popleft())) if len(flying) > AHEAD else None
                if arrived is not None and not math.isfinite(arrived):
                    stop_if_not_finite(state, checkpoints)
                log.advance(step, epoch, arrived)
                # Log: here the host waits for the device to have done all it was given.
                if cadence.due("log", step):
                    values = means("train", state.metrics)
                    clock.stop(state)
                    stop_if_not_finite(state, checkpoints)
                    checkpoints.check()
                    state = state.replace(metrics=jax.tree.map(on_mesh, zero_metrics(program.metrics)))
                    values |= clock.lap((step - logged) * config.global_batch_size)
                    log.metrics(step, epoch, values)
                    logged = step
                # Evaluate.
                scores: dict[str, float] = {}
                if cadence.due("eval", step):
                    clock.stop(state)
                    scores = evaluate(
                        eval_step, state.variables, evaluation(),
                        mesh=program.mesh, metrics=program.task.metrics, examples=data.eval_examples,
                        broken=lambda: data.eval_broken,
                    )  # fmt: skip
                    log.metrics(step, epoch, scores)
                    clock.start()
                for words in data.complaints(epoch):
                    log.say(words, everywhere=True)
                # Save: when it is time, and what evaluates better than all that is kept.
                better = bool(scores) and scores[checkpoints.metric] > checkpoints.best_score
                if cadence.due("save", step) or better:
                    save(step, scores)
        checkpoints.close()
        for words in data.complaints(math.inf):
            log.say(words, everywhere=True)
    finally:
        calls.close()
        log.close()
    if jax.process_index():
        return {}
    result = report.result(config, program, workdir, commit, total * config.global_batch_size, clock.totals())
    write_atomically(workdir / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def restore_or_init(
    config: Config, program: Program, data: Data, checkpoints: Checkpoints
) -> tuple[int, TrainState, dict[str, float]]:
    """The step to go on from, the state on the mesh, and the time spent before: of the newest checkpoint, or fresh."""
    if checkpoints.steps:
        start = checkpoints.resolve("last")
        info = checkpoints.info(start)
        if "position" not in info:
            folder = checkpoints.folder.parent
            raise UserError(f"{folder} holds imported weights: give a new --workdir and --config.init_from={folder}")
        check_position(info["position"], data.position)
        check_norm(info, config, program)
        return start, checkpoints.restore(start, program.state), info["spent"]
    state = program.init()
    if config.init_from:
        fresh = {"params": state.params, "batch_stats": state.batch_stats}
        metric, reset = f"eval/{program.task.best}", config.reset_head
        loaded, words = load_variables(Path(config.init_from), fresh, metric, data.image_shape, reset)
        if words and jax.process_index() == 0:
            print(words, file=sys.stderr, flush=True)
        state = state.replace(**loaded, ema=program.average_of(loaded))
    return 0, state, {}


def feeds(config: Config, data: Data, program: Program, start: int, cadence: Cadence) -> tuple[Any, Any]:
    """What training takes from step `start`, (number of steps, batch) each, and what begins an evaluation."""
    mesh, total = program.mesh, program.total_steps
    if not config.data.resident:
        return ((1, batch) for batch in on_devices(data.train_batches(start, total), mesh)), data.eval_batches
    most, rows = (shapes["example"].shape[0] for shapes in (program.batch, program.eval_batch))
    examples, _ = resident.load(data, mesh, training=True)
    whole = resident.eval_feeds(data, mesh, rows, config.global_batch_size)
    return resident.train_feed(data, mesh, examples, start, total, most, cadence.next_stop), lambda: iter(whole)


def check_position(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a UserError unless the checkpoint's position is one in the data of this run."""
    for key, value in now.items():
        if saved.get(key) != value:
            raise UserError(
                f"the checkpoint was trained with {key} {saved.get(key)!r}, this run has {value!r}: "
                "its place in the data cannot be found again; take another --workdir"
            )


def check_norm(saved: dict[str, Any], config: Config, program: Program) -> None:
    """Raise a UserError if BatchNorm was over other numbers of images: per shard the devices are part of the model."""
    before, now = saved.get("normalised", program.normalised), program.normalised
    if before != now:
        raise UserError(
            f"the checkpoint was trained with BatchNorm over {before} images, config.norm.scope={config.norm.scope} "
            f"makes that {now} on these devices: train on as many as before, or in another --workdir"
        )


def stop_if_not_finite(state: TrainState, checkpoints: Checkpoints) -> None:
    """Raise a UserError if loss, gradient or weights of some step were not finite; called before anything is saved."""
    fault = jax.device_get(state.fault)
    if fault["step"] < 0:
        return
    checkpoints.wait()
    good = f"{checkpoints.folder / str(checkpoints.steps[-1])}" if checkpoints.steps else "none yet"
    loss, norm = float(fault["loss"]), float(fault["grad_norm"])
    after = ", the weights after it are not finite" if math.isfinite(loss) and math.isfinite(norm) else ""
    raise UserError(
        f"stopped at step {int(fault['step']) + 1}: the loss is {loss} and the gradient's norm {norm}{after}. "
        f"Last good checkpoint: {good}. Lower config.optimizer.learning_rate, add warm-up or set "
        "config.optimizer.clip_norm, in a new --workdir; config.init_from starts it from a checkpoint"
    )
