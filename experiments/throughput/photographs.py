"""JPEG files of ImageNet's sizes, cut out of scikit-learn's two photographs: the same bytes on every run.

ImageNet's training images are 110 kB and 400×350 pixels on average, most of them 500×375 or 375×500, some much larger.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

SIZES = {  # (width, height): share
    (500, 375): 0.5, (375, 500): 0.18, (500, 333): 0.12, (333, 500): 0.05, (640, 480): 0.07, (400, 400): 0.05,
    (1024, 768): 0.02, (1600, 1200): 0.01,
}  # fmt: skip
QUALITIES = (95, 99)
FULL_COLOUR = 0.1  # share without subsampled colour


def make(folder: Path, images: int, seed: int = 0) -> list[Path]:
    """Write `images` files to folder/train/0, both photographs in turn, and return their paths."""
    rng, paths = np.random.default_rng(seed), []
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    sizes = rng.choice(len(SIZES), images, p=list(SIZES.values()))
    for number in range(images):
        photograph, (width, height) = photographs[number % 2], list(SIZES)[sizes[number]]
        # Enlarged by 1.5 at most: more would leave too little to encode.
        scale = min(photograph.width / width, photograph.height / height)
        scale *= rng.uniform(min(1, 1 / 1.5 / scale), 1)
        w, h = int(width * scale), int(height * scale)
        left, top = (int(rng.integers(n + 1)) for n in (photograph.width - w, photograph.height - h))
        image = photograph.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        path = folder / "train" / "0" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        subsampling = 0 if rng.random() < FULL_COLOUR else 2  # 4:4:4, or 4:2:0
        image.save(path, quality=int(rng.integers(*QUALITIES)), subsampling=subsampling)
        paths.append(path)
    return paths
