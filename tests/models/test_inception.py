"""The Inception network of the FID against pytorch-fid's own definition (tests/golden), with random weights."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import entry, golden

from jaxcnn import UserError
from jaxcnn.models.inception import Inception, variables_of

FILE = "inception.npz"
BLOCKS = {"stem": 192, "Mixed_6e": 768, "pool3": 2048}  # ours: pytorch-fid's, by their channels


def shapes() -> Any:
    """Name and shape of each entry of the state dict."""
    return zip(golden(FILE)["names"].tolist(), map(json.loads, golden(FILE)["shapes"].tolist()), strict=True)


def test_the_variables_are_all_of_the_file_but_its_classifier():
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes()}
    made = variables_of(arrays, "weights.pth")
    values = sum(array.size for name, array in arrays.items() if not name.startswith("fc."))
    assert sum(x.size for x in jax.tree.leaves(made)) == values
    with pytest.raises(UserError, match=r"weights\.pth: \S+ is not there: take pytorch-fid's pt_inception"):
        variables_of({}, "weights.pth")
    turned = arrays | {"Mixed_6b.branch7x7_2.conv.weight": np.zeros((128, 128, 7, 1), np.float32)}
    with pytest.raises(UserError, match=r"branch7x7_2\.conv\.weight has another shape, \(128, 128, 7, 1\)"):
        variables_of(turned, "weights.pth")


@pytest.mark.slow
def test_the_features_are_those_of_pytorch_fid():
    images = jnp.asarray(np.random.default_rng(0).random((2, 91, 107, 3)), jnp.float32)
    weights = {name: entry(name, shape) for name, shape in shapes()}
    outputs: Any = jax.jit(Inception().apply)(variables_of(weights, ""), 2 * images - 1)
    for name, channels in BLOCKS.items():
        expected = golden(FILE)[f"features{channels}"]
        found = outputs[name] if name == "pool3" else outputs[name].mean((1, 2))
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_small_images_are_enlarged_as_pytorch_fid_does():
    images = np.random.default_rng(1).random((1, 16, 12, 3)).astype(np.float32)
    found = jax.image.resize(images, (1, 299, 299, 3), "bilinear")
    np.testing.assert_allclose(found[:, ::13, ::13], golden(FILE)["resized"], atol=1e-5)
