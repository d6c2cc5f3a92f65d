"""VOC's rules against golden cases and loops of their own, COCO's numbers against golden ones, and what both refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn.tasks.average_precision import (
    COCO_SCORES,
    Detections,
    Objects,
    coco_results,
    coco_scores,
    outcomes,
    voc_curves,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "detection_metrics.json").read_text())
THEIRS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
          "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")  # fmt: skip


def arrays(truth: Any, found: Any) -> tuple[Objects, Detections]:
    """Objects and detections from rows [image, class, difficult, box] and [image, class, score, box]."""
    truth, found = (np.array(rows, np.float64).reshape(-1, 7) for rows in (truth, found))
    area = np.prod(truth[:, 5:] - truth[:, 3:5], axis=1)
    objects = Objects(truth[:, 0].astype(int), truth[:, 1].astype(int), truth[:, 3:], truth[:, 2] > 0, area)
    return objects, Detections(found[:, 0].astype(int), found[:, 1].astype(int), found[:, 3:], found[:, 2])


@pytest.mark.parametrize("name", GOLDEN["voc"])
def test_curves_are_those_of_the_development_kit(name):
    case = GOLDEN["voc"][name]
    objects, found = arrays(case["ground_truth"], case["detections"])
    for result in case["results"]:
        curves = voc_curves(objects, found, range(1, case["classes"] + 1), result["threshold"], inclusive=True)
        for label, golden in result["classes"].items():
            curve = curves[int(label)]
            hits = int(curve.hits.sum())
            counts = (curve.positives, len(curve.hits) + curve.ignored, hits, len(curve.hits) - hits, curve.ignored)
            names = ("positives", "detections", "true_positives", "false_positives", "ignored")
            assert counts == tuple(golden[name] for name in names)
            for ours, theirs in ((curve.area(), "ap_area"), (curve.eleven_points(), "ap_11_point")):
                assert ours == (None if golden[theirs] is None else pytest.approx(golden[theirs], abs=1e-14))


@pytest.mark.parametrize("name", GOLDEN["coco"])
def test_cocos_numbers_are_those_of_pycocotools(name, capsys):
    golden = GOLDEN["coco"][name]
    case = GOLDEN["voc"][golden["like_voc_case"]]
    objects, found = arrays(case["ground_truth"], case["detections"])
    numbers, categories = range(100, 100 + case["images"]), (0, *range(10, 10 + 5 * case["classes"], 5))  # with gaps
    scores = coco_scores(objects, coco_results(found, numbers, categories), numbers, categories)
    expected = {ours: golden["results"][theirs] for ours, theirs in zip(COCO_SCORES, THEIRS, strict=True)}
    assert scores.numbers == pytest.approx({k: x for k, x in expected.items() if x > -1}, abs=1e-12)
    of_classes = {int(label): x for label, x in golden["class_ap"].items() if x > -1}
    assert scores.classes == pytest.approx(of_classes, abs=1e-12)
    assert capsys.readouterr() == ("", "")


def test_nothing_has_no_score_and_no_detections_have_zero():
    objects, found = arrays([[0, 1, 0, 0, 0, 9, 9]], [])
    curve = voc_curves(objects, found, (1, 2))
    assert (curve[1].area(), curve[1].eleven_points()) == (0, 0)
    assert (curve[2].area(), curve[2].eleven_points()) == (None, None)
    scores = coco_scores(objects, [], (0,), (0, 1, 2))
    assert scores.classes == {1: 0}
    assert set(scores.numbers) == {name for name in COCO_SCORES if not name.endswith(("medium", "large"))}
    empty, false = arrays([], [[0, 1, 0.5, 0, 0, 9, 9]])
    assert outcomes(empty, false).tolist() == [0]
    assert voc_curves(empty, false, (1,))[1].area() is None
    assert coco_scores(empty, coco_results(false, (0,), (0, 1)), (0,), (0, 1)) == ({}, {})


def test_results_are_in_cocos_format():
    found = Detections(np.array([1]), np.array([2]), np.array([[1.5, 2.25, 4.126, 9]]), np.array([0.7], np.float32))
    (row,) = json.loads(json.dumps(coco_results(found, (5, 139), (0, 1, 90))))
    assert row == {"image_id": 139, "category_id": 90, "bbox": [1.5, 2.25, 2.63, 6.75], "score": 0.7}


def loops(truth: list[Any], found: list[Any], label: int, threshold: float) -> tuple[int, list[bool]]:
    """Positives and hits of a class, one detection after another, as VOCevaldet.m goes about it."""
    own = [row for row in truth if row[1] == label]
    taken, hits = set(), []
    for image, _, _, *box in sorted((row for row in found if row[1] == label), key=lambda row: -row[2]):
        best, owner = -1.0, -1
        for i, (other, _, _, *there) in enumerate(own):
            width = min(box[2], there[2]) - max(box[0], there[0])
            height = min(box[3], there[3]) - max(box[1], there[1])
            if other != image or width <= 0 or height <= 0:
                continue
            areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, there))
            if (iou := width * height / (areas - width * height)) > best:
                best, owner = iou, i
        if best < threshold:
            hits.append(False)
        elif not own[owner][2]:
            hits.append(owner not in taken)
            taken.add(owner)
    return sum(not row[2] for row in own), hits


def by_hand(positives: int, hits: list[bool]) -> tuple[float, float]:
    """AP by area and by 11 points."""
    points, found = [], 0
    for i, hit in enumerate(hits):
        found += hit
        points.append((found / positives, found / (i + 1)))
    area = last = 0.0
    for recall, _ in points:
        area += (recall - last) * max(p for r, p in points if r >= recall)
        last = recall
    eleven = [max((p for r, p in points if r >= 0.1 * k), default=0) for k in range(11)]
    return area, sum(eleven) / 11


CORNER = st.integers(0, 6)
BOX = st.tuples(CORNER, CORNER, st.integers(1, 6), st.integers(1, 6)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
TRUTH = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2), st.booleans(), BOX), max_size=12)
FOUND = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 2), st.sampled_from([0.1, 0.3, 0.5, 0.9]), BOX), max_size=20
)


@given(TRUTH, FOUND, st.sampled_from([0.3, 0.5, 0.7]))
@settings(max_examples=150, deadline=None)
def test_curves_are_those_of_loops_over_detections_and_objects(truth, found, threshold):
    truth, found = ([[*row[:3], *row[3]] for row in rows] for rows in (truth, found))
    curves = voc_curves(*arrays(truth, found), (1, 2), threshold)
    for label, curve in curves.items():
        positives, hits = loops(truth, found, label, threshold)
        assert (curve.positives, curve.hits.tolist()) == (positives, hits)
        if positives:
            assert (curve.area(), curve.eleven_points()) == pytest.approx(by_hand(positives, hits), abs=1e-12)


@given(TRUTH, FOUND)
@settings(max_examples=50, deadline=None)
def test_the_order_of_images_and_objects_changes_no_score_where_scores_differ(truth, found):
    truth, found = ([[*row[:3], *row[3]] for row in rows] for rows in (truth, found))
    for i, row in enumerate(found):
        row[2] = (i + 1) / 32
    renamed = [[[2 - row[0], *row[1:]] for row in rows] for rows in (truth, found)]
    plain, other = (voc_curves(*arrays(*rows), (1, 2)) for rows in ((truth, found), (renamed[0], renamed[1][::-1])))
    for label in plain:
        assert plain[label].area() == other[label].area()
        assert plain[label].hits.tolist() == other[label].hits.tolist()
