"""The papers' tables: what agrees, what does not, and that the rule of agreement is kept."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import jaxcnn
from jaxcnn import UserError
from jaxcnn.commands import tables as command
from jaxcnn.models import list_models
from jaxcnn.papers import published, structure
from jaxcnn.papers.published import Figure, agreement, figure, of_model, papers
from jaxcnn.papers.structure import TABLES, build, precision

FAST = [*(name for name in TABLES if name != "resnet-table6"), pytest.param("resnet-table6", marks=pytest.mark.slow)]

# All that the code does not confirm. Whatever else turns up here is a mistake of ours, or a figure copied wrongly.
DISAGREE = {
    ("alexnet-figure2", "conv1", "neurons"),
    *(("googlenet-table1", row, "parameters") for row in ("conv1", "4a", "4b", "4c", "4d", "4e", "5a", "5b")),
    *(("googlenet-table1", row, "MMACs") for row in ("conv1", "5a")),
}
CUT = {
    ("alexnet-abstract", "parameters", "ours"),
    ("alexnet-abstract", "neurons", "ours"),
    *(("googlenet-table1", row, "parameters") for row in ("3a", "linear")),
    ("googlenet-table1", "4a", "MMACs"),
    ("resnet-table1", "resnet34 total", "GMACs"),
    ("resnet-table1", "resnet50 total", "GMACs"),
}


def marks(name: str) -> dict[tuple[str, str, str], str]:
    """(table, row, column) -> the mark of each published value."""
    table = build(name)
    return {
        (name, " ".join(cell.shown for cell in row[: table.labels]), column): cell.mark
        for row in table.rows
        for column, cell in zip(table.columns, row, strict=True)
        if cell.figure
    }


@pytest.mark.parametrize("name", FAST)
def test_a_table_is_whole_and_agrees_but_where_it_is_known_not_to(name):
    table = build(name)
    assert table.name == name
    assert all(len(row) == len(table.columns) for row in table.rows)
    found = marks(name)
    assert {key for key, mark in found.items() if mark.startswith("✗")} == {key for key in DISAGREE if key[0] == name}
    assert {key for key, mark in found.items() if mark == "✓ cut"} == {key for key in CUT if key[0] == name}
    assert bool(found) == (name != "stacks")


@pytest.mark.parametrize(
    ("ours", "printed", "unit", "mark"),
    [
        (132_863_336, "133", 1e6, "✓"),
        (132_500_000, "133", 1e6, "✓"),
        (132_499_999, "133", 1e6, "✗ -0.5"),
        (60_965_224, "60", 1e6, "✓ cut"),
        (61_000_000, "60", 1e6, "✗ +1"),
        (3_663_761_408, "3.6", 1e9, "✓ cut"),
        (3_700_000_000, "3.6", 1e9, "✗ +0.1"),
        (3_599_999_999, "3.6", 1e9, "✓"),
        (9472, "2.7", 1024, "✗ +6.55"),
        (290_400, "253440", 1, "✗ +36,960"),
        ("55×55×96", "55×55×96", 0, "✓"),
        ("54×54×96", "55×55×96", 0, "✗"),
    ],
)
def test_agreement_is_at_the_printed_precision(ours, printed, unit, mark):
    assert agreement(ours, Figure(printed, unit, "", "", "B")) == mark


def test_nothing_published_is_neither_agreement_nor_its_opposite():
    assert agreement(1, None) == "–"
    assert figure("resnet", "macs", "resnet50_tv") is None
    assert of_model("vgg16_bn") == of_model("plain20") == {}


def test_every_figure_says_where_it_stands_and_how_surely_it_is_known():
    listed = {"alexnet", "fast_rcnn", "faster_rcnn", "fcn", "googlenet", "mask_rcnn", "rcnn", "resnet", "vgg"}
    assert papers().keys() == listed
    for paper, sections in papers().items():
        for section in (value for value in sections.values() if isinstance(value, dict)):
            assert section["source"].startswith(("Table", "Figure", "Section", "caption", "abstract", "README"))
            assert section["confidence"] in ("A", "B"), paper  # C is from memory: not to be printed
            assert section["printed"]


def test_the_figures_of_models_are_of_models():
    names = {
        name
        for sections in papers().values()
        for key, section in sections.items()
        if key.startswith(("parameters", "macs", "error"))
        for name in section["printed"]
    }
    assert names <= set(list_models())


def test_an_installed_package_finds_the_figures_beside_it(monkeypatch, tmp_path):
    source = Path(jaxcnn.__file__).parent.parent / "experiments" / "papers"
    monkeypatch.setattr(jaxcnn, "__file__", str(tmp_path / "jaxcnn" / "__init__.py"))
    published.papers.cache_clear()
    try:
        with pytest.raises(UserError, match=r"neither .*papers nor .*experiments/papers"):
            papers()
        shutil.copytree(source, tmp_path / "jaxcnn" / "papers")
        assert papers().keys() == {path.stem for path in source.glob("*.toml")}
    finally:
        published.papers.cache_clear()


def test_an_unknown_table_names_its_nearest():
    with pytest.raises(UserError, match=r"'vgg-table3'.*vgg-table[12]"):
        build("vgg-table3")
    with pytest.raises(UserError, match=r"'zzz'.*alexnet-figure2.*stacks"):
        build("zzz")


def test_the_commands_list_is_the_tables():
    assert list(command.NAMES) == [*TABLES, "precision"]


def test_small_filters_cost_less_for_what_they_see():
    table = build("stacks")
    rows = {row[0].ours: {name: cell.ours for name, cell in zip(table.columns, row, strict=True)} for row in table.rows}
    expected = {
        "1 of 5×5": (25, "5×5"), "2 of 3×3": (18, "5×5"), "1 of 7×7": (49, "7×7"), "3 of 3×3": (27, "7×7"),
        "1 of 9×9": (81, "9×9"), "4 of 3×3": (36, "9×9"),
    }  # fmt: skip
    assert {name: (row["per pair"], row["sees"]) for name, row in rows.items()} == expected
    for row in rows.values():
        assert row["parameters"] == row["per pair"] * 256**2
        assert row["MMACs"] == row["parameters"] * 28**2
    assert structure.receptive_field(3, 10) == 21


@pytest.mark.slow
def test_precision_compares_the_two_types(monkeypatch):
    make: Any = structure.create_model

    def tiny(name: str, num_classes: int = 10, dtype: Any = None, **overrides: Any) -> Any:
        return make("alexnet", num_classes, dtype, width=0.125, small_images=True, **overrides)

    monkeypatch.setattr(structure, "create_model", tiny)
    told: list[str] = []
    table = precision(["one"], report=told.append)
    assert told == ["one"]
    name, pixels, *found = (cell.ours for cell in table.rows[0])
    assert (name, pixels) == ("one", 32)
    assert all(1e-4 < value < 0.1 for value in found)
    monkeypatch.setattr(
        structure, "create_model", lambda name, n=10, dtype=None, **more: tiny(name, n, "float32", **more)
    )
    assert structure.errors("one") == (0, 0)


def test_precision_refuses_before_it_computes():
    with pytest.raises(UserError, match="resnet20"):
        precision(["plain20", "resnet_20"])
    with pytest.raises(UserError, match="0 or more"):
        precision(["plain20"], seed=-1)
