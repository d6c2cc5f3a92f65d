"""What the surroundings say of a process, and JAX's way to process 0."""

import contextlib
import socket
import threading

import pytest

from jaxcnn import UserError
from jaxcnn.distributed import processes
from jaxcnn.distributed.peers import Team
from jaxcnn.distributed.rendezvous import Place

SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[07-08],other1", "SLURM_NTASKS": "3", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}  # fmt: skip


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without what a scheduler of this machine may have set."""
    names = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX", "OMPI_MCA_orte_hnp_uri", "CUDA_VISIBLE_DEVICES")
    for name in (*SLURM, *names, "JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT", "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_without_a_scheduler_is_alone(surroundings):
    assert processes.find_place(1) is None
    threads = threading.active_count()
    with processes.joined(None, 1) as team:
        assert (team.process, team.processes) == (0, 1)
        assert threading.active_count() == threads


@pytest.mark.parametrize("name", ["SLURM_STEP_NODELIST", "SLURM_PROCID"])
def test_a_batch_script_outside_of_srun_is_alone(name, surroundings):
    for key, value in SLURM.items():
        if key != name:
            surroundings.setenv(key, value)
    assert processes.find_place(1) is None


def test_a_task_of_slurm_knows_its_place(surroundings):
    for key, value in SLURM.items():
        surroundings.setenv(key, value)
    assert processes.find_place(1) == Place("node07:61441", 3, 2)
    surroundings.setenv("JAX_COORDINATOR_PORT", "29500")
    assert processes.find_place(1) == Place("node07:29500", 3, 2)
    surroundings.setenv("SLURM_NTASKS", "1")
    assert processes.find_place(1) is None


def test_surroundings_that_make_no_sense_are_refused_with_the_flags(surroundings):
    for key, value in (SLURM | {"SLURM_NTASKS": "many"}).items():
        surroundings.setenv(key, value)
    with pytest.raises(UserError, match=r"cannot be found: .*'many'.* give --coordinator, --processes and --process"):
        processes.find_place(1)


def test_an_indexed_job_whose_pods_cannot_be_asked_for_is_refused_and_another_pod_is_alone(surroundings):
    surroundings.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert processes.find_place(1) is None
    surroundings.setenv("JOB_COMPLETION_INDEX", "1")
    surroundings.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Indexed Job: install the package `kubernetes`.*--processes 1 trains alone"):
        processes.find_place(1)


@pytest.mark.parametrize(
    ("names", "visible", "given", "own"),
    [
        (["a", "b", "b"], None, None, [1]),  # the second of two on b
        (["a", "a", "b"], None, None, None),  # the only one on b: all that are there
        (["a", "b", "b"], "0,1,2,3", None, [1]),
        (["a", "b", "b"], "2", None, None),  # it sees one only, its own
        (["a", "b", "b"], None, "4,5", None),  # `jaxcnn launch` has said which
    ],
)
def test_processes_of_one_host_share_its_gpus(names, visible, given, own, surroundings):
    for key, value in (("CUDA_VISIBLE_DEVICES", visible), ("JAX_LOCAL_DEVICE_IDS", given)):
        if value:
            surroundings.setenv(key, value)
    assert processes._own_gpu(Team(2, names)) == own


def test_the_relay_passes_on_both_ways_and_does_not_tell_that_the_other_end_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = processes._relay(*server.getsockname())
        near = socket.create_connection(("127.0.0.1", port), timeout=10)
        far = server.accept()[0]
        for source, sink, words in ((near, far, b"question"), (far, near, b"answer")):
            source.sendall(words)
            assert sink.recv(100) == words
        far.close()
    near.settimeout(0.5)
    with contextlib.closing(near), pytest.raises(TimeoutError):
        near.recv(1)
