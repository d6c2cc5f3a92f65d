"""A finished run that the commands read."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from jaxcnn import cli, models

TRAINING = Path(__file__).parents[1] / "training"
EXPERIMENT = f"""
import sys
sys.path.insert(0, {str(TRAINING)!r})
from jaxcnn import models
from jaxcnn.config import base_config
from tiny import Tiny

models._REGISTRY["tiny"] = Tiny


def get_config():
    config = base_config()
    config.steps = 40
    config.global_batch_size = 40
    config.dtype = "float32"
    config.eval_every = 10
    config.checkpoint_every = 10
    config.keep_last = 9
    config.model.name = "tiny"
    config.ema.decay = 0.9
    config.optimizer.accumulate = 5
    config.optimizer.learning_rate = 0.03
    return config
"""


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of 40 steps on 8 devices, with checkpoints at 10, 20, 30 and 40. Not to be written to."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "tiny.py").write_text(EXPERIMENT)
    with mock.patch.dict(models._REGISTRY):
        assert cli.main(["train", "--config", str(folder / "tiny.py"), "--workdir", str(folder / "run")]) == 0
        yield folder / "run"
