"""What happens to a batch of images on the device: augmentation and normalisation.

Augmentations draw from `keys`, one typed JAX key a row: what becomes of an example is a function of its key, wherever
in the batch it is. Mixing looks at its neighbour too, so no device needs another's rows if each has an even number.
"""

from typing import Any

import jax
import jax.numpy as jnp

Mixed = tuple[jax.Array, jax.Array, jax.Array]
_DRAWS = ("pad_crop", "flip", "mixup", "cutmix", "choice")  # a key is folded with the index: each draws for itself


def pad_crop(keys: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
    """Pad by `pad` zero pixels on each side and crop back at random: (N, H, W, C) -> the same shape and type.

    ResNet paper, section 4.2, after Lee et al. 2015. The offset of each image is uniform over the 2·pad + 1 positions.
    """
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(key: jax.Array, image: jax.Array) -> jax.Array:
        top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(image, (top, left, 0), images.shape[1:])

    return jax.vmap(crop)(keys, padded)


def flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror each image left to right with probability one half: (N, H, W, C) -> the same shape and type."""
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(_per_image(mirrored), images[:, :, ::-1], images)


def mixup(keys: jax.Array, images: jax.Array, labels: jax.Array, alpha: float) -> Mixed:
    """Blend rows 2k and 2k + 1 with each other; the last of an odd number stays alone. Zhang et al. 2018, section 2.

    The share of a row's own image is one draw from Beta(alpha, alpha) for the pair, from the key of its first row.
    The paper pairs at random: in a shuffled batch neighbours are as good, and they live on the same device.

    Args:
      images: (N, H, W, C), uint8 or float32 of 0 … 255.
      labels: (N,).

    Returns:
      images (N, H, W, C) float32 of 0 … 255, the neighbours' labels (N,), share of a row's own label (N,) float32.
    """
    share = _of_pair(jax.vmap(_beta, (0, None))(keys, alpha))
    return _blend(images, _per_image(share)), _neighbour(labels), share


def cutmix(keys: jax.Array, images: jax.Array, labels: jax.Array, alpha: float) -> Mixed:
    """Exchange one rectangle between rows 2k and 2k + 1. Yun et al. 2019, section 3.1; otherwise as `mixup`.

    Its sides are sqrt(1 - lambda) of the image's, lambda drawn from Beta(alpha, alpha), and its centre is uniform. What
    lies outside is cut off, and the share is that of the pixels which stay: exact, not lambda.
    """
    size = jnp.array(images.shape[1:3])

    def corners(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        beta_key, centre_key = jax.random.split(key)
        sides = size * jnp.sqrt(1 - _beta(beta_key, alpha))
        start = jnp.round(jax.random.uniform(centre_key, (2,)) * size - sides / 2).astype(jnp.int32)
        return jnp.clip(start, 0, size), jnp.clip(start + jnp.round(sides).astype(jnp.int32), 0, size)

    starts, ends = jax.tree.map(_of_pair, jax.vmap(corners)(keys))
    rows, columns = (
        (starts[:, i, None] <= jnp.arange(size)) & (jnp.arange(size) < ends[:, i, None])
        for i, size in enumerate(images.shape[1:3])
    )
    kept = ~(rows[:, :, None, None] & columns[:, None, :, None])  # (N, H, W, 1)
    return _blend(images, kept.astype(jnp.float32)), _neighbour(labels), kept.mean((1, 2, 3), jnp.float32)


def augment(
    ops: tuple[tuple[str, tuple[float, ...]], ...], pad: int, keys: jax.Array, batch: dict[str, Any]
) -> dict[str, Any]:
    """Return a batch after the operations of `Augmentation.device`, in their order.

    Args:
      ops: (name, arguments) each; where mixup and cutmix are both named, each pair gets one, with probability one half.
      pad: of a pad_crop without an argument, in pixels.
      keys: (N,) typed keys.
      batch: "image" uint8 (N, H, W, C), "label" (N,), and whatever else, which is passed on.

    Returns:
      The batch with a new "image", float32 of 0 … 255 after mixing; mixing adds "other" (N,) int32, the neighbours'
      labels, and "share" (N,) float32, of a row's own label.
    """
    named, images, mixed = dict(ops), batch["image"], {}
    for name, arguments in ops:
        if name == "pad_crop":
            images = pad_crop(_keys(keys, name), images, int(arguments[0]) if arguments else pad)
        elif name == "flip":
            images = flip(_keys(keys, name), images)
        elif not mixed:  # the second of two is done with the first
            images, other, share = _mix(named, keys, images, batch["label"])
            mixed = {"other": other.astype(jnp.int32), "share": share}
    return {**batch, "image": images, **mixed}


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Centre and scale each channel of pixels in 0 … 1: (N, H, W, C), uint8 or float of 0 … 255 -> float32.

    That is, less `mean` and divided by `std`.
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    return images.astype(jnp.float32) * scale - jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)


def _mix(named: dict[str, tuple[float, ...]], keys: jax.Array, images: jax.Array, labels: jax.Array) -> Mixed:
    """Apply mixup, cutmix, or for each pair one of the two."""
    mixes = [
        mix(_keys(keys, name), images, labels, *named[name])
        for name, mix in (("mixup", mixup), ("cutmix", cutmix))
        if name in named
    ]
    if len(mixes) == 1:
        return mixes[0]
    first = _of_pair(jax.vmap(jax.random.bernoulli)(_keys(keys, "choice")))
    (images, other, share), (cut_images, _, cut_share) = mixes
    return jnp.where(_per_image(first), images, cut_images), other, jnp.where(first, share, cut_share)


def _keys(keys: jax.Array, name: str) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, _DRAWS.index(name))


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draw once from Beta(alpha, alpha), float32.

    Not `jax.random.beta`: it rejects in a loop, and every round of it would be an all-reduce over the devices. This
    takes two uniform numbers and is exact: if t has Student's distribution of 2 alpha degrees of freedom, drawn in
    polar form (Bailey 1994), t / sqrt(2 alpha + t²) is the beta over -1 … 1 (Devroye 1996, "Random variate generation
    in one line of code").
    """
    u, v = jax.random.uniform(key, (2,))
    tangent = jnp.sqrt(jnp.expm1(-jnp.log(u) / alpha)) * jnp.cos(2 * jnp.pi * v)  # t / sqrt(2 alpha), or infinite
    return (1 + jnp.sin(jnp.arctan(tangent))) / 2


def _per_image(x: jax.Array) -> jax.Array:
    """Return (N,) as (N, 1, 1, 1)."""
    return x[:, None, None, None]


def _blend(images: jax.Array, share: jax.Array) -> jax.Array:
    """Return `share` of each image, (N, 1, 1, 1) or (N, H, W, 1), and the rest of its neighbour: float32."""
    images = images.astype(jnp.float32)
    return share * images + (1 - share) * _neighbour(images)


def _neighbour(x: jax.Array) -> jax.Array:
    """Return rows 1, 0, 3, 2, …; the last of an odd number is its own."""
    pairs = x[: len(x) // 2 * 2].reshape(-1, 2, *x.shape[1:])
    return _unpaired(pairs[:, ::-1], x)


def _of_pair(x: jax.Array) -> jax.Array:
    """Return rows 0, 0, 2, 2, …: both of a pair have the first one's."""
    pairs = x[: len(x) // 2 * 2].reshape(-1, 2, *x.shape[1:])
    return _unpaired(jnp.broadcast_to(pairs[:, :1], pairs.shape), x)


def _unpaired(pairs: jax.Array, x: jax.Array) -> jax.Array:
    """Return (N // 2, 2, …) as (N, …), with the last row of `x` where N is odd."""
    rows = pairs.reshape(-1, *x.shape[1:])
    return jnp.concatenate([rows, x[-1:]]) if len(x) % 2 else rows
