"""Semantic segmentation: a class for each pixel, cross-entropy, and the scores of the FCN paper.

A batch has "label_map" (N, H, W), a class for each pixel or `VOID`, and "sizes" (N, 2), the height and width of each
image within its canvas of H × W: images are padded below and to the right, and the label map is void there.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.config import VOID, Config
from jaxcnn.tasks.base import Batch, Group, Headline, Images, Rows, Sums, Table, Task, Terms, Variables


class Segmentation(Task):
    """Cross-entropy over the pixels that count: those with a class, of the rows whose "mask" is 1."""

    best = ("miou", "max")
    padded = True
    headline = (
        Headline("loss", "loss {:.4f}", "cross-entropy, nats a pixel"),
        Headline("pixel_accuracy", "pixels {:.2%}", "pixel error, %", error=True),
        Headline("miou", "mIoU {:.2%}", "1 - mean IoU, %", error=True),
    )

    def __init__(self, config: Config):
        task = config.task
        self.divided, self.weighted = task.reduction == "mean", task.class_weights == "median_frequency"
        self.aux_weight, self.bias_multiplier = task.aux_weight, task.bias_multiplier
        self.class_names: tuple[str, ...] = ()
        self.class_weights: np.ndarray | None = None  # float32 (classes,); None: all are 1

    def prepare(self, data: Any) -> None:
        """Take the names of the classes and, where the loss is weighted, how frequent each is."""
        self.class_names = tuple(data.input.get("class_names", ()))
        if self.weighted:
            self.class_weights = median_frequency(data.class_frequencies)

    def targets(self, data: Images) -> dict[str, jax.ShapeDtypeStruct]:
        """Return "label_map" uint8 (H, W) and "sizes" int32 (2,), height and width of the image within its canvas."""
        return {
            "label_map": jax.ShapeDtypeStruct(data.image_shape[:2], np.uint8),
            "sizes": jax.ShapeDtypeStruct((2,), np.int32),
        }

    def forward(
        self, model: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array], train: bool
    ) -> tuple[Any, Variables]:
        """Apply the model, which is given the images' sizes within their canvas; see `Task.forward`."""
        options: dict[str, Any] = {"mutable": ["batch_stats"], "rngs": rngs} if train else {}
        found = model.apply(variables, batch["image"], sizes=batch.get("sizes"), train=train, **options)
        return found if train else (found, {})

    def loss(self, outputs: dict[str, Any], batch: Batch) -> tuple[Terms, Sums]:
        """Return cross-entropy as the objective, of auxiliary heads too, and the sums of its metrics.

        The mean is Σ w·nll / Σ w over the pixels that count, w the weight of a pixel's class. The metric "loss" has
        neither weights nor auxiliary heads: nats a pixel, in training and evaluation alike.

        Args:
          outputs: "logits" (N, H, W, classes) float32; "aux_logits", a tuple of such, where there are auxiliary heads.
          batch: "label_map" (N, H, W), "mask" (N,).
        """
        logits = outputs["logits"]
        labels, counted = _counted(batch)
        pixels = _pixels(counted, logits.dtype)
        weight, total = self._weights(labels, counted, logits.dtype), pixels
        if self.class_weights is not None:
            total = weight.sum()
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        objective = nll + self.aux_weight * sum(
            optax.softmax_cross_entropy_with_integer_labels(aux_logits, labels)
            for aux_logits in outputs.get("aux_logits", ())
        )
        # Not a product with the weight: what a network gives for a row of padding may be no number.
        summed = jnp.sum(jnp.where(counted, weight * objective, 0))
        correct = counted & (logits.argmax(-1) == labels)
        sums = {
            "loss": (jnp.sum(jnp.where(counted, nll, 0)), pixels),
            "pixel_accuracy": (_pixels(correct, logits.dtype), pixels),
        }
        return {"cross_entropy": (summed, total if self.divided else None)}, sums

    def _weights(self, labels: jax.Array, counted: jax.Array, dtype: Any) -> jax.Array:
        """Return the weight of each pixel (N, H, W), 0 where it does not count."""
        if self.class_weights is None:
            return counted.astype(dtype)
        return jnp.where(counted, jnp.asarray(self.class_weights, dtype)[labels], 0)

    def measure(self, outputs: dict[str, Any], batch: Batch) -> Sums:
        """Return the sum of the loss, and the confusion matrix int32 (classes, classes), [true, predicted]."""
        labels, counted = _counted(batch)
        nll = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], labels)
        pixels = jnp.sum(counted, dtype=jnp.int32)
        matrix = confusion_matrix(labels, outputs["logits"], counted)
        return {"loss": (jnp.sum(jnp.where(counted, nll, 0)), pixels), "confusion": (matrix, pixels)}

    def scores(self, sums: Sums, rows: Rows) -> dict[str, float]:
        """Return the loss, the scores of `scores_of`, and "iou/NAME" of each class that has one."""
        (loss, pixels), matrix = sums["loss"], sums["confusion"][0]
        if not pixels:
            return {}
        names = self.class_names or tuple(map(str, range(len(matrix))))
        of_classes = {f"iou/{name}": v for name, v in zip(names, class_iou(matrix), strict=True) if np.isfinite(v)}
        return {"loss": float(loss) / float(pixels), **scores_of(matrix), **of_classes}

    def parameters(self, path: str) -> Group:
        """Return the group of a parameter: kernels alone decay, biases have the rate of `task.bias_multiplier`."""
        leaf = path.rpartition("/")[2]
        return Group(decay=leaf == "kernel", multiplier=self.bias_multiplier if leaf == "bias" else 1.0)

    def per_example(self, outputs: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Return the confusion matrix of each image, int32 (N, classes, classes)."""
        labels, counted = _counted(batch)
        return {"confusion": jax.vmap(confusion_matrix)(labels, outputs["logits"], counted)}

    def example_table(self, rows: Rows, names: Sequence[str]) -> Table:
        """Return the pixels that count in each image, the share that is right, and the mean IoU; empty of none."""
        found = [scores_of(matrix) if matrix.any() else {} for matrix in rows["confusion"]]
        return {
            "pixels": rows["confusion"].sum((1, 2)).tolist(),
            "pixel_accuracy": [scores.get("pixel_accuracy", "") for scores in found],
            "miou": [scores.get("miou", "") for scores in found],
        }

    def class_table(self, rows: Rows, names: Sequence[str]) -> Table:
        """Return of each class its pixels, how many are right, those predicted, accuracy and IoU; empty of none."""
        matrix = rows["confusion"].sum(0, dtype=np.int64)
        true, correct, predicted = matrix.sum(1), matrix.diagonal(), matrix.sum(0)
        return {
            "class": list(names), "pixels": true.tolist(), "correct": correct.tolist(),
            "predicted": predicted.tolist(), "accuracy": _shares(correct, true),
            "iou": _shares(correct, true + predicted - correct),
        }  # fmt: skip

    def predict(self, outputs: dict[str, Any]) -> dict[str, jax.Array]:
        """Return the likeliest class of each pixel, "label_map" uint8 (N, H, W), and its "probability", float32."""
        logits = outputs["logits"]
        likeliest = logits.argmax(-1)
        return {"label_map": likeliest.astype(jnp.uint8), "probability": jax.nn.softmax(logits).max(-1)}

    def on_image(self, prediction: dict[str, np.ndarray], crop: Any) -> dict[str, np.ndarray]:
        """Return maps (H, W) of an image's own size: each pixel has the value of the nearest one that was seen."""
        return {name: crop.label_map(x) for name, x in prediction.items()}

    def describe(self, prediction: dict[str, np.ndarray], names: Sequence[str]) -> tuple[dict[str, Any], str]:
        """Return the size of an image, the pixels of each class, most first, and the mean probability; and a line."""
        labels = prediction["label_map"]
        counts = np.bincount(labels.ravel(), minlength=len(names))
        found = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
        pixels = {names[label]: int(counts[label]) for label in found}
        words = ", ".join(f"{name} {count / labels.size:.1%}" for name, count in list(pixels.items())[:5])
        confidence = float(prediction["probability"].mean(dtype=np.float64))
        return {"size": list(labels.shape), "pixels": pixels, "confidence": confidence}, words

    def draw(
        self,
        images: Sequence[np.ndarray],
        predictions: dict[str, Sequence[np.ndarray]],
        names: Sequence[str],
        titles: Sequence[str] = (),
        targets: dict[str, Any] | None = None,
    ) -> Any:
        """Return a figure of each image and its classes over it, the true ones between them where there are `targets`.

        Images may differ in size; of padded ones "sizes" of `targets` says how much is shown.
        """
        from jaxcnn.figures.overlays import mask_cards

        shown = [(slice(height), slice(width)) for height, width in (targets or {}).get("sizes", ())]
        shown = shown or [(slice(None), slice(None))] * len(images)

        def cut(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [array[part] for array, part in zip(arrays, shown, strict=True)]

        maps = {"truth": cut(targets["label_map"])} if targets else {}
        maps["prediction"] = cut(predictions["label_map"])
        return mask_cards(cut(images), titles or [""] * len(images), maps, names)


def confusion_matrix(labels: jax.Array, logits: jax.Array, counted: jax.Array) -> jax.Array:
    """Return how many pixels of each class are predicted as each, int32 (classes, classes), [true, predicted].

    Args:
      labels: int32 (…, H, W).
      logits: (…, H, W, classes).
      counted: bool (…, H, W), the pixels that count.
    """
    classes = logits.shape[-1]
    places = labels * classes + logits.argmax(-1)
    counts = jnp.zeros(classes * classes, jnp.int32).at[places.ravel()].add(counted.ravel().astype(jnp.int32))
    return counts.reshape(classes, classes)


def scores_of(matrix: np.ndarray) -> dict[str, float]:
    """Return pixel accuracy, mean accuracy, mean IoU and frequency-weighted IoU (Long et al. 2015, section 5).

    A class without true pixels has no accuracy and is left out of that mean. One that is predicted all the same has
    IoU 0, which counts; one that is neither has none. This is how the authors' scoring code has it.

    Args:
      matrix: int (classes, classes), [true, predicted] -> pixels; not all 0.
    """
    true, correct = matrix.sum(1, dtype=np.float64), matrix.diagonal()
    iou, there = class_iou(matrix), true > 0
    return {
        "pixel_accuracy": float(correct.sum() / true.sum()),
        "mean_accuracy": float(np.mean(correct[there] / true[there])),
        "miou": float(np.nanmean(iou)),
        "fw_iou": float(np.sum(true[there] * iou[there]) / true.sum()),
    }


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class, float64 (classes,); NaN where there is neither.

    Args:
      matrix: int (classes, classes), [true, predicted] -> pixels.
    """
    correct = matrix.diagonal().astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - correct
    return np.divide(correct, union, out=np.full(len(matrix), np.nan), where=union > 0)


def median_frequency(frequencies: Sequence[float]) -> np.ndarray:
    """Return the weight of each class, float32 (classes,): the median frequency over its own (Eigen and Fergus 2015).

    Args:
      frequencies: of each class, its share of the pixels that count in the images that it is in. A class that is in
        none, 0, is left out of the median and has weight 0: no pixel needs it.
    """
    frequency = np.asarray(frequencies, np.float64)
    there = frequency > 0
    weights = np.zeros(len(frequency))
    weights[there] = np.median(frequency[there]) / frequency[there]
    return weights.astype(np.float32)


def _counted(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return a class for each pixel, int32 (N, H, W), 0 where it is void, and whether it counts, bool."""
    labels = batch["label_map"].astype(jnp.int32)
    counted = (labels != VOID) & (batch["mask"] > 0)[:, None, None]
    return jnp.where(counted, labels, 0), counted


def _pixels(chosen: jax.Array, dtype: Any) -> jax.Array:
    """Return how many pixels are chosen: counted as integers, for float32 stops counting at 2^24."""
    return jnp.sum(chosen, dtype=jnp.int32).astype(dtype)


def _shares(parts: np.ndarray, totals: np.ndarray) -> list[float | str]:
    return [float(part / total) if total else "" for part, total in zip(parts, totals, strict=True)]
