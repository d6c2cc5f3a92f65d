"""Augmentation and normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.data.transforms import augment, flip, normalize, pad_crop

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 3), np.uint8)


@pytest.fixture(scope="module")
def key():
    return jax.random.key(0)


def test_a_crop_is_a_window_of_the_padded_image_and_every_offset_occurs(key):
    pad, crops = 1, np.asarray(pad_crop(key, jnp.asarray(IMAGES), 1))
    padded = np.pad(IMAGES, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    found = set()
    for crop, image in zip(crops, padded, strict=True):
        offsets = [(y, x) for y in range(3) for x in range(3) if (image[y : y + 6, x : x + 6] == crop).all()]
        assert len(offsets) == 1
        found |= set(offsets)
    assert len(found) == 9


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_rest(key):
    flipped = np.asarray(flip(key, jnp.asarray(IMAGES)))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    kept = (flipped == IMAGES).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 16 < mirrored.sum() < 48


def test_augmentation_is_a_function_of_the_key(key):
    images = jnp.asarray(IMAGES)
    first = augment("pad_crop_flip", 2, key, images)
    assert (first == augment("pad_crop_flip", 2, key, images)).all()
    assert (first != augment("pad_crop_flip", 2, jax.random.key(1), images)).any()
    assert (augment("none", 2, key, images) == images).all()
    assert first.dtype == jnp.uint8


def test_normalisation_is_per_channel_of_pixels_in_0_to_1():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (IMAGES / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalize(jnp.asarray(IMAGES), mean, std), expected, atol=1e-6)
