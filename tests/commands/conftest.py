"""A finished run that the commands read."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from tiny_experiment import experiment_text

from jaxcnn import cli, models

EXPERIMENT = experiment_text(
    steps=40, global_batch_size=40, eval_every=10, checkpoint_every=10, keep_last=9,
    optimizer__accumulate=5, optimizer__learning_rate=0.03,
)  # fmt: skip


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of 40 steps on 8 devices, with checkpoints at 10, 20, 30 and 40. Not to be written to."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "tiny.py").write_text(EXPERIMENT)
    with mock.patch.dict(models._REGISTRY):
        assert cli.main(["train", "--config", str(folder / "tiny.py"), "--workdir", str(folder / "run")]) == 0
        yield folder / "run"
