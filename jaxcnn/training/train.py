"""Train a config in a folder, as one process or one of several: what `jaxcnn.train` and the command do."""

import copy
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn import UserError, stores
from jaxcnn.config import Config, validate
from jaxcnn.configfile import to_json
from jaxcnn.data.batches import Slice
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.expected import Network, of_weights
from jaxcnn.distributed.interrupt import Interrupt, Preemption
from jaxcnn.distributed.processes import Team, check_devices
from jaxcnn.locations import Address, place
from jaxcnn.models import check_model, create_model, list_models
from jaxcnn.safe_files import only_trainer
from jaxcnn.tasks import create_task
from jaxcnn.training import loop, run_log
from jaxcnn.training.initial_state import check_resume, input_to_start_from, own_input
from jaxcnn.training.program import Data, Program, build_program
from jaxcnn.training.sharding import make_mesh

_OF_HOST = ("data.dir", "data.workers", "data.prefetch")  # keys that may differ from process to process


def train(
    config: Config,
    workdir: str | Path | Address,
    model: nn.Module | None = None,
    data: Data | None = None,
    *,
    team: Team | None = None,
    interrupt: Interrupt | Preemption | None = None,
) -> dict[str, Any]:
    """Train to the end of `config`, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: made by `jaxcnn.config.base_config()`; it is checked before any data is read.
      workdir: folder of the run, made if it must be, or an address such as gs://bucket/run; one trainer at a time.
      model: trained instead of the network that `config.model` names; `open_run` then needs it, too. A network of
        the user's own is recorded under the name of its class where `config.model.name` is one of the registry's.
      data: trained on instead of the data set that `config.data` names.
      team: the processes that train together; by default those that `jax.distributed.initialize` has joined.
      interrupt: of signals that are handled already. By default the first Ctrl-C or SIGTERM in the main thread ends the
        run after the step, and a second one the process.

    Returns:
      What result.json holds: final scores, parameters, versions, times; {} in all processes but the first.

    Raises:
      UserError: the config, the data, the folder or a checkpoint do not fit together, or the loss is not finite.
      Interrupted: a signal came; what was done is saved, and the same call goes on from there.
    """
    config, workdir, team = _recorded(config, model), place(workdir, "workdir"), team or Team.here()
    # Signals can be handled in the main thread alone; one that is not entered never has a signal.
    handles = interrupt is None and threading.current_thread() is threading.main_thread()
    own = Preemption() if team.processes > 1 else Interrupt()
    with own if handles else nullcontext(interrupt or own) as interrupt, _one_run(team, config, workdir) as folder:
        model, data = _parts(config, model, data, folder)
        return loop.train(config, folder, model, data, interrupt)


@contextmanager
def _one_run(team: Team, config: Config, workdir: Path | Address) -> Iterator[Path]:
    """Hold the folder in process 0 for all, and give it; check that all see the same and have the same config."""
    if team.process == 0:
        with stores.opened(workdir, arrays=True) as folder, only_trainer(folder):
            check_resume(config, folder)
            stores.claim(folder)
            team.share({"config": to_json(config), "lock": (folder / ".lock").read_text()})
            yield folder
        return
    first = team.share()
    theirs = json.loads(first["config"])
    for key, mine in json.loads(to_json(config)).items():
        if mine != theirs.get(key) and key not in _OF_HOST:
            raise UserError(f"config.{key} is {mine!r} here and {theirs.get(key)!r} in process 0: they must agree")
    with stores.opened(workdir, arrays=True) as folder:
        lock, until = folder / ".lock", time.monotonic() + 10  # A network file system may take its time.
        while not lock.is_file() or lock.read_text() != first["lock"]:
            if time.monotonic() > until:
                raise UserError(f"--workdir {workdir} is not the folder of process 0: all hosts must see the same one")
            time.sleep(0.1)
        yield folder


def _recorded(config: Config, model: nn.Module | None) -> Config:
    """Return the checked config as a run records it: a network of the user's own is none that the registry has."""
    validate(config)
    if model is None or type(model).__module__.startswith("jaxcnn.") or config.model.name not in list_models():
        return config
    config = copy.deepcopy(config)
    config.model.name = type(model).__name__
    return config


def _parts(
    config: Config, model: nn.Module | None, data: Data | None, workdir: Path | None = None
) -> tuple[nn.Module, Data]:
    """Return the network and the data set of a config, but for those that are given.

    Args:
      workdir: of a run that may go on: its own checkpoints then know what it takes of `config.init_from`.
    """
    check_devices()
    if data is None:
        known = input_to_start_from(config, workdir)
        task = create_task(config)
        taking, _ = of_weights(config, known, task.padded)
        weights = Network(f"config.init_from={config.init_from}", known["image_shape"][2]) if known else None
        part = Slice(jax.process_index(), jax.process_count())
        data = Dataset(
            taking, part, targets=task.targets, network=weights, pixel_range=task.pixel_range,
            kept=partial(own_input, config, workdir),
        )  # fmt: skip
    return network_of(config, data.num_classes, data.image_shape, model), data


def network_of(config: Config, classes: int, image_shape: Sequence[int], given: nn.Module | None = None) -> nn.Module:
    """Return the network of a config, or the one given; one of the user's own is checked for its conventions."""
    name = config.model.name
    model = given
    if isinstance(given, str):
        raise UserError(f"model={given!r} is a name: give a flax.linen.Module, or set config.model.name")
    if model is None:
        model = create_model(name, classes, jnp.dtype(config.dtype), **config.model.overrides)
    if (of := getattr(model, "task", config.task.name)) != config.task.name:
        raise UserError(f"model {name} is for task.name={of}, not {config.task.name}: take another, or the other task")
    if given is not None or ":" in name:
        check_model(model, classes, image_shape)
    return model


def assemble(config: Config, model: nn.Module | None = None, data: Data | None = None) -> tuple[Data, Program]:
    """Return the data set and the program of a validated config on this machine's devices; nothing is computed yet."""
    model, data = _parts(config, model, data)
    return data, build_program(config, model, data, make_mesh(config.mesh.data, config.mesh.model))


def dry_run(config: Config, model: nn.Module | None = None, data: Data | None = None) -> str:
    """Compile the training step and return what `train` would do; nothing is trained or written.

    Raises:
      UserError: as `train`, but for the folder.
    """
    config = _recorded(config, model)
    data, program = assemble(config, model, data)
    return run_log.dry_run(config, program, data)
