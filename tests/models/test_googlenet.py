"""GoogLeNet against its paper: Table 1, what stands between the modules, and the auxiliary classifiers."""

from typing import Any

import flax.linen as nn
import jax
import pytest
from nets import GOOGLENET, count, create, shapes, traced

from jaxcnn.models import googlenet
from jaxcnn.models.googlenet import SPECS

# Table 1: output side and channels of each module, and the channels of its 1×1, 3×3, 5×5 and pooling branches.
MODULES = {
    "3a": (28, 256, (64, 128, 32, 32)),
    "3b": (28, 480, (128, 192, 96, 64)),
    "4a": (14, 512, (192, 208, 48, 64)),
    "4b": (14, 512, (160, 224, 64, 64)),
    "4c": (14, 512, (128, 256, 64, 64)),
    "4d": (14, 528, (112, 288, 64, 64)),
    "4e": (14, 832, (256, 320, 128, 128)),
    "5a": (7, 832, (256, 320, 128, 128)),
    "5b": (7, 1024, (384, 384, 128, 128)),
}
BARE = {"googlenet": 6_998_552, "googlenet_tv": 6_624_904}  # without the auxiliary heads


def test_the_table_of_counts_covers_the_family():
    assert GOOGLENET.keys() == BARE.keys() == SPECS.keys()


@pytest.mark.parametrize("name", GOOGLENET)
def test_parameters_without_the_auxiliary_heads_are_those_of_the_paper(name):
    params = traced(name, 224)[1]["params"]
    assert count({k: v for k, v in params.items() if k not in ("aux1", "aux2")}) == BARE[name]


def watched(name: str, size: int, train: bool = False, **overrides: Any) -> list[tuple[nn.Module, Any, Any]]:
    """(module, shape that it takes, shape that it gives) of every module call, in turn."""
    calls = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(y, jax.Array):
            calls.append((context.module, args[0].shape[1:], y.shape[1:]))
        return y

    with nn.intercept_methods(watch):
        shapes(create(name, classes=1000, width=1.0, **overrides), size, train=train)
    return calls


@pytest.mark.parametrize("name", GOOGLENET)
def test_modules_have_the_sizes_of_table_1_and_auxiliary_heads_those_of_section_5(name):
    calls = {"/".join(m.path): (taken, given) for m, taken, given in watched(name, 224, train=True, small_images=False)}
    assert calls["conv1"] == ((224, 224, 3), (112, 112, 64))
    assert calls["conv2_reduce"] == ((56, 56, 64), (56, 56, 64))
    assert calls["conv2"] == ((56, 56, 64), (56, 56, 192))
    inputs = 192
    for module, (side, channels, branches) in MODULES.items():
        path = f"inception{module}"
        assert calls[path] == ((side, side, inputs), (side, side, channels)), module
        given = tuple(calls[f"{path}/{branch}"][1][-1] for branch in ("conv1x1", "conv3x3", "conv5x5", "project"))
        assert given == branches, module
        inputs = channels
    for head, (module, channels) in {"aux1": ("4a", 512), "aux2": ("4d", 528)}.items():
        assert calls[head][0] == (14, 14, channels) == calls[f"inception{module}"][1]
        assert calls[f"{head}/project"] == ((4, 4, channels), (4, 4, 128))  # 5×5 windows, three apart
        assert calls[f"{head}/fc"][1] == (1024,)
        assert calls[f"{head}/head"] == ((1024,), (1000,))
    assert calls["head"] == ((1024,), (1000,))


@pytest.mark.parametrize(("name", "side"), [("googlenet", 5), ("googlenet_tv", 3)])
def test_the_branch_of_large_filters_is_5x5_in_the_paper_and_3x3_in_torchvision(name, side):
    params = traced(name, 224)[1]["params"]
    for module in MODULES:
        branches = params[f"inception{module}"]
        kernels = {branch: branches[branch]["conv"]["kernel"].shape[0] for branch in branches}
        assert kernels == {"reduce3x3": 1, "conv3x3": 3, "reduce5x5": 1, "conv5x5": side, "conv1x1": 1, "project": 1}
        assert all(("bias" in branches[branch]["conv"]) == (name == "googlenet") for branch in branches)


@pytest.mark.parametrize(("name", "expected"), [("googlenet", [0.7, 0.7, 0.4]), ("googlenet_tv", [0.7, 0.7, 0.2])])
def test_dropout_rates_are_the_architectures_own_unless_told(name, expected):
    def rates(**overrides: float) -> list[float]:
        modules = [m for m, _, _ in watched(name, 32, train=True, **overrides) if isinstance(m, nn.Dropout)]
        assert not any(m.deterministic for m in modules)
        return [m.rate for m in modules]

    assert rates() == expected
    assert rates(dropout=0.0, aux_dropout=0.1) == [0.1, 0.1, 0.0]


@pytest.mark.parametrize(
    ("name", "normalised", "last"), [("googlenet", [(56, 64), (56, 192)], 3), ("googlenet_tv", [], 2)]
)
def test_the_paper_normalises_beside_the_first_two_poolings_and_pools_3x3_rounding_up(
    name, normalised, last, monkeypatch
):
    lrn, pools, max_pool = [], [], googlenet.max_pool

    def pool(x: jax.Array, window: int, stride: int, **how: Any) -> jax.Array:
        y = max_pool(x, window=window, stride=stride, **how)
        if stride > 1:
            pools.append((x.shape[1], y.shape[1], window, how))
        return y

    monkeypatch.setattr(googlenet, "local_response_norm", lambda x: lrn.append((x.shape[1], x.shape[-1])) or x)
    monkeypatch.setattr(googlenet, "max_pool", pool)
    shapes(create(name, width=1.0, small_images=False), 224)
    ceil = {"ceil": True}
    assert pools == [(112, 56, 3, ceil), (56, 28, 3, ceil), (28, 14, 3, ceil), (14, 7, last, ceil)]
    assert lrn == normalised


@pytest.mark.parametrize(
    ("side", "maps"), [(28, (28, 28, 14, 7, 3)), (32, (32, 32, 16, 8, 4)), (64, (64, 64, 32, 16, 8))]
)
def test_small_images_are_pooled_three_times(side, maps):
    outputs, _ = shapes(create("googlenet"), side, train=True)
    assert tuple(outputs[f"stage{i}"].shape[1] for i in range(1, 6)) == maps
