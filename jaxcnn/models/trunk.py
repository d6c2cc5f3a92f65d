"""A classification network as the trunk of another: its feature maps, without its head."""

from collections.abc import Mapping
from typing import Any

from jaxcnn import UserError
from jaxcnn.models import alexnet, googlenet, resnet, vgg
from jaxcnn.models.layers import Network

CLASSIFIERS = {**alexnet.MODELS, **vgg.MODELS, **googlenet.MODELS, **resnet.MODELS}


def create_trunk(
    backbone: str, dtype: Any, overrides: Mapping[str, Any], defaults: Mapping[str, Any], name: str | None = None
) -> Network:
    """Return the module that gives {name: Map} of a classification network's feature maps, and has no head.

    Args:
      backbone: its name, one of `CLASSIFIERS`.
      overrides: fields of it.
      defaults: further fields, for a network that has them.
      name: of the module inside of the one that makes it; None: it belongs to none.

    Raises:
      UserError: the network lacks an override.
    """
    network = CLASSIFIERS[backbone]
    fields = network.func.__dataclass_fields__
    if lacking := [key for key in overrides if key not in fields]:
        raise UserError(f"the backbone {backbone} has no override '{lacking[0]}': leave it out of model.overrides")
    if {"frozen_norm", "norm_epsilon"} & overrides.keys() and not getattr(network.args[0], "norm", True):
        raise UserError(f"the backbone {backbone} has no BatchNorm: leave out frozen_norm and norm_epsilon")
    given = {key: value for key, value in defaults.items() if key in fields} | dict(overrides)
    where: dict[str, Any] = {"name": name} if name else {"parent": None}
    return network(num_classes=0, dtype=dtype, **where, **given)
