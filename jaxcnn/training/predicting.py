"""What a network says of one image, and how it is asked about images at their own size."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.images.canvases import choose_canvases, padded, scaled, smallest_canvas
from jaxcnn.data.images.decode import MAX_BYTES, Box, Crop, center, read_all, resize, size_of
from jaxcnn.data.proposals import selective_search
from jaxcnn.locations import location
from jaxcnn.safe_files import read_bytes

_LONGEST = 640  # pixels of a photograph's longer side in a picture


class Prediction(NamedTuple):
    """What a network says of one image.

    Attributes:
      image: uint8 (H, W, C), as the network was given it.
      outputs: the task's arrays; of classification {"probabilities": float32 (classes,)}.
      summary: a JSON object of them, with names; of classification the likeliest classes in falling order,
        {"top5": [{"class": name, "index": int, "probability": float}, …]}.
      text: the same in words.
      name: the file, or "image 3" of arrays, counted from 0.
      error: why there is no prediction; "" where there is one.
    """

    image: Any = None
    outputs: Mapping[str, np.ndarray] = {}
    summary: Mapping[str, Any] = {}
    text: str = ""
    name: str = ""
    error: str = ""


def predict_padded(network: Any, images: Iterable[Any]) -> Iterator[Prediction]:
    """Yield a prediction of each image at its own size, in their order; one that fails has an `error`.

    Images share canvases, so that few programs are compiled however many sizes there are, and one image at a time is in
    memory. The task brings what the network gives to the image, if "min_size" or padding has changed its size.

    Args:
      network: the `TrainedModel`, whose images are padded.
      images: as `TrainedModel.predict` takes several.
    """
    images = list(images)
    # The headers of all images are read first, to choose the canvases; an image without one is reported in its turn.
    sizes = [_scaled(network, size) for size in map(_size, images) if size]
    canvases = choose_canvases(np.array(sizes), multiple=network.input.get("canvas_multiple", 1)) if sizes else []
    for index, image in enumerate(images):
        found = _read(image, index, network.input["image_shape"][2])
        yield found if found.error else _predicted(network, found, canvases)


def _scaled(network: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) to which an image of this size is resized for the network."""
    return scaled(size, network.input["min_size"], network.input.get("max_size", 0))


def whole(network: Any, file: Path) -> tuple[np.ndarray, Box]:
    """Return all of an image, uint8 (H, W, C), and the part of it that `TrainedModel.predict` shows the network.

    The image is shrunk to a longer side of 640 pixels: a page of photographs would fill the memory. The part reaches
    beyond the image where the network is given a frame of padding.

    Raises:
      UserError: the file cannot be read.
    """
    height, width, channels = network.input["image_shape"]
    pixels = read_all(file, channels)
    if (shrink := _LONGEST / max(pixels.shape[:2])) < 1:
        pixels = resize(pixels, (max(1, round(shrink * pixels.shape[0])), max(1, round(shrink * pixels.shape[1]))))
    rows, columns = pixels.shape[:2]
    if shorter := network.input.get("resize"):
        return pixels, center((rows, columns), (height, width), shorter).box
    # Without a frame it is the largest centred part of the right aspect.
    scale = min(rows / height, columns / width)
    part = height * scale, width * scale
    return pixels, Box((rows - part[0]) / 2, (columns - part[1]) / 2, *part)


def _size(image: Any) -> tuple[int, int] | None:
    """Return (height, width) of a file or an array; None where it cannot be read."""
    try:
        return size_of(read_bytes(image, MAX_BYTES) if isinstance(image, str | Path) else np.asarray(image))
    except (OSError, ValueError, IndexError):
        return None


def _read(image: Any, index: int, channels: int) -> Prediction:
    """Return an image, uint8 (H, W, C), or why it cannot be read."""
    is_path = isinstance(image, str | Path)
    name = str(image) if is_path else f"image {index}"
    try:
        return Prediction(read_all(location(image, "image") if is_path else np.asarray(image), channels), name=name)
    except UserError as error:
        return Prediction(name=name, error=str(error))


def _proposals(network: Any, image: np.ndarray, seen: tuple[int, int]) -> np.ndarray:
    """Return what selective search finds in an image: boxes (`task.max_proposals`, 4) in pixels of the resized one.

    The search is that of the run's own proposals; where these were made otherwise, it is the default one.
    """
    found = selective_search(image, *network.input.get("search", ()))
    boxes, visible = Crop(Box(0, 0, *image.shape[:2]), seen).boxes(found)
    room = network.config.task.max_proposals
    made = np.zeros((room, 4), np.float32)  # Rows of zeros are padding.
    kept = boxes[visible][:room]
    made[: len(kept)] = kept
    return made


def _predicted(network: Any, found: Prediction, canvases: list[tuple[int, int]]) -> Prediction:
    """Return what the network gives for an image, in pixels of that image."""
    own = found.image.shape[:2]
    seen = _scaled(network, own)
    pixels = padded(resize(found.image, seen), canvases[int(smallest_canvas(np.array([seen]), canvases)[0])])
    given = {"sizes": np.array([seen], np.int32)}
    if network.task.takes_proposals(network.model):
        given["proposals"] = _proposals(network, found.image, seen)[None]
    outputs = network.outputs(pixels[None], **given)
    values = {key: value[0] for key, value in outputs.items()}
    if not all(np.isfinite(value).all() for value in values.values()):
        error = f"the network's output for {found.name} is not finite: check its weights"
        return found._replace(error=error)
    return found._replace(outputs=network.task.on_image(values, Crop(Box(0, 0, *seen), own)))
