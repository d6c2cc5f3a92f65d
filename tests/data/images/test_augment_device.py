"""Augmentation on the device, and normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from jaxcnn.data.images import augment_device
from jaxcnn.data.images.augment_device import augment, flip, normalize, pad_crop
from jaxcnn.data.images.augment_host import parse

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 3), np.uint8)
LABELS = np.arange(64) % 7
BATCH = {"image": IMAGES, "label": LABELS, "mask": np.ones(64, np.float32)}
EVERY = parse("pad_crop_flip,mixup(0.4),cutmix(1)").device


def keys_of(seed, count=64):
    return jax.random.split(jax.random.key(seed), count)


KEYS = keys_of(0)
augment_all = jax.jit(augment, static_argnums=(0, 1))
mixup, cutmix = (jax.jit(mix, static_argnums=3) for mix in (augment_device.mixup, augment_device.cutmix))


def neighbour(x):
    """Slowly: the other one of each pair."""
    return np.stack([x[i ^ 1] if i ^ 1 < len(x) else x[i] for i in range(len(x))])


def test_a_crop_is_a_window_of_the_padded_image_and_every_offset_occurs():
    pad, crops = 1, np.asarray(pad_crop(KEYS, jnp.asarray(IMAGES), 1))
    padded = np.pad(IMAGES, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    found = set()
    for crop, image in zip(crops, padded, strict=True):
        offsets = [(y, x) for y in range(3) for x in range(3) if (image[y : y + 6, x : x + 6] == crop).all()]
        assert len(offsets) == 1
        found |= set(offsets)
    assert len(found) == 9


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_rest():
    flipped = np.asarray(flip(KEYS, jnp.asarray(IMAGES)))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    kept = (flipped == IMAGES).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 16 < mirrored.sum() < 48


@pytest.mark.parametrize("rows", [64, 63, 1])
def test_mixup_blends_neighbours_in_one_proportion_and_an_odd_last_row_stays(rows):
    images, labels = IMAGES[:rows], LABELS[:rows]
    mixed, other, share = map(np.asarray, mixup(KEYS[:rows], jnp.asarray(images), jnp.asarray(labels), 0.5))
    assert mixed.dtype == share.dtype == np.float32
    np.testing.assert_array_equal(share, np.repeat(share[::2], 2)[:rows])
    weight = share[:, None, None, None].astype(np.float64)
    np.testing.assert_allclose(mixed, weight * images + (1 - weight) * neighbour(images), atol=1e-3)
    np.testing.assert_array_equal(other, neighbour(labels))
    if rows % 2:
        np.testing.assert_allclose(mixed[-1], images[-1], atol=1e-3)


@pytest.mark.parametrize("rows", [64, 63, 1])
def test_cutmix_exchanges_one_rectangle_and_the_share_is_that_of_its_pixels(rows):
    images, labels = IMAGES[:rows].copy(), LABELS[:rows]
    images[..., 0] = np.arange(rows)[:, None, None]  # of each pixel, where it is from
    mixed, other, share = map(np.asarray, cutmix(KEYS[:rows], jnp.asarray(images), jnp.asarray(labels), 1.0))
    np.testing.assert_array_equal(other, neighbour(labels))
    for i in range(rows - rows % 2):
        foreign = mixed[i, ..., 0] != i
        np.testing.assert_array_equal(mixed[i], np.where(foreign[..., None], images[i ^ 1], images[i]))
        np.testing.assert_array_equal(foreign, np.outer(foreign.any(1), foreign.any(0)))  # all of its rows × columns
        for line in (foreign.any(0), foreign.any(1)):
            assert (np.diff(line.astype(int)) == 1).sum() + line[0] <= 1  # without a gap
        np.testing.assert_array_equal(foreign, mixed[i ^ 1, ..., 0] != i ^ 1)
        assert share[i] == pytest.approx(1 - foreign.mean(), abs=1e-6)
    if rows % 2:
        np.testing.assert_array_equal(mixed[-1], images[-1])
    else:
        assert len(set(share)) > 8


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha):
    keys = keys_of(1, 8192)
    share = np.asarray(mixup(keys, jnp.zeros((8192, 1, 1, 1)), jnp.zeros(8192, int), alpha)[2])[::2]
    points = np.array([0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
    below = (share[:, None] <= points).mean(0)
    np.testing.assert_allclose(below, stats.beta.cdf(points, alpha, alpha), atol=0.03)  # four standard deviations
    assert share.min() >= 0
    assert share.max() <= 1


def test_where_mixup_and_cutmix_are_named_each_pair_takes_one_of_them():
    ops = (("cutmix", (1.0,)), ("mixup", (1.0,)))
    only = [jax.device_get(augment_all((op,), 0, KEYS, BATCH)) for op in ops]
    both = jax.device_get(augment_all(ops, 0, KEYS, BATCH))
    assert both.keys() == {*BATCH, "other", "share"}
    assert both["other"].dtype == jnp.int32
    cut, mixed = ((both["image"] == one["image"]).all((1, 2, 3)) & (both["share"] == one["share"]) for one in only)
    assert (cut | mixed).all()
    assert 16 < cut.sum() < 48
    np.testing.assert_array_equal(cut[::2], cut[1::2])


def test_what_becomes_of_a_pair_depends_on_its_keys_and_not_on_the_batch():
    whole = jax.device_get(augment_all(EVERY, 2, KEYS, BATCH))
    part = augment_all(EVERY, 2, KEYS[8:12], {k: v[8:12] for k, v in BATCH.items()})
    for key in whole:
        np.testing.assert_allclose(part[key], whole[key][8:12], atol=1e-4)
    other = jax.device_get(augment_all(EVERY, 2, keys_of(1), BATCH))
    assert (whole["image"] != other["image"]).any((1, 2, 3)).all()


def test_operations_are_done_in_their_order_and_one_more_changes_none_of_the_others():
    cropped = augment_all((("pad_crop", ()),), 2, KEYS, BATCH)
    assert (cropped["image"] == augment_all((("pad_crop", (2.0,)),), 1, KEYS, BATCH)["image"]).all()
    flipped = augment_all((("flip", ()),), 2, KEYS, cropped)
    both = augment_all((("pad_crop", ()), ("flip", ())), 2, KEYS, BATCH)
    assert (both["image"] == flipped["image"]).all()
    assert both["image"].dtype == jnp.uint8
    assert both.keys() == BATCH.keys()
    assert (augment((), 2, KEYS, BATCH)["image"] == IMAGES).all()


def test_no_device_needs_the_rows_of_another():
    mesh = Mesh(np.array(jax.devices()[:4]), "data")
    rows = NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(lambda keys, batch: augment(EVERY, 2, keys, batch), in_shardings=rows, out_shardings=rows)
    program = step.lower(KEYS, BATCH).compile().as_text()
    assert program
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in program


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalisation_is_per_channel_of_pixels_in_0_to_1(dtype):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (IMAGES / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalize(jnp.asarray(IMAGES, dtype), mean, std), expected, atol=1e-6)


def test_the_largest_rectangle_of_cutmix_has_the_share_that_was_drawn():
    images = np.zeros((64, 32, 32, 1), np.uint8)
    share = cutmix(KEYS, images, LABELS, 1e4)[2]  # draws of about a half; less where the image cuts it off
    assert 1 - share.min() == pytest.approx(0.5, abs=0.05)


def test_what_an_image_is_mixed_by_does_not_follow_from_whether_it_is_flipped():
    images = np.zeros((64, 8, 8, 1), np.uint8)
    images[:, :, :4] = 200
    batch = {"image": images, "label": LABELS}
    flipped = np.asarray(augment_all(parse("flip").device, 4, KEYS, batch)["image"][:, 0, 0, 0] == 0)
    share = np.asarray(augment_all(parse("flip,mixup(1),cutmix(1)").device, 4, KEYS, batch)["share"])
    blended = share * 64 % 1 != 0  # cutmix keeps whole pixels of 64
    assert set(zip(flipped[::2].tolist(), blended[::2].tolist(), strict=True)) == {
        (flip, blend) for flip in (False, True) for blend in (False, True)
    }
