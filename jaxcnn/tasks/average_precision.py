"""Average precision of detections: PASCAL VOC's, by the rules of its development kit, and COCO's twelve numbers.

All is NumPy on the host; COCO's numbers come from pycocotools. Boxes are x1, y1, x2, y2. In this package corners are
points, and x2 - x1 is the width in pixels that VOC's kit counts; `inclusive` is for boxes as VOC's files have them,
with corners that are pixels of the box.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

HIT, FALSE, IGNORED = 1, 0, -1  # A detection is a true positive, a false one, or does not count.
# The names of our scores, in the order of pycocotools' `stats`.
COCO_SCORES = (
    "map", "coco/ap50", "coco/ap75", "coco/ap_small", "coco/ap_medium", "coco/ap_large",
    "coco/ar_1", "coco/ar_10", "coco/ar_100", "coco/ar_small", "coco/ar_medium", "coco/ar_large",
)  # fmt: skip
# Those of masks: "mask_map", "coco/mask_ap50" …
MASK_SCORES = tuple("mask_map" if name == "map" else name.replace("/", "/mask_") for name in COCO_SCORES)


class Objects(NamedTuple):
    """The objects of all images, in the order of the images.

    Attributes:
      image: int (n,), counted from 0.
      label: int (n,), 1 or more.
      boxes: (n, 4), pixels of the stored images.
      ignored: bool (n,), those that count neither way: VOC's difficult ones, COCO's crowds.
      area: (n,), pixels², by which COCO's scores tell small, medium and large objects apart.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray
    area: np.ndarray


class Detections(NamedTuple):
    """The detections in all images; those of equal scores keep their order.

    Attributes:
      image: int (d,), as of the objects.
      label: int (d,), 1 or more.
      boxes: (d, 4), pixels of the stored images.
      score: (d,).
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    score: np.ndarray


class Curve(NamedTuple):
    """The detections of a class that count, by falling score.

    Attributes:
      positives: objects that count.
      scores: (d,).
      hits: bool (d,), which of them are true positives.
      ignored: number of further detections, which do not count as the object that they found does not.
    """

    positives: int
    scores: np.ndarray
    hits: np.ndarray
    ignored: int

    @property
    def recall(self) -> np.ndarray:
        """Return the share of objects that are found by the first 1, 2 … d detections, float64 (d,)."""
        return self.hits.cumsum() / self.positives

    @property
    def precision(self) -> np.ndarray:
        """Return the share of hits among the first 1, 2 … d detections, float64 (d,)."""
        return self.hits.cumsum() / np.arange(1, len(self.hits) + 1)

    def area(self) -> float | None:
        """Return the area under the curve (VOC from 2010 on); None without objects, as recall is then undefined.

        Precision is first made to fall with recall: at each recall it is the highest at that recall or more.
        """
        if not self.positives:
            return None
        recall = np.concatenate([[0], self.recall])
        return float(np.sum(np.diff(recall) * self._best_from_here()))

    def eleven_points(self) -> float | None:
        """Return the mean over recalls of 0, 0.1 … 1 of the highest precision at that recall or more (VOC up to 2009).

        It is None without objects, as the area is.
        """
        if not self.positives:
            return None
        best = np.concatenate([self._best_from_here(), [0]])
        return float(np.mean(best[np.searchsorted(self.recall, np.linspace(0, 1, 11))]))

    def _best_from_here(self) -> np.ndarray:
        """Return the highest precision at the recall of each detection or more, float64 (d,)."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]


def voc_curves(
    objects: Objects, found: Detections, labels: Sequence[int], threshold: float = 0.5, inclusive: bool = False
) -> dict[int, Curve]:
    """Return the precision-recall curve of each class.

    Args:
      labels: the classes of the curves.
      threshold: least IoU of a detection and the object that it finds.
      inclusive: corners are pixels of the box, so that its width is x2 - x1 + 1.
    """
    outcome = outcomes(objects, found, threshold, inclusive)
    order = np.argsort(-found.score, kind="stable")
    label, score, outcome = found.label[order], found.score[order], outcome[order]
    counted = outcome != IGNORED
    curves = {}
    for own in labels:
        mine = (label == own) & counted
        positives = int(np.sum((objects.label == own) & ~objects.ignored))
        ignored = int(np.sum((label == own) & ~counted))
        curves[own] = Curve(positives, score[mine], outcome[mine] == HIT, ignored)
    return curves


def outcomes(objects: Objects, found: Detections, threshold: float = 0.5, inclusive: bool = False) -> np.ndarray:
    """Return `HIT`, `FALSE` or `IGNORED` for each detection, int (d,), by the rules of VOC's development kit.

    The object of the same image and class with the highest IoU decides, even if a detection of a higher score has found
    it: then this one is false. If that object does not count, neither do any of its detections.
    """
    best, overlap = _nearest(objects, found, inclusive)
    near = overlap >= threshold
    # `best` is 0 for a detection without an object, also if there are no objects at all: one more row stands for that.
    ignored = np.append(objects.ignored, False)
    outcome = np.where(near & ignored[best], IGNORED, FALSE)
    # The hit is the first of an object's detections by falling score.
    order = np.argsort(-found.score, kind="stable")
    claims = order[(near & (outcome != IGNORED))[order]]
    outcome[claims[np.unique(best[claims], return_index=True)[1]]] = HIT
    return outcome


def _nearest(objects: Objects, found: Detections, inclusive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the object of its image and class that each detection overlaps most, int (d,), and the IoU.

    Without such an object, the index is 0 and the IoU -1. Of several with the same IoU, the first one is taken.
    """
    classes = 1 + max(objects.label.max(initial=0), found.label.max(initial=0))
    # One key stands for an image and a class: (d,) of detections, (n,) of objects.
    own, theirs = (x.image.astype(np.int64) * classes + x.label for x in (found, objects))
    by_key = np.argsort(theirs, kind="stable")
    first, last = (np.searchsorted(theirs[by_key], own, side) for side in ("left", "right"))
    # The p pairs (detection, object) of one key are listed, one detection after another.
    counts = last - first
    detection = np.repeat(np.arange(len(own)), counts)
    place = np.arange(len(detection)) - np.repeat(counts.cumsum() - counts, counts) + first[detection]
    overlap = _iou(found.boxes[detection], objects.boxes[by_key[place]], inclusive)
    best, most = np.zeros(len(own), np.int64), np.full(len(own), -1.0)
    order = np.lexsort((-overlap, detection))  # (p,), by detection, then by falling IoU; equals keep their order
    there, at = np.unique(detection[order], return_index=True)
    best[there], most[there] = by_key[place[order[at]]], overlap[order[at]]
    return best, most


def _iou(a: np.ndarray, b: np.ndarray, inclusive: bool) -> np.ndarray:
    """Return the IoU of each box of `a` with that of `b` in the same row, float64 (p,); 0 if neither has an area."""
    a, b, extra = a.astype(np.float64), b.astype(np.float64), float(inclusive)
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = [np.prod(x[:, 2:] - x[:, :2] + extra, axis=1) for x in (a, b)]
    union = areas[0] + areas[1] - common
    return np.divide(common, union, out=np.zeros(len(a)), where=union > 0)


def coco_results(
    found: Detections,
    numbers: Sequence[int],
    category_ids: Sequence[int],
    masks: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Return detections in COCO's result format: box x, y, width, height, in hundredths of a pixel.

    Args:
      numbers: the data set's own number of each image.
      category_ids: the data set's own number of each label, the background first; negative for a class that it lacks,
        whose detections are left out.
      masks: run lengths of each detection's mask, which becomes its "segmentation".
    """
    boxes = _xywh(found.boxes, 2)
    segmentations = [{"segmentation": mask} for mask in masks] if masks is not None else [{}] * len(boxes)
    return [
        {
            "image_id": int(numbers[image]),
            "category_id": int(category_ids[label]),
            "bbox": box,
            "score": float(str(score)),
            **segmentation,
        }
        for image, label, box, score, segmentation in zip(
            found.image, found.label, boxes, found.score, segmentations, strict=True
        )
        if category_ids[label] >= 0
    ]


def _xywh(boxes: np.ndarray, decimals: int) -> list[list[float]]:
    """Return the x, y, width and height of boxes (n, 4), rounded."""
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).round(decimals).tolist()


class CocoScores(NamedTuple):
    """COCO's scores; one without objects, such as that of a size that no object has, is left out.

    Attributes:
      numbers: the twelve, by the names of `COCO_SCORES` or `MASK_SCORES`.
      classes: AP of each label.
    """

    numbers: dict[str, float]
    classes: dict[int, float]


def coco_scores(
    objects: Objects, results: Sequence[dict[str, Any]], numbers: Sequence[int], category_ids: Sequence[int],
    masks: Sequence[dict[str, Any]] | None = None,
) -> CocoScores:  # fmt: skip
    """Return the scores that pycocotools gives for detections in COCO's result format.

    Objects that do not count, VOC's difficult ones too, are passed to it as crowds.

    Args:
      numbers, category_ids: as for `coco_results`.
      masks: run lengths of each object's mask; the scores are then those of masks. None: of boxes.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known: Any
    found: Any
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints, and has no switch for that.
        known, found = COCO(), COCO()
        known.dataset = _coco_dataset(objects, numbers, category_ids, masks)
        found.dataset = known.dataset | {"annotations": []}
        known.createIndex()
        found.createIndex()
        if results:  # `loadRes` refuses an empty list.
            # If a result had a box, pycocotools would tell sizes apart by the box's area, not the mask's.
            left_out = ("segmentation",) if masks is None else ("bbox",)
            found = known.loadRes([{k: v for k, v in result.items() if k not in left_out} for result in results])
        evaluation = COCOeval(known, found, "bbox" if masks is None else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class), -1 without objects
    by_class = {evaluation.params.catIds[k]: precision[:, :, k] for k in range(precision.shape[2])}
    classes = {
        label: float(by_class[number].mean())
        for label, number in enumerate(category_ids)
        if label and number >= 0 and (by_class[number] > -1).all()
    }
    names = COCO_SCORES if masks is None else MASK_SCORES
    twelve = {name: float(value) for name, value in zip(names, evaluation.stats, strict=True) if value > -1}
    return CocoScores(twelve, classes)


def _coco_dataset(
    objects: Objects, numbers: Sequence[int], category_ids: Sequence[int], masks: Sequence[dict[str, Any]] | None
) -> dict[str, Any]:
    """Return the objects in COCO's format of annotations."""
    boxes = _xywh(objects.boxes, 3)  # COCO's have two decimals; rounding removes the error of the subtraction.
    # Ids begin at 1, as pycocotools takes 0 for no match.
    annotations = [
        {"id": i, "image_id": int(numbers[image]), "category_id": int(category_ids[label]), "bbox": box,
         "area": float(area), "iscrowd": int(ignored)}
        for i, (image, label, box, ignored, area) in enumerate(
            zip(objects.image, objects.label, boxes, objects.ignored, objects.area, strict=True), start=1
        )
    ]  # fmt: skip
    sizes = dict.fromkeys(map(int, numbers), (0, 0))  # pycocotools asks for them where there are masks
    for annotation, mask in zip(annotations, masks or (), strict=masks is not None):
        annotation["segmentation"] = mask
        sizes[annotation["image_id"]] = mask["size"]
    return {
        "info": {},
        "images": [{"id": number, "height": size[0], "width": size[1]} for number, size in sizes.items()],
        "categories": [{"id": int(n), "name": str(n)} for n in category_ids[1:] if n >= 0],
        "annotations": annotations,
    }
