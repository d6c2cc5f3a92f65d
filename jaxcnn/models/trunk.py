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
    """Return a classification network without its head, which returns its feature maps as {name: Map}.

    Args:
      backbone: name of the network, one of `CLASSIFIERS`.
      overrides: fields of the network; it must have them.
      defaults: further fields, which are set if the network has them.
      name: of the submodule of the module that calls this; None: the network belongs to no other module.

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


class OnTrunk(Network):
    """Base class of networks on the feature maps of a classification network, their trunk.

    Attributes:
      spec: row of the architecture's table, with the name of its `backbone`.
      backbone: a classification network of the registry; None: the architecture's own.
      width: factor on all channels; the backbone must have it.
      frozen_norm: BatchNorm with fixed statistics and affine, kept in `batch_stats` (`normalization.FrozenBatchNorm`);
        None: as the architecture has it.
      norm_epsilon: added to the variance in BatchNorm; None: the backbone's own.
    """

    backbone: str | None = None
    width: float | None = None
    frozen_norm: bool | None = None
    norm_epsilon: float | None = None

    @property
    def trunk_fields(self) -> dict[str, Any]:
        """Return the fields that are set if the trunk has them; see `create_trunk`."""
        return {}

    def trunk(self, name: str | None = None) -> Any:
        """Return the trunk as the submodule `name`, or, for its properties alone, as a module of its own.

        Raises:
          UserError: the backbone lacks an override.
        """
        overrides = {key: getattr(self, key) for key in ("small_images", "width", "frozen_norm", "norm_epsilon")}
        # An override that is None or False asks nothing of the backbone, which then need not have the field.
        given = {key: value for key, value in overrides.items() if value is not None and value is not False}
        defaults = self.trunk_fields
        if self.frozen_norm is not None:
            defaults = defaults | {"frozen_norm": self.frozen_norm}
        return create_trunk(self.backbone or self.spec.backbone, self.dtype, given, defaults, name)
