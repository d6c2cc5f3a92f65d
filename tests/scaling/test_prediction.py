"""Predictions worked by hand, and what must hold of every one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.scaling.chips import (
    CHIPS,
    Chip,
    Cost,
    collective_seconds,
    estimate,
    parse_topology,
    set_efficiencies,
    wire_bytes,
)
from jaxcnn.training.hlo import KINDS


def compiled(flops=1e9, accessed=1e6, hbm=5e5, batch=100, groups=(), dtype="bfloat16"):
    return {
        "flops_per_image": flops, "bytes_per_image": accessed, "hbm_traffic_per_image": hbm, "batch_per_chip": batch,
        "dtype": dtype, "collective_groups": list(groups),
    }  # fmt: skip


def reduce(count, size, spans):
    group = math.prod(spans)
    return {"kind": "all-reduce", "count": count, "bytes": size, "group_size": group, "groups": 1, "spans": spans}


def test_one_chip_by_hand():
    chip = CHIPS["v5e"]
    found = estimate(compiled(flops=2e9, accessed=4e6, hbm=1e6, batch=10), parse_topology("tpu:v5e:1"))
    assert found["compute_seconds"] == pytest.approx(10 * 2e9 / 197e12)
    assert found["memory_seconds"] == pytest.approx(10 * 4e6 / chip.memory_bandwidth.value)
    assert found["network_seconds"] == found["latency_seconds"] == found["wire_bytes"] == 0
    quick, slow = found["predicted_step_seconds"]
    assert quick == pytest.approx(10 * 2e9 / 197e12)  # HBM traffic alone takes less
    assert slow == pytest.approx(found["compute_seconds"] + found["memory_seconds"])
    assert found["predicted_images_per_sec_per_chip"] == pytest.approx([10 / slow, 10 / quick])
    assert found["bound"] == "compute"


def test_the_network_is_all_collectives_one_after_another():
    place = parse_topology("tpu:v5e:4x4")
    found = estimate(compiled(groups=[reduce(3, 10**6, [4, 4]), reduce(1, 10**8, [4, 4])]), place)
    costs = [collective_seconds(place.chip, place.shape, "all-reduce", size, 16) for size in (10**6, 10**8)]
    assert found["network_seconds"] == pytest.approx(3 * sum(costs[0]) + sum(costs[1]))
    assert found["latency_seconds"] == pytest.approx(3 * costs[0].latency + costs[1].latency)
    assert found["wire_bytes"] == pytest.approx(2 * 15 / 16 * (3 * 10**6 + 10**8))
    assert found["bound"] == "network"


sizes = st.floats(1e3, 1e13)


@given(
    flops=sizes,
    accessed=sizes,
    share=st.floats(0.1, 1),
    batch=st.integers(1, 4096),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)
def test_an_interval_is_from_the_sum_to_the_largest_part(flops, accessed, share, batch, dtype):
    row = compiled(flops, accessed, share * accessed, batch, [reduce(2, 10**6, [1, 8])], dtype)
    found = estimate(row, parse_topology("gpu:h100:8"))
    low, high = found["predicted_images_per_sec_per_chip"]
    parts = [found[f"{name}_seconds"] for name in ("compute", "memory", "network")]
    assert 0 < low <= high
    assert batch / low == pytest.approx(sum(parts))
    floors = {"compute": parts[0], "memory": share * parts[1], "network": parts[2]}
    assert batch / high == pytest.approx(max(floors.values()))
    assert floors[found["bound"]] == pytest.approx(max(floors.values()))


def test_what_the_compiler_refused_has_no_prediction():
    found = estimate(compiled() | {"flops_per_image": None}, parse_topology("tpu:v5e:1"))
    assert set(found.values()) == {None}


def test_the_same_group_costs_more_between_nodes():
    def network(spans):
        return estimate(compiled(groups=[reduce(1, 10**8, spans)]), parse_topology("gpu:h100:16"))["network_seconds"]

    assert network([2, 1]) > 5 * network([1, 2])


def test_slices_are_joined_by_the_hosts_network():
    def wire(topology, entry):
        predicted = estimate(compiled(groups=[entry]), parse_topology(topology))
        return predicted["wire_bytes"], predicted["network_seconds"]

    entry = {"kind": "all-reduce", "count": 3, "bytes": 8e6, "group_size": 4, "groups": 16, "spans": [4]}
    # A ring over four slices: each chip sends 2 × 3/4 of its array, by its share of the NICs of a host, 3.125 GB/s.
    assert wire("tpu:v5e:4x4:4", entry | {"between_slices": True}) == pytest.approx((36e6, 36e6 / 3.125e9))


def test_efficiency_compares_like_with_like():
    def row(rates, network):
        return {
            "predicted_images_per_sec_per_chip": rates, "predicted_efficiency": None, "batch_per_chip": 100,
            "compute_seconds": 0.5, "hbm_seconds": 1.0, "network_seconds": network,
        }  # fmt: skip

    rows = [row([50, 100], 0.0), row(None, None), row([45, 100], 0.25), row([40, 100], 1.0)]
    set_efficiencies(rows)
    # Nothing overlapped; everything; and arithmetic with HBM but not the network: 1 second, then 1.25, then 2.
    assert [r["predicted_efficiency"] for r in rows] == [[1, 1], None, [0.8, 1], [0.5, 1]]


MB = 1e6
SLICES = [
    ("v3", (4, 8)),
    ("v4", (2, 2, 1)),
    ("v4", (4, 4, 8)),
    ("v5e", (2, 4)),
    ("v5e", (16, 16)),
    ("v5p", (8, 8, 16)),
    ("v6e", (8, 16)),
    ("a100", (4, 8)),
    ("h100", (1, 8)),
    ("h100", (16, 8)),
]


@st.composite
def groups(draw) -> tuple[Chip, tuple[int, ...], int]:
    """A chip, a slice of it and a group of its devices, more than one."""
    name, shape = draw(st.sampled_from(SLICES))
    devices = math.prod(shape) * CHIPS[name].devices
    divisors = [n for n in range(2, devices + 1) if devices % n == 0]
    return CHIPS[name], shape, draw(st.sampled_from(divisors))


SIZES = st.integers(1, 10**10)


@given(groups(), st.sampled_from(KINDS), SIZES, SIZES)
def test_more_bytes_take_longer_and_no_more_steps(where, kind, some, more):
    chip, shape, group = where
    less, longer = (collective_seconds(chip, shape, kind, n, group) for n in (some, some + more))
    assert less.latency == longer.latency >= 0
    within_a_chip = group <= chip.devices
    assert (less.bandwidth == longer.bandwidth == 0) if within_a_chip else (0 < less.bandwidth < longer.bandwidth)


@given(groups(), SIZES)
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(where, shard):
    chip, shape, group = where
    reduce, scatter, gather = (
        collective_seconds(chip, shape, kind, nbytes, group)
        for kind, nbytes in (
            ("all-reduce", shard * group),
            ("reduce-scatter", shard),
            ("all-gather", shard * group),
        )
    )
    assert reduce.bandwidth == pytest.approx(scatter.bandwidth + gather.bandwidth)
    assert reduce.latency <= scatter.latency + gather.latency  # one launch instead of two
    whole = shard * group
    assert wire_bytes("all-reduce", whole, group) == pytest.approx(
        wire_bytes("reduce-scatter", shard, group) + wire_bytes("all-gather", whole, group)
    )


@given(st.sampled_from(SLICES), st.sampled_from(KINDS), SIZES)
def test_a_device_by_itself_pays_nothing(where, kind, nbytes):
    name, shape = where
    assert collective_seconds(CHIPS[name], shape, kind, nbytes, 1) == Cost(0, 0)
    assert wire_bytes(kind, nbytes, 1) == 0


@given(groups(), SIZES)
def test_no_link_is_given_more_than_its_rate(where, nbytes):
    """What a device sends takes at least as long as over all of its chip's links at once."""
    chip, shape, group = where
    chips = group // math.gcd(group, chip.devices)
    rate = chip.link.value * (2 * chip.torus.value if chip.platform == "tpu" else 1)
    for kind in KINDS:
        seconds = collective_seconds(chip, shape, kind, nbytes, group).bandwidth
        assert seconds >= wire_bytes(kind, nbytes, chips) / rate * (1 - 1e-9)


@pytest.mark.parametrize(
    ("name", "shape", "kind", "nbytes", "group", "seconds"),
    [
        # 2×2: no ring; each chip sends 2·3/4 of the bytes over its two links.
        ("v5e", (2, 2), "all-reduce", 90 * MB, 4, 1.5 * 90e6 / (2 * 45e9)),
        # A whole pod: two rings, each both ways.
        ("v5e", (16, 16), "all-reduce", 90 * MB, 256, 2 * 255 / 256 * 90e6 / (4 * 45e9)),
        ("v5e", (16, 16), "all-reduce", 90 * MB, 16, 2 * 15 / 16 * 90e6 / (2 * 45e9)),
        # Half an axis is a line, and so is an axis of 8.
        ("v5e", (16, 16), "all-reduce", 90 * MB, 8, 2 * 7 / 8 * 90e6 / 45e9),
        ("v5e", (8, 16), "all-reduce", 90 * MB, 128, 2 * 127 / 128 * 90e6 / (3 * 45e9)),
        # The book's all-gather over a line of 4: three hops of a quarter.
        ("v5e", (4, 4), "all-gather", 90 * MB, 4, 3 * 22.5e6 / 45e9),
        ("v5e", (4, 4), "collective-permute", 90 * MB, 16, 90e6 / 45e9),
        # The book: on a ring an all-to-all takes a quarter of the all-gather of all that it moves.
        ("v5e", (16, 16), "all-to-all", 90 * MB, 16, 16 * 90e6 / (2 * 45e9) / 4),
        ("v5e", (2, 2), "all-to-all", 90 * MB, 4, 45e6 / 45e9),
        # Cubes of 4×4×4 close all three axes; 2×2×4 and 4×4 do not.
        ("v4", (4, 4, 4), "all-reduce", 90 * MB, 64, 2 * 63 / 64 * 90e6 / (6 * 45e9)),
        ("v4", (2, 2, 4), "all-reduce", 90 * MB, 16, 2 * 15 / 16 * 90e6 / (3 * 45e9)),
        ("v4", (4, 4, 1), "all-reduce", 90 * MB, 16, 2 * 15 / 16 * 90e6 / (2 * 45e9)),
        # Two cores a chip: four chips share the links; two cores of one chip use none.
        ("v3", (2, 2), "all-reduce", 83 * MB, 8, 1.5 * 83e6 / (2 * 83e9)),
        ("v3", (2, 2), "reduce-scatter", 83 * MB, 8, 3 * 2 * 83e6 / (2 * 83e9)),
        ("v3", (2, 2), "all-reduce", 83 * MB, 2, 0),
        # One node: NVLink. Two: each GPU's eighth crosses the NIC as well.
        ("h100", (1, 8), "all-reduce", 90 * MB, 8, 2 * 7 / 8 * 90e6 / 450e9),
        ("h100", (2, 8), "all-reduce", 90 * MB, 16, 2 * (7 / 8 * 90e6 / 450e9 + 1 / 2 * 90e6 / 8 / 50e9)),
        ("h100", (2, 8), "all-reduce", 90 * MB, 8, 2 * 7 / 8 * 90e6 / 450e9),
        ("h100", (2, 8), "all-to-all", 90 * MB, 16, 45e6 / 50e9),
        ("h100", (2, 8), "collective-permute", 90 * MB, 16, 90e6 / 50e9),
        ("a100", (1, 8), "all-gather", 90 * MB, 8, 7 / 8 * 90e6 / 300e9),
    ],
)
def test_the_seconds_worked_by_hand(name, shape, kind, nbytes, group, seconds):
    assert collective_seconds(CHIPS[name], shape, kind, nbytes, group).bandwidth == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("name", "shape", "kind", "group", "microseconds"),
    [
        ("v5e", (4, 4), "all-gather", 4, 3),  # the book's three hops
        ("v5e", (16, 16), "all-reduce", 256, 2 * (8 + 8)),  # half way round each axis, there and back
        ("v5e", (16, 16), "collective-permute", 256, 1),
        ("h100", (1, 8), "all-reduce", 8, 6.6 + 2 * 7 * 0.6),  # NCCL's own sum for a ring
        ("h100", (16, 8), "all-reduce", 128, 6.6 + 2 * (7 * 0.6 + 4 * 5)),  # and for a tree of 16 nodes
    ],
)
def test_the_steps_worked_by_hand(name, shape, kind, group, microseconds):
    assert collective_seconds(CHIPS[name], shape, kind, 1, group).latency == pytest.approx(microseconds / 1e6)


def test_a_group_that_does_not_divide_the_slice_is_refused():
    with pytest.raises(ValueError, match=r"groups of 3 "):
        collective_seconds(CHIPS["v5e"], (2, 2), "all-reduce", 1, 3)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'all-hands'"):
        collective_seconds(CHIPS["v5e"], (2, 2), "all-hands", 1, 4)
