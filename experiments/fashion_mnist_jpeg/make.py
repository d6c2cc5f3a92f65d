"""Fashion-MNIST as a folder of JPEG files, DIR/{train,val}/CLASS/NUMBER.jpg: 70,000 real files to read and decode.

The images are enlarged to 96 pixels, bicubic, and saved in colour at quality 90.

jaxcnn data prepare fashion_mnist
python experiments/fashion_mnist_jpeg/make.py data/fashion_mnist_jpeg
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from jaxcnn.data.sources import Source, make_source

SIDE, QUALITY = 96, 90
FOLDERS = {"train": "train", "test": "val"}


def write(source: Source, folder: Path, index: int) -> None:
    example = source[index]
    name = source.class_names[example["label"]].replace("/", "-")
    image = Image.fromarray(example["image"][..., 0]).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
    image.save(folder / name / f"{index:05}.jpg", quality=QUALITY)


def main(out: Path) -> None:
    for split, name in FOLDERS.items():
        source = make_source("tfds:fashion_mnist", split)
        for label in source.class_names:
            (out / name / label.replace("/", "-")).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as threads:
            for _ in threads.map(
                lambda index, source=source, name=name: write(source, out / name, index), range(len(source))
            ):
                pass
        print(f"{len(source):,} files in {out / name}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make.py DIR")
    main(Path(sys.argv[1]))
