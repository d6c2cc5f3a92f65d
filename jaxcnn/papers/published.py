"""What the papers print, from `experiments/papers`, and whether our numbers agree with it."""

import functools
import tomllib
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, NamedTuple

import jaxcnn
from jaxcnn import UserError

RULE = (
    "✓ ours rounds to the printed digits; ✓ cut: ours is that with the further digits cut off; "
    "✗ neither, and by how much; – nothing printed"
)


class Figure(NamedTuple):
    """A published value."""

    printed: str  # as it stands in the paper; its digits are its precision
    unit: float  # of a number, such as 1e6; 0 where it is text
    suffix: str  # of the unit, such as "M"
    source: str  # the paper in short, and the table or figure: "ResNet, Table 1"
    confidence: str  # "A" the paper itself was read, "B" a transcription of it, "C" from memory


@functools.cache
def papers() -> dict[str, dict[str, Any]]:
    """Return the papers' files by their stem: "alexnet", "googlenet", "resnet", "vgg".

    Raises:
      UserError: they are neither beside the package, as a wheel has them, nor in the repository.
    """
    package = Path(jaxcnn.__file__).parent
    folders = [package / "papers", package.parent / "experiments" / "papers"]
    files = next(filter(None, (sorted(folder.glob("*.toml")) for folder in folders)), [])
    if not files:
        raise UserError(f"the papers' figures are missing: neither {folders[0]} nor {folders[1]} holds a .toml file")
    return {file.stem: tomllib.loads(file.read_text(encoding="utf-8")) for file in files}


def figure(paper: str, section: str, *keys: str) -> Figure | None:
    """Return the value printed under `keys` in a section of a paper's file, or None."""
    columns = papers()[paper][section]
    printed: Any = columns["printed"]
    for key in keys:
        printed = printed.get(key, {})
    if not printed:
        return None
    source = f"{papers()[paper]['short']}, {columns['source']}"
    return Figure(printed, columns.get("unit", 0), columns.get("suffix", ""), source, columns["confidence"])


def of_model(name: str) -> dict[str, Figure]:
    """Return what its paper prints of the model `name`: some of "parameters", "macs" and "error" (top-1/top-5, %)."""
    found = {}
    for paper, sections in papers().items():
        for section, columns in sections.items():
            quantity = columns.get("quantity", section) if isinstance(columns, dict) else ""
            if quantity in ("parameters", "macs", "error") and (value := figure(paper, section, name)):
                found[quantity] = value
    return found


def agreement(ours: float | str, published: Figure | None) -> str:
    """Return how `ours` stands to what is printed: a mark as `RULE` explains them."""
    if published is None:
        return "–"
    if not published.unit:
        return "✓" if str(ours) == published.printed else "✗"
    printed, exact = Decimal(published.printed), Decimal(ours) / Decimal(published.unit)
    digit = Decimal(1).scaleb(int(printed.as_tuple().exponent))
    if exact.quantize(digit, ROUND_HALF_UP) == printed:
        return "✓"
    if exact.quantize(digit, ROUND_DOWN) == printed:
        return "✓ cut"
    difference = exact - printed
    return f"✗ {difference if difference % digit == 0 else difference.quantize(digit / 10):+,}"


def beside(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the paper prints of a model that `cost.describe` describes, as a JSON object.

    Quantity -> "printed", "source", "confidence", and the "agreement" of the row with it.
    """
    return {
        quantity: {
            "printed": figure.printed + figure.suffix, "source": figure.source, "confidence": figure.confidence,
            "agreement": agreement(row[quantity], figure) if quantity in row else None,
        }
        for quantity, figure in of_model(row["name"]).items()
    }  # fmt: skip
