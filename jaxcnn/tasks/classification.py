"""Classification: cross-entropy, top-1 and top-5."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.config import Config
from jaxcnn.tasks.base import Batch, Headline, Rows, Sums, Table, Task, Terms

AUX_WEIGHT = 0.3  # of each auxiliary classifier's loss (GoogLeNet, section 5)


class Classification(Task):
    """Cross-entropy over a batch whose rows have weight `mask`, 0 for padding."""

    headline = (
        Headline("loss", "loss {:.4f}", "cross-entropy, nats"),
        Headline("top1", "top-1 {:.2%}", "top-1 error, %", error=True),
    )

    def __init__(self, config: Config):
        self.label_smoothing = config.task.label_smoothing

    def loss(self, outputs: dict[str, Any], batch: Batch) -> tuple[Terms, Sums]:
        """Return cross-entropy as the objective, of auxiliary classifiers too, and the sums of its metrics.

        The objective has the labels smoothed and the auxiliary classifiers' losses added; the metric "loss" has
        neither, so that it means the same in training and evaluation: nats an example.

        Args:
          outputs: "logits" (N, classes) float32; "aux_logits", a tuple of such, where the network has auxiliary heads.
          batch: "label" (N,) int32, "mask" (N,) float32; of mixed images also "other" (N,) int32, the second label, and
            "share" (N,) float32, the weight of the first. Top-1 and top-5 are those of the first.
        """
        logits, labels, mask = outputs["logits"], batch["label"], batch["mask"]
        weight = mask.sum()
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        objective = self._mixed(logits, batch) + AUX_WEIGHT * sum(
            self._mixed(aux_logits, batch) for aux_logits in outputs.get("aux_logits", ())
        )
        above = _above(logits, labels)
        sums = {
            "loss": (jnp.sum(nll * mask), weight),
            "top1": (jnp.sum((above < 1) * mask), weight),
            "top5": (jnp.sum((above < 5) * mask), weight),
        }
        return {"cross_entropy": (jnp.sum(objective * mask), weight)}, sums

    def _mixed(self, logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        """Cross-entropy (N,) against the label, or both labels of a mixed image by their shares."""
        own = self._smoothed(logits, batch["label"])
        if "share" not in batch:
            return own
        return batch["share"] * own + (1 - batch["share"]) * self._smoothed(logits, batch["other"])

    def _smoothed(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Cross-entropy (N,) against the smoothed labels."""
        if not self.label_smoothing:
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), self.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets)

    def per_example(self, outputs: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Return (N,) each: the true and the predicted class, their probabilities, and whether top-1 counts it correct.

        Where another class scores the same as the true one, the true one is predicted, as top-1 has it.
        """
        logits, labels = outputs["logits"], batch["label"]
        correct = _above(logits, labels) < 1
        predicted = jnp.where(correct, labels, logits.argmax(-1))
        probabilities = jax.nn.softmax(logits)
        found, true = (jnp.take_along_axis(probabilities, x[:, None], -1)[:, 0] for x in (predicted, labels))
        return {
            "label": labels,
            "predicted": predicted,
            "probability": found,
            "class_probability": true,
            "correct": correct,
        }

    def example_table(self, rows: Rows, names: Sequence[str]) -> Table:
        """Return the true and the predicted class of each example, their probabilities, and 1 where it is correct."""
        return {
            "class": [names[i] for i in rows["label"]],
            "predicted": [names[i] for i in rows["predicted"]],
            "probability": rows["probability"].tolist(),
            "class_probability": rows["class_probability"].tolist(),
            "correct": rows["correct"].astype(int).tolist(),
        }

    def class_table(self, rows: Rows, names: Sequence[str]) -> Table:
        """Return the number of examples of each class, how many are correct, their share (recall), and the precision.

        The share of nothing is left empty. "predicted" counts the examples that the class was predicted of.
        """
        sizes, predicted, correct = (
            np.bincount(values, minlength=len(names)).tolist()
            for values in (rows["label"], rows["predicted"], rows["label"][rows["correct"]])
        )
        return {
            "class": list(names), "examples": sizes, "correct": correct, "accuracy": _shares(correct, sizes),
            "predicted": predicted, "precision": _shares(correct, predicted),
        }  # fmt: skip

    def draw_mistakes(
        self, rows: Rows, names: Sequence[str], images_of: Callable[[Sequence[int]], Sequence[np.ndarray]]
    ) -> Any:
        """Return a figure of the confusion matrix, and of the wrong predictions with the highest probability."""
        from jaxcnn.figures.confusion import MISTAKES, confusion

        matrix = np.zeros((len(names), len(names)), np.int64)
        np.add.at(matrix, (rows["label"], rows["predicted"]), 1)
        worst = _worst_first(rows)[: min(MISTAKES, int(np.sum(~rows["correct"])))]
        examples = rows["example"][worst].tolist()
        label, predicted = rows["label"].tolist(), rows["predicted"].tolist()
        captions = [
            f"#{example} ({rows['probability'][i]:.0%}): {names[predicted[i]]}\nis {names[label[i]]}"
            for i, example in zip(worst, examples, strict=True)
        ]
        return confusion(matrix, names, images_of(examples), captions)

    def draw_worst(
        self,
        rows: Rows,
        names: Sequence[str],
        images_of: Callable[[Sequence[int]], Sequence[np.ndarray]],
        count: int,
    ) -> Any:
        """Return a figure of the wrong predictions with the highest probability, then of the doubtful right ones."""
        from jaxcnn.figures.overlays import prediction_grid

        worst, wrong, total = _worst_first(rows)[:count], int(np.sum(~rows["correct"])), len(rows["correct"])
        labels, predicted, probability = (rows[name][worst] for name in ("label", "predicted", "probability"))
        shown = f"{wrong:,} of {total:,} are wrong: "
        shown += "those of the highest probability" if wrong >= count else "all of them"
        shown += f", and the {len(worst) - wrong:,} least certain of the others" if wrong < len(worst) else ""
        images = images_of(rows["example"][worst].tolist())
        return prediction_grid(images, labels, predicted, probability, names, shown)

    def of_crop(self, outputs: dict[str, Any]) -> jax.Array:
        """Return the log-probabilities (N, classes) of one crop an image."""
        return jax.nn.log_softmax(outputs["logits"])

    def of_crops(self, crops: jax.Array) -> dict[str, jax.Array]:
        """Return the mean softmax of all crops of an image as logits, from (crops, N, classes).

        An example's loss is then -log of the mean probability of its class. All is added in float32 logarithms, so that
        one crop gives what ordinary evaluation gives, and no probability is lost to underflow.
        """
        return {"logits": jax.nn.logsumexp(crops, axis=0) - jnp.log(len(crops))}

    def predict(self, outputs: dict[str, Any]) -> dict[str, jax.Array]:
        """Return {"probabilities": float32 (N, classes)}."""
        return {"probabilities": jax.nn.softmax(outputs["logits"])}

    def describe(self, prediction: dict[str, np.ndarray], names: Sequence[str]) -> tuple[dict[str, Any], str]:
        """Return the five likeliest classes, {"top5": [{"class", "index", "probability"}, …]}, and a line of them."""
        probabilities = prediction["probabilities"]
        top = [
            {"class": names[i], "index": int(i), "probability": float(probabilities[i])}
            for i in np.argsort(-probabilities, kind="stable")[:5]
        ]
        return {"top5": top}, ", ".join(f"{row['class']} {row['probability']:.1%}" for row in top)

    def draw(
        self,
        images: np.ndarray,
        predictions: dict[str, np.ndarray],
        names: Sequence[str],
        titles: Sequence[str] = (),
        targets: dict[str, np.ndarray] | None = None,
    ) -> Any:
        """Return a figure of images with their likeliest classes: beside the true ones where `targets` are given."""
        from jaxcnn.figures.overlays import prediction_grid, top5_cards

        if targets:
            found = predictions["probabilities"]
            return prediction_grid(images, targets["label"], found.argmax(-1), found.max(-1), names)
        return top5_cards(images, titles or [""] * len(images), predictions["probabilities"], names)


def _above(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return how many classes score higher than the true one, int (N,).

    An example is in the top k if fewer than k do; ties count for it, NaN never does.
    """
    score = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return jnp.sum(~(logits <= score), axis=-1)


def _worst_first(rows: Rows) -> np.ndarray:
    """Return the places of all rows: wrong ones by falling probability, then right ones by rising probability."""
    return np.argsort(np.where(rows["correct"], rows["probability"], -1 - rows["probability"]), kind="stable")


def _shares(parts: Sequence[int], totals: Sequence[int]) -> list[float | str]:
    return [part / total if total else "" for part, total in zip(parts, totals, strict=True)]
