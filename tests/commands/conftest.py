"""A finished run that the commands read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tiny_experiment import experiment_text

from jaxcnn import cli, models

EXPERIMENT = experiment_text(
    seed=1, steps=40, global_batch_size=40, eval_every=10, checkpoint_every=10, keep_last=9,
    optimizer__accumulate=5, optimizer__learning_rate=0.03,
)  # fmt: skip


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "tiny.py").write_text(EXPERIMENT)
    with mock.patch.dict(models._REGISTRY):
        assert cli.main(["train", "--config", str(folder / "tiny.py"), "--workdir", str(folder / "run")]) == 0
        return folder / "run", models._REGISTRY["tiny"]


@pytest.fixture
def workdir(_trained: tuple[Path, Any]) -> Iterator[Path]:
    """A run of 40 steps on 8 devices, with checkpoints at 10, 20, 30 and 40. Not to be written to.

    Its network is in the registry for this test only: others list the registry.
    """
    folder, network = _trained
    with mock.patch.dict(models._REGISTRY, tiny=network):
        yield folder
