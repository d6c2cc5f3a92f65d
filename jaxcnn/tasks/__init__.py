"""Kinds of work. `create_task(config)` builds the one that `config.task.name` names."""

from jaxcnn.config import Config
from jaxcnn.tasks.base import Task
from jaxcnn.tasks.classification import Classification
from jaxcnn.tasks.segmentation import Segmentation

TASKS: dict[str, type[Task]] = {"classification": Classification, "segmentation": Segmentation}


def create_task(config: Config) -> Task:
    """Return the task of a validated config."""
    return TASKS[config.task.name](config)
