"""Several processes, on one host or on many, as one run: how they find each other and JAX's part of it.

Process 0 listens on the coordinator's port until all others have come; whoever is missing is named. Then JAX's own
coordination service starts, on a free port of process 0, and `peers.Team` watches over the processes.
"""

import contextlib
import functools
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib.util import find_spec

from jaxcnn import UserError
from jaxcnn.distributed.peers import Team, end_process
from jaxcnn.distributed.rendezvous import PATIENCE, Place, connect, gather, report

_HEARTBEAT = 300  # seconds, of JAX's own service: half of it is more than `PATIENCE`, so that the words are ours
_SETTLING = 5.0  # seconds in which it becomes known whose end an error comes from


def find_place(timeout: float) -> Place | None:
    """What SLURM, a TPU pod, Kubernetes or Open MPI say of this process, by JAX's own detection; None for one alone.

    Raises:
      UserError: the surroundings are those of several processes but do not tell all.
    """
    if "JOB_COMPLETION_INDEX" in os.environ and not find_spec("kubernetes"):
        raise UserError(
            "this is a process of a Kubernetes Indexed Job: install the package `kubernetes`, with which JAX asks for "
            "the others, or give --coordinator, --processes and --process; --processes 1 trains alone"
        )
    from jax._src.clusters import ClusterEnv

    # Of Kubernetes it would ask in any pod, a lone notebook's too.
    off = set() if "JOB_COMPLETION_INDEX" in os.environ else {"K8sCluster"}
    kinds = [k for k in ClusterEnv._cluster_types if not k.opt_in_only_method and k.__name__ not in off]
    try:
        kind = next((kind for kind in kinds if kind.is_env_present()), None)
        if kind is None or kind.get_process_count() == 1:
            return None
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = os.environ.get("JAX_COORDINATOR_ADDRESS") or kind.get_coordinator_address(int(timeout), port)
        return Place(address, kind.get_process_count(), kind.get_process_id())
    except Exception as error:  # of the scheduler's own library, whatever it is
        raise UserError(
            f"the other processes cannot be found: {error}; give --coordinator, --processes and --process"
        ) from error


def check_devices() -> None:
    """Raise a UserError where JAX finds no device; from here on it holds those it finds."""
    import jax

    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX finds no device: {error}") from error


@contextlib.contextmanager
def joined(place: Place | None, timeout: float) -> Iterator[Team]:
    """The team of this process, once all are there and JAX knows them; before JAX has touched a device.

    An error that leaves the block ends all other processes too, with the same exit code.

    Args:
      place: None for a process alone, which costs nothing.
      timeout: seconds to wait for the others.

    Raises:
      Missing: not all came in time.
      UserError: two processes claim the same number, or differ about how many there are.
    """
    if place is None or place.processes == 1:
        yield Team()
        return
    hosts, links, port = gather(place, timeout) if place.process == 0 else report(place, timeout)
    team = Team(place.process, hosts, links)
    try:
        _start_jax(place, team, port, timeout)
        yield team
    except BaseException as error:
        _fail(team, error)
        if isinstance(error, OSError):
            raise UserError(f"{error.strerror or error}: {error.filename or 'while reading or writing'}") from error
        raise
    import jax

    team.finish()
    jax.distributed.shutdown()
    team.leave()


def _fail(team: Team, error: BaseException) -> None:
    """Tell the others; what is not the user's own doing may come from another's end, which then is what is told."""
    known = isinstance(error, OSError | KeyboardInterrupt) or (isinstance(error, UserError) and not error.__cause__)
    if not known:
        time.sleep(_SETTLING)  # `team` ends the process if it hears of one
    theirs = isinstance(error, UserError | OSError)
    code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "code", 2) if theirs else 1
    words = f"{error}" or type(error).__name__
    if code != 130 and not theirs:
        traceback.print_exception(error)
    team.fail(code, words if theirs else f"{type(error).__name__}: {words}")
    if code == 1 and not theirs:
        end_process(1, f"{team.name(team.process)} failed: {type(error).__name__}: {words}")


def _start_jax(place: Place, team: Team, port: int, timeout: float) -> None:
    """Start JAX's coordination service and its collectives, both on the network of the coordinator's address only."""
    import jax
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    link = next(iter(team.links.values()))
    # Else Gloo takes the address of this host's name, on some systems one that no other host can reach.
    _jax.make_gloo_tcp_collectives = functools.partial(_jax.make_gloo_tcp_collectives, hostname=link.here)
    _keep_stdout()
    # All of JAX's connections go there, a proxy would swallow them. gRPC reads the name in small letters only.
    os.environ["no_grpc_proxy"] = "127.0.0.1"  # noqa: SIM112
    jax.config.update("jax_check_proxy_envs", False)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `Interrupt`
    jax.distributed.initialize(
        f"127.0.0.1:{port if team.process == 0 else _relay(place.address[0], port)}", team.processes, team.process,
        local_device_ids=_own_gpu(team), cluster_detection_method="deactivate",
        initialization_timeout=max(1, int(timeout)), heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=int(PATIENCE),
        coordinator_bind_address=f"{'127.0.0.1' if place.local else '[::]'}:{port}",
    )  # fmt: skip


def _own_gpu(team: Team) -> list[int] | None:
    """Of several processes on one host each takes one GPU, unless they have been dealt out already."""
    mates = [i for i, host in enumerate(team.hosts) if host == team.hosts[team.process]]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if len(mates) == 1 or "JAX_LOCAL_DEVICE_IDS" in os.environ or (visible and "," not in visible):
        return None
    return [mates.index(team.process)]


def _keep_stdout() -> None:
    """Gloo writes to the stdout of C++ whom it has connected to: ours is for results."""
    if sys.stdout is None:
        return
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _relay(host: str, port: int) -> int:
    """A loopback port that leads to `host`:`port`, and does not tell JAX when that is gone.

    JAX's client would end the process at once, with a page about RPCs; `Team` does, and says who died.
    """
    server = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                sink.sendall(data)

    def accept() -> None:
        while True:
            near, _ = server.accept()
            far = connect(host, port, time.monotonic() + _HEARTBEAT)
            far.settimeout(None)
            kept.extend((near, far))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return server.getsockname()[1]
