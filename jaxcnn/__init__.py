"""jaxcnn: the classic convolutional networks in JAX, checked against their papers.

`train`, `open_run`, `create_model` and `list_models` are what the command line is made of. Each is loaded when it is
first asked for: importing this package imports no JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcnn.models import create_model, list_models
    from jaxcnn.training.train import train
    from jaxcnn.training.trained import Prediction, TrainedModel, open_run

__version__ = "0.1.0"
__all__ = ["Prediction", "TrainedModel", "UserError", "create_model", "list_models", "open_run", "train"]

# All other names are in jaxcnn.training.trained.
_HOMES = {"create_model": "jaxcnn.models", "list_models": "jaxcnn.models", "train": "jaxcnn.training.train"}


class UserError(Exception):
    """Wrong use or bad input. The message is one line: what is wrong, where, and how to fix it.

    The command line prints it without a traceback and exits with its `code`.
    """

    code = 2


def __getattr__(name: str) -> Any:
    """Load a name of the Python API."""
    if name not in __all__:
        raise AttributeError(f"module 'jaxcnn' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "jaxcnn.training.trained")), name)


def __dir__() -> list[str]:
    """List the Python API, whether it is loaded or not."""
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
