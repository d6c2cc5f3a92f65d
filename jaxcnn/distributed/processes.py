"""Several processes as one run: how each finds the others, and how one that fails ends them all.

JAX's coordination service does the work: it finds and watches the processes, and its key-value store carries what they
share before they compute together. Nothing of ours opens a socket.
"""

import itertools
import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from jaxcnn import UserError, compat
from jaxcnn.distributed.interrupt import Interrupt, Preemption, end_process
from jaxcnn.safe_files import printable

_FOREVER = 2**31 - 1  # milliseconds; whoever waits so long is ended by JAX once another process dies
_FAREWELL = 5000  # milliseconds in which all processes hear why they end, and for which process 0 then stays
_END = "jaxcnn/end"
_shared = itertools.count()  # numbers what is shared, which all processes do in the same order


class Start(NamedTuple):
    """The way in which a process joins its run.

    Attributes:
      arguments: of `jax.distributed.initialize`.
      waits: in words, who this process is, for whom it waits and where.
    """

    arguments: dict[str, Any]
    waits: str


def by_flags(coordinator: str, processes: int, process: int) -> Start:
    """Return the start of a process whose place is given; nothing is detected.

    Args:
      coordinator: HOST:PORT of process 0. On the loopback network all processes are on this host, and no other host
        can reach them.
    """
    host, _, port = coordinator.rpartition(":")
    local = host in ("localhost", "127.0.0.1", "[::1]")
    bind = {"coordinator_bind_address": f"{host.replace('localhost', '127.0.0.1')}:{port}"} if local else {}
    own = _own_gpus(process, processes) if local else _own_gpus(*_place_on_node())
    arguments = {
        "coordinator_address": coordinator, "num_processes": processes, "process_id": process,
        "local_device_ids": own, "cluster_detection_method": "deactivate", **bind,
    }  # fmt: skip
    return Start(arguments, _waits(process, processes, coordinator))


def by_surroundings() -> Start | None:
    """Return the start of a process that SLURM, Open MPI, Kubernetes or a TPU has started; None for one alone.

    JAX detects the others by itself. It is asked only where public variables say that there may be others: an
    interactive shell in a SLURM job is one process, whatever the job's size. On a TPU it is always asked, as only the
    metadata server knows whether the chips are a part of a pod.
    """
    env = os.environ
    if {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= env.keys():
        count, where = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS", "1"), env["SLURM_STEP_NODELIST"]
        process, where = env["SLURM_PROCID"], f"the first node of {where}, by SLURM"
    elif "OMPI_COMM_WORLD_SIZE" in env:
        count, process, where = env["OMPI_COMM_WORLD_SIZE"], env.get("OMPI_COMM_WORLD_RANK", "?"), "the host of mpirun"
    elif "JOB_COMPLETION_INDEX" in env:
        count, process, where = "?", env["JOB_COMPLETION_INDEX"], "the first pod of this Indexed Job"
    elif _on_tpu():
        count, process, where = "?", "?", "the first host of this TPU slice, if it has several"
    else:
        return None
    if count == "1":
        return None
    return Start({"local_device_ids": _own_gpus(*_place_on_node())}, _waits(process, count, where))


def _waits(process: int | str, processes: int | str, where: str) -> str:
    whom = {"0": "the other processes", "?": "the others"}.get(str(process), "process 0")
    return f"process {process} of {processes} on {socket.gethostname()}: waiting for {whom} at {where}"


def _on_tpu() -> bool:
    """Whether JAX will use TPUs: where it finds some, it says so by its setting or, if that is given, by a variable."""
    import jax

    platforms: str | None = getattr(jax.config, "jax_platforms", None)
    return "tpu" in platforms if platforms else "TPU_ML_PLATFORM" in os.environ


def _place_on_node() -> tuple[int, int]:
    """Return this process's number among those on its node, and their number, as SLURM or Open MPI say it."""
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in os.environ:
        return _number("OMPI_COMM_WORLD_LOCAL_RANK"), _number("OMPI_COMM_WORLD_LOCAL_SIZE")
    if "SLURM_LOCALID" not in os.environ:
        return 0, 1
    local = _number("SLURM_LOCALID")
    # Such as 2(x3),1: three nodes have two tasks each, the fourth has one.
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    counts = [int(tasks) for tasks, times in parts for _ in range(int(times or 1))]
    node = _number("SLURM_NODEID")
    # Where SLURM does not say how many there are, a number above 0 says that there is more than one.
    return local, counts[node] if node < len(counts) else 1 + local


def _number(name: str) -> int:
    text = os.environ.get(name, "0")
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{name}={text} is no number: unset it, or set what the scheduler means by it")
    return int(text)


def _own_gpus(local: int, count: int) -> list[int] | None:
    """Return the GPUs of a process, the `local`-th of `count` on its node: one each, and [] for all to a single one.

    JAX takes one GPU for any task of SLURM, even a node's only one, unless it is given a list. It ignores them on TPUs.
    """
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None  # JAX reads it by itself.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    dealt = "SLURM_GPUS_PER_TASK" in os.environ or (visible and "," not in visible)
    return [] if count == 1 or dealt else [local]


class Team(NamedTuple):
    """This process among those of its run; by default it is the only one."""

    process: int = 0
    processes: int = 1

    @classmethod
    def here(cls) -> "Team":
        """Return the team of a process that has called `jax.distributed.initialize`, or one alone."""
        import jax

        return cls(*compat.process_of()) if jax.distributed.is_initialized() else cls()

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes} on {socket.gethostname()}"

    def share(self, value: Any = None) -> Any:
        """Return in every process what process 0 gives here, a value of JSON; the others wait for it."""
        if self.processes == 1:
            return value
        client, key = compat.coordination_client(), f"jaxcnn/shared/{next(_shared)}"
        if self.process == 0:
            client.key_value_set(key, json.dumps(value))
            return value
        return json.loads(client.blocking_key_value_get(key, _FOREVER))

    def interrupt(self) -> Interrupt | Preemption:
        """Return what notices the signals that end a run of this team."""
        return Preemption() if self.processes > 1 else Interrupt(end_process)


def check_devices() -> None:
    """Raise a UserError where JAX finds no device; from here on it holds those it finds."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX 0.10.2 asserts where JAX_PLATFORMS names a missing plugin.
        named = os.environ.get("JAX_PLATFORMS", "")
        fix = f"JAX_PLATFORMS={named} names no platform that is installed and works: unset it, or install jax[{named}]"
        raise UserError(f"JAX finds no device: {f'{error}' or fix}") from error


@contextmanager
def joined(
    start: Start | None, start_timeout: float = 300.0, heartbeat_timeout: float = 60.0, stops: bool = True
) -> Iterator[Team]:
    """Give the team of this process, once all are there and JAX knows them; before JAX has touched a device.

    An error that leaves the block ends all other processes too, with the same exit code.

    Args:
      start: None for a process alone, which costs nothing.
      start_timeout: seconds to wait for the others; JAX ends the process, by SIGABRT, where they do not come.
      heartbeat_timeout: seconds after which JAX takes a process that is silent for dead and ends all others.
      stops: whether JAX takes SIGTERM, for `Preemption` to notice. Else the system ends the process.

    Raises:
      UserError: the others cannot be found, or process 0 cannot listen.
    """
    if start is None:
        yield Team()
        return
    import jax

    print(f"jaxcnn: {start.waits}, for up to {start_timeout:g} s", file=sys.stderr, flush=True)
    _keep_stdout()
    jax.config.update("jax_enable_preemption_service", stops)
    try:
        with _without_proxies(), _ended_by_ctrl_c():
            jax.distributed.initialize(
                **start.arguments,
                initialization_timeout=math.ceil(start_timeout),
                heartbeat_timeout_seconds=math.ceil(heartbeat_timeout),
                shutdown_timeout_seconds=math.ceil(heartbeat_timeout),
            )
    except Exception as error:  # of JAX, or of the library of whatever has started the processes
        words = f"{start.waits}, in vain: {printable(str(error))}"
        advice = "give --coordinator, --processes and --process, or --processes 1 to train alone"
        raise UserError(f"{words}: {advice}") from error
    team = Team.here()
    if team.processes == 1:  # A TPU's or a Job's only process: signals are its own.
        jax.distributed.shutdown()
        yield team
        return
    listener = threading.Thread(target=_listen, args=(team,), daemon=True)
    listener.start()
    try:
        yield team
    except BaseException as error:
        _end_all(team, error, heartbeat_timeout)
        listener.join(_FAREWELL / 1000)  # A thread that came back from C++ while Python ends would abort the process.
        if isinstance(error, OSError):
            raise UserError(f"{error.strerror or error}: {error.filename or 'while reading or writing'}") from error
        raise
    jax.distributed.shutdown()
    listener.join(_FAREWELL / 1000)


def _listen(team: Team) -> None:
    """End this process as another says why all end; the wait is cancelled when JAX is shut down."""
    import jax

    client = compat.coordination_client()
    with suppress(jax.errors.JaxRuntimeError):
        process, code, words = json.loads(client.blocking_key_value_get(_END, _FOREVER))
        if process != team.process:
            _part(team, client)
            end_process(code, words)


def _end_all(team: Team, error: BaseException, heartbeat_timeout: float) -> None:
    """Say to all other processes why this one ends; they end with the same code. Then it is for the caller to end."""
    import jax

    theirs = isinstance(error, UserError | OSError | KeyboardInterrupt)
    words = "stopped by Ctrl-C" if isinstance(error, KeyboardInterrupt) else f"{error}" or type(error).__name__
    if _may_follow(error):
        wait = f"waiting up to {1.5 * heartbeat_timeout:.0f} s for JAX to say whether another process has died"
        print(f"jaxcnn: {team}: {printable(' '.join(words.split()))}; {wait}", file=sys.stderr, flush=True)
        time.sleep(1.5 * heartbeat_timeout)  # JAX ends this process meanwhile.
    code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "code", 2) if theirs else 1
    words = words if theirs else f"{type(error).__name__}: {words}"
    client = compat.coordination_client()
    try:
        client.key_value_set(_END, json.dumps([team.process, code, f"{team}: {words}"]))
    except jax.errors.JaxRuntimeError:
        time.sleep(3 * _FAREWELL / 1000)  # Another process was first, and the listener ends this one by its words.
    _part(team, client)


def _part(team: Team, client: Any) -> None:
    """Wait until all processes know why they end; JAX would abort one that outlives the service in process 0."""
    import jax

    with suppress(jax.errors.JaxRuntimeError):
        client.wait_at_barrier(_END, _FAREWELL)
    if team.process == 0:
        time.sleep(_FAREWELL / 1000)


def _may_follow(error: BaseException | None) -> bool:
    """Whether another process's death may be the cause of `error`: a collective has failed."""
    import jax

    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _without_proxies() -> Iterator[None]:
    """Hide proxies while JAX connects: gRPC would send through them what goes to a neighbour, and never arrive."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let the system end the process at Ctrl-C: JAX waits in C++, where Python would notice it only afterwards."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _keep_stdout() -> None:
    """Keep stdout for results: Gloo writes to that of C++ whom it has connected to."""
    if sys.stdout is None:
        return
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
