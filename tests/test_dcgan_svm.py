"""The script of the DCGAN paper's Table 1: the features that it takes of a discriminator."""

import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.models import create_model

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "experiments/cifar10/dcgan_svm.py"))


def test_the_features_are_the_4_by_4_maxima_of_every_layer():
    model: Any = create_model("dcgan32", dtype=jnp.float32, width=1 / 64)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3))))
    rng = np.random.default_rng(0)
    made: Any = jax.tree.map(lambda x: rng.uniform(0.1, 1, x.shape).astype(np.float32) - 0.5 * (x.ndim > 1), shapes)
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    found = SCRIPT["features"](model, made, images)
    channels = [made["params"]["discriminator"][f"conv{i}"]["kernel"].shape[-1] for i in (1, 2, 3)]
    assert found.shape == (3, 16 * sum(channels))
    conv = jax.lax.conv_general_dilated(
        jnp.asarray(images / 127.5 - 1), made["params"]["discriminator"]["conv1"]["kernel"], (2, 2), ((2, 2), (2, 2)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    corner = jax.nn.leaky_relu(conv, 0.2)[:, :4, :4].max((1, 2))  # of 16×16 cells
    np.testing.assert_allclose(found[:, : channels[0]], corner, atol=1e-5)
