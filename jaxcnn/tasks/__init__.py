"""Loss and metrics of a kind of work. `create_task(config)` builds the one that `config.task.name` names."""

from jaxcnn.config import Config
from jaxcnn.tasks.classification import Classification


def create_task(config: Config) -> Classification:
    """The task of a validated config."""
    return Classification(label_smoothing=config.task.label_smoothing)
