"""`jaxcnn scaling`: real compilers of a TPU and a GPU on a small network; the errors a user sees."""

import csv
import gzip
import json

import pytest
from scaling_rows import product_types

from jaxcnn import cli
from jaxcnn.scaling import ahead_of_time
from jaxcnn.training.hlo import Module

CONFIG = "experiments/digits/resnet20.py"  # 19 convolutions, each with a BatchNorm, and a fully connected layer
PARAMETERS = 269_434 * 4  # bytes: the paper's network, of one channel
MANY = "--config.data.name=synthetic:10:100000"  # images: a batch may not have more than the data set


@pytest.fixture
def scaling(tmp_path, monkeypatch, capsys, request):
    """Runs the command -> (exit code, stdout, stderr); --out is the folder "out"."""
    monkeypatch.setenv("JAXCNN_AOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(request.config.rootpath)

    def run(*argv):
        code = cli.main(["scaling", "--out", str(tmp_path / "out"), *argv])
        return code, *capsys.readouterr()

    return run


RUN = "[[run]]\nconfig = 'a.py'\ntopology = ['tpu:v5e:4']"


def refused(scaling, *argv):
    """The one line of a refusal."""
    code, out, err = scaling(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.aot
def test_between_slices_goes_what_is_left_of_the_gradients_after_each_slice(scaling, tmp_path):
    asked = ["--config", CONFIG, "--topology", "tpu:v5e:2x2", "--topology", "tpu:v5e:2x2:2", "--batch-per-chip", "8"]
    assert scaling(*asked)[0] == 0
    one, two = json.loads((tmp_path / "out/scaling.json").read_text())
    assert (one["chips"], two["chips"]) == (4, 8)
    assert not [entry for entry in one["collective_groups"] if "between_slices" in entry]
    between = [entry for entry in two["collective_groups"] if "between_slices" in entry]
    assert {(entry["kind"], entry["group_size"], entry["groups"]) for entry in between} == {("all-reduce", 2, 4)}
    # Each norm's sums go there whole; of the gradients each chip of a slice sends its part, in bfloat16 or float32.
    assert PARAMETERS / 2 / 4 < sum(entry["count"] * entry["bytes"] for entry in between) < PARAMETERS / 2
    assert two["predicted_efficiency"][1] < 1


@pytest.mark.aot
def test_a_tpu_and_a_gpu_compile_the_step(scaling, tmp_path):
    sweep = ["--sweep", "norm.scope=global,shard", "--batch-per-chip", "8"]
    asked = ["--config", CONFIG, "--topology", "tpu:v5e:4", "--topology", "gpu:h100:4", *sweep]
    code, out, err = scaling(*asked)
    assert code == 0, err
    assert "tpu:v5e:4" in out
    assert "4/4 " in err
    rows = json.loads((tmp_path / "out/scaling.json").read_text())
    assert [(row["topology"], row["variant"]["norm.scope"]) for row in rows] == [
        ("tpu:v5e:4", "global"), ("gpu:h100:4", "global"), ("tpu:v5e:4", "shard"), ("gpu:h100:4", "shard"),
    ]  # fmt: skip
    for row in rows:
        check_row(row)
    for name in ("throughput", "memory", "wire"):
        assert (tmp_path / f"out/{name}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out/scaling.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["flops_per_image [compiled]"]) for line in lines] == [row["flops_per_image"] for row in rows]
    text = (tmp_path / "out/scaling.md").read_text()
    assert "## Compiled" in text
    assert "## Predicted" in text
    assert "Not measured" in text
    check_types([gzip.decompress(path.read_bytes()) for path in (tmp_path / "cache").iterdir()])

    code, _, err = scaling(*asked)
    assert (code, err.count("cached")) == (0, 4)
    again = json.loads((tmp_path / "out/scaling.json").read_text())
    assert [row | {"cached": False} for row in again] == rows


def check_row(row):
    keys = "topology chips batch_per_chip flops_per_image bytes_per_image temp_bytes hbm_bytes fits collectives bound"
    assert row.keys() >= {*keys.split(), "predicted_images_per_sec_per_chip"}
    assert (row["chips"], row["batch_per_chip"], row["fits"]) == (4, 8, True)
    # 16 × 16 pixels: the network of 32 × 32 has 40.55 million products an image (He et al., Table 6), 2 FLOPs each,
    # forward and twice backward; at the edge there are fewer.
    assert row["flops_per_image"] == pytest.approx(6 * 40.55e6 / 4, rel=0.25)
    memory = row["memory"]
    assert (memory["parameters"], memory["optimizer"] // PARAMETERS) == (PARAMETERS, 2)  # Adam has two moments
    assert memory["batch"] == 8 * (16 * 16 + 4 * 4)  # bytes of pixels, and four numbers of each image
    assert memory["activations"] > 8 * 16 * 16 * 16 * 2 * 6  # of the first stage alone, in bfloat16
    assert memory["activations"] + memory["temporaries"] == row["temp_bytes"]
    assert sum(memory.values()) == row["hbm_bytes"] < row["hbm_limit_bytes"]
    assert 0 < row["hbm_traffic_per_image"] <= row["bytes_per_image"]
    assert row["intensity"] == pytest.approx(row["flops_per_image"] / row["bytes_per_image"])
    assert row["predicted_efficiency"] == [1, 1]
    low, high = row["predicted_images_per_sec_per_chip"]
    assert 0 < low < high
    reduced = row["collectives"]["all-reduce"]
    if row["variant"]["norm.scope"] == "global":  # each norm waits forward and backward, then come the gradients
        assert 2 * 19 <= reduced["count"] <= 2 * 19 + 4
    else:
        assert reduced["count"] <= 2
    assert PARAMETERS / 2 < reduced["bytes"] < 1.1 * PARAMETERS  # bfloat16 or float32 gradients
    assert {entry["group_size"] for entry in row["collective_groups"]} == {4}
    assert row["labels"]["flops_per_image"] == "compiled"
    assert row["labels"]["predicted_images_per_sec_per_chip"] == row["labels"]["bound"] == "predicted"


def check_types(kept):
    """Every convolution and matrix product of the compiled programs multiplies bfloat16."""
    assert len(kept) == 4
    for text in kept:
        types = product_types(Module(json.loads(text)["text"]))
        assert sum(types.values()) >= 3 * 20 - 1
        assert {operands for _, *pair in types for operands in pair} == {"bf16"}, types


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no --topology"),
        (["--topology", "tpu:v7:4"], "there is no tpu 'v7'"),
        (["--topology", "tpu:v5e:4", "--config.global_batch_size=130"], "config.global_batch_size=130 does not divide"),
        (["--topology", "tpu:v5e:4", "--sweep", "model=3"], "config.mesh.model=3"),
        (["--topology", "tpu:v5e:4", "--sweep", "modle=2"], "no key 'modle'"),
        (["--topology", "tpu:v5e:4", "--sweep", "model="], "--sweep mesh.model=VALUE,VALUE"),
        (["--topology", "tpu:v5e:4", "--sweep", "norm.scope=globe"], "globe"),
        (["--topology", "tpu:v5e:4", "--batch-per-chip", "0"], "1 or more"),
        (["--topology", "tpu:v5e:4", "--batch-per-chip", "8,x"], "1 or more"),
        (["--topology", "tpu:v5e:4", "--devices", "2"], "--devices: these go with --measure"),
        (["--measure", "--topology", "tpu:v5e:4"], "--measure takes no --topology"),
        (["--topology", "tpu:v5e:4", "--sweep", "data=1,2"], "config.mesh.data follows from the slice"),
        (["--topology", "tpu:v5e:4", "--batch-per-chip=8", "--sweep", "global_batch_size=8,16"], "give one of the two"),
        (["--topology", "tpu:v5e:4", "--config.model.name=resnet21"], "resnet20"),
        (["--out", "/dev/null/x", "--topology", "tpu:v5e:4"], "--out /dev/null/x: Not a directory"),
        (["--measure", "--devices", "100000"], "100000 devices to measure on: there are"),
        (["--measure", "--devices", "3", "--config.global_batch_size=4"], "does not divide"),
        (["--topology", "tpu:v5e:4", "--config.data.name=tfds:nothing"], "nothing"),
    ],
)
def test_wrong_use_is_one_line_before_anything_is_compiled(scaling, argv, words):
    assert words in refused(scaling, "--config", CONFIG, *argv)


@pytest.mark.parametrize("name", ["tpu:v5e:4", "gpu:h100:4"])
def test_a_missing_compiler_is_named(scaling, name, monkeypatch, tmp_path):
    monkeypatch.setattr(ahead_of_time, "plugins", lambda: tmp_path / "none")
    line = refused(scaling, "--config", CONFIG, "--topology", name, "--batch-per-chip", "8")
    assert {"tpu": "libtpu", "gpu": "jax-cuda12-plugin"}[name[:3]] in line
    assert "make aot" in line


def answer(**changes):
    """What a compiler might have said of a small program."""
    memory = {"parameters": 10**8, "optimizer": 10**8, "batch": 0, "other": 0, "activations": 0, "temporaries": 0}
    return {
        "compile_seconds": 1.0, "cached": False, "notes": [], "flops_per_image": 1e9, "bytes_per_image": 1e6,
        "hbm_traffic_per_image": 1e6, "intensity": 1e3, "memory": memory, "temp_bytes": 0, "hbm_bytes": 2 * 10**8,
        "hbm_limit_bytes": 10**10, "fits": True, "collectives": {}, "collective_groups": [],
    } | changes  # fmt: skip


def test_what_does_not_fit_is_told_with_its_fix_and_written(scaling, monkeypatch, tmp_path):
    big = answer(hbm_bytes=2 * 10**10, fits=False, memory=answer()["memory"] | {"activations": 198 * 10**8})
    monkeypatch.setattr(ahead_of_time, "compile_all", lambda *_: [answer(), big])
    monkeypatch.setattr(ahead_of_time, "check_compilers", lambda _: None)
    asked = ["--config", CONFIG, "--topology", "tpu:v5e:4", "--batch-per-chip", "8,800", MANY]
    code, _, err = scaling(*asked)
    assert code == 2
    assert "resnet20 at 800 images a chip does not fit tpu:v5e:4: it takes 18.63 GiB of 9.31, 9,537 MiB too many" in err
    assert "about 384 images a chip" in err  # (10 - 0.2) / (20 - 0.2) of 800, rounded down
    assert "fsdp" not in err  # it would not do
    assert "remat=block" in err
    assert [row["fits"] for row in json.loads((tmp_path / "out/scaling.json").read_text())] == [True, False]
    assert scaling(*asked, "--unfit")[0] == 0


def test_what_the_compiler_refuses_has_a_row(scaling, monkeypatch, tmp_path):
    unknown = dict.fromkeys(["flops_per_image", "bytes_per_image", "hbm_traffic_per_image", "intensity", "temp_bytes"])
    refusal = answer(**unknown, hbm_bytes=2 * 10**10, fits=False, memory={})
    monkeypatch.setattr(ahead_of_time, "compile_all", lambda *_: [refusal])
    monkeypatch.setattr(ahead_of_time, "check_compilers", lambda _: None)
    code, _, err = scaling("--config", CONFIG, "--topology", "tpu:v5e:4", "--batch-per-chip", "800", MANY)
    assert (code, "does not fit" in err) == (2, True)
    (row,) = json.loads((tmp_path / "out/scaling.json").read_text())
    assert (row["fits"], row["predicted_images_per_sec_per_chip"]) == (False, None)
    assert "**no**" in (tmp_path / "out/scaling.md").read_text()


def test_a_compiler_that_dies_leaves_the_other_rows(scaling, monkeypatch, tmp_path):
    worker = tmp_path / "worker"
    worker.write_text(f"#!/bin/sh\nif grep -q v4; then kill -SEGV $$; fi\necho '{json.dumps(answer())}'\n")
    worker.chmod(0o755)
    monkeypatch.setattr(ahead_of_time, "check_compilers", lambda _: None)
    monkeypatch.setattr(ahead_of_time.sys, "executable", str(worker))
    code, _, err = scaling(
        "--config", CONFIG, "--topology", "tpu:v4:4", "--topology", "tpu:v5e:4", "--batch-per-chip=8"
    )
    assert code == 1
    assert "jaxcnn: tpu:v4:4: the compiler was killed by signal 11" in err
    assert [row["topology"] for row in json.loads((tmp_path / "out/scaling.json").read_text())] == ["tpu:v5e:4"]


@pytest.mark.slow
def test_measured_on_simulated_devices(scaling, tmp_path):
    lengths = ["--steps", "2", "--warmup", "1", "--repeats", "2", "--batch-per-chip", "4"]
    code, out, err = scaling("--config", CONFIG, "--measure", "--devices", "1,2", *lengths)
    assert code == 0, err
    assert "measured, on simulated devices" in out
    assert "its speed says nothing" in out
    one, two = json.loads((tmp_path / "out/scaling.json").read_text())
    assert one["fits"] is None
    assert (one["simulated"], one["chips"], two["chips"], two["global_batch_size"]) == (True, 1, 2, 8)
    assert one["measured_efficiency"]["median"] == 1
    assert one["labels"]["measured_images_per_sec"] == "measured"
    assert two["collectives"]["all-reduce"]["count"] >= 2 * 19
    assert (
        two["collective_counts"]["all-reduce"] == two["collectives"]["all-reduce"]["count"]
    )  # what ran, what was read
    assert "## Measured" in (tmp_path / "out/scaling.md").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks 'run'"),
        ("run = 3", "'run' must be of type list"),
        ("run = [3]", "should be a table"),
        ("[[run]]\nconfig = 'a.py'", "lacks 'topology'"),
        ("[[run]]\nconfig = 'a.py'\ntopology = ['tpu:v5e:4']\nbatch = 3", "no key 'batch'"),
        ("[[run]]\nconfig = 'a.py'\ntopology = ['tpu:v5e:4']", "a.py does not exist"),
        ("a = ", "is no TOML"),
        (f"{RUN}\nbatch_per_chip = ['12']", "'batch_per_chip' must be a list of whole numbers"),
        (f"{RUN}\nbatch_per_chip = [true]", "'batch_per_chip' must be a list of whole numbers"),
        (f"{RUN}\nsweep = {{ dtype = [] }}", "'sweep' must be"),
        (f"{RUN}\nsweep = {{ mesh.model = [1] }}", "dotted keys in quotes"),
        (f"{RUN}\npublished = [3]", "'published' must be"),
        (f"{RUN}\npublished = [{{ images_per_sec_per_chip = 'many', source = 'x' }}]", "'published' must be"),
    ],
)
def test_a_bad_study_is_told(scaling, tmp_path, text, words):
    path = tmp_path / "study.toml"
    path.write_text(text)
    line = refused(scaling, "--study", str(path))
    assert words in line
    assert "study" in line or words.endswith("exist")


def test_every_study_asks_for_sound_programs(request):
    from jaxcnn.scaling.study import read_study, requests_of

    studies = sorted((request.config.rootpath / "experiments/scaling").glob("*.toml"))
    assert len(studies) == 10
    for path in studies:
        study = read_study(path)
        asked = [request for grid in study.grids for request in requests_of(grid)]
        assert len(asked) >= 4
        assert study.title
        assert study.about
