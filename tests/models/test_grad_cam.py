"""Grad-CAM, against its closed form on networks small enough to have one."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.models.grad_cam import grad_cam
from jaxcnn.models.layers import Endpoint


class LinearHead(nn.Module):
    """Means of 4×4 pixels, global average pooling and a linear head: d logit / d A is the head's column / (H·W)."""

    dtype: Any = jnp.float32
    marked: bool = True

    endpoints = {"stem": (4, 3), "last": (4, 3)}  # noqa: RUF012

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x = nn.avg_pool(images.astype(self.dtype), (4, 4), (4, 4))
        stem = Endpoint(name="stem")(x)
        last = Endpoint(name="last")(stem) if self.marked else stem
        logits = nn.Dense(5, name="head")(last.astype(jnp.float32).mean(axis=(1, 2)))
        return {"logits": logits, "stem": stem, "last": last}


HEAD = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
VARIABLES = {"params": {"head": {"kernel": HEAD, "bias": np.zeros(5, np.float32)}}}
IMAGES = np.random.default_rng(1).standard_normal((6, 16, 24, 3)).astype(np.float32)


def closed_form(classes: np.ndarray) -> np.ndarray:
    features = IMAGES.reshape(6, 4, 4, 6, 4, 3).mean(axis=(2, 4))
    maps = np.maximum(np.einsum("nhwc,cn->nhw", features, HEAD[:, classes]), 0)
    maps = np.asarray(jax.image.resize(maps, (6, 16, 24), "bilinear"))
    return maps / maps.max(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03)])
def test_a_linear_head_gives_the_closed_form(dtype, tolerance):
    classes = np.array([0, 1, 2, 3, 4, 0])
    maps = grad_cam(LinearHead(dtype), VARIABLES, jnp.asarray(IMAGES), jnp.asarray(classes))
    assert (maps.shape, maps.dtype) == ((6, 16, 24), jnp.float32)
    np.testing.assert_allclose(maps, closed_form(classes), atol=tolerance)


def test_the_likeliest_class_is_explained_unless_told():
    likeliest = np.argmax(IMAGES.mean(axis=(1, 2)) @ HEAD, axis=-1)
    np.testing.assert_allclose(
        grad_cam(LinearHead(), VARIABLES, jnp.asarray(IMAGES)), closed_form(likeliest), atol=1e-5
    )


def test_a_planted_patch_is_found():
    """Class 0 counts red, class 1 blue: each map is the patch of its colour, and nothing else."""
    head = {"kernel": np.eye(3, 5, dtype=np.float32)[[0, 2, 1]], "bias": np.zeros(5, np.float32)}
    images = np.zeros((2, 16, 24, 3), np.float32)
    images[:, 0:4, 4:8, 0] = images[:, 8:12, 16:20, 1] = 1
    red, blue = grad_cam(LinearHead(), {"params": {"head": head}}, jnp.asarray(images), jnp.array([0, 2]))
    for found, (row, column) in ((red, (2, 6)), (blue, (10, 18))):
        at = np.argwhere(found > 0.5)
        assert np.abs(at.mean(axis=0) + 0.5 - (row, column)).max() < 0.6
        assert len(at) <= 36


def test_what_speaks_for_nothing_gives_zeros():
    head = {"kernel": -np.ones((3, 5), np.float32), "bias": np.zeros(5, np.float32)}
    for images in (np.ones_like(IMAGES), np.zeros_like(IMAGES)):
        assert (grad_cam(LinearHead(), {"params": {"head": head}}, jnp.asarray(images)) == 0).all()


def test_a_network_without_the_endpoint_is_an_error():
    with pytest.raises(UserError, match="LinearHead has no Endpoint 'last'"):
        grad_cam(LinearHead(marked=False), VARIABLES, jnp.asarray(IMAGES))
    with pytest.raises(UserError, match="Dense names no endpoints"):
        grad_cam(nn.Dense(3), VARIABLES, jnp.asarray(IMAGES))


class Small(nn.Module):
    """A network whose gradient differs from image to image."""

    endpoints = {"stage1": (1, 8)}  # noqa: RUF012

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x = nn.Conv(8, (3, 3), name="conv")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = Endpoint(name="stage1")(x)
        hidden = nn.relu(nn.Dense(16, name="hidden")(x.mean(axis=(1, 2))))
        return {"logits": nn.Dense(5, name="head")(hidden), "stage1": x}


def test_images_of_a_batch_do_not_mix():
    variables = Small().init(jax.random.key(0), jnp.asarray(IMAGES))
    explain = jax.jit(lambda images: grad_cam(Small(), variables, images))
    maps = explain(IMAGES)
    assert ((maps >= 0) & (maps <= 1)).all()
    assert maps.max() == 1
    np.testing.assert_allclose(explain(IMAGES[::-1])[::-1], maps, atol=1e-5)
    np.testing.assert_allclose(explain(IMAGES[2:3])[0], maps[2], atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "googlenet", "resnet18", "resnet20"])
def test_every_family_can_be_explained(name):
    model = create_model(name, 10)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    maps = jax.eval_shape(lambda variables, images: grad_cam(model, variables, images), variables, images)
    assert (maps.shape, maps.dtype) == ((2, 224, 224), jnp.float32)
