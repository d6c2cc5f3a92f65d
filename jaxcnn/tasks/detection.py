"""Object detection: boxes, or boxes and masks, the losses of two-stage detectors, VOC's and COCO's scores.

A batch has the objects of each image, padded to `task.max_boxes`, in pixels of the resized image within its canvas.
Evaluation moves the detections to pixels of the stored image, collects them, and compares them with the annotations.
The masks of a network that `gives_masks` are 28×28 cells of each box until they are pasted onto the stored image.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.models import create_model
from jaxcnn.models.mask_targets import CELLS
from jaxcnn.tasks.average_precision import (
    HIT,
    IGNORED,
    CocoScores,
    Curve,
    Detections,
    Objects,
    coco_results,
    coco_scores,
    outcomes,
    voc_curves,
)
from jaxcnn.tasks.base import Batch, Group, Headline, Images, Rows, Sums, Table, Task, Terms, Variables
from jaxcnn.tasks.detection_loss import FORMS, detection_terms
from jaxcnn.tasks.pasting import paste, run_lengths

# Least probability, and least margin, of a box in pictures and words, unless `Detection.show_from` sets another.
SHOWN, SHOWN_MARGIN = 0.5, 0.0


class Detection(Task):
    """Two to five losses, by the network, and average precision over all images."""

    padded = detects = True
    headline = (
        Headline("loss", "loss {:.4f}", "loss"),
        Headline("map50", "mAP50 {:.2%}", "1 - mAP at 0.5, %", error=True),
        Headline("map", "mAP {:.2%}", "1 - COCO's mAP, %", error=True),
        Headline("mask_map", "mask mAP {:.2%}", "1 - COCO's mAP of masks, %", error=True),
    )

    def __init__(self, config: Config):
        self.config, self.settings = config, config.task
        self.best = ("map", "max") if config.task.metric == "coco" else ("map50", "max")
        self.threshold: float | None = None  # least score of a box that is shown; None: the defaults
        self.source: Any = None  # the evaluation data with its annotations, a `Boxed`
        self.class_names: tuple[str, ...] = ()
        self.proposals: Any = None  # of the data, a `data.proposals.Proposals`; None where the network makes its own

    def takes_proposals(self, model: Any) -> bool:
        """Return whether a network has no proposals of its own, or `task.proposals` replaces them."""
        return bool(self.settings.proposals) or not getattr(model, "proposes", True)

    @property
    def _probabilities(self) -> bool:
        """Return whether scores are in 0 … 1; those of R-CNN are margins of SVMs, most of which are negative."""
        return getattr(self._model, "probabilities", True)

    @cached_property
    def _model(self) -> Any:
        """Return the network of the config, for its properties alone."""
        return create_model(self.config.model.name, **self.config.model.overrides)

    def prepare(self, data: Any) -> None:
        """Keep the names of the classes, and the annotations with which detections are compared."""
        self.source = getattr(data, "eval", None)
        if self.takes_proposals(self._model) and not self.settings.proposals:
            raise UserError(
                f"{self.config.model.name} has no proposals of its own: make them by `jaxcnn data propose`, and "
                "name the file in config.task.proposals"
            )
        self.proposals = getattr(data, "proposals", None)
        self._check_anchors(data.buckets)
        self.class_names = tuple(data.input.get("class_names", ()))

    def _check_anchors(self, canvases: Sequence[tuple[int, int]]) -> None:
        """Warn where the RPN cannot learn, as every anchor crosses the border of every image."""
        fits = getattr(self._model, "trains_anchors", None)
        if fits and not any(map(fits, canvases)) and jax.process_index() == 0:
            print(
                f"warning    no anchor of {self.config.model.name} lies within images of {max(canvases)} pixels, "
                "so its RPN does not train: set config.data.min_size or config.model.overrides.anchor_scales",
                file=sys.stderr,
            )

    def targets(self, data: Images) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of the objects, which fill the first of M rows, and of the sizes of the image.

        "boxes" float32 (M, 4), "labels" int32 (M,), "valid", "difficult" and "crowd" bool (M,); "sizes" and
        "original_sizes" int32 (2,), height and width of the image within its canvas, and as it is stored. Where there
        are files of proposals, "proposals" float32 (R, 4), of which rows of zeros are padding. Where the network has
        masks, "masks" uint8 (M, 112, 112), cells of the boxes (`models.mask_targets`): 1.25 MB of 100 objects.
        """
        objects, size = (self.settings.max_boxes,), jax.ShapeDtypeStruct((2,), np.int32)
        flags = dict.fromkeys(("valid", "difficult", "crowd"), jax.ShapeDtypeStruct(objects, np.bool_))
        boxes, labels = jax.ShapeDtypeStruct((*objects, 4), np.float32), jax.ShapeDtypeStruct(objects, np.int32)
        made = {"boxes": boxes, "labels": labels, **flags, "sizes": size, "original_sizes": size}
        if self.settings.proposals:
            made["proposals"] = jax.ShapeDtypeStruct((self.settings.max_proposals, 4), np.float32)
        if self._gives_masks:
            made["masks"] = jax.ShapeDtypeStruct((*objects, CELLS, CELLS), np.uint8)
        return made

    @property
    def _gives_masks(self) -> bool:
        """Return whether the network has masks."""
        return getattr(self._model, "gives_masks", False)

    def forward(
        self, model: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array], train: bool
    ) -> tuple[Any, Variables]:
        """Apply the model; training passes it the objects to learn from. See `Task.forward`."""
        sizes, proposals = batch.get("sizes"), batch.get("proposals")
        if not train:
            return model.apply(variables, batch["image"], sizes=sizes, proposals=proposals, train=False), {}
        # A crowd is not one object. Fast R-CNN reaches 68.1 mAP without the difficult ones, 66.9 with them (table 1).
        learnt = batch["valid"] & ~batch["crowd"]
        if not self.settings.difficult:
            learnt &= ~batch["difficult"]
        targets = {name: batch[name] for name in ("boxes", "labels", "example", "masks") if name in batch}
        targets["valid"] = learnt
        return model.apply(
            variables, batch["image"], sizes=sizes, targets=targets, proposals=proposals, train=True,
            mutable=["batch_stats"], rngs=rngs,
        )  # fmt: skip

    def loss(self, outputs: dict[str, Any], batch: Batch) -> tuple[Terms, Sums]:
        """Return the terms of `detection_terms` as the objective, and again as sums for the log."""
        form, present = FORMS[self.settings.loss_form], batch["mask"] > 0
        terms = detection_terms(
            outputs, present, batch["sizes"], form, self.settings.rpn_weight, self.settings.box_weight
        )
        return terms, dict(terms)

    def about(self) -> dict[str, Any]:
        """Return the SHA-256 of the proposals, where they are given."""
        return {"proposals": self.proposals.digest} if self.proposals else {}

    def measure(self, outputs: dict[str, Any], batch: Batch) -> Sums:
        """Return no sums: scores come from the rows of `collect`."""
        return {}

    def collect(self, outputs: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Return "boxes" (N, D, 4) in pixels of the stored images, "scores", "labels" and "valid" (N, D).

        Masks are (N, D, 28, 28): for 100 detections 0.3 MB an image, 1.6 GB for COCO's 5,000.
        """
        found = self.predict(outputs)
        return found | {"boxes": to_stored(found["boxes"], batch["sizes"], batch["original_sizes"])}

    def scores(self, sums: Sums, rows: Rows) -> dict[str, float]:
        """Return mean AP and each class's, at an IoU of 0.5 by VOC's rules, and COCO's twelve numbers.

        "map50" and "ap/NAME" are areas under curves, "map50_11pt" takes 11 points; means leave out classes without
        objects. "map" is COCO's AP over IoUs of 0.5 … 0.95; `average_precision.COCO_SCORES` names the others, and
        `MASK_SCORES` those of masks.
        """
        if not len(rows.get("example", ())):
            return {}
        curves = self.curves(rows)
        areas = {name: area for name, curve in curves.items() if (area := curve.area()) is not None}
        points = [point for curve in curves.values() if (point := curve.eleven_points()) is not None]
        means = {"map50": float(np.mean([*areas.values()])), "map50_11pt": float(np.mean(points))} if areas else {}
        coco = [scores.numbers for scores in self._coco(rows)]
        return means | coco[0] | coco[-1] | {f"ap/{name}": area for name, area in areas.items()}

    def parameters(self, path: str) -> Group:
        """Return the optimizer group of a parameter: the config sets rate and decay of biases, and frozen stages."""
        leaf, settings = path.rpartition("/")[2], self.settings
        bias = leaf == "bias"
        return Group(
            decay=leaf == "kernel" or (bias and settings.bias_decay),
            multiplier=settings.bias_multiplier if bias else 1.0,
            frozen=settings.trainable_stages >= 0 and path.startswith("trunk/") and self._stage(path) in self._frozen,
        )

    def _stage(self, path: str) -> str:
        """Return the stage of the backbone that a parameter belongs to, by which its layers' names begin."""
        layer = path.split("/")[1]
        if (stage := layer.partition("_")[0]) not in self._stages:
            raise UserError(
                f"config.task.trainable_stages: '{layer}' of the backbone does not say its stage, one of "
                f"{', '.join(self._stages)}: set it to -1, and name what stays in config.optimizer.freeze"
            )
        return stage

    @cached_property
    def _stages(self) -> list[str]:
        """Return the names of the backbone's stages in their order, such as "stem" and "stage1" … "stage4"."""
        trunk = getattr(self._model, "trunk", None)
        if trunk is None:
            name = self.config.model.name
            raise UserError(f"config.task.trainable_stages: model {name} has no backbone of stages: set it to -1")
        return list(trunk().endpoints)

    @property
    def _frozen(self) -> list[str]:
        """Return the stages that do not train, all but the last `task.trainable_stages`."""
        return self._stages[: max(0, len(self._stages) - self.settings.trainable_stages)]

    def curves(self, rows: Rows) -> dict[str, Curve]:
        """Return the precision-recall curve of each class at an IoU of 0.5, by its name."""
        names = self.source.class_names
        curves = voc_curves(self._objects(rows), detections_of(rows), range(1, len(names)))
        return {names[label]: curve for label, curve in curves.items()}

    def results(self, rows: Rows) -> list[dict[str, Any]]:
        """Return all detections in COCO's result format, by the data set's own numbers; masks as run lengths."""
        masks = None
        if "masks" in rows:
            sizes = [self.source.pixels[example].tolist() for example in rows["example"]]
            keep = rows["valid"]
            parts = zip(
                np.repeat(np.arange(len(keep)), keep.sum(1)), rows["masks"][keep], rows["boxes"][keep], strict=True
            )
            masks = [run_lengths(paste(mask, box, sizes[image])) for image, mask, box in parts]
        return coco_results(detections_of(rows), self._numbers(rows), self._categories, masks)

    def per_example(self, outputs: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Return no further rows: the tables are made from those of `collect`."""
        return {}

    def example_table(self, rows: Rows, names: Sequence[str]) -> Table:
        """Return for each image the numbers of objects, of boxes that pictures show, and of hits among these.

        Objects and boxes that do not count are left out.
        """
        objects, found = self._objects(rows), detections_of(rows, self._shown)
        outcome, images = outcomes(objects, found), len(rows["example"])
        parts = (objects.image[~objects.ignored], found.image[outcome != IGNORED], found.image[outcome == HIT])
        counts = [np.bincount(part, minlength=images).tolist() for part in parts]
        return dict(zip(("objects", "boxes", "hits"), counts, strict=True))

    def class_table(self, rows: Rows, names: Sequence[str]) -> Table:
        """Return for each class the number of objects, AP at an IoU of 0.5 by area and by 11 points, and COCO's APs.

        The cells of a class without objects are empty.
        """
        curves = self.curves(rows)
        columns = zip(("coco_ap", "coco_mask_ap"), self._coco(rows), strict=False)
        coco = {
            name: [_or_empty(scores.classes.get(label)) for label in range(1, 1 + len(curves))]
            for name, scores in columns
        }
        return {
            "class": list(curves),
            "objects": [curve.positives for curve in curves.values()],
            "ap50": [_or_empty(curve.area()) for curve in curves.values()],
            "ap50_11pt": [_or_empty(curve.eleven_points()) for curve in curves.values()],
            **coco,
        }

    def draw_curves(self, rows: Rows) -> Any:
        """Return a figure of the precision-recall curve of each class that has objects."""
        from jaxcnn.figures.overlays import precision_recall

        curves = {name: curve for name, curve in self.curves(rows).items() if curve.positives}
        labels = {name: f"{name} {curve.area():.1%}" for name, curve in curves.items()}
        return precision_recall({labels[name]: (curve.recall, curve.precision) for name, curve in curves.items()})

    def predict(self, outputs: dict[str, Any]) -> dict[str, jax.Array]:
        """Return "boxes" float32 (N, D, 4), "scores" by falling score, "labels" and "valid" (N, D), "masks" if any."""
        return {name: outputs[name] for name in ("boxes", "scores", "labels", "valid", "masks") if name in outputs}

    def show_from(self, threshold: float) -> None:
        """Leave boxes below this score out of words, pictures and lists.

        Raises:
          UserError: no box of the network has such a score.
        """
        if self._probabilities and not 0 <= threshold <= 1:
            raise UserError(f"--threshold {threshold:g}: scores of {self.config.model.name} are 0 … 1, give such a one")
        self.threshold = threshold

    @property
    def _shown(self) -> float:
        usual = SHOWN if self._probabilities else SHOWN_MARGIN
        return usual if self.threshold is None else self.threshold

    @property
    def _listed(self) -> float:
        """Return the least score of a box in a list: without a threshold, every box is in it."""
        return -np.inf if self.threshold is None else self.threshold

    def on_image(self, prediction: dict[str, np.ndarray], crop: Any) -> dict[str, np.ndarray]:
        """Return the prediction with boxes in pixels of the image itself, whose size masks need: "sizes" int (2,)."""
        boxes, _ = crop.boxes(prediction["boxes"])
        return prediction | {"boxes": boxes} | ({"sizes": np.array(crop.size)} if "masks" in prediction else {})

    def describe(self, prediction: dict[str, np.ndarray], names: Sequence[str]) -> tuple[dict[str, Any], str]:
        """Return the boxes of an image, {"boxes": [{"class", "index", "score", "box"}, …]}, best first, and a line.

        A box with a mask has its run lengths, too, as "segmentation".
        The line has the boxes of a score of 0.5 or more, of margins those of 0 or more; the list has all. `show_from`
        sets one threshold for both.
        """
        every: list[dict[str, Any]] = [
            {
                "class": names[label],
                "index": int(label),
                "score": float(score),
                "box": [round(x, 2) for x in box.tolist()],
            }
            for box, label, score in zip(*_kept(prediction, self._listed), strict=True)
        ]
        if "masks" in prediction:
            masks = _pasted(prediction, self._listed, prediction["sizes"].tolist())
            every = [row | {"segmentation": run_lengths(mask)} for row, mask in zip(every, masks, strict=True)]
        found = [row for row in every if row["score"] >= self._shown]
        score = "{:.1%}" if self._probabilities else "{:.2f}"
        words = [
            f"{row['class']} {score.format(row['score'])} at {', '.join(f'{x:.0f}' for x in row['box'])}"
            for row in found
        ]
        return {"boxes": every}, "; ".join(words) or f"nothing of a score of {self._shown:g} or more"

    def draw(
        self,
        images: Sequence[np.ndarray],
        predictions: dict[str, Any],
        names: Sequence[str],
        titles: Sequence[str] = (),
        targets: dict[str, Any] | None = None,
    ) -> Any:
        """Return a figure of each image with the boxes that `describe` has in its line, beside the true ones if given.

        With `targets`, the padding of images is left out by their "sizes".
        """
        from jaxcnn.figures.overlays import box_cards

        titles, count = titles or [""] * len(images), range(len(images))
        of_images = [{name: x[i] for name, x in predictions.items()} for i in count]
        found = [_kept(prediction, self._shown) for prediction in of_images]
        score = "{:.0%}" if self._probabilities else "{:.2f}"

        def masks_on(parts: Sequence[np.ndarray], caption: str) -> dict[str, Any]:
            if "masks" not in predictions:
                return {}
            pairs = zip(of_images, parts, strict=True)
            return {"masks": {caption: [_pasted(own, self._shown, part.shape[:2]) for own, part in pairs]}}

        if targets is None:
            return box_cards(images, titles, {"": found}, names, score=score, **masks_on(images, ""))
        parts = [image[:height, :width] for image, (height, width) in zip(images, targets["sizes"], strict=True)]
        truth = [
            (targets["boxes"][i][keep], targets["labels"][i][keep], None) for i, keep in enumerate(targets["valid"])
        ]
        masks = masks_on(parts, "detections")
        return box_cards(parts, titles, {"truth": truth, "detections": found}, names, score=score, **masks)

    def _numbers(self, rows: Rows) -> list[int]:
        """Return the data set's own number of each row's image."""
        return [int(self.source.numbers[example]) for example in rows["example"]]

    def _objects(self, rows: Rows) -> Objects:
        """Return the annotations of the rows' images."""
        truth = [self.source.truth(int(example)) for example in rows["example"]]
        image = np.repeat(np.arange(len(truth)), [len(objects["labels"]) for objects in truth])
        joined = {name: np.concatenate([objects[name] for objects in truth]) for name in truth[0]}
        ignored = joined["difficult"] | joined["crowd"]
        # Annotations have two decimals at most, and rounding restores them from float32: an IoU may equal a threshold.
        boxes = joined["boxes"].astype(np.float64).round(3)
        return Objects(image, joined["labels"], boxes, ignored, joined["area"])

    def _coco(self, rows: Rows) -> list[CocoScores]:
        """Return COCO's scores of boxes, and of masks where there are some."""
        objects, results = self._objects(rows), self.results(rows)
        numbers = self._numbers(rows), self._categories
        scores = [coco_scores(objects, results, *numbers)]
        if "masks" in rows:
            masks = [mask for example in rows["example"] for mask in self.source.masks(int(example))]
            scores.append(coco_scores(objects, results, *numbers, masks))
        return scores

    @property
    def _categories(self) -> list[int]:
        """Return the data set's own number of each class of the network, -1 for a class that it lacks."""
        own = list(self.source.category_ids)
        return own + [-1] * (len(self.class_names) - len(own))


def to_stored(boxes: Any, sizes: Any, original: Any) -> Any:
    """Return boxes (…, D, 4), given in pixels of a canvas, in pixels of the stored image, clipped to it.

    Args:
      sizes: (…, 2), height and width of the resized image within its canvas.
      original: (…, 2), height and width of the stored image.
    """
    to_corners = np.array([1, 0, 1, 0])  # height, width -> the limits of x1, y1, x2, y2
    limits = original[..., None, to_corners].astype(boxes.dtype)
    return (boxes * (limits / sizes[..., None, to_corners])).clip(0, limits)


def detections_of(rows: Rows, least: float = -np.inf) -> Detections:
    """Return the detections in the rows of `Detection.collect` that have a score of `least` or more.

    Their boxes are rounded to hundredths of a pixel, as in files, so that the scores are those of the written boxes.
    """
    keep = rows["valid"] & (rows["scores"] >= least)
    image = np.repeat(np.arange(len(keep)), keep.sum(1))
    return Detections(
        image, rows["labels"][keep], rows["boxes"][keep].astype(np.float64).round(2), rows["scores"][keep]
    )


def _kept(prediction: Mapping[str, np.ndarray], least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the boxes (n, 4), labels and scores (n,) of one image that have a score of `least` or more."""
    keep = prediction["valid"] & (prediction["scores"] >= least)
    return prediction["boxes"][keep], prediction["labels"][keep], prediction["scores"][keep]


def _pasted(prediction: Mapping[str, np.ndarray], least: float, size: Sequence[int]) -> list[np.ndarray]:
    """Return the masks of the same boxes, bool (H, W) each, on an image of `size` whose pixels the boxes are in."""
    keep = prediction["valid"] & (prediction["scores"] >= least)
    height, width = (int(side) for side in size)
    pairs = zip(prediction["masks"][keep], prediction["boxes"][keep], strict=True)
    return [paste(mask, box, (height, width)) for mask, box in pairs]


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value
