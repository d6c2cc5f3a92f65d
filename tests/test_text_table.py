"""Tables of text: aligned, and no value cut short wherever they are printed."""

import pytest

from jaxcnn.text_table import text_table

HEAD = ["layer", "parameters", "kind"]
ROWS = [["inception3a/reduce3x3/conv", "12,345", "[bold]1×1[/bold]"], ["head", "7", ""]]


def test_without_a_terminal_each_row_is_a_line_however_long(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    long = ["x" * 5000, "y" * 3000, "[z]"]
    head, first, second, third = text_table(HEAD, [*ROWS, long], right={1}).splitlines()
    assert head.split() == HEAD
    assert (first.split(), second.split(), third.split()) == (ROWS[0], ["head", "7"], long)
    assert first.index("12,345") + len("12,345") == second.index("7") + 1 == third.index("[z]") - 2


@pytest.mark.parametrize("columns", [60, 40, 30])
def test_in_a_narrow_terminal_a_long_value_is_folded_and_a_number_is_not(columns, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = text_table(HEAD, [[ROWS[0][0], *ROWS[0][1:2], "conv"], ROWS[1]], right={1}).splitlines()
    assert max(map(len, lines)) <= columns
    assert any("12,345" in line for line in lines)
    assert "".join(line.split()[0] for line in lines[1:-1]) == ROWS[0][0]
