"""Kinds of work. `create_task(config)` builds the one that `config.task.name` names."""

from jaxcnn.config import Config
from jaxcnn.tasks.base import Task
from jaxcnn.tasks.classification import Classification
from jaxcnn.tasks.detection import Detection
from jaxcnn.tasks.gan import GAN
from jaxcnn.tasks.segmentation import Segmentation
from jaxcnn.tasks.vae import VAE

TASKS: dict[str, type[Task]] = {
    "classification": Classification, "segmentation": Segmentation, "detection": Detection, "vae": VAE, "gan": GAN,
}  # fmt: skip


def create_task(config: Config) -> Task:
    """Return the task of a validated config."""
    return TASKS[config.task.name](config)
