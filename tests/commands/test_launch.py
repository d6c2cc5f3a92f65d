"""Several processes as one run, real ones: what they compute, how they end, and that the same command goes on.

Starting processes is what takes the time here, so one run shows several things.
"""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path, PurePath
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from tiny import Tiny
from tiny_experiment import experiment_text

from jaxcnn import cli, models
from jaxcnn.commands.launch import _outcome, _start
from jaxcnn.configfile import load_config
from jaxcnn.locations import Address

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")  # by Orbax, in `state`
STEPS = 60
EXPERIMENT = experiment_text(
    steps=STEPS, global_batch_size=32, log_every=10, eval_every=25, checkpoint_every=20, keep_last=9,
    model__overrides__dropout=0.1, data__augment="pad_crop", optimizer__schedule="constant",
    optimizer__learning_rate=0.01,
)  # fmt: skip
# A run must not end before JAX has noticed a signal, which takes it a second or two: with SLOW=train_batches it reads
# slowly, with SLOW=eval_batches an evaluation never ends by itself.
EXPERIMENT += """

import os, time
from jaxcnn.data.dataset import Dataset

if kind := os.environ.get("SLOW"):
    def slowly(self, *steps, fast=getattr(Dataset, kind)):
        os.write(2, f"reading {kind}\\n".encode())
        while True:
            for batch in list(fast(self)) if kind == "eval_batches" else fast(self, *steps):
                time.sleep(0.5)
                yield batch
            if kind == "train_batches":
                break

    setattr(Dataset, kind, slowly)
"""
BOUND = 300  # seconds after which a wait is given up; how fast the machine is, is not tested
# Float32 sums in another order: after 60 steps of Adam on two or four processes, beside one.
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-6}
TIMING = ("train/images_per_sec", "train/data_wait_frac")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(EXPERIMENT)
    return path


def train(experiment: Path, workdir: PurePath, *overrides: str) -> list[str]:
    return ["train", "--config", str(experiment), "--workdir", str(workdir), *(f"--config.{o}" for o in overrides)]


@pytest.fixture(scope="module")
def alone(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one device of one process. Not to be written to."""
    workdir = tmp_path_factory.mktemp("alone")
    with mock.patch.dict(models._REGISTRY):
        assert cli.main(train(experiment, workdir, "mesh.data=1")) == 0
    return workdir


def start(count: int, words: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxcnn.cli", "launch", "--processes", str(count), "--", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def launched(count: int, words: list[str], code: int = 0) -> tuple[str, str]:
    """stdout and stderr of a launch that ends with `code`."""
    with start(count, words) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


@pytest.fixture(scope="module")
def two(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The run of two processes that nothing cut, its stdout and stderr. Not to be written to."""
    workdir = tmp_path_factory.mktemp("two")
    return workdir, *launched(2, train(experiment, workdir))


def members(launcher: int) -> dict[int, int]:
    """Process number -> pid of the processes that `launcher` has started."""
    found = {}
    for text in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        words = Path(f"/proc/{text}/cmdline").read_text().split("\0")
        if "--process" in words:  # else it is a copy of the launcher still, that begins
            found[int(words[words.index("--process") + 1])] = int(text)
    return found


def wait_for(process: subprocess.Popen[str], begin: str) -> None:
    """Read its stderr up to a line that starts so."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        if line.startswith(begin):
            return
        lines.append(line)
    raise AssertionError(f"it ended without a line '{begin}…': {''.join(lines)}")


def signalled(
    count: int, words: list[str], process: int | None, number: int, line: str, slow: str = "train_batches"
) -> tuple[int, str]:
    """Exit code and stderr of a launch of which one process, or itself, gets a signal after a `line`."""
    with start(count, words, env=os.environ | {"SLOW": slow}) as launch:
        wait_for(launch, line)
        running = members(launch.pid)
        assert sorted(running) == list(range(count))
        os.kill(launch.pid if process is None else running[process], number)
        _, err = launch.communicate(timeout=BOUND)
    assert not any(Path(f"/proc/{pid}").exists() for pid in running.values())
    return launch.returncode, err


def log(workdir: Path) -> list[dict[str, float]]:
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def state(workdir: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read by Orbax alone."""
    path, reader = workdir.resolve() / "checkpoints" / str(step) / "state", ocp.PyTreeCheckpointer()
    saved: Any = reader.metadata(path).item_metadata
    tree = reader.restore(
        path, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.tree)
    )
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_close(workdir: Path, alone: Path) -> None:
    """Losses and parameters agree to float32's last digits; what is counted is the very same."""
    ours, theirs = log(workdir), log(alone)
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    exact = ("step", "epoch", "eval/examples", "train/learning_rate")
    assert [[line.get(k) for k in exact] for line in ours] == [[line.get(k) for k in exact] for line in theirs]
    assert {line["eval/examples"] for line in ours if "eval/loss" in line} == {355}  # no multiple of 32, 2 or 4
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(mine.values()), [other[k] for k in mine], **CLOSE)
    mine, other = state(workdir), state(alone)
    assert mine.keys() == other.keys()
    for path in mine:
        np.testing.assert_allclose(mine[path], other[path], **CLOSE, err_msg=path)


def assert_same(workdir: Path, other: Path) -> None:
    """The same to the last bit."""
    assert log(workdir) == log(other)
    left, right = state(workdir), state(other)
    assert [path for path in right if left[path].tobytes() != right[path].tobytes()] == []


def test_two_processes_train_what_one_device_trains(two, alone):
    workdir, out, err = two
    assert json.loads(out)["step"] == STEPS  # that and nothing else
    assert json.loads((workdir / "result.json").read_text())["process_count"] == 2
    assert "processes 2, mesh data 2 × model 1" in err
    (line,) = [line for line in err.splitlines() if line.startswith("[1] ")]
    for word in (
        "process 1 of 2",
        os.uname().nodename,
        "process 0",
        "127.0.0.1:",
        "300 s",
    ):  # who, whom, where, how long
        assert word in line
    assert_close(workdir, alone)


@pytest.mark.slow
def test_processes_that_share_no_disk_go_on_from_an_object_store(experiment, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSSPEC_LOCAL", json.dumps({"auto_mkdir": True}))  # a store that all processes reach
    words = train(experiment, Address("local://bucket/run"))
    code, err = signalled(2, words, 1, signal.SIGTERM, "step 20/")
    assert code == 143, err
    assert "saved in local://bucket/run/checkpoints" in err
    _, err = launched(2, words)
    assert "resuming" in err
    assert_close(tmp_path / "bucket/run", alone)


def test_sigterm_to_one_stops_all_at_one_step_and_the_same_command_makes_the_very_same_run(experiment, two, tmp_path):
    words = train(experiment, tmp_path)
    code, err = signalled(2, words, 1, signal.SIGTERM, "step 20/")
    assert code == 143, err
    (last,) = [line for line in err.splitlines() if line.startswith("jaxcnn: SIGTERM: stopped at step ")]
    stopped = int(last.split(" step ")[1].split()[0])
    assert 20 <= stopped < STEPS
    assert stopped in {int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*")}
    assert "resuming   from the checkpoint of step" in launched(2, words)[1]
    assert_same(tmp_path, two[0])


@pytest.mark.slow
def test_sigterm_cuts_an_evaluation_short_and_the_same_command_makes_it_first(experiment, two, tmp_path):
    words = train(experiment, tmp_path)
    code, err = signalled(2, words, 1, signal.SIGTERM, "reading eval_batches", slow="eval_batches")
    assert code == 143, err
    assert "SIGTERM: stopped at step 25 of" in err
    assert not [line for line in log(tmp_path) if "eval/loss" in line]
    launched(2, words)
    assert_same(tmp_path, two[0])


def test_a_process_killed_is_named_and_ends_all_and_checkpoints_pass_between_any_numbers(
    experiment, two, alone, tmp_path
):
    # One device's checkpoint goes on in two processes, theirs on one device; process 0 dies on the way.
    shutil.copytree(alone / "checkpoints" / "20", tmp_path / "checkpoints" / "20")
    words = train(experiment, tmp_path, "log_every=1")
    code, err = signalled(2, words, 0, signal.SIGKILL, "step 22/")
    assert code == 128 + signal.SIGKILL
    last = err.splitlines()[-1]
    for word in ("process 0 of 2", os.uname().nodename, "SIGKILL"):
        assert word in last
    shutil.rmtree(tmp_path / "checkpoints")
    shutil.copytree(two[0] / "checkpoints" / "20", tmp_path / "checkpoints" / "20")
    shutil.copy(two[0] / "metrics.jsonl", tmp_path)
    with mock.patch.dict(models._REGISTRY):
        assert cli.main(train(experiment, tmp_path, "mesh.data=1")) == 0
    assert_close(tmp_path, alone)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def by_flags(*each: list[str]) -> list[tuple[int, str]]:
    """Exit code and stderr of each of several processes that are told their place by flags."""
    flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(len(each))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxcnn.cli", *words, *flags, "--process", str(i)],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )
        for i, words in enumerate(each)
    ]  # fmt: skip
    errors = [process.communicate(timeout=200)[1] for process in processes]
    return [(process.returncode, err) for process, err in zip(processes, errors, strict=True)]


def test_a_users_error_in_one_process_ends_all_with_its_words(experiment, tmp_path):
    words = train(experiment, tmp_path)
    (first, theirs), (second, own) = by_flags(words, [*words, "--config.data.name=folder:/nowhere"])
    assert (first, second) == (2, 2)
    message = own.splitlines()[-1].removeprefix("jaxcnn: ")
    assert "config.data.name" in message
    assert "/nowhere" in message
    assert theirs.splitlines()[-1] == f"jaxcnn: process 1 of 2 on {os.uname().nodename}: {message}"
    assert "Traceback" not in own + theirs


def test_folders_that_are_not_the_same_are_noticed(experiment, tmp_path):
    (first, theirs), (second, own) = by_flags(*(train(experiment, tmp_path / name) for name in ("a", "b")))
    assert (first, second) == (2, 2)
    assert f"--workdir {tmp_path}/b" in own.splitlines()[-1]
    assert f"--workdir {tmp_path}/b" in theirs.splitlines()[-1]


def test_a_process_without_the_others_says_for_whom_it_waits_and_is_ended_by_jax(experiment, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    flags = ["--coordinator", address, "--processes", "2", "--process", "1", "--start-timeout", "1"]
    command = [sys.executable, "-m", "jaxcnn.cli", *train(experiment, tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGABRT
    assert done.stdout == ""
    first = done.stderr.splitlines()[0]
    for word in ("process 1 of 2", "process 0", address, "1 s"):
        assert word in first
    assert "DEADLINE_EXCEEDED" in done.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["launch"], "the following arguments are required: --processes"),
        (["launch", "--processes", "2"], "give the command after --"),
        (["launch", "--processes", "2", "--", "models"], "give the command after --"),
        (["launch", "--processes", "0", "--", "train"], "'0': write a whole number, 1 to 1024"),
        (["launch", "--processes", "2", "train"], "unrecognized arguments: train"),
        (["launch", "--processes", "2", "--", "train", "--process=1"], "it sets --process itself"),
        (["launch", "--processes", "2", "--", "train", "--coordinator", "here:1"], "it sets --coordinator itself"),
        (["train", "--processes", "2"], "give all three, or none"),
        (["train", "--coordinator", "here:1"], "give all three, or none"),
        (["train", "--coordinator", "here"], "'here': write HOST:PORT"),
        (["train", "--coord", "here:1"], "unknown argument --coord"),
        *((["train", "--start-timeout", x], f"'{x}': write a number of seconds") for x in ("nan", "inf", "-1", "0")),
        (["train", "--heartbeat-timeout", "0"], "'0': write a number of seconds"),
        (["train", "--coordinator", "a:1", "--processes", "2", "--process", "2"], "numbered from 0 to N - 1"),
    ],
)
def test_wrong_use_is_refused(argv, words, experiment, tmp_path, capsys):
    more = train(experiment, tmp_path)[1:] if argv[0] == "train" else []
    with mock.patch.dict(models._REGISTRY):
        assert cli.main([*argv, *more]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


class Recorded:
    """Stands in for `Children`: nothing is started."""

    def start(self, words: list[str], prepare: Any, **options: Any) -> None:
        self.prepare, self.options = prepare, options


@pytest.mark.parametrize(("index", "count", "cores"), [(0, 2, [2, 3]), (1, 2, [5, 7]), (6, 8, [3])])
def test_each_process_has_its_share_of_the_cores_and_its_own_devices(index, count, cores, monkeypatch):
    taken, children = [], Recorded()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5, 7, 11})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, mine: taken.append(mine))
    _start(children, [], index, count, 2)  # type: ignore[arg-type]
    children.prepare()
    assert taken == [cores]
    env = children.options["env"]
    assert env["JAX_NUM_CPU_DEVICES"] == "2"
    assert env["JAX_LOCAL_DEVICE_IDS"] == f"{2 * index},{2 * index + 1}"


class Ending:
    """A process whose exit codes are those seen at one poll after the other, the last one from then on."""

    def __init__(self, *codes: int | None):
        self.codes, self.polls = list(codes), 0

    def poll(self) -> int | None:
        self.polls += 1
        assert self.polls < 50, "it waits for ever"
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]


@pytest.mark.parametrize(
    ("codes", "grace", "code", "named"),
    [
        ([(0,), (None, None, 0)], 0, 0, ""),
        ([(None, 3), (None, None, 4)], BOUND, 3, ""),  # the first to fail
        ([(None, None, 4), (None, 3)], BOUND, 3, ""),
        ([(143,), (None, -6)], BOUND, 143, ""),  # all were stopping
        ([(None,), (None, 2)], 0, 2, ""),  # one that does not end is not waited for
        ([(None,), (None, -9)], BOUND, 137, "process 1 of 2"),
        ([(None, -6), (None,)], BOUND, 134, "JAX"),  # which has ended it, and has said why
    ],
)
def test_the_exit_code_is_that_of_the_first_to_fail(codes, grace, code, named, monkeypatch):
    monkeypatch.setattr("jaxcnn.commands.launch._GRACE", grace)
    found, words = _outcome([Ending(*each) for each in codes])  # type: ignore[arg-type]
    assert found == code
    assert (named in words) if named else not words


def test_a_launcher_that_is_killed_leaves_no_process_behind(experiment, tmp_path):
    with start(2, train(experiment, tmp_path)) as launch:
        while len(running := members(launch.pid)) < 2:
            time.sleep(0.05)
        launch.kill()
    until = time.monotonic() + BOUND
    while any(Path(f"/proc/{pid}").exists() for pid in running.values()):
        assert time.monotonic() < until
        time.sleep(0.05)


# Schedulers

LAUNCH = Path(__file__).parents[2] / "experiments" / "launch"
SRUN = """#!/bin/bash
# Two tasks of one node, as SLURM starts them.
while [ "${1#--}" != "$1" ]; do shift; done
for i in 0 1; do
  SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
done
code=0
for task in $(jobs -p); do wait "$task" || code=$?; done
exit "$code"
"""


@pytest.mark.slow
def test_slurm_is_detected_and_its_script_trains_on_all_tasks(experiment, alone, tmp_path):
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("jaxcnn", f'#!/bin/bash\nexec {sys.executable} -m jaxcnn.cli "$@"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "JAX_NUM_CPU_DEVICES": "1"}
    job = {"SLURM_JOB_ID": "7", "JAX_COORDINATOR_PORT": str(free_port()), "http_proxy": "http://127.0.0.1:9"}
    words = [str(LAUNCH / "slurm.sh"), str(experiment), str(tmp_path / "run"), "--config.steps=25"]
    done = subprocess.run(words, env=env | job, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "processes 2, mesh data 2 × model 1" in done.stderr
    assert json.loads(done.stdout)["step"] == 25
    ours, theirs = log(tmp_path / "run")[-1], log(alone)[2]
    assert ours["eval/examples"] == theirs["eval/examples"] == 355
    np.testing.assert_allclose(ours["eval/loss"], theirs["eval/loss"], **CLOSE)


@pytest.mark.parametrize("script", ["slurm.sh", "sweep.sbatch", "tpu_pod.sh"])
def test_scripts_are_shell_and_say_how_they_are_used(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    done = subprocess.run([LAUNCH / script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: " in done.stderr


def test_the_tpu_script_runs_one_command_on_all_hosts(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    gcloud.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU": "slice", "ZONE": "zone", "CHECKOUT": "/code"}
    words = [LAUNCH / "tpu_pod.sh", "experiments/a b.py", "/nfs/run", "--config.steps=5"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=zone", "--worker=all",
        "--command=cd /code && echo $$ >$HOME/.jaxcnn-train.pid && exec .venv/bin/jaxcnn"
        " train --config experiments/a\\ b.py --workdir /nfs/run --config.steps=5",
    ]  # fmt: skip


def test_the_kubernetes_job_gives_each_pod_its_number():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in container["args"])
    assert job["spec"]["completionMode"] == "Indexed"
    assert int(flags["processes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert flags["coordinator"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert flags["process"] == f"$({container['env'][0]['name']})"
    load_config(LAUNCH.parents[1] / flags["config"])


# Four processes

_TINY = """
import sys
sys.path.insert(0, {tests!r})
from jaxcnn import cli, models
from tiny import Tiny
models._REGISTRY["tiny"] = Tiny
sys.exit(cli.main(sys.argv[1:]))
"""


def evaluated_by_two(*asked: str) -> list[str]:
    """What each of two processes prints that evaluate together."""
    text = _TINY.format(tests=str(Path(__file__).parents[1] / "helpers"))
    flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    words = [sys.executable, "-c", text, "evaluate", *asked, *flags]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen([*words, "--process", str(i)], env=env, stdout=subprocess.PIPE, text=True) for i in range(2)
    ]
    outs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return outs


@pytest.mark.slow
def test_two_processes_evaluate_every_example_once_and_print_one_object(alone):
    outs = evaluated_by_two("--workdir", str(alone))
    assert outs[1] == ""
    (scores,) = map(json.loads, outs[0].splitlines())
    last = log(alone)[-1]
    assert scores["eval/examples"] == 355
    assert scores["eval/top1"] == last["eval/top1"]
    np.testing.assert_allclose(scores["eval/loss"], last["eval/loss"], **CLOSE)


@pytest.mark.slow
def test_two_processes_write_the_tables_of_a_mean_of_checkpoints_as_one_does(alone, tmp_path):
    asked = ["--workdir", str(alone), "--checkpoint=20,40", "--average", "--per-class"]
    pictures = ["--confusion", str(tmp_path / "two.png"), "--predictions", str(tmp_path / "two.csv")]
    outs = evaluated_by_two(*asked, str(tmp_path / "classes.csv"), *pictures)
    with mock.patch.dict(models._REGISTRY, tiny=Tiny):
        words = ["evaluate", *asked, str(tmp_path / "same.csv"), "--predictions", str(tmp_path / "one.csv")]
        assert cli.main([*words, "--config.mesh.data=1"]) == 0
    assert json.loads(outs[0])["checkpoint"] == [20, 40]
    assert (tmp_path / "two.png").exists()
    assert (tmp_path / "classes.csv").read_text() == (tmp_path / "same.csv").read_text()
    one, two = (list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines())) for name in ("one", "two"))
    for name in ("probability", "class_probability"):
        ours, theirs = ([float(row.pop(name)) for row in rows] for rows in (one, two))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert one == two
    assert [int(row["example"]) for row in two] == list(range(355))


@pytest.mark.slow
def test_four_processes_killed_and_stopped_make_the_very_same_run_which_is_that_of_one_device(
    experiment, alone, tmp_path
):
    cut = train(experiment, tmp_path / "cut")
    # Workers read: none is forked, JAX would warn of it.
    _, err = launched(4, train(experiment, tmp_path / "whole", "data.workers=1"))
    assert "fork" not in err
    assert_close(tmp_path / "whole", alone)
    for process, number, line, expected in (
        (3, signal.SIGKILL, "step 20/", 128 + signal.SIGKILL),
        (2, signal.SIGTERM, "step 30/", 143),
        (0, signal.SIGKILL, "step 40/", 128 + signal.SIGKILL),
        (None, signal.SIGINT, "step 50/", 130),  # goes on to all
    ):
        code, err = signalled(4, cut, process, number, line)
        assert code == expected, err
        if number == signal.SIGKILL:
            assert f"process {process} of 4 on {os.uname().nodename}" in err.splitlines()[-1]
    launched(4, cut)
    assert_same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_without_a_launcher_jax_ends_the_others_and_names_the_dead(experiment, tmp_path):
    """Process 1 of three is killed, and nobody but the coordination service notices."""
    flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "3", "--heartbeat-timeout", "10"]
    words = [sys.executable, "-m", "jaxcnn.cli", *train(experiment, tmp_path, "global_batch_size=33", "steps=100000")]
    files = [(tmp_path / f"{i}.txt").open("w+") for i in range(3)]
    processes = [
        subprocess.Popen(
            [*words, *flags, "--process", str(i)], stderr=file, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
        )
        for i, file in enumerate(files)
    ]
    while "step 10/" not in (tmp_path / "0.txt").read_text():
        assert processes[0].poll() is None
        time.sleep(0.1)
    processes[1].kill()
    assert [process.wait(timeout=120) for process in processes] == [-signal.SIGABRT, -signal.SIGKILL, -signal.SIGABRT]
    for file in files:
        file.close()
    for i in (0, 2):
        assert re.search(r"heartbeats?\W*\n?1\b|[Tt]ask:? ?1 ", (tmp_path / f"{i}.txt").read_text())


@pytest.mark.slow
def test_checkpoints_of_four_open_on_one_and_the_other_way_round(experiment, alone, tmp_path):
    four, one = tmp_path / "four", tmp_path / "one"
    launched(4, train(experiment, four, "steps=20"))
    with mock.patch.dict(models._REGISTRY):
        assert cli.main(train(experiment, one, "steps=20", "mesh.data=1")) == 0
        assert cli.main(train(experiment, four, "mesh.data=1")) == 0
    launched(4, train(experiment, one))
    for workdir in (four, one):
        left, right = state(workdir), state(alone)
        for path in right:
            np.testing.assert_allclose(left[path], right[path], **CLOSE, err_msg=path)
