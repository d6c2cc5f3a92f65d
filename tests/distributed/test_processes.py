"""How a process finds the others of its run: by the arguments that reach JAX."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from jaxcnn import UserError
from jaxcnn.distributed import processes
from jaxcnn.distributed.processes import Team, _may_follow, by_flags, by_surroundings, joined

SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[07-08],other1", "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "1", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
}  # fmt: skip
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
PREFIXES = ("SLURM", "OMPI", "KUBERNETES", "JOB_COMPLETION", "JAX_", "CUDA_", "TPU_", "MEGASCALE")


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without what this machine's scheduler may have set."""
    for name in list(os.environ):
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setattr(processes, "_keep_stdout", lambda: None)
    return monkeypatch


class Reached(Exception):
    """JAX's service would have been started with these arguments."""


@pytest.fixture
def service(surroundings: pytest.MonkeyPatch) -> dict[str, Any]:
    """What reaches `jax.distributed` at its very end, after detection; nothing is started."""
    reached: dict[str, Any] = {}

    def initialize(**arguments: Any) -> None:
        reached.update(arguments, proxies=[name for name in os.environ if name.lower().endswith("_proxy")])
        raise Reached

    surroundings.setattr(jax.distributed, "initialize", initialize)
    return reached


def start(variables: dict[str, str], surroundings: pytest.MonkeyPatch) -> processes.Start | None:
    for name, value in variables.items():
        surroundings.setenv(name, value)
    return by_surroundings()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "8", "SLURM_NODELIST": "n1"},  # a batch script, outside of srun
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # an interactive shell of a job of five tasks
        SLURM | {"SLURM_STEP_NUM_TASKS": "", "SLURM_NTASKS": "1"},
        MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a pod of no Indexed Job, such as a notebook
    ],
)
def test_a_process_without_others_is_alone(variables, surroundings):
    assert start(variables, surroundings) is None
    with joined(None) as team:
        assert team == Team(0, 1)


@pytest.mark.parametrize(
    ("variables", "gpus", "words"),
    [
        (SLURM, [1], "process 3 of 5"),  # the second of two on node08
        (SLURM | {"SLURM_NODEID": "2", "SLURM_LOCALID": "0", "SLURM_PROCID": "4"}, [], "process 4 of 5"),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "2"}, [], "process 3"),  # it sees one only, its own
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}, [1], "process 3"),
        (SLURM | {"SLURM_GPUS_PER_TASK": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, [], "process 3"),  # SLURM has dealt them
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "4,5"}, None, "process 3"),  # JAX reads it
        (MPI, [0], "process 2 of 4"),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, [], "process 2 of 4"),
        ({"JOB_COMPLETION_INDEX": "3"}, [], "process 3"),
    ],
)
def test_one_of_several_asks_jax_for_the_others_and_knows_its_gpus(variables, gpus, words, surroundings):
    found = start(variables, surroundings)
    assert found
    assert found.arguments == {"local_device_ids": gpus}  # all else is JAX's to detect
    assert words in found.waits


@pytest.mark.parametrize("name", ["SLURM_LOCALID", "SLURM_NODEID"])
def test_a_variable_that_is_no_number_is_named(name, surroundings):
    with pytest.raises(UserError, match=f"{name}=x"):
        start(SLURM | {name: "x"}, surroundings)


@pytest.mark.parametrize("platforms", ["tpu,cpu", "tpu"])
def test_on_a_tpu_jax_is_always_asked(platforms, surroundings):
    before: Any = getattr(jax.config, "jax_platforms", None)
    jax.config.update("jax_platforms", platforms)
    try:
        assert start({}, surroundings) is not None
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
    ("coordinator", "bind"),
    [("127.0.0.1:9000", "127.0.0.1:9000"), ("localhost:9000", "127.0.0.1:9000"), ("node1:9000", None)],
)
def test_flags_switch_detection_off_and_keep_a_local_run_to_this_host(coordinator, bind, service, surroundings):
    for name, value in (SLURM | {"SLURM_LOCALID": "0", "SLURM_NODEID": "2", "http_proxy": "http://proxy:3128"}).items():
        surroundings.setenv(name, value)
    with pytest.raises(UserError) as caught, joined(by_flags(coordinator, 3, 2), 7.5, 20):
        pass
    assert isinstance(caught.value.__cause__, Reached)
    expected = {
        "coordinator_address": coordinator, "num_processes": 3, "process_id": 2,
        "local_device_ids": [2] if bind else [], "cluster_detection_method": "deactivate",
        "initialization_timeout": 8, "heartbeat_timeout_seconds": 20,
        "shutdown_timeout_seconds": 20, "proxies": [],
    }  # fmt: skip
    assert service == expected | ({"coordinator_bind_address": bind} if bind else {})
    assert os.environ["http_proxy"] == "http://proxy:3128"  # it is hidden from JAX only


def test_several_processes_that_jax_cannot_find_are_an_error_that_names_the_flags(surroundings, capsys):
    found = start({"JOB_COMPLETION_INDEX": "1"}, surroundings)  # no Kubernetes here, nor its package
    with pytest.raises(UserError, match="--coordinator") as caught, joined(found):
        pass
    assert "--processes 1" in str(caught.value)
    (line,) = capsys.readouterr().err.splitlines()
    assert "process 1" in line
    assert "300 s" in line


@pytest.mark.parametrize("error", [RuntimeError("no such backend"), AssertionError()])
def test_a_platform_that_is_not_there_is_an_error_that_says_which(error, surroundings):
    def devices():
        raise error

    surroundings.setenv("JAX_PLATFORMS", "cuda")
    surroundings.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match="no such backend" if str(error) else "JAX_PLATFORMS=cuda"):
        processes.check_devices()


ALONE = """
import os, signal
from jaxcnn.distributed.processes import by_flags, joined
with joined(by_flags("127.0.0.1:{port}", 1, 0)) as team, team.interrupt() as interrupt:
    import jax
    os.kill(os.getpid(), signal.SIGTERM)
    print(team.processes, interrupt.signal.name, jax.distributed.is_initialized())
"""


def test_a_slice_of_one_process_keeps_its_signals():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = subprocess.run([sys.executable, "-c", ALONE.format(port=port)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "SIGTERM", "False"], done.stderr


def test_a_process_alone_shares_with_itself():
    assert Team().share({"a": [1]}) == {"a": [1]}


def test_an_error_that_came_of_a_failed_collective_may_follow_another_processs_death():
    def raised(cause: BaseException, explicit: bool) -> BaseException:
        try:
            try:
                raise cause
            except type(cause) as error:
                if explicit:
                    raise UserError("evaluation failed") from error
                raise UserError("evaluation failed")  # noqa: B904
        except UserError as error:
            return error

    for explicit in (True, False):
        assert _may_follow(raised(ValueError("Gloo: connection closed"), explicit))
        assert _may_follow(raised(jax.errors.JaxRuntimeError("INTERNAL"), explicit))
        assert not _may_follow(raised(ValueError("a bad label"), explicit))


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("no data set"), 2, "no data set"),
        (OSError(28, "full"), 2, "full"),
        (KeyError("label"), 1, "KeyError: 'label'"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
    ],
)
def test_the_others_hear_the_exit_code_and_why_and_no_class_where_it_is_the_users(error, code, words, monkeypatch):
    told: dict[str, Any] = {}
    monkeypatch.setattr(
        processes.compat, "coordination_client", lambda: SimpleNamespace(key_value_set=told.__setitem__)
    )
    monkeypatch.setattr(processes, "_part", lambda *_: None)
    processes._end_all(Team(2, 4), error, 1)
    ((process, found, said),) = map(json.loads, told.values())
    assert (process, found) == (2, code)
    assert words in said
    assert (type(error).__name__ in said) == (code == 1)


@pytest.mark.parametrize("error", [None, UserError("no data set")])
def test_no_thread_is_left_waiting_in_c_plus_plus_when_a_process_leaves(error, monkeypatch):
    # One that came back from there while Python ends would abort the process in place of its exit code.
    heard = threading.Event()

    def get(*_: Any) -> str:
        assert heard.wait(10)
        time.sleep(0.2)  # The answer is still under way when the leaving process goes on.
        return json.dumps([0, 2, ""])

    client = SimpleNamespace(
        key_value_set=lambda *_: heard.set(), blocking_key_value_get=get, wait_at_barrier=lambda *_: None
    )
    monkeypatch.setattr(processes.compat, "coordination_client", lambda: client)
    monkeypatch.setattr(processes, "_part", lambda *_: None)
    monkeypatch.setattr(processes, "_keep_stdout", lambda: None)
    monkeypatch.setattr(Team, "here", lambda: Team(0, 2))
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    monkeypatch.setattr(jax.distributed, "shutdown", heard.set)
    before = threading.active_count()
    with contextlib.suppress(UserError), joined(by_flags("127.0.0.1:9000", 2, 0)):
        if error:
            raise error
    assert threading.active_count() == before


def test_ctrl_c_ends_a_process_that_waits_for_the_others():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and never answers
        words = ["--coordinator", f"127.0.0.1:{silent.getsockname()[1]}", "--processes", "2", "--process", "1"]
        # A background job ignores Ctrl-C, and so would what it starts. JAX is loaded first: the wait begins at once.
        program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        program += "import jax; from jaxcnn import cli; cli.run()"
        command = [sys.executable, "-c", program, "train", "--config", "experiments/digits/resnet20.py", *words]
        waiting = subprocess.Popen([*command, "--workdir", os.devnull], stderr=subprocess.PIPE, text=True)
        with waiting, waiting.stderr or open(os.devnull) as lines:
            try:
                assert "waiting for process 0" in lines.readline()
                silent.accept()[0].close()  # it is within JAX
                waiting.send_signal(signal.SIGINT)
                assert waiting.wait(60) in (-signal.SIGINT, 130)
            finally:
                waiting.kill()
