"""The operations together, as torchvision's detector strings them: proposals, detections, and both stages' losses."""

import jax
import jax.numpy as jnp
import numpy as np
from golden import golden
from nets import quick

from jaxcnn.models import boxes as box
from jaxcnn.models import rpn
from jaxcnn.models.anchors import cell_anchors
from jaxcnn.models.grid import Grid, Map
from jaxcnn.models.matching import BACKGROUND, IGNORED, match
from jaxcnn.models.nms import nms

DATA = golden("detection_ops.npz")
GRIDS = [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
PYRAMID = rpn.make_anchors(
    [Map(jnp.zeros((1, *grid, 1)), Grid()) for grid in GRIDS],
    [cell_anchors([side], [0.5, 1, 2]) for side in (32, 64, 128, 256, 512)],
    (128, 192),
    exact=False,
)
ANCHORS = np.asarray(PYRAMID.boxes)


def stage(name, *keys):
    return [DATA[f"{name}/{key}"] for key in keys]


def rpn_outputs(name, images):
    rng = np.random.default_rng(int(DATA[f"{name}/seed"]))
    shapes = (images, len(ANCHORS)), (images, len(ANCHORS), 4)
    logits, deltas = rng.standard_normal(shapes[0]), 0.4 * rng.standard_normal(shapes[1])
    return logits.astype(np.float32), deltas.astype(np.float32)


def smooth_l1(x, beta=1 / 9):
    return np.where(np.abs(x) < beta, x * x / (2 * beta), np.abs(x) - beta / 2)


def test_proposals_are_torchvisions():
    @quick
    def proposals(logits, deltas, sizes):
        limits = {"pre_nms": 300, "post_nms": 150, "threshold": 0.7, "min_side": 1e-3}
        return rpn.propose(PYRAMID, logits, deltas, sizes, **limits)

    (logits, deltas), sizes = rpn_outputs("stage_proposals", 2), DATA["stage_proposals/image_sizes"]
    boxes, valid = proposals(logits, deltas, sizes)
    assert valid.all()
    every = np.asarray(box.clip(box.decode(jnp.asarray(ANCHORS), jnp.asarray(deltas)), sizes))  # (2, A, 4)
    for i in (0, 1):
        np.testing.assert_allclose(boxes[i], DATA[f"stage_proposals/boxes{i}"], rtol=1e-6, atol=1e-4)
        # A proposal's score is the highest of the anchors that regress to its box: it has suppressed the others.
        same = np.abs(every[i] - np.asarray(boxes[i])[:, None]).max(-1) < 1e-3  # (150, A)
        scores = np.where(same, 1 / (1 + np.exp(-logits[i])), 0).max(1)
        np.testing.assert_allclose(scores, DATA[f"stage_proposals/scores{i}"], atol=1e-6)


def test_detections_are_torchvisions():
    proposals = np.zeros((2, 40, 4), np.float32)
    logits, deltas = np.zeros((2, 40, 6), np.float32), np.zeros((2, 40, 6, 4), np.float32)
    valid = np.arange(40) < [[40], [30]]
    proposals[valid] = np.concatenate(stage("stage_detections", "proposals0", "proposals1"))
    logits[valid], deltas[valid] = (
        DATA["stage_detections/logits"],
        DATA["stage_detections/regression"].reshape(70, 6, 4),
    )

    @quick
    @jax.vmap
    def detections(proposals, logits, deltas, valid, size):
        boxes = box.decode(proposals[:, None], deltas, (10, 10, 5, 5))[:, 1:].reshape(-1, 4)  # (R · classes, 4)
        boxes, scores = box.clip(boxes, size), jax.nn.softmax(logits)[:, 1:].ravel()
        labels = jnp.tile(jnp.arange(1, 6), len(proposals))
        candidates = jnp.repeat(valid, 5) & (scores > 0.1) & box.large_enough(boxes, 0.01)
        keep, present = nms(boxes, scores, 0.5, count=20, groups=labels, valid=candidates)
        return boxes[keep], scores[keep], labels[keep], present

    boxes, scores, labels, present = detections(proposals, logits, deltas, valid, DATA["stage_detections/image_sizes"])
    assert present.all()
    for i in (0, 1):
        np.testing.assert_array_equal(labels[i], DATA[f"stage_detections/labels{i}"])
        np.testing.assert_allclose(boxes[i], DATA[f"stage_detections/boxes{i}"], rtol=1e-6, atol=1e-4)
        np.testing.assert_allclose(scores[i], DATA[f"stage_detections/scores{i}"], atol=1e-6)


def test_the_loss_of_the_rpn_is_torchvisions():
    logits, deltas = rpn_outputs("stage_rpn_loss", 3)
    truth, valid = np.zeros((3, 4, 4), np.float32), np.arange(4) < [[4], [1], [0]]
    truth[valid] = np.concatenate(stage("stage_rpn_loss", "gt0", "gt1", "gt2"))

    @quick
    def targets(truth, valid):
        keys, sizes = jax.random.split(jax.random.key(0), 3), jnp.full((3, 2), 1000)
        return rpn.assign_targets(PYRAMID, truth, valid, keys, sizes, samples=10**6, border=True)

    matches, wanted = (np.asarray(x) for x in targets(truth, valid))
    positive, used = matches >= 0, matches != IGNORED
    for key, found in (("positives", positive), ("negatives", matches == BACKGROUND), ("ignored", ~used)):
        assert found.sum(1).tolist() == DATA[f"stage_rpn_loss/{key}"].tolist()
    np.testing.assert_array_equal(np.flatnonzero(positive[0]), DATA["stage_rpn_loss/positive_index0"])
    entropy = np.logaddexp(0, logits) - logits * positive
    np.testing.assert_allclose(entropy[used].mean(), DATA["stage_rpn_loss/loss_objectness"], rtol=1e-5)
    regression = smooth_l1((deltas - wanted)[positive]).sum() / used.sum()
    np.testing.assert_allclose(regression, DATA["stage_rpn_loss/loss_rpn_box_reg"], rtol=1e-4)


def test_the_loss_of_the_box_head_is_torchvisions():
    objects, classes, first, second = stage("stage_box_loss", "gt0", "gt_labels0", "proposals0", "proposals1")
    objects = objects.astype(np.float32)
    images = [(np.concatenate([first, objects]).astype(np.float32), np.ones(4, bool)), (second, np.zeros(4, bool))]
    labels, targets = [], []
    for boxes, valid in images:
        boxes = boxes.astype(np.float32)
        rule = {"positive": 0.5, "negative": (0.0, 0.5)}
        matches = np.asarray(quick(lambda b, v, rule=rule: match(objects, b, valid=v, **rule))(boxes, valid))
        owner = np.maximum(matches, 0)
        labels.append(np.where(matches >= 0, classes[owner], 0))
        targets.append(quick(lambda b, o: box.encode(b, o, (10, 10, 5, 5)))(boxes, objects[owner]))
    for i in (0, 1):
        np.testing.assert_array_equal(labels[i], DATA[f"stage_box_loss/labels{i}"])
    positive = labels[0] > 0
    expected = DATA["stage_box_loss/targets0"]
    np.testing.assert_allclose(np.asarray(targets[0])[positive], expected[positive], rtol=1e-5, atol=1e-4)
    label, target, rows = np.concatenate(labels), np.concatenate(targets), np.arange(86)
    logits, deltas = DATA["stage_box_loss/logits"], DATA["stage_box_loss/regression"].reshape(86, 6, 4)
    entropy = np.logaddexp.reduce(logits, 1) - logits[rows, label]
    np.testing.assert_allclose(entropy.mean(), DATA["stage_box_loss/loss_classifier"], rtol=1e-5)
    regression = smooth_l1((deltas[rows, label] - target)[label > 0]).sum() / len(label)
    np.testing.assert_allclose(regression, DATA["stage_box_loss/loss_box_reg"], rtol=1e-4)
