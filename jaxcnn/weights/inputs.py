"""What published weights expect of an image: its size, and the statistics it is normalised with."""

from collections.abc import Sequence
from typing import Any

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def input_of(name: str, class_names: Sequence[str]) -> dict[str, Any]:
    """The input of torchvision's weights for our model `name`, as a checkpoint keeps it: all but "resize" are a run's.

    Returns:
      "image_shape" (H, W, C), "mean" and "std" per channel of pixels in 0 … 1, "class_names", and "resize": the
      shorter side in pixels before the centre is cropped to the shape.
    """
    mean, std = _MEAN, _STD
    if name == "googlenet_tv":
        # Ported from TensorFlow, which took pixels in -1 … 1: torchvision builds it with transform_input=True, which
        # undoes ImageNet's normalisation for this one.
        mean = std = (0.5, 0.5, 0.5)
    return {
        "image_shape": (224, 224, 3), "mean": mean, "std": std, "class_names": tuple(class_names), "resize": 256,
    }  # fmt: skip
