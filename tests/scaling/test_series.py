import pytest
from scaling_rows import measured, predicted, unfit

from jaxcnn.scaling.chips import Topology, estimate, wire_bytes
from jaxcnn.scaling.plots import common, fewest, interval, origin, sent
from jaxcnn.scaling.rows import differences, series, traits


def test_an_interval_is_of_all_chips_or_in_percent():
    row = predicted(chips=8, predicted_images_per_sec_per_chip=[10.0, 20.0], predicted_efficiency=[0.5, 1.0])
    assert interval(row, "images") == [80, 160]
    assert interval(row, "efficiency") == [50, 100]
    assert interval(measured(8, 200.0), "images") == pytest.approx([160, 200, 220])
    assert interval(measured(), "efficiency") == [80, 90, 100]


def test_an_unknown_interval_is_empty():
    assert interval(unfit(None), "images") == interval(unfit(None), "efficiency") == []
    assert interval(measured(measured_efficiency=None), "efficiency") == []


def test_labels_say_what_differs_and_the_rest_is_common():
    rows = [predicted(chips=4), predicted(chips=8, variant={"norm.scope": "shard"})]
    assert differences(rows) == ["4 chips (1x4)", "8 chips (2x4), norm.scope=shard"]
    assert differences(rows, keep={"model"}, drop={"chips"}) == ["resnet50_tv", "resnet50_tv, norm.scope=shard"]
    assert differences(rows[:1]) == ["as configured"]
    assert common(rows) == "resnet50_tv, v5e, 128 images/chip, bfloat16"


def test_a_config_not_named_after_its_model_is_named_too():
    assert traits(predicted(config="a/resnet50_tv_lars.py"))["model"] == "resnet50_tv_lars"
    assert traits(predicted(config="a/large_batch.py"))["model"] == "resnet50_tv (large_batch)"


def test_the_size_set_for_a_row_is_no_variant_and_its_model_axis_is():
    row = predicted(variant={"global_batch_size": 1024, "mesh.data": 4}, mesh={"data": 4, "model": 2})
    assert [key for key in traits(row) if "." in key or "_" in key] == ["mesh.model"]


def test_dollars_are_no_formula():
    assert traits(predicted(variant={"data.name": "$a$"}))["data.name"] == r"data.name=\$a\$"


def test_weak_and_strong_scaling_are_series_of_their_own():
    weak = [predicted(chips=n) | {"run": 0} for n in (8, 1, 4)]
    strong = [predicted(chips=n, batch=2048 / n) | {"run": 1} for n in (1, 4, 16)]  # 16 chips have 128 images each, too
    found = series([*weak, *strong])
    assert {label: [row["chips"] for row in rows] for label, rows in found.items()} == {
        "predicted: resnet50_tv, 128 images/chip": [1, 4, 8],
        "predicted: resnet50_tv, strong, global batch 2048": [1, 4, 16],
    }


def test_what_is_measured_is_no_series_with_what_is_predicted():
    rows = [predicted(batch=16.0, chip="v5e", chips=8), measured(8), measured(4)]
    assert list(series(rows)) == [
        "predicted: resnet50_tv, v5e, 16 images/chip",
        "measured, on simulated devices: resnet50_tv, cpu, 16 images/chip",
    ]


def test_of_rows_that_differ_in_chips_the_fewest_stay_with_each_batch():
    rows = [predicted(chips=8), predicted(chips=4), predicted(chips=4, batch=64.0), predicted(model="vgg16", chips=8)]
    assert fewest(rows) == rows[1:]


def test_bytes_sent_are_summed_by_kind():
    assert sent(predicted(chips=4)) == {
        "all-reduce": pytest.approx(wire_bytes("all-reduce", 4 * 25e6 + 50 * 4e3, 4)),
        "all-gather": wire_bytes("all-gather", 4e6, 4),
    }
    assert sent(predicted(chips=1)) == {}
    assert sent(unfit(None)) is None


@pytest.mark.parametrize(("name", "version"), [("tpu:v3:2x2", "v3"), ("tpu:v5e:2x2", "v5e")])
def test_bytes_sent_sum_to_those_of_the_prediction(name, version):
    row = predicted(chips=4) | {"chip": version}
    told = estimate(row, Topology(name, version, (2, 2)))
    assert sum((sent(row | told) or {}).values()) == pytest.approx(told["wire_bytes"])


def test_the_origin_of_a_figure_is_as_labelled():
    rows = [predicted(labels={"hbm_bytes": "measured"}), predicted(labels={})]
    assert origin(rows, "hbm_bytes") == "compiled and measured"
