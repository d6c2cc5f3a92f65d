"""What the fault campaign is made of: a run that saves all the time, and what must hold after each fault."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from tiny_experiment import experiment_text

from jaxcnn.training import checksums

TOTAL = 300
UNFINISHED = "checkpoints/*.orbax-checkpoint-tmp*"
BOUND = 30.0  # seconds in which a run that is asked to stop, or has lost a process, must have ended

# A fault that the environment asks for, within the process: what FAULTS_… names is there at every import of the config.
_FAULTS = """
import os
import time

from jaxcnn.data import dataset

_train, _eval, _batches = dataset.Reader.train, dataset.Reader.eval, dataset.Dataset.train_batches


def train(self, epoch, example):
    if os.environ.get("FAULTS_HANG") and (epoch, example) == (3, 77):
        time.sleep(1e6)
    return _train(self, epoch, example)


def evaluate(self, example):
    time.sleep(float(os.environ.get("FAULTS_SLOW_EVALUATION", 0)))
    return _eval(self, example)


def batches(self, start, stop):
    for step, batch in enumerate(_batches(self, start, stop), start):
        if str(step) == os.environ.get("FAULTS_NAN"):
            batch["mask"][0] = float("nan")
        yield batch


dataset.Reader.train, dataset.Reader.eval, dataset.Dataset.train_batches = train, evaluate, batches
if jumps := [float(x) for x in os.environ.get("FAULTS_CLOCK", "").split()]:
    _time, _time_ns, _calls = time.time, time.time_ns, iter(range(10**12))
    _jump = lambda: jumps[next(_calls) // 50 % len(jumps)]
    time.time = lambda: _time() + _jump()
    time.time_ns = lambda: _time_ns() + int(_jump() * 1e9)
"""
EXPERIMENT = _FAULTS + experiment_text(
    steps=TOTAL, global_batch_size=32, log_every=5, eval_every=90, checkpoint_every=10,
    model__overrides__dropout=0.1, data__augment="pad_crop", optimizer__schedule="constant",
)  # fmt: skip


def words(experiment: Path, workdir: Path, *overrides: str) -> list[str]:
    return ["train", "--config", str(experiment), "--workdir", str(workdir), *(f"--config.{o}" for o in overrides)]


@contextlib.contextmanager
def start(
    experiment: Path, workdir: Path, *overrides: str, processes: int = 1, env: dict[str, str] | None = None,
    before: Any = None,
) -> Iterator[subprocess.Popen[str]]:  # fmt: skip
    """Train; its output is not read before it ends, so it must fit a pipe. No process of it outlives the block."""
    launch = ["launch", "--processes", str(processes), "--"] if processes > 1 else []
    surroundings = os.environ | {"XLA_FLAGS": ""} | (env or {})
    with subprocess.Popen(
        [sys.executable, "-m", "jaxcnn.cli", *launch, *words(experiment, workdir, *overrides)], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings, preexec_fn=before,
    ) as process:  # fmt: skip
        try:
            yield process
            process.wait(BOUND)
        finally:  # else leaving the block would wait without limit for one that missed its bound
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(experiment: Path, workdir: Path, *overrides: str, **options: Any) -> tuple[int, str]:
    """Train until it ends by itself: the exit code and what it said; never a traceback."""
    with start(experiment, workdir, *overrides, **options) as process:
        _, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, err


def ends(process: subprocess.Popen[str], bound: float = BOUND) -> tuple[int, str, float]:
    """The exit code, what was said, and the seconds until the end, which must come."""
    began = time.monotonic()
    _, err = process.communicate(timeout=bound)
    assert "Traceback" not in err, err
    return process.returncode, err, time.monotonic() - began


def wait_until(process: subprocess.Popen[str], condition: Any, bound: float = 120) -> bool:
    """Whether `condition` came true while the process ran."""
    until = time.monotonic() + bound
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < until, f"not so within {bound:.0f} s"
        time.sleep(0.001)
    return True


def log(workdir: Path) -> list[dict[str, float]]:
    timing = ("train/images_per_sec", "train/data_wait_frac")
    every = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timing} for line in every]


def reached(workdir: Path) -> int:
    """The last step that metrics.jsonl tells of."""
    path = workdir / "metrics.jsonl"
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(text)["step"] for text in texts if text.endswith("\n")), default=0)


def steps(workdir: Path) -> list[int]:
    """The checkpoints that are to be seen, oldest first."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdecimal())


def unfinished(workdir: Path) -> set[tuple[str, int]]:
    """The saves that a run left half done, where none runs; one of a later run under the same name is another."""
    return {(path.name, path.stat().st_ctime_ns) for path in workdir.glob(UNFINISHED)}


def tree(folder: Path) -> dict[str, bytes]:
    """All that a folder holds, but for the lock, which names the last process that took it."""
    paths = [path for path in folder.rglob("*") if path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read by Orbax alone."""
    checkpointer, folder = ocp.PyTreeCheckpointer(), workdir.resolve() / "checkpoints" / str(step) / "state"
    saved: Any = checkpointer.metadata(folder)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.item_metadata.tree)
    restored = checkpointer.restore(folder, restore_args=as_numpy)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(restored)}


def assert_whole(workdir: Path) -> None:
    """No checkpoint that is to be seen lacks anything, and the newest opens."""
    for step in steps(workdir):
        folder = workdir / "checkpoints" / str(step)
        assert (folder / checksums.MANIFEST).exists()
        assert checksums.fault(folder) == ""
    if steps(workdir):
        assert arrays(workdir, steps(workdir)[-1])


def assert_same_run(workdir: Path, whole: Path) -> None:
    """All lines of metrics and the final state are those of the run that nothing disturbed."""
    assert log(workdir) == log(whole)
    left, right = arrays(workdir, TOTAL), arrays(whole, TOTAL)
    assert left.keys() == right.keys()
    assert [path for path in left if left[path].tobytes() != right[path].tobytes()] == []
    best = {json.loads((run / "result.json").read_text())["best/eval/top1"] for run in (workdir, whole)}
    assert len(best) == 1
    assert steps(workdir)[0] == steps(whole)[0]  # the best one, which is older than the newest
