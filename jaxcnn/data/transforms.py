"""What happens to a batch of images on the device: augmentation and normalisation. Pure functions of (rng, images)."""

import jax
import jax.numpy as jnp


def pad_crop(rng: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
    """Pad by `pad` zero pixels on each side and crop back at random: (N, H, W, C) -> the same shape and type.

    ResNet paper, section 4.2, after Lee et al. 2015. The offset of each image is uniform over the 2·pad + 1 positions.
    """
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    offsets = jax.random.randint(rng, (images.shape[0], 2), 0, 2 * pad + 1)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def flip(rng: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror each image left to right with probability one half: (N, H, W, C) -> the same shape and type."""
    mirrored = jax.random.bernoulli(rng, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def augment(name: str, pad: int, rng: jax.Array, images: jax.Array) -> jax.Array:
    """Apply the augmentation of `config.data.augment`, "none", "pad_crop" or "pad_crop_flip"."""
    crop_rng, flip_rng = jax.random.split(rng)
    if name != "none":
        images = pad_crop(crop_rng, images, pad)
    if name == "pad_crop_flip":
        images = flip(flip_rng, images)
    return images


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 (N, H, W, C) -> float32 with each channel of pixels in 0 … 1 centred on `mean` and divided by `std`."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    return images.astype(jnp.float32) * scale - jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
