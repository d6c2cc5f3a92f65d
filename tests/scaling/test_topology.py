"""Names of slices."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn import UserError
from jaxcnn.scaling.topology import LARGEST, parse


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
    assert parse(name).shape == shape


@given(version=st.sampled_from(sorted(LARGEST)), power=st.sampled_from([0, *range(2, 13)]))
def test_a_number_of_chips_is_a_compact_slice_of_so_many(version, power):
    if 2**power <= LARGEST[version]:
        slice_ = parse(f"tpu:{version}:{2**power}")
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
        ("tpu:v5e:512", "a pod of v5e has 256 chips"),
        ("tpu:v5e:32x32", "a pod of v5e has 256 chips"),
        ("gpu:h100:12", "nodes of 8"),
        ("gpu:h100:1x2x3", "nodes of 8"),
        ("gpu:h100:1x64", "nodes of 8"),
    ],
)
def test_a_bad_name_is_told_with_its_mend(name, words):
    with pytest.raises(UserError, match=f"--topology {name}") as error:
        parse(name)
    assert words in str(error.value)
