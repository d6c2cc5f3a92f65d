"""`jaxcnn models`: the list, one network layer by layer, and what is refused."""

import json
import subprocess
import sys
from typing import Any

import pytest

from jaxcnn import cli, models


def exit_code(*argv: str) -> int:
    """What the shell sees, argparse's own exit included."""
    try:
        return cli.main(list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_list_has_what_each_network_costs_and_what_its_paper_says(capsys):
    assert exit_code("models") == 0
    out, err = capsys.readouterr()
    assert err == ""
    heading, *lines = out.split("\n\n")[0].splitlines()
    assert heading.split() == ["network", "parameters", "paper", "MACs", "paper", "MB", "paper's", "error"]
    assert [line.split()[0] for line in lines if line.startswith("resnet")][:2] == ["resnet18", "resnet18_a"]
    shown = {line.split()[0]: " ".join(line.split()) for line in lines}
    assert shown["alexnet"] == "alexnet 60,965,224 60M ✓ cut 724.41 M – 2.5 40.7/18.2"
    assert shown["googlenet"] == "googlenet 6,998,552 – 1.583 G – 10.9 –/10.07"
    assert shown["resnet18"] == "resnet18 11,689,512 – 1.814 G 1.8G ✓ 10.3 –"
    assert shown["resnet20"] == "resnet20 269,722 0.27M ✓ 40.55 M – 0.8 8.75"
    assert "googlenet: + auxiliary heads 6,379,728 parameters" in out
    assert "MACs: ResNet, Table 1 — resnet18" in out


def test_a_pattern_chooses_and_sort_orders_them(capsys):
    assert exit_code("models", "[pr]*2?", "--sort", "macs") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.split("\n\n")[0].splitlines()[1:]] == ["plain20", "resnet20"]
    assert max(map(len, out.splitlines())) <= 80
    assert exit_code("models", "vgg1?", "--sort", "activations", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["vgg11", "vgg13", "vgg16", "vgg19"]


def test_as_json_it_is_one_object_a_line(capsys):
    assert exit_code("models", "--json") == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert sorted(rows) == models.list_models()
    assert rows["resnet18"]["macs"] == 1_814_073_344
    assert (rows["resnet20"]["image_size"], rows["resnet20"]["num_classes"]) == (32, 10)
    assert rows["resnet20"]["endpoints"]["stage3"] == [4, 64]
    assert rows["resnet18"]["paper"]["macs"] == {
        "printed": "1.8G", "source": "ResNet, Table 1", "confidence": "B", "agreement": "✓"
    }  # fmt: skip


def test_the_list_loads_no_jax():
    probe = "import sys; from jaxcnn.cli import main; main(['models', 'resnet*']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], stdout=subprocess.DEVNULL, check=False).returncode == 0


def one(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert exit_code("models", *argv, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_one_network_is_told_layer_by_layer(capsys):
    assert exit_code("models", "alexnet") == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "alexnet: images 224×224×3, 1,000 classes, bfloat16, batch 1\n60,965,224 parameters, 724.41 MMACs"
    )
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "conv2 conv 5×5 g2 27×27×256 307,456 223.95 0.37" in lines
    assert "max_pool3 max pool 6×6×256 0 0.00 0.02" in lines
    assert "total 60,965,224 724.41 2.52" in lines
    assert "stage3 16 256" in lines[lines.index("endpoint stride channels") :]
    assert "the paper's parameters (AlexNet, abstract): 60M ✓ cut" in lines
    assert max(map(len, out.splitlines())) <= 80


def test_options_change_what_is_counted(capsys):
    plain = one(capsys, "resnet20")
    assert sum(layer["macs"] for layer in plain["layers"]) == plain["macs"]
    batch = one(capsys, "resnet20", "--batch", "7")
    assert (batch["activation_bytes"], batch["macs"]) == (7 * plain["activation_bytes"], plain["macs"])
    assert one(capsys, "resnet20", "--dtype", "float32")["activation_bytes"] > 1.9 * plain["activation_bytes"]
    larger = one(capsys, "resnet20", "--image-size", "64", "--num-classes", "100")
    assert (larger["image_size"], larger["num_classes"], larger["paper"]) == (64, 100, {})
    small = one(capsys, "vgg11", "--small-images")
    assert (small["image_size"], small["num_classes"]) == (32, 10)
    assert any(layer["name"] == "aux2/head" for layer in one(capsys, "googlenet", "--train")["layers"])


@pytest.mark.parametrize("columns", [80, 60, 50])
def test_a_narrow_terminal_folds_the_table_and_loses_nothing(columns, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert exit_code("models", "resnet20") == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert max(map(len, table)) <= columns
    assert table[-1].split() == ["total", "269,722", "40.55", "0.75"]
    assert "stage1_block1/conv1" in "".join(line.split(" ")[0] for line in table)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["resnet_20"], "resnet20"),
        (["alexnet", "--image-size", "16"], "pixels left"),
        (["resnet20", "--batch", "0"], "--batch: '0'"),
        (["resnet20", "--num-classes", "-3"], "--num-classes: '-3'"),
        (["resnet20", "--dtype", "int8"], "bfloat16"),
        (["--batch", "3"], "--batch goes with NAME"),
        (["--small-images"], "--small-images goes with NAME"),
        (["resnet*", "--train"], "--train goes with NAME"),
        (["resnet18", "--sort", "macs"], "--sort goes with the list"),
        (["resnt*"], "no model 'resnt*'"),
    ],
)
def test_wrong_use_is_refused_in_words(argv, words, capsys):
    assert exit_code("models", *argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err
