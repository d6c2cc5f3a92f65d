"""The step timed on several numbers of devices: what a row holds and how its figures hang together; never a speed."""

import statistics

import jax
import pytest
from tiny import Blobs, Tiny, build, tiny_config

from jaxcnn import UserError
from jaxcnn.scaling.measure import measure

LENGTHS = {"steps": 2, "warmup": 1, "repeats": 3}
FIGURES = {"median", "min", "max", "all"}


def rows(devices, batch_per_device=None, **values):
    return measure(
        tiny_config(**values),
        Tiny(),
        lambda config: Blobs(config.global_batch_size),
        devices,
        batch_per_device=batch_per_device,
        **LENGTHS,
    )


@pytest.fixture(scope="module")
def weak():
    return rows([8, 1], batch_per_device=4)


def test_the_rows_come_as_asked_for_and_have_the_batch_per_device(weak):
    assert [row["topology"] for row in weak] == ["cpu:8", "cpu:1"]
    assert [row["chips"] for row in weak] == [8, 1]
    assert [row["mesh"] for row in weak] == [{"data": 8, "model": 1}, {"data": 1, "model": 1}]
    assert [row["batch_per_chip"] for row in weak] == [4, 4]
    assert [row["global_batch_size"] for row in weak] == [32, 4]
    for row in weak:
        assert row["simulated"]
        assert "simulated on the cores of one CPU" in row["notes"][0]
        assert (row["dtype"], row["chip"]) == ("float32", jax.devices()[0].device_kind)
        assert row["flops_per_image"] > 0
        assert row["labels"].keys() == {key for key in row if key.startswith("measured_")} | {
            "flops_per_image", "compile_seconds", "collectives", "collective_seconds", "collective_counts",
        }  # fmt: skip
        assert row["labels"]["measured_efficiency"] == "measured"
        assert row["labels"]["collectives"] == "compiled"


def test_only_several_devices_have_collectives_and_the_profiler_times_them(weak):
    eight, one = weak
    assert one["collectives"] == one["collective_seconds"] == {}
    # The gradients, two sums of BatchNorm forward and two backward, the metrics.
    assert eight["collectives"].keys() == eight["collective_seconds"].keys() == {"all-reduce"}
    variables = build(tiny_config()).variables["params"]
    gradients = 4 * sum(x.size for x in jax.tree.leaves(variables))
    assert gradients < eight["collectives"]["all-reduce"]["bytes"] < 2 * gradients
    assert eight["collective_seconds"]["all-reduce"] > 0


def test_the_figures_of_a_row_are_of_the_same_repeats(weak):
    for row in weak:
        rates, times, shares = (row[f"measured_{what}"] for what in ("images_per_sec", "step_seconds", "efficiency"))
        for figure in (rates, times, shares):
            assert figure.keys() == FIGURES
            assert len(figure["all"]) == LENGTHS["repeats"]
            assert figure["median"] == statistics.median(figure["all"])
            assert [figure["min"], figure["max"]] == [min(figure["all"]), max(figure["all"])]
        assert [row["global_batch_size"] / rate for rate in rates["all"]] == pytest.approx(times["all"])
    eight, one = (row["measured_images_per_sec"]["all"] for row in weak)
    assert weak[1]["measured_efficiency"]["all"] == [1, 1, 1]
    assert weak[0]["measured_efficiency"]["all"] == pytest.approx([a / 8 / b for a, b in zip(eight, one, strict=True)])


def test_without_a_batch_per_device_the_global_batch_is_kept():
    config = tiny_config(global_batch_size=16, mesh__model=2)
    found = measure(config, Tiny(), lambda c: Blobs(c.global_batch_size), [2, 4], **LENGTHS)
    assert [row["global_batch_size"] for row in found] == [16, 16]
    assert [row["batch_per_chip"] for row in found] == [8, 4]
    assert [row["mesh"] for row in found] == [{"data": 1, "model": 2}, {"data": 2, "model": 2}]
    assert config.mesh.data == 1


@pytest.mark.parametrize(
    ("devices", "values", "words"),
    [
        ([1, 8], {"global_batch_size": 12}, "config.global_batch_size=12 does not divide by 8"),
        ([1, 16], {}, "16 devices to measure on: there are 8"),
        ([0], {}, "0 devices to measure on"),
        ([3], {"mesh__model": 2}, "config.mesh.model must divide"),
    ],
)
def test_devices_that_do_not_do_are_one_line_before_anything_runs(monkeypatch, devices, values, words):
    monkeypatch.setattr("jaxcnn.scaling.measure._case", None)
    with pytest.raises(UserError, match=words):
        rows(devices, **values)
