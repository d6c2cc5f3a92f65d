"""Mask R-CNN's state dict in torchvision's names, in and out."""

from typing import Any

import numpy as np
from golden import shapes_of

from jaxcnn.data.sources import coco
from jaxcnn.models.layers import ConvTranspose
from jaxcnn.weights.torchvision import from_state_dict, input_of, to_state_dict

NAME = "mask_rcnn_resnet50_fpn_tv"


def test_a_state_dict_goes_in_and_comes_back_and_the_transposed_convolution_is_torchs():
    shapes = shapes_of("faster_rcnn_resnet50_fpn") | shapes_of("maskrcnn_resnet50_fpn")
    rng = np.random.default_rng(0)
    theirs = {key: rng.integers(-99, 99, shape, np.int8).astype(np.float32) for key, shape in shapes.items()}
    ours: Any = from_state_dict(NAME, theirs)
    back = to_state_dict(NAME, ours)
    assert list(back) == list(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    mask = ours["params"]["mask"]
    assert mask["head"]["kernel"].shape == (256, 91)
    # torch's definition: every cell puts the kernel, times itself, onto 2×2 cells of the result.
    x = rng.integers(0, 9, (1, 2, 3, 256)).astype(np.float32)
    kernel = theirs["roi_heads.mask_predictor.conv5_mask.weight"]  # (in, out, 2, 2)
    expected = np.einsum("nhwi,iokl->nhkwlo", x, kernel).reshape(1, 4, 6, 256) + mask["conv5"]["bias"]
    layer: Any = ConvTranspose(256, 2, 2, 0, use_bias=True, dtype=np.float32)
    np.testing.assert_allclose(layer.apply({"params": mask["conv5"]}, x), expected, rtol=1e-5, atol=1e-2)


def test_images_are_those_of_the_detector_of_boxes():
    assert input_of(NAME, coco.class_names(91)) == input_of("faster_rcnn_resnet50_fpn_tv", coco.class_names(91))
