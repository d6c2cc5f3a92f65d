"""The features of all windows of a split, an image at a time, through the cache."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxcnn import UserError
from jaxcnn.data.images.augment_device import normalize
from jaxcnn.data.windows import overlaps
from jaxcnn.models.rcnn import RCNN
from jaxcnn.rcnn import regression
from jaxcnn.rcnn.cache import Arrays, Cache
from jaxcnn.rcnn.svm import Regions

_HALF = np.finfo(np.float16).max  # features are kept in float16: three digits, at half the bytes


class ImageWindows(NamedTuple):
    """What is known of one image before its features: its windows, the objects first.

    Attributes:
      pixels: uint8 (H, W, C), the image in its canvas.
      size: height and width of the image, int32 (2,).
      boxes: float32 (R, 4), in pixels of the canvas.
      classes: int (R,), of an object that is a positive its class, else 0.
      overlap: float64 (R, classes), the highest IoU with an object of each class.
      owner: int (R,), the object that a window overlaps most, a row of `boxes`; 0 where there is none.
    """

    pixels: np.ndarray
    size: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    overlap: np.ndarray
    owner: np.ndarray

    @property
    def regressed(self) -> np.ndarray:
        """Return the windows that the regression of boxes learns from, int (P,)."""
        return np.flatnonzero(self.overlap.max(1) > regression.IOU)


def windows_of(batch: dict[str, np.ndarray], row: int, classes: int, difficult: bool) -> ImageWindows:
    """Return the windows of an image of a batch.

    Args:
      classes: their number, the background included.
      difficult: whether difficult objects are positives; if not, what overlaps them is no negative all the same.
    """
    there = batch["valid"][row]
    objects, labels = batch["boxes"][row][there], batch["labels"][row][there]
    ignored = batch["crowd"][row][there] | (batch["difficult"][row][there] & (not difficult))
    given = batch["proposals"][row]
    given = given[(given[:, 2:] > given[:, :2]).all(1)]  # Rows of zeros are padding.
    boxes = np.concatenate([objects, given]).astype(np.float32)
    shared = overlaps(boxes, objects)  # (R, objects)
    overlap = np.zeros((len(boxes), classes))
    for number, label in enumerate(labels):
        overlap[:, label] = np.maximum(overlap[:, label], shared[:, number])
    owner = shared.argmax(1) if len(objects) else np.zeros(len(boxes), int)
    own = np.zeros(len(boxes), int)
    own[: len(objects)] = np.where(ignored, 0, labels)
    return ImageWindows(batch["image"][row], batch["sizes"][row], boxes, own, overlap, owner)


class Extractor:
    """Features of images by a network, computed once for each content.

    Args:
      batches: returns a pass over the images, in batches as `Dataset.eval_batches` makes them.
      mean, std: of each channel, which pixels are normalised by.
      options: of the compiler.

    Attributes:
      seconds, computed: the time that features have taken, after compilation, and of how many windows.
    """

    def __init__(
        self, model: RCNN, variables: Any, batches: Callable[[], Iterator[dict[str, np.ndarray]]],
        mean: tuple[float, ...], std: tuple[float, ...], difficult: bool, cache: Cache,
        options: dict[str, bool] | None = None,
    ):  # fmt: skip
        self.model, self.variables, self.batches = model, variables, batches
        self.difficult, self.cache = difficult, cache
        self.chunk = model.setting("chunk")
        self.network = digest_of(model, variables, mean, std)
        self.seconds, self.computed, self._compiled = 0.0, 0, set[tuple[int, ...]]()

        def program(variables: Any, image: jax.Array, size: jax.Array, boxes: jax.Array) -> dict[str, jax.Array]:
            images = normalize(image[None], mean, std)
            found: Any = model.apply(variables, images, sizes=size[None], proposals=boxes[None], train=False)
            features, pool5 = (found[name][0].astype(jnp.float32) for name in ("features", "pool5"))  # (K, …) each
            return {"pool5": pool5, "features": features, "norms": jnp.linalg.norm(pool5, axis=1)}

        self.program = jax.jit(program, compiler_options=options)

    def windows(self) -> Iterator[ImageWindows]:
        """Yield the windows of each image, in order."""
        classes = self.model.num_classes
        for batch in self.batches():
            for row in np.flatnonzero(batch["mask"] > 0):
                yield windows_of(batch, int(row), classes, self.difficult)

    def key(self, windows: ImageWindows) -> str:
        """Return the digest of the network and of an image with its windows."""
        found = hashlib.sha256(self.network.encode())
        for array in (windows.pixels, windows.size, windows.boxes, windows.regressed):
            found.update(f"{array.shape} {array.dtype}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def arrays(self, windows: ImageWindows) -> Arrays:
        """Return "features" float16 (R, F), "norms" float32 (R,) of pool5, and "pool5" float16 (P, C) of `regressed`.

        Raises:
          UserError: a feature is not finite, or too large for float16.
        """
        key = self.key(windows)
        found = self.cache.get(key)
        if found is None:
            found = self._computed(windows)
            self.cache.put(key, found)
        return found

    def _computed(self, windows: ImageWindows) -> Arrays:
        began, count = time.monotonic(), len(windows.boxes)
        regressed = windows.regressed
        parts: list[Arrays] = []
        for start in range(0, count, self.chunk):
            boxes = np.zeros((self.chunk, 4), np.float32)  # One shape for all, so that a canvas has one program.
            some = windows.boxes[start : start + self.chunk]
            boxes[: len(some)] = some
            found = jax.device_get(self.program(self.variables, windows.pixels, windows.size, boxes))
            if not all(np.isfinite(x).all() and np.abs(x).max(initial=0) <= _HALF for x in found.values()):
                raise UserError("the network's features are not finite, or too large for float16: check its weights")
            mine = regressed[(regressed >= start) & (regressed < start + self.chunk)] - start
            features, norms = (found[name][: len(some)] for name in ("features", "norms"))
            pool5 = found["pool5"][mine].astype(np.float16)
            parts.append({"features": features.astype(np.float16), "norms": norms, "pool5": pool5})
        if windows.pixels.shape in self._compiled:
            self.seconds, self.computed = self.seconds + time.monotonic() - began, self.computed + count
        self._compiled.add(windows.pixels.shape)
        return {name: np.concatenate([part[name] for part in parts]) for name in ("features", "norms", "pool5")}

    def regions(self, advance: Callable[[], None] = lambda: None) -> Iterator[Regions]:
        """Yield what the SVMs are trained on, an image at a time; images without windows are left out."""
        for windows in self.windows():
            if len(windows.boxes):
                yield Regions(self.arrays(windows)["features"], windows.classes, windows.overlap)
            advance()


def digest_of(model: RCNN, variables: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """Return a digest of what the features of a window depend on but for its pixels.

    These are the weights below them, how it is cut out, and how pixels are normalised.
    """
    found = hashlib.sha256()
    flat: Any = flatten_dict(dict(variables), sep="/")
    for path, array in sorted(flat.items()):
        if path.split("/")[1] not in ("head", "boxes"):
            found.update(f"{path} {array.shape} {array.dtype}".encode())
            found.update(np.ascontiguousarray(jax.device_get(array)).tobytes())
    settings = [model.features, model.setting("window"), model.context, model.backbone or model.spec.backbone]
    found.update(json.dumps([*settings, str(jnp.dtype(model.dtype)), [*mean], [*std]]).encode())
    return found.hexdigest()
