"""The profile of the step: which operations are summed, and what their shares are of."""

import json

import jax
import pytest
from tiny import Blobs, build, tiny_config

from jaxcnn import UserError
from jaxcnn.training import profile
from jaxcnn.training.hlo import Module
from jaxcnn.training.profile import Event, layer, record, summarise, table, write
from jaxcnn.training.throughput import one_call

TEXT = """HloModule jit_train_step

%fused_conv (p: f32[2,2]) -> f32[2,2] {
  %p = f32[2,2]{1,0} parameter(0)
  ROOT %c = f32[2,2]{1,0:T(8,128)} convolution(%p, %p), window={size=3x3}, dim_labels=b01f_01io->b01f
}

%fused_dot (q: f32[2,2]) -> f32[2,2] {
  %q = f32[2,2]{1,0} parameter(0)
  ROOT %d = f32[2,2]{1,0} convolution(%q, %q), metadata={op_name="jit(train_step)/jvp(Net)/head/dot_general"}
}

%fused_add (a: f32[2,2]) -> f32[2,2] {
  %a = f32[2,2]{1,0} parameter(0)
  ROOT %s = f32[2,2]{1,0} add(%a, %a)
}

%body (b: f32[2,2]) -> f32[2,2] {
  %b = f32[2,2]{1,0} parameter(0)
  ROOT %conv = f32[2,2]{1,0} fusion(%b), kind=kCustom, calls=%fused_conv
}

ENTRY %main (x: f32[2,2]) -> f32[2,2] {
  %x = f32[2,2]{1,0} parameter(0)
  %loop = f32[2,2]{1,0} while(%x), condition=%body, body=%body
  %head = f32[2,2]{1,0} fusion(%loop), kind=kOutput, calls=%fused_dot
  %add = f32[2,2]{1,0} fusion(%head), kind=kLoop, calls=%fused_add, metadata={op_name="jit(train_step)/jvp(Net)/a/add"}
  %sum = f32[2,2]{1,0} all-reduce-start(%add), replica_groups={{0,1}}, to_apply=%fused_add
  %gemm = f32[2,2]{1,0} custom-call(%add), custom_call_target="__cublas$lt$matmul"
  %cudnn = f32[2,2]{1,0} custom-call(%add), custom_call_target="__cudnn$convForward"
  %sort = f32[2,2]{1,0} custom-call(%add), custom_call_target="TopK"
  ROOT %done = f32[2,2]{1,0} all-reduce-done(%sum)
}
"""


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """(folder, compiled step, summary) of three steps on 8 devices."""
    folder = tmp_path_factory.mktemp("profile")
    config = tiny_config(mesh__data=8)
    program, data = build(config), Blobs(16)
    step = program.train_step.lower(program.state, program.largest_batch).compile()
    summary = record(folder, step, program.init(), one_call(config, data, program, 3), 3)
    return folder, step, summary


def test_the_operations_of_the_step_are_all_there_and_their_shares_sum_to_one(profiled):
    _, step, summary = profiled
    assert [summary["steps"], summary["devices"]] == [3, 8]
    entry = Module(step.as_text())
    names = {line.name for line in entry.computations[entry.entry]}
    assert {row["operation"] for row in summary["operations"]} <= names
    # Each runs once a step on each device, whatever the number of steps and devices.
    assert {row["count"] for row in summary["operations"]} == {1}
    reductions = [row for row in summary["operations"] if row["kind"] == "all-reduce"]
    assert len(reductions) == step.as_text().count(" all-reduce(")
    assert {"convolution", "fusion", "all-reduce"} <= {row["kind"] for row in summary["kinds"]}
    for rows in (summary["kinds"], summary["operations"]):
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        assert sum(row["seconds"] for row in rows) == pytest.approx(summary["operation_seconds"])
        assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)
        assert all(row["share"] == pytest.approx(row["seconds"] / summary["operation_seconds"]) for row in rows)
    most = min(summary["step_seconds"], summary["operation_seconds"])
    assert 0 < summary["busy_seconds"] <= most * (1 + 1e-9)  # sums of the same parts, in another order
    assert any(row["layer"].startswith("conv ") for row in summary["operations"])


def test_the_folder_has_the_trace_and_the_summary_and_a_second_one_beside_it(profiled):
    folder, _, summary = profiled
    assert len(list(folder.glob("plugins/profile/*/*.xplane.pb"))) == 1
    assert len(list(folder.glob("plugins/profile/*/*.trace.json.gz"))) == 1
    write(folder, summary)
    assert json.loads((folder / "summary.json").read_text()) == summary
    text = (folder / "summary.md").read_text()
    assert "3 steps on 8 devices" in text
    assert "shares are of the sum of all operations, which is not the time of the step" in text
    assert all(f"| {row['kind']} |" in text for row in summary["kinds"])
    assert f"| {summary['operations'][0]['operation']} |" in text


def test_the_table_has_the_slowest_operations_and_their_layers_in_full(profiled):
    *_, summary = profiled
    long = summary["operations"][0] | {"operation": "a" * 70 + ".17", "layer": "b" * 70 + "/conv backward"}
    lines = table(summary | {"operations": [long, *summary["operations"]]}, most=3).splitlines()
    assert [line for line in lines if line.startswith(long["operation"]) and line.endswith(long["layer"])]
    operations = lines[[line.split()[:1] for line in lines].index(["operation"]) + 1 :]
    assert len(operations) == 3


def test_each_kind_is_known_and_a_loop_counts_by_what_it_runs():
    runs = [Event("d", "loop", 0, 900), Event("d", "conv", 0, 400), Event("d", "conv", 450, 850)]
    names = ("head", "add", "sum", "gemm", "cudnn", "sort", "done", "elsewhere")
    runs += [Event("d", name, 900 + 100 * i, 1000 + 100 * i) for i, name in enumerate(names)]
    found = summarise(runs, Module(TEXT), 2)
    kinds = {row["operation"]: row["kind"] for row in found["operations"]}
    assert kinds == {
        "conv": "convolution", "head": "matrix product", "add": "fusion", "sum": "all-reduce", "done": "all-reduce",
        "gemm": "matrix product", "cudnn": "convolution", "sort": "custom-call", "elsewhere": "other programs",
    }  # fmt: skip
    by_kind = {row["kind"]: row for row in found["kinds"]}
    assert by_kind["convolution"]["seconds"] == pytest.approx(900e-9 / 2)
    assert by_kind["convolution"]["count"] == 3 / 2
    assert found["operation_seconds"] == pytest.approx(1600e-9 / 2)
    assert found["busy_seconds"] == pytest.approx(1600e-9 / 2)
    assert next(row["layer"] for row in found["operations"] if row["operation"] == "add") == "a forward"


def test_what_overlaps_counts_in_full_and_is_busy_once():
    runs = [
        Event("a", "add", 0, 100),
        Event("a", "head", 50, 150),
        Event("a", "head", 60, 80),
        Event("b", "add", 0, 50),
    ]
    found = summarise(runs, Module(TEXT), 1)
    assert found["devices"] == 2
    assert found["operation_seconds"] == pytest.approx((100 + 100 + 20 + 50) / 2 * 1e-9)
    assert found["busy_seconds"] == pytest.approx((150 + 50) / 2 * 1e-9)


def test_a_profiler_that_tells_nothing_is_said_to():
    summary = {"steps": 5, "step_seconds": 0.1} | summarise([], Module(TEXT), 5)
    assert summary["kinds"] == summary["operations"] == []
    assert "5 steps profiled: the profiler tells nothing" in table(summary)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("jit(train_step)/jvp(ResNet)/stage1_block1/conv1/conv_general_dilated", "stage1_block1/conv1 forward"),
        ("jit(train_step)/transpose(jvp(ResNet))/stem_norm/reduce_sum", "stem_norm backward"),
        ("jit(train_step)/mul", ""),
        ("state.params['head']['kernel']", ""),
    ],
)
def test_an_operation_has_the_layer_that_the_compiler_names(source, words):
    assert layer(f'%x), metadata={{op_name="{source}" stack_frame_id=3}}') == words
    assert layer("%x), index=0") == ""


def test_an_operation_ends_where_its_mark_does_on_whatever_thread(tmp_path):
    text = """
    planes { id: 1 name: "/host:CPU"
      event_metadata { key: 1 value { id: 1 name: "add" } }
      event_metadata { key: 2 value { id: 2 name: "end: add" } }
      event_metadata { key: 3 value { id: 3 name: "Execute" } }
      stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
      stat_metadata { key: 2 value { id: 2 name: "device_ordinal" } }
      stat_metadata { key: 3 value { id: 3 name: "_p" } }
      stat_metadata { key: 4 value { id: 4 name: "_c" } }
      lines { id: 1 name: "one" timestamp_ns: 1000
        events { metadata_id: 3 offset_ps: 0 duration_ps: 900000 }
        events { metadata_id: 1 offset_ps: 100000 duration_ps: 20000
          stats { metadata_id: 1 str_value: "add" } stats { metadata_id: 2 int64_value: 4 }
          stats { metadata_id: 3 uint64_value: 7 } } }
      lines { id: 2 name: "two" timestamp_ns: 1000
        events { metadata_id: 2 offset_ps: 500000 duration_ps: 1000 stats { metadata_id: 4 uint64_value: 7 } } } }
    planes { id: 2 name: "/device:TPU:0"
      event_metadata { key: 1 value { id: 1 name: "%add.1 = f32[2]{0} add(%x, %x)" } }
      lines { id: 1 name: "Steps" timestamp_ns: 0 events { metadata_id: 1 offset_ps: 0 duration_ps: 5000 } }
      lines { id: 2 name: "XLA Ops" timestamp_ns: 0 events { metadata_id: 1 offset_ps: 0 duration_ps: 3000 } } }
    """
    path = tmp_path / "x.xplane.pb"
    path.write_bytes(jax.profiler.ProfileData.text_proto_to_serialized_xspace(text))
    host, tpu = profile.events(path)
    assert host == Event("/host:CPU:4", "add", 1100, 1500)
    assert tpu == Event("/device:TPU:0:", "add.1", 0, 3)


def test_a_trace_that_cannot_be_written_is_a_user_error(tmp_path, monkeypatch):
    def full(folder, **_):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {folder}/plugins/x.xplane.pb; No space left on device")

    monkeypatch.setattr(jax.profiler, "trace", full)
    monkeypatch.setattr(profile, "stepping", lambda *_: (None, None, {}))
    with pytest.raises(UserError, match=r"could not be written to .*: No space left on device"):
        record(tmp_path, None, None, (1, {}), 1)
