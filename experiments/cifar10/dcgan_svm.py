"""A linear SVM on the features of a DCGAN's discriminator: the DCGAN paper's Table 1, small.

    python experiments/cifar10/dcgan_svm.py runs/cifar10-dcgan32 --train 5000 --test 2000

The maps of all the discriminator's convolutions, each pooled to 4×4 maxima, are flattened and joined, and an L2-SVM
(squared hinge loss) on them tells the classes apart (section 5.1 of arXiv:1511.06434). Its penalty is the best of
`PENALTIES` on a fifth of the training images. The same of the pixels and of a discriminator that was not trained stand
beside it.

Published: 82.8 % on CIFAR-10, of a discriminator that was trained on ImageNet-1k, by 50,000 images and 28,672 features;
80.6 % by K-means. Figures of fewer images, or of a discriminator trained on CIFAR-10 itself, do not compare with it.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.svm import LinearSVC

import jaxcnn
from jaxcnn.data.sources import make_source

SIDE = 4  # Each map is pooled to 4×4.
PENALTIES = (1e-4, 1e-3, 1e-2)  # scikit-learn's C, of the loss's sum over images
CHUNK = 250  # images that go through the network at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", help="run of a dcgan")
    parser.add_argument("--train", type=int, default=5000, help="images to fit")
    parser.add_argument("--test", type=int, default=2000, help="images to score")
    arguments = parser.parse_args()
    run = jaxcnn.open_run(arguments.workdir)
    sets = [first(run, split, count) for split, count in (("train", arguments.train), ("test", arguments.test))]
    fresh = jax.jit(run.model.init)(jax.random.key(0), jnp.zeros((2, *run.input["image_shape"])))
    kinds = {
        "pixels": lambda images: images.reshape(len(images), -1) / np.float32(127.5) - 1,
        "discriminator, not trained": lambda images: features(run.model, fresh, images),
        "discriminator": lambda images: features(run.model, run.variables, images),
    }
    print(f"{arguments.workdir} at step {run.step}: {arguments.train:,} images to fit, {arguments.test:,} to score")
    for name, of in kinds.items():
        (x, y), (x_test, y_test) = ((of(images), labels) for images, labels in sets)
        held = len(x) // 5
        chosen = max(PENALTIES, key=lambda c: svm(c, x[held:], y[held:]).score(x[:held], y[:held]))
        score = svm(chosen, x, y).score(x_test, y_test)
        print(f"{name}: {score:.2%} of {x.shape[1]:,} features, C = {chosen:g}", flush=True)


def first(run: jaxcnn.TrainedModel, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first images of a split, uint8 (count, H, W, C), and their labels (count,)."""
    source = make_source(run.config.data.name, split, data_dir=run.config.data.dir)
    examples = [source[i] for i in range(count)]
    return np.stack([example["image"] for example in examples]), np.array([example["label"] for example in examples])


def svm(penalty: float, x: np.ndarray, y: np.ndarray) -> LinearSVC:
    """Return a fitted one-against-all L2-SVM."""
    return LinearSVC(C=penalty, random_state=0).fit(x, y)


def features(model: Any, variables: Any, images: np.ndarray) -> np.ndarray:
    """Return the pooled maps of the discriminator, float32 (N, 16 · channels of all layers), of uint8 images."""

    @jax.jit
    def pooled(variables: Any, images: jax.Array) -> jax.Array:
        _, state = model.apply(variables, images / 127.5 - 1, capture_intermediates=True)
        found, maps = state["intermediates"]["discriminator"], []
        for i in range(1, 1 + sum(name.startswith("conv") for name in found)):
            x = found.get(f"norm{i}", found[f"conv{i}"])["__call__"][0].astype(jnp.float32)  # the first has no norm
            n, side, _, channels = x.shape
            # Leaky ReLU grows, so that it may come after the maximum.
            x = x.reshape(n, SIDE, side // SIDE, SIDE, side // SIDE, channels).max((2, 4))
            maps.append(jnp.where(x > 0, x, 0.2 * x).reshape(n, -1))
        return jnp.concatenate(maps, axis=1)

    parts = np.split(images, range(CHUNK, len(images), CHUNK))
    return np.concatenate([np.asarray(pooled(variables, jnp.asarray(part, jnp.float32))) for part in parts])


if __name__ == "__main__":
    main()
