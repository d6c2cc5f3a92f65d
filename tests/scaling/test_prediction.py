"""Predictions worked by hand, and what must hold of every one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.scaling.chips import CHIPS, collective_seconds
from jaxcnn.scaling.prediction import efficiencies, predict
from jaxcnn.scaling.topology import parse


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
    found = predict(compiled(flops=2e9, accessed=4e6, hbm=1e6, batch=10), parse("tpu:v5e:1"))
    assert found["compute_seconds"] == pytest.approx(10 * 2e9 / 197e12)
    assert found["memory_seconds"] == pytest.approx(10 * 4e6 / chip.memory_bandwidth.value)
    assert found["network_seconds"] == found["latency_seconds"] == found["wire_bytes"] == 0
    quick, slow = found["predicted_step_seconds"]
    assert quick == pytest.approx(10 * 2e9 / 197e12)  # HBM traffic alone takes less
    assert slow == pytest.approx(found["compute_seconds"] + found["memory_seconds"])
    assert found["predicted_images_per_sec_per_chip"] == pytest.approx([10 / slow, 10 / quick])
    assert found["bound"] == "compute"


def test_the_network_is_all_collectives_one_after_another():
    place = parse("tpu:v5e:4x4")
    found = predict(compiled(groups=[reduce(3, 10**6, [4, 4]), reduce(1, 10**8, [4, 4])]), place)
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
    found = predict(row, parse("gpu:h100:8"))
    low, high = found["predicted_images_per_sec_per_chip"]
    parts = [found[f"{name}_seconds"] for name in ("compute", "memory", "network")]
    assert 0 < low <= high
    assert batch / low == pytest.approx(sum(parts))
    floors = {"compute": parts[0], "memory": share * parts[1], "network": parts[2]}
    assert batch / high == pytest.approx(max(floors.values()))
    assert floors[found["bound"]] == pytest.approx(max(floors.values()))


def test_what_the_compiler_refused_has_no_prediction():
    found = predict(compiled() | {"flops_per_image": None}, parse("tpu:v5e:1"))
    assert set(found.values()) == {None}


def test_the_same_group_costs_more_between_nodes():
    def network(spans):
        return predict(compiled(groups=[reduce(1, 10**8, spans)]), parse("gpu:h100:16"))["network_seconds"]

    assert network([2, 1]) > 5 * network([1, 2])


def test_efficiency_compares_like_with_like():
    def row(rates, network):
        return {
            "predicted_images_per_sec_per_chip": rates, "predicted_efficiency": None, "batch_per_chip": 100,
            "compute_seconds": 0.5, "hbm_seconds": 1.0, "network_seconds": network,
        }  # fmt: skip

    rows = [row([50, 100], 0.0), row(None, None), row([45, 100], 0.25), row([40, 100], 1.0)]
    efficiencies(rows)
    # Nothing overlapped; everything; and arithmetic with HBM but not the network: 1 second, then 1.25, then 2.
    assert [r["predicted_efficiency"] for r in rows] == [[1, 1], None, [0.8, 1], [0.5, 1]]
