"""Small data sets with label maps, in the layouts in which their makers publish them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PALETTE = np.stack([np.arange(256), np.arange(256)[::-1], np.arange(256) // 2], 1).astype(np.uint8)


def scene(index: int, height: int = 12, width: int = 16, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, uint8 (H, W, 3), and its label map: a block of one class in class 0. Red tells the class."""
    labels = np.zeros((height, width), np.uint8)
    top, left = index % (height // 2), (3 * index) % (width // 2)
    labels[top : top + height // 2, left : left + width // 2] = 1 + index % (classes - 1)
    image = np.stack([labels * 60, labels * 20 + 40, np.full_like(labels, 30)], -1)
    return image, labels


def save(path: Path, pixels: np.ndarray, palette: bool = False, **options: Any) -> None:
    """Write an image, or a label map in grey or with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(PALETTE.tobytes())
    image.save(path, **options)


def png_of_bits(numbers: np.ndarray, bits: int) -> bytes:
    """Return numbers below 2^bits as a PNG with a palette of so many bits a pixel."""
    image, file = Image.fromarray(numbers), io.BytesIO()
    image.putpalette(PALETTE[: 2**bits].tobytes())
    image.save(file, "PNG", bits=bits)
    return file.getvalue()


def write_masks(root: Path, sizes: dict[str, list[tuple[int, int]]], form: str = "images/SPLIT") -> str:
    """Write `masks:ROOT` of three classes, scene i of a split in sizes[split][i]; return its name."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("ground\ncat\ndog\n")
    for split, shapes in sizes.items():
        images = root / form.replace("SPLIT", split)
        masks = root / form.replace("SPLIT", split).replace("images", "masks")
        for i, (height, width) in enumerate(shapes):
            image, labels = scene(i, height, width)
            save(images / f"{i:02}.bmp", image)
            save(masks / f"{i:02}.png", labels)
    return f"masks:{root}"


def write_camvid(root: Path, count: int = 4) -> str:
    """Write `camvid:ROOT`, whose lists have paths of another machine; return its name."""
    for split in ("train", "val", "test"):
        lines = []
        for i in range(count):
            image, labels = scene(i)
            labels[0, :5] = 11  # void
            save(root / split / f"{i}.png", image)
            save(root / f"{split}annot" / f"{i}.png", labels)
            lines.append(f"/SegNet/CamVid/{split}/{i}.png /SegNet/CamVid/{split}annot/{i}.png")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return f"camvid:{root}"


def write_voc(devkit: Path, year: str = "VOC2012", names: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    """Write a year of PASCAL VOC with the lists train and val, of half the names each; return its folder."""
    root = devkit / year
    for i, name in enumerate(names):
        image, labels = scene(i, classes=21)
        labels[-1] = 255  # the border of an object
        save(root / f"JPEGImages/{name}.jpg", image)
        save(root / f"SegmentationClass/{name}.png", labels, palette=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    half = len(names) // 2
    for split, part in (("train", names[:half]), ("val", names[half:]), ("trainval", names)):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in part))
    return root


def write_sbd(folder: Path, names: dict[str, tuple[str, ...]]) -> None:
    """Write SBD's folder: masks of class 7 alone, in compressed MAT files, and its lists."""
    from scipy.io import savemat

    (folder / "cls").mkdir(parents=True)
    for split, part in names.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
        for name in part:
            truth = {"Boundaries": np.zeros(3), "Segmentation": np.full((12, 16), 7, np.uint8), "CategoriesPresent": 7}
            savemat(folder / f"cls/{name}.mat", {"GTcls": truth}, do_compression=True)


def write_coco(root: Path, **changes: Any) -> str:
    """Write `coco_segmentation:ROOT` of four images of 12×16, two a split; return its name.

    Image 1 of a split has a bus that overlaps a person, and a kite, which is no class of VOC; image 2 has a crowd.

    Args:
      changes: what the annotation of the crowd has otherwise.
    """
    bus = {"category_id": 6, "image_id": 1, "area": 1008.0, "iscrowd": 0, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]}
    person = bus | {"category_id": 1, "segmentation": [[6, 4, 14, 4, 14, 10, 6, 10]]}
    kite = bus | {"category_id": 38, "segmentation": [[0, 8, 4, 8, 4, 12, 0, 12]]}
    lengths = {"size": [12, 16], "counts": [0, 24, 168]}  # the first two columns
    crowd = person | {"image_id": 2, "area": 24.0, "iscrowd": 1, "segmentation": lengths} | changes
    images = [{"id": n, "file_name": f"{n:012}.jpg", "height": 12, "width": 16} for n in (2, 1)]
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        for image in images:
            save(root / split / image["file_name"], scene(image["id"])[0])
        annotations = {"images": images, "annotations": [bus, person, kite, crowd], "categories": []}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(annotations))
    return f"coco_segmentation:{root}"
