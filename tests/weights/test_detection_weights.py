"""Detectors' state dicts: torchvision's names, those that it published weights under, and files of them."""

import re
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden import Shapes, shapes_of

from jaxcnn import UserError
from jaxcnn.data.sources import coco
from jaxcnn.weights.torchvision import find_network, from_state_dict, to_state_dict

NAME = "faster_rcnn_resnet50_fpn_tv"
HEADS = {"cls_score.weight": (1024,), "cls_score.bias": (), "bbox_pred.weight": (1024,), "bbox_pred.bias": ()}


def shapes(classes: int = 21) -> Shapes:
    """Torch's shapes, with the head of so many classes."""
    heads = {
        f"roi_heads.box_predictor.{key}": (classes * (4 if "bbox" in key else 1), *rest) for key, rest in HEADS.items()
    }
    return shapes_of("faster_rcnn_resnet50_fpn") | heads


def drawn(classes: int = 21) -> dict[str, np.ndarray]:
    """Small whole numbers, so that every entry can be told from its neighbours."""
    rng = np.random.default_rng(0)
    return {key: rng.integers(-99, 99, shape).astype(np.float32) for key, shape in shapes(classes).items()}


def test_a_state_dict_goes_in_and_comes_back():
    theirs = drawn()
    ours = from_state_dict(NAME, theirs)
    back = to_state_dict(NAME, ours)
    assert list(back) == list(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    # A frozen norm has no parameters.
    assert not any("norm" in path for path in flatten_dict(ours["params"], sep="/"))


def test_regressions_are_those_of_their_class():
    theirs = drawn(5)
    kernel = from_state_dict(NAME, theirs)["params"]["boxes"]["head"]["kernel"]  # (1024, 4 · classes)
    rows = theirs["roi_heads.box_predictor.bbox_pred.weight"].reshape(5, 4, 1024)
    np.testing.assert_array_equal(kernel.reshape(1024, 4, 5), rows.transpose(2, 1, 0))


def test_the_names_of_the_published_weights_are_known():
    now = drawn(91)
    old = {re.sub(r"(_blocks\.\d|rpn\.head\.conv)(\.0)+\.", r"\1.", key): value for key, value in now.items()}
    assert old.keys() != now.keys()
    for found, left in (find_network(NAME, old), find_network(NAME, {f"module.{key}": x for key, x in old.items()})):
        assert not left
        np.testing.assert_array_equal(
            from_state_dict(NAME, found)["params"]["rpn"]["conv"]["bias"], now["rpn.head.conv.0.0.bias"]
        )
    np.testing.assert_array_equal(to_state_dict(NAME, from_state_dict(NAME, old))["backbone.fpn.layer_blocks.3.0.bias"],
                                  now["backbone.fpn.layer_blocks.3.0.bias"])  # fmt: skip


def test_variables_of_trained_norms_go_out_as_those_of_frozen_ones():
    ours: Any = from_state_dict(NAME, drawn())
    norm = ours["batch_stats"]["trunk"]["stem_norm"]
    ours["params"]["trunk"]["stem_norm"] = {leaf: norm.pop(leaf) for leaf in ("scale", "bias")}
    np.testing.assert_array_equal(
        to_state_dict(NAME, ours)["backbone.body.bn1.weight"], drawn()["backbone.body.bn1.weight"]
    )


@pytest.mark.parametrize("key", ["rpn.head.cls_logits.bias", "backbone.fpn.inner_blocks.2.0.weight"])
def test_what_is_missing_is_named(key):
    theirs = drawn()
    del theirs[key]
    with pytest.raises(UserError, match=re.escape(key)):
        from_state_dict(NAME, theirs)


def test_classes_of_a_network_of_coco_have_its_names():
    by_id, by_rank = coco.class_names(91), coco.class_names(81)
    assert (by_id[0], by_id[1], by_id[90]) == ("background", "person", "toothbrush")
    assert (by_rank[1], by_rank[80], len({*by_rank})) == ("person", "toothbrush", 81)
    assert len({*by_id}) == 91
    assert coco.class_names(21) == ()
