"""What a run says of itself: at its start, at every line of the log, and in result.json."""

import math
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import jaxcnn
from jaxcnn.config import Config
from jaxcnn.configfile import config_hash, to_json
from jaxcnn.training.hlo import collectives
from jaxcnn.training.optimizer import describe_groups, peak_rate
from jaxcnn.training.program import ByBucket, Data, Program
from jaxcnn.training.run_log import read_metrics
from jaxcnn.training.sharding import describe
from jaxcnn.training.state import count_params, path_name, shapes_of


class Clock:
    """Where the time of a run goes, in seconds: training, waiting for data, and the rest; it goes on over restarts.

    Args:
      spent: totals of the run's earlier processes, from the checkpoint.
      began: when this process began, by `time.monotonic()`.
    """

    def __init__(self, spent: dict[str, float], began: float):
        self.began = began
        self.spent = {
            "wall_time_s": 0.0,
            "train_time_s": 0.0,
            "data_wait_s": 0.0,
            "compile_time_s": 0.0,
        } | spent
        self.earlier = self.spent["wall_time_s"]
        self.lap_train, self.lap_wait = self.spent["train_time_s"], self.spent["data_wait_s"]
        self.mark = self.began

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Add the block's time to `name`."""
        start = time.monotonic()
        yield
        self.spent[name] += time.monotonic() - start

    @contextmanager
    def waiting_for_data(self, flying: Sequence[Any]) -> Iterator[None]:
        """Count the block as data wait if the device was done with all that is `flying` by its end.

        Where it was still computing, the wait cost nothing. Where it was not, all of it counts: an upper bound.
        """
        start = time.monotonic()
        yield
        if not flying or flying[-1].is_ready():
            self.spent["data_wait_s"] += time.monotonic() - start

    def start(self) -> None:
        """Training begins, or goes on after something else."""
        self.mark = time.monotonic()

    def stop(self, state: Any) -> None:
        """Training pauses once the device is done with `state`, which it may still be computing."""
        jax.block_until_ready(state)
        self.spent["train_time_s"] += time.monotonic() - self.mark
        self.mark = time.monotonic()

    def lap(self, images: int) -> dict[str, float]:
        """Rates since the last lap, in which `images` were trained on; call it after `stop`."""
        train = self.spent["train_time_s"] - self.lap_train
        wait = self.spent["data_wait_s"] - self.lap_wait
        self.lap_train, self.lap_wait = self.spent["train_time_s"], self.spent["data_wait_s"]
        return {
            "train/images_per_sec": images / max(train, 1e-9),
            "train/data_wait_frac": wait / max(train, 1e-9),
        }

    def totals(self) -> dict[str, float]:
        """All that was spent, up to now."""
        return self.spent | {"wall_time_s": self.earlier + time.monotonic() - self.began}


def plan(config: Config, program: Program, data: Data, start: int) -> str:
    """The lines at the start: model, parameters, types, devices, what lies where on them, length."""
    devices, total, every = program.mesh.devices.flatten(), program.total_steps, data.steps_per_epoch
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.state))
    optimizer, mesh = config.optimizer, program.mesh.shape
    lines = [
        f"model      {config.model.name}, {count_params(program.state.params):,} parameters, "
        f"{data.num_classes} classes, images of {'×'.join(map(str, data.image_shape))}",
        f"types      {config.dtype} compute; parameters, statistics, loss and optimizer float32, {_size(state_bytes)}",
        f"devices    {len(devices)} × {devices[0].device_kind} ({devices[0].platform}), "
        f"processes {jax.process_count()}, mesh data {mesh['data']} × model {mesh['model']}",
        *_heads("placement", describe(program.state) if len(devices) > 1 else []),
        f"norm       {_norm(config, program)}; rematerialisation {config.remat}",
        f"data       {config.data.name}, {data.position['examples']:,} to train on, "
        f"{data.eval_examples:,} to evaluate on, augmentation {config.data.augment}",
        f"training   {total:,} steps of {config.global_batch_size}, {float(every):,.6g} an epoch; "
        f"{optimizer.name}, rate {peak_rate(config):g}, {optimizer.schedule}",
        f"optimizer  {describe_groups(program.groups, program.state.params)}; weight decay "
        f"{optimizer.weight_decay:g} on {_decayed(program):,}",
    ]
    if start:
        lines.append(f"resuming   from the checkpoint of step {start:,}")
    return "\n".join(lines)


def _decayed(program: Program) -> int:
    """Return the number of parameters that train and decay."""
    sizes = {path: math.prod(shape) for path, shape in shapes_of(program.state.params).items()}
    return sum(size for path, size in sizes.items() if program.groups[path].decay and not program.groups[path].frozen)


def _norm(config: Config, program: Program) -> str:
    if not program.normalised:
        return "no BatchNorm"
    return f"BatchNorm over {program.normalised} images of {config.global_batch_size}, scope {config.norm.scope}"


def _heads(name: str, lines: list[str]) -> list[str]:
    """The lines with `name` before the first, and room for it before the others."""
    return [f"{name if i == 0 else '':<11}{line}" for i, line in enumerate(lines)]


def compiled(program: ByBucket, seconds: float) -> str:
    """Return the line after compilation: its time, memory on each device and collectives, of the largest bucket."""
    text = f"compiled   in {seconds:.1f} s"
    executable = max(program.programs.values(), key=lambda x: getattr(x.memory_analysis(), "temp_size_in_bytes", 0))
    if memory := executable.memory_analysis():
        held, temporary = _size(memory.argument_size_in_bytes), _size(memory.temp_size_in_bytes)
        text += f"; each device holds {held} of state and batch, {temporary} of temporaries"
    sent = [f"{count} × {kind} of {_size(size)}" for kind, (count, size) in collectives(executable).items()]
    return text + (f"; collectives per step: {', '.join(sent)}" if sent else "")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def result(
    config: Config, program: Program, workdir: Path, commit: str, images: int, spent: dict[str, float]
) -> dict[str, Any]:
    """What result.json holds: final metrics, what was run, on what, and how long it took.

    `images_per_sec` is all images trained on over all the wall time, compilation, evaluation and checkpoints included;
    `train_images_per_sec` is over the time spent training alone.
    """
    lines = read_metrics(workdir / "metrics.jsonl")
    final: dict[str, Any] = {}
    for line in lines:
        final |= line
    best, direction = program.task.best
    scores = [line[f"eval/{best}"] for line in lines if f"eval/{best}" in line]
    devices = program.mesh.devices.flatten()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "model": config.model.name,
        **final,
        f"best/eval/{best}": {"max": max, "min": min}[direction](scores, default=None),
        "parameters": count_params(program.state.params),
        "config_hash": config_hash(config),
        "commit": commit,
        "versions": {"jaxcnn": jaxcnn.__version__} | {name: version(name) for name in packages},
        "deterministic": config.deterministic,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "images": images,
        "images_per_sec": images / spent["wall_time_s"],
        "train_images_per_sec": images / max(spent["train_time_s"], 1e-9),
        "data_wait_frac": spent["data_wait_s"] / max(spent["train_time_s"], 1e-9),
        **spent,
    }


def commit() -> str:
    """The commit of the code that runs, "+" behind it if changed since; "" where the code is in no git checkout."""
    here = Path(jaxcnn.__file__).parent
    try:
        arguments = ["git", "-C", str(here), *["describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def dry_run(config: Config, program: Program, data: Data) -> str:
    """Compile the step -> the config as JSON, and lines of network, devices, steps, batches, optimizer, memory."""
    began = time.monotonic()
    train_step, _ = program.compile()
    batches = [
        ", ".join(f"{path_name(path)} {x.dtype} {x.shape}" for path, x in jax.tree_util.tree_leaves_with_path(batch))
        for batch in program.batch.values()
    ]
    lines = [to_json(config), plan(config, program, data, 0), *_heads("batch", batches)]
    return "\n".join([*lines, compiled(train_step, time.monotonic() - began)])


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """Return what is worth a line of what `result` holds: the scores, and how long it took."""
    scores = [key for key in result if key.startswith("eval/")]
    keys = ("step", "epoch", "train/loss", *scores, "images_per_sec", "wall_time_s")
    return {key: result.get(key) for key in keys}
