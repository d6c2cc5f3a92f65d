"""The task with masks: the fifth loss against loops, COCO's AP of masks, files, words and pictures of them."""

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco
from tiny_boxes import NAMES, Blocks, M

from jaxcnn.config import base_config
from jaxcnn.data.images.object_masks import run_lengths
from jaxcnn.figures.overlays import masked
from jaxcnn.tasks import create_task
from jaxcnn.tasks.average_precision import Detections, Objects, coco_results, coco_scores
from jaxcnn.tasks.base import Images
from jaxcnn.tasks.detection_loss import FORMS, detection_terms
from jaxcnn.tasks.pasting import paste

SIDE = 4  # cells of a mask's side in the tests of the loss


def outputs() -> dict[str, Any]:
    """Of two images, three regions each, the first two with rows for masks; one anchor, which is not sampled."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "rpn_logits": np.zeros((2, 1)), "rpn_deltas": np.zeros((2, 1, 4)), "rpn_targets": np.zeros((2, 1, 4)),
        "box_logits": np.zeros((2, 3, 5)), "box_deltas": np.zeros((2, 3, 5, 4)), "box_targets": np.zeros((2, 3, 4)),
        "mask_logits": rng.normal(0, 2, (2, 2, SIDE, SIDE)), "mask_targets": rng.random((2, 2, SIDE, SIDE)),
    }  # fmt: skip
    made = {name: x.astype(np.float32) for name, x in made.items()}
    return made | {
        "rpn_matches": np.full((2, 1), -2, np.int32), "roi_labels": np.array([[3, 1, 0], [2, 0, 0]], np.int32),
        "roi_valid": np.array([[True, True, True], [True, True, False]]),
    }  # fmt: skip


def mask_term(found: Any, present: Any, form: str) -> tuple[float, float]:
    terms = detection_terms(found, jnp.asarray(present), jnp.full((2, 2), 64), FORMS[form])
    total, weight = terms["mask"]
    return float(total), float(weight)  # type: ignore[arg-type]


def entropy(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def test_the_loss_is_the_mean_over_the_cells_of_positive_regions():
    found = outputs()
    each = [
        np.mean([entropy(*pair) for pair in zip(found["mask_logits"][at].ravel().tolist(),
                                                found["mask_targets"][at].ravel().tolist(), strict=True)])
        for at in ((0, 0), (0, 1), (1, 0))
    ]  # fmt: skip
    total, weight = mask_term(found, [True, True], "torchvision")
    assert (total / weight, weight) == (pytest.approx(np.mean(each), rel=1e-5), 3)
    total, weight = mask_term(found, [True, True], "port")
    assert (total / weight, weight) == (pytest.approx((np.mean(each[:2]) + each[2]) / 2, rel=1e-5), 2)


def test_padding_rows_and_absent_images_change_nothing_even_with_a_nan_in_them():
    found = outputs()
    expected = mask_term(found, [True, False], "torchvision")
    found["mask_logits"][1], found["mask_targets"][1] = np.nan, np.nan
    assert mask_term(found, [True, False], "torchvision") == pytest.approx(expected)
    found = outputs()
    found["mask_logits"][1, 1] = np.nan  # background

    def loss(logits: Any) -> Any:
        terms = detection_terms(found | {"mask_logits": logits}, jnp.array([True, True]), jnp.full((2, 2), 64),
                                FORMS["torchvision"])  # fmt: skip
        return terms["mask"][0]

    gradient = jax.grad(loss)(jnp.asarray(found["mask_logits"]))
    assert np.isfinite(gradient).all()
    assert not gradient[1, 1].any()
    assert gradient[1, 0].all()


def test_without_positives_there_is_no_loss():
    found = outputs()
    found["roi_labels"][:] = 0
    assert mask_term(found, [True, True], "torchvision") == (0, 0)


def task_of() -> Any:
    config = base_config("detection")
    config.model.name = "mask_rcnn_resnet50_fpn_tv"
    config.task.max_boxes = 7
    return create_task(config)


def test_a_batch_has_room_for_masks_where_the_network_has_some():
    assert task_of().targets(Images(3, (8, 8, 3)))["masks"] == jax.ShapeDtypeStruct((7, 112, 112), np.uint8)


class Filled:
    """The annotations of `Blocks`, whose objects fill their boxes."""

    def __init__(self, annotations: Any):
        self.annotations = annotations

    def __getattr__(self, name: str) -> Any:
        return getattr(self.annotations, name)

    def masks(self, index: int) -> list[Any]:
        height, width = self.annotations.pixels[index].tolist()
        corners = self.annotations.truth(index)["boxes"].astype(float).tolist()
        return [run_lengths([[x1, y1, x2, y1, x2, y2, x1, y2]], (height, width)) for x1, y1, x2, y2 in corners]


@pytest.fixture
def prepared() -> tuple[Any, dict[str, np.ndarray]]:
    """The task, and what a detector gives that finds every box, with full masks."""
    task, data = task_of(), Blocks()
    task.class_names, task.source = NAMES, Filled(data.eval)
    count = len(data.eval.rows["mask"])
    rows = {"boxes": np.zeros((count, M, 4), np.float32), "labels": np.zeros((count, M), np.int32)}
    rows |= {"valid": np.zeros((count, M), bool), "example": np.arange(count, dtype=np.int32)}
    rows |= {"scores": np.tile(np.linspace(0.9, 0.8, M, dtype=np.float32), (count, 1))}
    rows |= {"masks": np.ones((count, M, 28, 28), np.float32)}
    for i in range(count):
        truth = data.eval.truth(i)
        n = len(truth["labels"])
        rows["boxes"][i, :n], rows["labels"][i, :n], rows["valid"][i, :n] = truth["boxes"], truth["labels"], True
    return task, rows


def test_masks_have_scores_of_their_own_of_the_results_that_are_written(prepared):
    task, rows = prepared
    whole = task.scores({}, rows)
    assert whole["map"] == 1
    assert 0.6 < whole["mask_map"] < 1, "pasted masks fade at the border, by less than a pixel of about eighteen"
    assert whole["coco/mask_ap50"] == 1
    half = rows["masks"].copy()
    half[:, :, 14:] = 0
    scores = task.scores({}, rows | {"masks": half})
    assert scores["map"] == 1
    assert scores["mask_map"] < 0.2
    results = json.loads(json.dumps(task.results(rows)))
    image = results[0]["image_id"] // 7
    expected = paste(rows["masks"][image, 0], rows["boxes"][image, 0], task.source.pixels[image].tolist())
    np.testing.assert_array_equal(coco.decode(results[0]["segmentation"]).astype(bool), expected)
    assert task.class_table(rows, NAMES)["coco_mask_ap"][0] == pytest.approx(whole["mask_map"], abs=0.3)


def test_cocos_scores_of_masks_by_hand():
    """Two objects; of one half is found, an IoU of 0.5 exactly, of the other all."""
    size = (10, 20)
    truth = [run_lengths([[x, 0, x + 8, 0, x + 8, 8, x, 8]], size) for x in (0, 10)]
    half = run_lengths([[0, 0, 8, 0, 8, 4, 0, 4]], size)
    boxes = np.array([[0, 0, 8, 8], [10, 0, 18, 8]], float)
    zeros, ones = np.zeros(2, int), np.ones(2, int)
    objects = Objects(zeros, ones, boxes, np.zeros(2, bool), np.full(2, 64.0))
    found = Detections(zeros, ones, boxes, np.array([0.9, 0.8]))
    results = coco_results(found, [5], [0, 3], [half, truth[1]])
    scores = coco_scores(objects, results, [5], [0, 3], truth)
    assert scores.numbers["coco/mask_ap50"] == pytest.approx(1)
    # Above 0.5 the first is false: of ten thresholds nine have precision 1/2 up to a recall of 1/2, 51 of 101 points.
    assert scores.numbers["mask_map"] == pytest.approx((1 + 9 * 0.5 * 51 / 101) / 10)
    assert coco_scores(objects, results, [5], [0, 3]).numbers["map"] == pytest.approx(1)


def prediction() -> dict[str, np.ndarray]:
    masks = np.zeros((2, 28, 28), np.float32)
    masks[0, :, :14] = 1
    return {
        "boxes": np.array([[2, 2, 16, 9], [0, 0, 4, 4]], np.float32), "scores": np.array([0.75, 0.25], np.float32),
        "labels": np.array([2, 1], np.int32), "valid": np.array([True, True]), "masks": masks,
        "sizes": np.array([12, 20]),
    }  # fmt: skip


def test_a_list_has_the_run_lengths_of_each_mask_in_the_image():
    summary, _ = task_of().describe(prediction(), NAMES)
    first, second = (coco.decode(row["segmentation"]) for row in summary["boxes"])
    assert first.shape == (12, 20)
    assert first[3:8, 4:8].all()
    assert not first[:, 10:].any()
    assert not second.any()


def test_a_drawing_shows_masks_over_the_image_beside_the_truth_or_alone():
    task = task_of()
    pixels, many = [np.full((12, 20, 3), 50, np.uint8)], {name: x[None] for name, x in prediction().items()}
    alone = task.draw(pixels, many, NAMES, ["a"])
    drawn = np.asarray(alone.axes[0].images[0].get_array())
    assert (drawn[3:8, 4:8] != 50).any(-1).all()
    assert (drawn[:, 11:] == 50).all()
    targets = {"sizes": np.array([[12, 20]]), "boxes": np.zeros((1, 1, 4)), "labels": np.ones((1, 1), int)}
    both = task.draw(pixels, many, NAMES, targets=targets | {"valid": np.array([[True]])})
    first, second = (np.asarray(axes.images[0].get_array()) for axes in both.axes)
    assert (first == 50).all()
    np.testing.assert_array_equal(second, drawn)


def test_the_best_mask_lies_on_top_and_grey_images_become_colour():
    image, mask = np.zeros((6, 6, 1), np.uint8), np.zeros((6, 6), bool)
    mask[1:5, 1:5] = True
    found = masked(image, [mask, mask], np.array([1, 2]))
    alone = masked(image, [mask], np.array([1]))
    np.testing.assert_array_equal(found[:2], alone[:2])  # the outline is opaque
    assert (found[2, 2] != alone[2, 2]).any()
    assert found.shape == (6, 6, 3)
    assert masked(image, [], np.array([])) is image
