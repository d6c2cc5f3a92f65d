"""Orbax checkpoints of a run: asynchronous, atomic, the newest few and the best kept, restored onto any devices.

A checkpoint holds three items: "state", the arrays of a TrainState; "info", a JSON object with the position in the
data, the model and the time spent; and Orbax's metrics, by which the best is known. `integrity` adds checksums.
"""

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import sync_global_devices
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxcnn import UserError, stores
from jaxcnn.training import checksums
from jaxcnn.training.sharding import replicated
from jaxcnn.training.state import TrainState, check_tree, no_fault, overlay, select, shapes_of

Tree = Any
FORMAT = 1  # of a checkpoint; every later version reads this one


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves it to the loop to ask whether the processes stop.

    JAX compares the numbers that it is asked with, and takes the last for where this process is: Orbax's steps would
    be mixed with the points of `distributed.interrupt.Preemption`, and the one where all stop would be missed.
    """

    def reached_preemption(self, step: int) -> bool:
        """Return False: the run saves where it stops."""
        return False


class Checkpoints:
    """The checkpoints under `workdir/checkpoints`.

    Args:
      best: the score whose best checkpoint is kept besides, and "max" or "min", as `Task.best` has them.
      keep_last: newest checkpoints kept; None opens them for reading only.

    Raises:
      UserError: there is no such folder; or, to be written to, all that is in it is damaged.
    """

    def __init__(self, workdir: Path, best: tuple[str, str], keep_last: int | None = None):
        self.folder = Path(workdir).resolve() / "checkpoints"
        self.metric, self.sign = f"eval/{best[0]}", {"max": 1.0, "min": -1.0}[best[1]]
        self.keeps = keep_last is not None
        # Orbax looks for what the processes have written by a pattern that begins with the folder: it would find
        # nothing of it, and the checkpoint could not be read.
        if self.keeps and (magic := sorted(set("*?[\\") & set(str(self.folder)))):
            raise UserError(
                f"checkpoints cannot be kept in {self.folder}: take a folder without {magic[0]} in its path"
            )
        # Folders, that is: each process writes its arrays, or all of them where it has a folder of its own.
        self.apart = jax.process_count() > 1 and stores.is_copy(workdir)
        self.writes = self.keeps and (jax.process_index() == 0 or self.apart)
        self.sound = set[int]()  # steps whose files have been found to be what was written
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file, where a run has a folder: remove it, or take another --workdir")
        if self.keeps:
            self._alone(self._put_in_order)
        elif not self.folder.is_dir():
            raise UserError(
                f"{workdir} holds no checkpoints: train there first with `jaxcnn train --workdir {workdir}`"
            )

        def score(metrics: dict[str, float]) -> float:
            return self.sign * metrics[self.metric]

        quieten()
        me = jax.process_index()
        mine = ocp.options.MultiprocessingOptions(me, {me}, f"process {me}")
        processes = mine if self.apart else ocp.options.MultiprocessingOptions()
        best_one = BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=score,  # without one Orbax writes no metrics
            preservation_policy=AnyPreservationPolicy([LatestN(keep_last), best_one]),
            read_only=not self.keeps,
            create=self.keeps and not self.apart,
            # One move takes a checkpoint out of sight, and it is deleted after: a kill leaves no half of one.
            todelete_subdir=checksums.DELETED if self.keeps else None,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._seal,
                # Who makes a folder in the background tells all processes by a key that has no name of a process in it.
                create_directories_asynchronously=not self.apart,
            ),
            multiprocessing_options=processes,
        )
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(multiprocessing_options=processes),
            "info": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
        }
        try:
            self.manager = _Manager(self.folder, options=options, item_handlers=handlers)
        except Exception as error:  # Orbax reads the metadata and the scores of all checkpoints at once
            raise UserError(
                f"a file of metadata, STEP/_CHECKPOINT_METADATA, or of scores, {self.folder}/STEP/metrics/metrics, "
                f"is damaged ({reason(error)}): remove that STEP"
            ) from error
        if self.keeps:
            self.sound.update(self.steps[-1:])

    def _put_in_order(self) -> None:
        for words in checksums.put_in_order(self.folder):
            if jax.process_index() == 0:
                print(stores.named(words), file=sys.stderr, flush=True)
        if self.apart:
            self.folder.mkdir(exist_ok=True)

    def _alone(self, do: Callable[..., None], *arguments: Any) -> None:
        """In the first process, while the others wait; in each where each has its own folder."""
        if jax.process_index() == 0 or self.apart:
            do(*arguments)
        if jax.process_count() > 1 and not self.apart:
            sync_global_devices(do.__name__)

    def _seal(self) -> None:
        """All is written, and not yet visible under the checkpoint's name."""
        checksums.seal(self.folder / f"{self.saving}{checksums.UNFINISHED}")

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, oldest first."""
        return sorted(self.manager.all_steps())

    def resolve(self, which: str) -> int:
        """The step that "last", "best" or a number names.

        Raises:
          UserError: there is none such; the ones there are are listed.
        """
        steps = self.steps
        if not steps:
            raise UserError(f"{self.folder} holds no checkpoint yet")
        if which == "last":
            return steps[-1]
        if which == "best":  # the newest where none has a score, such as imported weights
            return max(steps, key=lambda step: (self._rank(step), step))
        if which in map(str, steps):
            return int(which)
        raise UserError(f"there is no checkpoint {which!r} in {self.folder}: there are best, last, {steps}")

    def is_better(self, scores: dict[str, float]) -> bool:
        """Return whether an evaluation is better than that of every checkpoint there is."""
        return self.metric in scores and self.sign * scores[self.metric] > max(
            map(self._rank, self.steps), default=-inf
        )

    def _rank(self, step: int) -> float:
        """Return the checkpoint's score, the larger the better; minus infinity where it has none."""
        metrics: Any = self.manager.metrics(step)
        score = metrics.get(self.metric) if isinstance(metrics, dict) else None
        return self.sign * score if isinstance(score, int | float) else -inf

    def save(self, state: TrainState, info: dict[str, Any], metrics: dict[str, float]) -> None:
        """Begin to save; returns once the arrays are copied, the writing goes on beside training."""
        self.save_arrays(state.saved(), info, metrics)

    def save_arrays(self, arrays: dict[str, Tree], info: dict[str, Any], metrics: dict[str, float]) -> None:
        """The same of any arrays, {"params", "batch_stats"} among them; in place of what was saved of that step."""
        self.wait()
        with self._writing():
            self.saving = int(info["step"])
            if self.saving in self.steps:
                self._alone(checksums.set_back, self.folder / str(self.saving))
                self.manager.reload()
            if self.writes:
                (self.folder / checksums.DELETED).mkdir(exist_ok=True)  # now: the checkpoint may fill the disk
            if self.apart:
                arrays = jax.tree.map(on_host, arrays)
            self.manager.save(
                self.saving,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(arrays), info=ocp.args.JsonSave(info | {"format": FORMAT})
                ),
                metrics=metrics if self.metric in metrics else None,
                force=True,
                custom_metadata=checksums.PROMISE,
            )

    def check(self) -> None:
        """Raise the UserError of a save that has failed meanwhile, rather than at the next one."""
        with self._writing():
            self.manager.check_for_errors()

    def wait(self) -> None:
        """Block until all that was begun is on the disk."""
        with self._writing():
            self.manager.wait_until_finished()
        if self.writes:
            checksums.sweep(self.folder)

    def close(self) -> None:
        """Finish writing and let go of the folder."""
        if self.keeps:
            self.wait()
        with self._writing():
            self.manager.close()
        if self.writes and (trash := self.folder / checksums.DELETED).exists():
            trash.rmdir()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            if self.writes:
                checksums.sweep(self.folder)  # the disk may be full of it
            raise UserError(
                f"saving to {self.folder} failed, earlier checkpoints are intact: {reason(error)}"
            ) from error

    def info(self, step: int) -> dict[str, Any]:
        """Return the JSON object saved with checkpoint `step`.

        Raises:
          UserError: it is of a format that this version does not read.
        """
        info = self._restore(step, info=ocp.args.JsonRestore())["info"]
        found = info.get("format") if isinstance(info, dict) else None
        if found != FORMAT:
            kind = f"format {found}" if found else "no format number"
            raise UserError(
                f"checkpoint {self.folder / str(step)} has {kind}, this version of jaxcnn reads format {FORMAT}: use "
                "the version that wrote it, or train again in a new --workdir"
            )
        return info

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of checkpoint `step`, without a fault.

        Args:
          like: shapes, dtypes and the shardings to restore onto (arrays or `jax.ShapeDtypeStruct`).
        """
        sound = jax.tree.map(
            lambda x, to: jax.make_array_from_callback(x.shape, to.sharding, lambda _: x), no_fault(), like.fault
        )
        return TrainState(**self._arrays(step, like.saved()), fault=sound)

    def restore_variables(self, step: int, like: Tree) -> Tree:
        """Return the {"params", "batch_stats"} that evaluation uses: the moving average of what has one."""
        averaged = shapes_of(self._metadata(step).get("ema") or {})
        if not averaged:
            return self._arrays(step, like)
        if averaged.keys() == shapes_of(like).keys():
            return self._arrays(step, {"ema": like})["ema"]
        found = self._arrays(step, {"ema": select(like, lambda path: path in averaged)} | like)
        return overlay(found.pop("ema"), found)

    def variable_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Return path -> shape of what `restore_variables` reads."""
        saved = self._metadata(step)
        return shapes_of({key: saved[key] for key in ("params", "batch_stats") if key in saved})

    def _arrays(self, step: int, like: Tree) -> Tree:
        check_tree(f"checkpoint {self.folder / str(step)}", self._metadata(step), like)
        args = ocp.args.PyTreeRestore(
            item=like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
        )
        return self._restore(step, state=args)["state"]

    def _check_files(self, step: int, arrays: bool = True) -> None:
        """Raise a UserError if the files of the checkpoint are not those that were written.

        Args:
          arrays: whether those of its arrays are needed, which an object store may have still.
        """
        if arrays:
            stores.complete(self.folder / str(step))
        if step not in self.sound:
            part = "" if arrays or not stores.is_copy(self.folder.parent) else "info/"
            if words := checksums.fault(self.folder / str(step), part):
                raise self._unreadable(step, words)
            if not part:
                self.sound.add(step)

    def _metadata(self, step: int) -> Tree:
        self._check_files(step)
        try:
            return self.manager.item_metadata(step)["state"].tree
        except Exception as error:
            raise self._unreadable(step, reason(error)) from error

    def _restore(self, step: int, **items: Any) -> Any:
        self._check_files(step, arrays="state" in items)
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._unreadable(step, reason(error)) from error

    def _unreadable(self, step: int, reason: str) -> UserError:
        if not (self.folder / str(step)).exists():
            return UserError(
                f"checkpoint {self.folder / str(step)} no longer exists, the run is still training and has "
                "replaced it: run this command again"
            )
        others = [s for s in self.steps if s != step]
        fix = f"remove that folder to go on from step {others[-1]}" if others else "there is no other in this run"
        return UserError(f"checkpoint {self.folder / str(step)} cannot be read ({reason}): {fix}")


def on_host(x: Any) -> Any:
    """Return all of an array that is spread over processes, in each of them."""
    if not x.is_fully_replicated:
        x = jax.jit(lambda x: x, out_shardings=replicated(x.sharding.mesh))(x)
    return jax.device_get(x.addressable_data(0))


def save_variables(workdir: Path, variables: Tree, info: dict[str, Any]) -> None:
    """Makes `workdir/checkpoints/STEP` of {"params", "batch_stats"} that no training has made.

    Args:
      info: "step", "model", "num_classes" and "input", as training saves them.
    """
    checkpoints = Checkpoints(workdir, ("none", "max"), keep_last=1)
    checkpoints.save_arrays(variables, info, {})
    checkpoints.close()


def quieten() -> None:
    """Print no error that the next call of Orbax raises: of a save that fails, hundreds of lines from its threads.

    And no warning either: it has one for every folder that is opened for reading.
    """
    absl.logging.set_verbosity(absl.logging.ERROR)
    if _raised_nowhere not in logging.getLogger("absl").filters:
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_raised_nowhere)
        sys.unraisablehook = partial(_report, sys.unraisablehook)


def _raised_nowhere(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    places = [record.pathname, record.getMessage(), *(frame.filename for frame in traceback.extract_tb(trace))]
    return not any("/orbax/" in place for place in places)


def _report(before: Callable[[Any], None], what: Any) -> None:
    # tensorstore would tell each array's failure to an event loop that the first one has ended.
    if not isinstance(what.exc_value, RuntimeError) or str(what.exc_value) != "Event loop is closed":
        before(what)


def reason(error: Exception) -> str:
    """The system's words for the error, where tensorstore hides its number in a long text; else its first line."""
    if number := re.search(r"os_error_code='?(\d+)", str(error)):
        return os.strerror(int(number[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
