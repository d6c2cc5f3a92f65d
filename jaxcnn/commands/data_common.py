"""Shared by the commands of `jaxcnn data`: names of sources, progress bars and contact sheets."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcnn.commands.options import picture
from jaxcnn.data.sources import KINDS

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

# Formats of contact sheets, by the ending of the file.
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".pdf": "PDF"}


def source_name(name: str, data_dir: str) -> str:
    """Return `name`, with `tfds:` before it where it is the bare name of a TFDS data set."""
    from jaxcnn.data.sources.tfds import STATISTICS, data_root

    base = re.split("[/:]", name)[0]
    is_source = base in ("", *KINDS)
    return f"tfds:{name}" if not is_source and (base in STATISTICS or (data_root(data_dir) / base).is_dir()) else name


@contextlib.contextmanager
def counted(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show `progress(done, total)`, which the block is given, as a bar; off a terminal as a line for each tenth."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    terminal, said = sys.stderr.isatty(), -1
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not terminal) as bar:
        task = bar.add_task(description)

        def progress(done: int, total: int) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total)
            if not terminal and (tenth := 10 * done // max(1, total)) > said:
                said = tenth
                print(f"{description}: {done:,} of {total:,} {unit}", file=sys.stderr, flush=True)

        yield progress


def class_title(label: int, class_names: tuple[str, ...]) -> str:
    """Return number and name of a class; the number alone where that is its name."""
    return f"{label}" if class_names[label] == f"{label}" else f"{label} {class_names[label]}"


def shape_text(shape: Iterable[int | None]) -> str:
    """Return "8×?×1" for (8, None, 1)."""
    return "×".join("?" if n is None else str(n) for n in shape)


def contact_sheet(
    rows: "Sequence[tuple[str, Sequence[np.ndarray]]]",
    tile: int = 56,
    heads: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
) -> "Image":
    """Return a picture with a row for each (title, images uint8 (H, W, C)), in squares of `tile` pixels.

    Args:
      heads: a line over each column.
      captions: of each row, a line over the lower edge of each image; "" for none.
    """
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    font: Any = ImageFont.load_default(size=14)
    left = 16 + int(max(font.getlength(title) for title, _ in rows))
    columns = max(len(images) for _, images in rows)
    small: Any = ImageFont.load_default(size=12)
    above = 22 if heads else 0
    sheet = Image.new("RGB", (left + columns * (tile + 4), above + len(rows) * (tile + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        draw.text((left + column * (tile + 4) + tile // 2, above // 2), head, fill="black", font=small, anchor="mm")
    for row, (title, images) in enumerate(rows):
        top = above + row * (tile + 4) + 2
        draw.text((8, top + tile // 2), title, fill="black", font=font, anchor="lm")
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
            enlarge = Image.Resampling.NEAREST if max(image.size) < tile else Image.Resampling.LANCZOS
            place = left + column * (tile + 4), top
            sheet.paste(ImageOps.contain(image, (tile, tile), enlarge), place)
            if captions and (words := captions[row][column]):
                while small.getlength(words) > tile - 4:
                    words = words.removesuffix("…")[:-1] + "…"
                draw.rectangle((place[0], top + tile - 16, place[0] + tile - 1, top + tile - 1), fill="white")
                draw.text((place[0] + 2, top + tile - 8), words, fill="black", font=small, anchor="lm")
    return sheet


def save_sheet(sheet: "Image", out: Path) -> None:
    """Write a picture in the format of its ending."""
    sheet.save(out, format=_FORMATS.get(out.suffix.lower(), "PNG"))


def sheet_path(text: str) -> Path:
    """Return the path of a contact sheet, for argparse."""
    return picture(text, tuple(_FORMATS))
