"""Tables as data: cells that know what the paper prints. `commands.tables` shows them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxcnn.papers.published import Figure, agreement, papers


class Cell(NamedTuple):
    """A value of ours, how it is shown, and what the paper prints for it."""

    ours: Any
    shown: str
    figure: Figure | None = None

    @property
    def mark(self) -> str:
        """The agreement of the two, as `published.RULE` explains."""
        return agreement(self.ours, self.figure)


class Table(NamedTuple):
    """A table. The first `labels` columns name a row; a row is a `Cell` for each column."""

    name: str
    title: str
    labels: int
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    notes: tuple[str, ...] = ()


def text(words: str, published: Figure | None = None) -> Cell:
    """A cell of words."""
    return Cell(words, words, published)


def count(number: int, published: Figure | None = None) -> Cell:
    """A cell with a number in full."""
    return Cell(number, f"{number:,}", published)


def scaled(number: float, unit: float, digits: int, published: Figure | None = None) -> Cell:
    """A cell with a number shown in `unit`, such as 1e6 in a column of millions."""
    return Cell(number, f"{number / unit:,.{digits}f}", published)


def size(shape: Iterable[int]) -> str:
    """ "55×55×96" for (55, 55, 96)."""
    return "×".join(map(str, shape))


def source(table: Table) -> str:
    """The paper that a table is of, or ""."""
    return papers().get(table.name.split("-")[0], {}).get("paper", "")
