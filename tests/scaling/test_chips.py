"""Published figures with their sources, and slices by name."""

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn import UserError
from jaxcnn.scaling.ahead_of_time import target_config
from jaxcnn.scaling.chips import CHIPS, LARGEST, parse_topology


@pytest.mark.parametrize("name", CHIPS)
def test_every_figure_says_where_it_stands(name):
    figures = CHIPS[name].figures()
    # Nothing is published of a network between slices of v3. A GPU has no torus, but nodes.
    assert len(figures) == (10 if name in ("v4", "v5e", "v5p", "v6e") else 9)
    for label, (value, source) in figures.items():
        assert "https://" in source or "not checked" in source, label
        assert value > 0 or (label == "collective launch, s" and "none published" in source)


def test_the_flops_a_byte_at_which_each_chip_is_balanced():
    balance = {name: chip.flops["bfloat16"].value / chip.memory_bandwidth.value for name, chip in CHIPS.items()}
    assert balance == pytest.approx(
        {"v3": 137, "v4": 229, "v5e": 241, "v5p": 166, "v6e": 560, "a100": 153, "h100": 295}, rel=0.01
    )
    assert [CHIPS[name].flops["float32"].value for name in ("v5e", "a100")] == [197e12, 156e12]


@pytest.mark.parametrize("name", ["a100", "h100"])
def test_the_target_config_tells_what_the_chip_tells(name):
    chip, text = CHIPS[name], target_config(name)
    assert f'device_description_str: "{chip.kind}"' in text
    assert f"memory_bandwidth: {chip.memory_bandwidth.value:.0f} device_memory_size: {chip.memory.value:.0f} " in text
    assert text.count("{") == text.count("}") == 3


def test_the_h100_is_the_one_that_experiments_compile_for():
    from experiments.compiled import layers

    assert sorted(target_config("h100").split()) == sorted(layers.H100.split())


def test_the_figures_load_no_jax():
    probe = "import sys, jaxcnn.scaling.chips; assert not {'jax', 'flax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("tpu:v5e:4", (2, 2)),
        ("tpu:v5e:8", (2, 4)),
        ("tpu:v5e:16x16", (16, 16)),
        ("tpu:v4:4", (2, 2, 1)),
        ("tpu:v4:64", (4, 4, 4)),
        ("tpu:v4:4096", (16, 16, 16)),
        ("tpu:v5p:1", (1, 1, 1)),
        ("gpu:h100:8", (1, 8)),
        ("gpu:h100:4", (1, 4)),
        ("gpu:a100:64", (8, 8)),
        ("gpu:h100:16x4", (16, 4)),
    ],
)
def test_shapes(name, shape):
    assert parse_topology(name).shape == shape


def test_several_slices():
    several = parse_topology("tpu:v5e:4x4:3")
    assert (several.shape, several.slices, several.chips) == ((4, 4), 3, 48)
    assert parse_topology("tpu:v5e:4x4").slices == 1


@given(version=st.sampled_from(sorted(LARGEST)), power=st.sampled_from([0, *range(2, 13)]))
def test_a_number_of_chips_is_a_compact_slice_of_so_many(version, power):
    if 2**power <= LARGEST[version]:
        slice_ = parse_topology(f"tpu:{version}:{2**power}")
        assert slice_.chips == math.prod(slice_.shape) == 2**power
        assert max(slice_.shape) <= 4 * min(slice_.shape)
        assert [*slice_.shape] == sorted(slice_.shape) or power == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e", "neither tpu nor gpu"),
        ("cpu:x86:4", "neither tpu nor gpu"),
        ("tpu:v9:4", "there is no tpu 'v9', but v3, v4, v5e"),
        ("gpu:v4:4", "there is no gpu 'v4'"),
        ("tpu:v5e", "'' is no number"),
        ("tpu:v5e:0", "'0' is no number"),
        ("tpu:v5e:2x-2", "is no number"),
        ("tpu:v5e:²", "is no number"),
        ("tpu:v5e:2", "no standard slice"),
        ("tpu:v5e:12", "no standard slice"),
        ("tpu:v5e:2x2x2", "2 dimensions"),
        ("tpu:v4:8x8", "3 dimensions"),
        ("tpu:v5e:3x4", "even"),
        ("tpu:v5e:1x4", "even"),
        ("tpu:v5e:512", "a pod of v5e has 256 chips"),
        ("tpu:v5e:32x32", "a pod of v5e has 256 chips"),
        ("tpu:v5e:4x4:0", "is no number"),
        ("tpu:v5e:4x4:2:2", "is no number"),
        ("tpu:v3:4x4:2", "between slices of v3"),
        ("gpu:h100:8:2", "nodes"),
        ("gpu:h100:12", "nodes of 8"),
        ("gpu:h100:1x2x3", "nodes of 8"),
        ("gpu:h100:1x64", "nodes of 8"),
    ],
)
def test_a_bad_name_is_told_with_its_mend(name, words):
    with pytest.raises(UserError, match=f"--topology {name}") as error:
        parse_topology(name)
    assert words in str(error.value)
