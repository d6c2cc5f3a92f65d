"""The text of experiment files on the tiny network, which compiles in no time.

An experiment file is Python and is executed: it brings the network along, and puts it into the registry.
"""

from pathlib import Path
from typing import Any
from unittest import mock

from jaxcnn import cli, models

_HELPERS = Path(__file__).parent
_TEXT = f"""
import sys
sys.path.insert(0, {str(_HELPERS)!r})
from jaxcnn import models
from jaxcnn.config import base_config
from MODULE import CLASS

models._REGISTRY["tiny"] = CLASS


def get_config():
    config = base_config("TASK")
    config.dtype = "float32"
    config.model.name = "tiny"
    config.ema.decay = 0.9
SETTINGS
    return config
"""


def experiment_text(task: str = "classification", network: str = "tiny:Tiny", /, **settings: object) -> str:
    """An experiment file that sets the keys given, `__` for the dots in them."""
    lines = [f"    config.{key.replace('__', '.')} = {value!r}" for key, value in settings.items()]
    module, _, name = network.partition(":")
    text = _TEXT.replace("MODULE", module).replace("CLASS", name).replace("TASK", task)
    return text.replace("SETTINGS", "\n".join(lines))


def train_tiny(folder: Path, text: str) -> Any:
    """Train an experiment file into `folder`/run, and return its network; the registry is left as it was."""
    (folder / "tiny.py").write_text(text)
    with mock.patch.dict(models._REGISTRY):
        assert cli.main(["train", "--config", str(folder / "tiny.py"), "--workdir", str(folder / "run")]) == 0
        return models._REGISTRY["tiny"]
