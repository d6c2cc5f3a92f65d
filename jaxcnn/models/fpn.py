"""FPN: "Feature Pyramid Networks for Object Detection", Lin et al., CVPR 2017 (arXiv:1612.03144).

Figure 3: each level is the sum of a map of the trunk, after a 1×1 convolution to a common number of channels, and the
coarser level, enlarged by 2; a 3×3 convolution follows. The RPN also sees every other cell of the coarsest level
(section 4.1):

    800×800 pixels, a ResNet   trunk            level
    stage1   stride  4         200×200×256      200×200×256
    stage2   stride  8         100×100×512      100×100×256
    stage3   stride 16          50×50×1024       50×50×256
    stage4   stride 32          25×25×2048       25×25×256
    pool     stride 64                           13×13×256
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxcnn.models.grid import Map
from jaxcnn.models.layers import Endpoint, conv
from jaxcnn.models.pooling import max_pool
from jaxcnn.models.resizing import nearest

FINEST = 4  # stride in pixels of the first level


def levels_of(endpoints: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return the endpoints of a trunk from which the levels are made, fine to coarse: the last one of each stride."""
    last = {stride: name for name, (stride, _) in endpoints.items() if stride >= FINEST}
    return list(last.values())


class FPN(nn.Module):
    """The pyramid over maps of a trunk; its levels have `channels` and `dtype`, and, as in torchvision, no norms."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, maps: Mapping[str, Map]) -> dict[str, Map]:
        """Return {"p_NAME": level} for the maps {NAME: map}, from fine to coarse, and "p_pool"."""
        init: Any = {"use_bias": True, "dtype": self.dtype}
        init["kernel_init"] = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # torchvision's
        levels: dict[str, Map] = {}
        above: Map | None = None
        for name, (x, grid) in reversed(list(maps.items())):
            # The bias must not reach the padding beyond an image: later layers see zeros there.
            x = grid.crop(conv(self.channels, 1, name=f"lateral_{name}", **init)(x))
            if above:
                x += grid.crop(nearest(above.x, (x.shape[1], x.shape[2]), above.grid.sizes, grid.sizes))
            above = Map(x, grid)  # the sum itself, before the 3×3 convolution
            level = grid.crop(conv(self.channels, 3, name=f"output_{name}", **init)(x))
            levels[f"p_{name}"] = Map(Endpoint(name=f"p_{name}")(level), grid)
        levels = dict(reversed(levels.items()))
        x, grid = levels[f"p_{list(maps)[-1]}"]
        return levels | {"p_pool": Map(max_pool(x, window=1, stride=2), grid.window(1, 2))}
