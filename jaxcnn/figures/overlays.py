"""Draw images with what was predicted of them: titles, bars of scores, heat maps, label maps, boxes and their curves.

A task draws its predictions with these. They need NumPy and matplotlib only, and import nothing of this package. Each
takes uint8 images (N, H, W, C), C of 1 or 3, returns a figure, and writes it as PNG where `out` is given.
"""

import colorsys
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

_WRONG, _RIGHT, _BAR = "#c1121f", "#2a7f3f", "#a8cbe8"
_PLAIN = ("background",)  # classes that label maps leave the image as it is for
_TINT = 0.6  # share of a class's colour in a pixel


def prediction_grid(
    images: Sequence[np.ndarray] | np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    probability: np.ndarray,
    names: Sequence[str],
    title: str = "",
    out: Path | None = None,
) -> Figure:
    """Draw images with the class predicted, its probability, and the truth where it is another, six in a row.

    Args:
      images: sizes may differ.
      labels, predicted: true and predicted classes (N,).
      probability: of the predicted class (N,).
    """
    columns = min(len(images), 6)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.9 * rows + 0.3 * bool(title)), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axes in np.ravel(figure.subplots(rows, columns, squeeze=False)):
        axes.axis("off")
    for i, (axes, image) in enumerate(zip(figure.axes, images, strict=False)):
        axes.imshow(_shown(image), cmap="gray", vmin=0, vmax=255)
        wrong = predicted[i] != labels[i]
        words = f"{shorten(names[int(predicted[i])], 18)} {probability[i]:.0%}"
        words += f"\nis {shorten(names[int(labels[i])], 20)}" if wrong else ""
        axes.set_title(words, fontsize=8, color=_WRONG if wrong else _RIGHT, parse_math=False)
    return _written(figure, out)


def top5_cards(
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str],
    probabilities: np.ndarray,
    names: Sequence[str],
    seen: Sequence[tuple[float, float, float, float]] = (),
    out: Path | None = None,
) -> Figure:
    """Draw each image under its title, and under it the five likeliest classes with bars of their probabilities.

    Args:
      images: sizes may differ.
      probabilities: (N, classes).
      seen: of each image top, left, height and width of the part that the network was given, in pixels: it has a frame,
        and the rest of the image is pale.
    """
    side, row, gap = 2.4, 0.23, 0.15  # inches
    height = _card_height(images, side)
    sheet = _Sheet(len(images), side + 2 * gap, height + 5 * row + 3 * gap)
    for i, image in enumerate(images):
        photo = sheet.axes(i, gap, 5 * row + gap, side, height)
        show(photo, image, titles[i])
        if seen:
            _fade_around(photo, image, seen[i])
        bars = sheet.axes(i, gap, gap / 2, side, 5 * row)
        bars.set(xlim=(0, 1), ylim=(4.5, -0.5))
        top = np.argsort(-probabilities[i], kind="stable")[:5]
        bars.barh(range(len(top)), probabilities[i, top], height=0.86, color=_BAR)
        for rank, c in enumerate(top):
            bars.text(0.01, rank, shorten(names[int(c)], 30), va="center", fontsize=7.5, parse_math=False)
            bars.text(0.99, rank, f"{probabilities[i, c]:.1%}", va="center", ha="right", fontsize=7.5)
    return _written(sheet.figure, out)


def _fade_around(axes: Axes, image: np.ndarray, part: tuple[float, float, float, float]) -> None:
    """Fade the image in `axes` outside of a part (top, left, height, width), and frame the part if it is not all."""
    rows, columns = image.shape[:2]
    top, left = max(0, round(part[0])), max(0, round(part[1]))
    bottom, right = min(rows, round(part[0] + part[2])), min(columns, round(part[1] + part[3]))
    if (top, left, bottom, right) == (0, 0, rows, columns):
        return
    veil = np.full((rows, columns, 4), (255, 255, 255, 140), np.uint8)
    veil[top:bottom, left:right, 3] = 0
    axes.imshow(veil)
    frame = {"fill": False, "edgecolor": _RIGHT, "linewidth": 1.2}
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **frame))


def heat_cards(
    images: np.ndarray, titles: Sequence[str], heat: np.ndarray, captions: Sequence[str], out: Path | None = None
) -> Figure:
    """Draw each image under its title, and beside it the same image below its heat map, under the caption.

    Args:
      heat: (N, H, W) in 0 … 1, from blue to red.
    """
    side, gap = 2.4, 0.15  # inches
    sheet = _Sheet(len(images), 2 * side + 3 * gap, side + 3 * gap)
    for i, image in enumerate(images):
        show(sheet.axes(i, gap, gap, side, side), image, titles[i])
        overlay = sheet.axes(i, side + 2 * gap, gap, side, side)
        show(overlay, image, captions[i])
        overlay.imshow(heat[i], cmap="turbo", vmin=0, vmax=1.15, alpha=0.55)  # beyond 1, turbo gets dark again
    return _written(sheet.figure, out)


def pairs(
    images: np.ndarray, others: np.ndarray, titles: Sequence[str], captions: Sequence[str], out: Path | None = None
) -> Figure:
    """Draw each image under its title, and beside it another, such as its reconstruction, under the caption.

    Args:
      others: float (N, H, W, C) in 0 … 1.
    """
    side, gap = 1.8, 0.15  # inches
    sheet = _Sheet(len(images), 2 * side + 3 * gap, side + 3 * gap)
    for i, image in enumerate(images):
        show(sheet.axes(i, gap, gap, side, side), image, titles[i])
        other = np.rint(255 * others[i]).astype(np.uint8)
        show(sheet.axes(i, side + 2 * gap, gap, side, side), other, captions[i])
    return _written(sheet.figure, out)


@lru_cache
def class_colours() -> np.ndarray:
    """Return a colour for each number of a label map, uint8 (256, 3): neighbours far apart in hue, white for 255."""
    # Steps of the golden ratio fill the circle of hues evenly; lightness and saturation change along with them.
    hues = [(0.6 + 0.6180339887498949 * n) % 1 for n in range(256)]
    colours = [
        colorsys.hls_to_rgb(hue, (0.5, 0.35, 0.65)[n % 3], (0.85, 0.55)[n // 3 % 2]) for n, hue in enumerate(hues)
    ]
    table = np.rint(255 * np.array(colours)).astype(np.uint8)
    table[255] = 255
    table.setflags(write=False)
    return table


def tinted(image: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """Return an image, uint8 (H, W, C), as RGB with its classes' colours over it: uint8 (H, W, 3).

    What is void, or of a class called "background", stays as it is.

    Args:
      labels: (H, W), a class for each pixel; numbers that are none of `names` are void where there are names.
    """
    pixels = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32)
    plain = [number for number, name in enumerate(names) if name in _PLAIN]
    drawn = (labels < (len(names) or 255)) & ~np.isin(labels, plain)
    mixed = (1 - _TINT) * pixels + _TINT * class_colours()[labels]
    return np.where(drawn[..., None], np.rint(mixed), pixels).astype(np.uint8)


def mask_cards(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    maps: Mapping[str, Sequence[np.ndarray]],
    names: Sequence[str],
    out: Path | None = None,
) -> Figure:
    """Draw each image under its title, beside it the image with each of its label maps over it, and a legend.

    Args:
      images: uint8 (H, W, C); sizes may differ.
      maps: caption, such as "truth" -> (H, W) of each image, a class for each pixel.
    """
    side, gap = 2.4, 0.15  # inches
    height = _card_height(images, side)
    seen = np.unique(np.concatenate([np.unique(labels) for column in maps.values() for labels in column]))
    colours = [tuple(colour) for colour in (class_colours() / 255).tolist()]
    patches = [Patch(color=colours[n], label=shorten(names[int(n)], 18)) for n in seen if n < len(names)]
    sheet = _Sheet(len(images), (1 + len(maps)) * (side + gap) + gap, height + 3 * gap)
    sheet.add_legend(patches)
    for i, image in enumerate(images):
        drawn = [(titles[i], image), *((caption, tinted(image, labels[i], names)) for caption, labels in maps.items())]
        for column, (title, pixels) in enumerate(drawn):
            show(sheet.axes(i, column * (side + gap) + gap, gap, side, height), pixels, title)
    return _written(sheet.figure, out)


def draw_boxes(
    axes: Axes, boxes: np.ndarray, labels: np.ndarray, names: Sequence[str], scores: np.ndarray | None = None,
    score: str = "{:.0%}",
) -> None:  # fmt: skip
    """Draw boxes over the image in `axes`, each in the colour of its class, with its name and its score.

    Args:
      boxes: (n, 4), x1, y1, x2, y2 in pixels of the image; corners are points, so 0 is the edge of the first pixel.
      labels: (n,), class of each box.
      names: of all classes.
      scores: (n,).
      score: format of a score; that of a probability is per cent.
    """
    for i, (x1, y1, x2, y2) in enumerate(np.asarray(boxes, np.float64) - 0.5):  # matplotlib's pixel 0 is -0.5 … 0.5
        colour = tuple(class_colours()[int(labels[i])] / 255)
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.2))
        words = shorten(names[int(labels[i])], 18) + ("" if scores is None else f" {score.format(scores[i])}")
        ground = {"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
        dark = np.dot(colour, (0.299, 0.587, 0.114)) < 0.6
        inside = y1 < 0.05 * abs(axes.viewLim.height)  # above the image nothing is drawn
        axes.text(
            x1, y1, words, fontsize=6, va="top" if inside else "bottom", bbox=ground,
            color="white" if dark else "black", parse_math=False, clip_on=True,
        )  # fmt: skip


def masked(image: np.ndarray, masks: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Return an image, uint8 (H, W, C), with objects in the colours of their classes, each with an outline: uint8.

    Args:
      masks: the objects' pixels, bool (H, W) each; the first is drawn last, over the others.
      labels: (n,), class of each.
    """
    if not len(masks):
        return image
    pixels = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32)
    for mask, label in zip(masks[::-1], labels[::-1], strict=True):
        inner = mask.copy()  # pixels whose four neighbours belong to the object, too
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        share = np.where(inner, _TINT * 0.75, 1)[mask][:, None]
        pixels[mask] = (1 - share) * pixels[mask] + share * class_colours()[int(label)]
    return np.rint(pixels).astype(np.uint8)


def box_cards(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    found: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]]],
    names: Sequence[str],
    out: Path | None = None,
    masks: Mapping[str, Sequence[Sequence[np.ndarray]]] | None = None,
    score: str = "{:.0%}",
) -> Figure:
    """Draw each image once for each kind of boxes, such as true and detected ones, side by side.

    Args:
      images: uint8 (H, W, C); sizes may differ.
      titles: a line over each image.
      found: caption of a kind of boxes, after the title -> boxes, labels, and scores or None, of each image; see
        `draw_boxes`.
      masks: caption of a kind of boxes that have masks -> the masks of each image, bool (H, W), one for each box.
      score: format of a score.
    """
    side, gap = 2.8, 0.15  # inches
    height = _card_height(images, side)
    sheet = _Sheet(len(images), len(found) * (side + gap) + gap, height + 3 * gap)
    for i, image in enumerate(images):
        for column, (caption, boxes) in enumerate(found.items()):
            axes = sheet.axes(i, column * (side + gap) + gap, gap, side, height)
            own = masks[caption][i] if masks and caption in masks else ()
            show(axes, masked(image, own, boxes[i][1]), " ".join(filter(None, (titles[i], caption))))
            draw_boxes(axes, boxes[i][0], boxes[i][1], names, boxes[i][2], score)
    return _written(sheet.figure, out)


def precision_recall(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], out: Path | None = None) -> Figure:
    """Draw a precision-recall curve for each label, in ten colours and four styles of line.

    Args:
      curves: label, such as a class and its AP -> recall and precision by falling score, (n,) each.
    """
    columns = -(-len(curves) // 22)
    figure = Figure(figsize=(5.2 + 2 * columns, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    for i, (label, (recall, precision)) in enumerate(curves.items()):
        style = ("-", "--", ":", "-.")[i // 10 % 4]
        axes.plot(recall, precision, style, color=f"C{i % 10}", label=shorten(label, 30), lw=1.5)
    if curves:
        legend = figure.legend(loc="outside right upper", ncols=columns, fontsize=7, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return _written(figure, out)


class _Sheet:
    """A figure of `count` cards, each `width` by `height` inches, that is about square."""

    def __init__(self, count: int, width: float, height: float):
        self.columns = min(count, max(1, round(math.sqrt(count * height / width))))
        self.rows = -(-count // self.columns)
        self.card = (width, height)
        self.figure = Figure(figsize=(self.columns * width, self.rows * height))
        self.below = 0.0  # inches under the cards

    def add_legend(self, patches: Sequence[Patch]) -> None:
        """Write what the patches stand for under the cards, in as many columns as there is room for."""
        wide, high = self.figure.get_size_inches()
        columns = max(1, int(wide / 1.7))
        self.below = 0.25 * -(-len(patches) // columns) + 0.1
        self.figure.set_size_inches(wide, high + self.below)
        legend = self.figure.legend(handles=list(patches), loc="lower center", ncols=columns, fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)

    def axes(self, i: int, left: float, bottom: float, width: float, height: float) -> Axes:
        """Return new axes without a frame at that place of card `i`, in inches from its lower left corner."""
        x = i % self.columns * self.card[0] + left
        y = (self.rows - 1 - i // self.columns) * self.card[1] + bottom + self.below
        wide, high = self.figure.get_size_inches()
        axes = self.figure.add_axes((x / wide, y / high, width / wide, height / high))
        axes.axis("off")
        return axes


def show(axes: Axes, image: np.ndarray, title: str) -> None:
    """Draw an image under its title."""
    axes.imshow(_shown(image), cmap="gray", vmin=0, vmax=255)
    axes.set_title(shorten(title, 36, keep_end=True), fontsize=8, pad=3, parse_math=False)


def _card_height(images: Sequence[np.ndarray] | np.ndarray, width: float) -> float:
    """Return the height of cards of this width: their aspect is the mean of the images', within 0.4 … 2."""
    shape = np.mean([image.shape[0] / image.shape[1] for image in images])
    return width * min(2.0, max(0.4, float(shape)))


def _shown(image: np.ndarray) -> np.ndarray:
    """Return the image as matplotlib takes it: one of a single channel as (H, W)."""
    return image.squeeze(-1) if image.shape[-1] == 1 else image


def _written(figure: Figure, out: Path | None) -> Figure:
    if out:
        figure.savefig(out, dpi=120, format=out.suffix[1:].lower() or "png")
    return figure


def shorten(text: str, length: int, keep_end: bool = False) -> str:
    """Return `text` in at most `length` characters, the rest replaced by …; of a path, the end tells most."""
    if len(text) <= length:
        return text
    return "…" + text[1 - length :] if keep_end else text[: length - 1] + "…"
