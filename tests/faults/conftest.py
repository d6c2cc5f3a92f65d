"""The campaign's seed, its undisturbed run, and the table of what happened."""

import json
import os
import platform
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign import EXPERIMENT, run

SEED = os.environ["JAXCNN_FAULTS_SEED"]
BEGAN = time.monotonic()
ROWS = "JAXCNN_FAULTS_ROWS"  # the file that all workers write their rows to, where it is the campaign alone that runs
HEADING = ("fault", "times", "what happened", "lost")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ[ROWS] = str(Path(tempfile.mkdtemp()) / "rows.jsonl")


def pytest_report_header() -> str:
    return f"faults: JAXCNN_FAULTS_SEED={SEED} repeats the moments"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    print(f"JAXCNN_FAULTS_SEED={SEED} repeats the moments")  # pytest shows it where the test fails
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def row() -> Callable[..., None]:
    """`row(fault, times, happened, lost)`: a line of the table; called once all has been asserted."""

    def write(fault: str, times: int, happened: str, lost: str) -> None:
        if path := os.environ.get(ROWS):
            with Path(path).open("a") as file:
                file.write(json.dumps([fault, times, happened, lost]) + "\n")

    return write


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="session")
def whole(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbed. Not to be written to."""
    workdir = tmp_path_factory.mktemp("whole")
    code, err = run(experiment, workdir)
    assert code == 0, err
    return workdir


def table(rows: list[list[str]]) -> str:
    """The rows as Markdown, in a fixed order."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (HEADING, ["---"] * len(HEADING), *sorted(rows))]
    return "\n".join(lines)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Print the table, and write it to the file that JAXCNN_FAULTS_TABLE names."""
    if hasattr(session.config, "workerinput"):
        return
    rows = Path(os.environ.pop(ROWS))
    lines = rows.read_text().splitlines() if rows.exists() else []
    shutil.rmtree(rows.parent)
    if not lines:
        return
    text = table([json.loads(line) for line in lines])
    print(f"\n\n{text}\n")
    if path := os.environ.get("JAXCNN_FAULTS_TABLE"):
        commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True).stdout
        about = (
            "# The fault campaign\n\n"
            f"`make test-faults`, JAXCNN_FAULTS_SEED={SEED}, commit {commit.strip()}, Python "
            f"{platform.python_version()}, {os.cpu_count()} cores: {(time.monotonic() - BEGAN) / 60:.1f} minutes. "
            "Written by the run itself, which fails where a fault costs anything that it should not.\n\n"
        )
        Path(path).write_text(f"{about}{text}\n")
