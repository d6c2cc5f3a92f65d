"""`jaxcnn tables`: the three formats, and what is refused."""

import csv
import io
import json

import pytest

from jaxcnn import cli
from jaxcnn.papers import structure


def exit_code(*argv: str) -> int:
    """What the shell sees, argparse's own exit included."""
    try:
        return cli.main(list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tables: the others take seconds."""
    kept = ("alexnet-figure2", "vgg-table2", "alexnet-abstract")
    monkeypatch.setattr(structure, "TABLES", {name: structure.TABLES[name] for name in kept})


def test_without_a_name_all_tables_are_printed(capsys):
    assert exit_code("tables") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("### ") == 3
    assert out.count("Agreement: ✓ ours rounds") == 1
    assert max(map(len, out.splitlines())) <= 80
    assert not any(line != line.rstrip() for line in out.splitlines())


def test_markdown_is_aligned_with_the_published_value_beside_ours(capsys):
    assert exit_code("tables", "vgg-table2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("### VGG, Table 2")
    table = [line for line in lines if "|" in line]
    assert [cell.strip() for cell in table[0].split("|")] == [
        "network", "weight layers", "paper", "parameters", "paper", "GMACs"
    ]  # fmt: skip
    assert set(table[1]) == set("-:| ")
    assert len({line.index("|") for line in table}) == 1
    vgg16 = next(line for line in table if line.startswith("vgg16 "))
    assert [cell.strip() for cell in vgg16.split("|")] == ["vgg16", "16", "16 ✓", "138,357,544", "138M ✓", "15.470"]


def test_json_is_one_table_a_line_with_numbers_as_numbers(capsys):
    assert exit_code("tables", "--format", "json") == 0
    found = {table["table"]: table for table in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(found) == list(structure.TABLES)
    conv1 = next(row for row in found["alexnet-figure2"]["rows"] if row["layer"] == "conv1")
    assert conv1["neurons"] == {
        "ours": 290_400, "paper": 253_440, "printed": "253440", "agreement": "✗ +36,960",
        "source": "AlexNet, caption of Figure 2", "confidence": "B",
    }  # fmt: skip
    assert conv1["output"]["paper"] == conv1["output"]["ours"] == "55×55×96"
    assert conv1["MACs"] == 105_415_200


def test_csv_is_one_value_a_line_for_all_tables(capsys):
    assert exit_code("tables", "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["table"] for row in rows} == set(structure.TABLES)
    assert all(None not in row and None not in row.values() for row in rows)
    vgg19 = next(row for row in rows if (row["row"], row["quantity"]) == ("vgg19", "parameters"))
    assert vgg19 == {
        "table": "vgg-table2", "row": "vgg19", "quantity": "parameters", "ours": "143667240", "paper": "144",
        "unit": "1e+06", "agreement": "✓", "source": "VGG, Table 2", "confidence": "B",
    }  # fmt: skip


def test_precision_is_computed_only_when_named(capsys, monkeypatch):
    monkeypatch.setattr(structure, "errors", lambda name, seed: (0.01, 0.02 + seed))
    assert exit_code("tables", "precision", "--model", "resnet20", "--model", "vgg11", "--seed", "1") == 0
    out, err = capsys.readouterr()
    assert err == "resnet20\nvgg11\n"
    assert [" ".join(line.split()) for line in out.splitlines() if line.startswith(("resnet20", "vgg11"))] == [
        "resnet20 | 32 | 1.000 | 102.000",
        "vgg11 | 224 | 1.000 | 102.000",
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["vgg-table3"], "vgg-table2"),
        (["vgg-table2", "--model", "vgg16"], "--model goes with the table precision"),
        (["precision", "--model", "vgg_16"], "vgg16"),
        (["precision", "--seed", "-1"], "--seed -1"),
        (["--format", "xml"], "xml"),
    ],
)
def test_wrong_use_is_refused_in_words(argv, words, capsys):
    assert exit_code("tables", *argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err
