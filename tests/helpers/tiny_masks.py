"""A detector with one mask for all objects, and COCO files of blocks and discs with their masks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from pycocotools import mask as coco
from tiny_boxes import NAMES, Blocks, TinyBoxes

from jaxcnn.models.layers import Classifier
from jaxcnn.models.mask_targets import project

Thing = tuple[int, Any, Any]  # category id, box x, y, width, height, segmentation


class TinyMasks(TinyBoxes):
    """`TinyBoxes`, and the mean mask of all objects as the mask of each."""

    gives_masks: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, images: jax.Array, sizes: Any = None, targets: Any = None, proposals: Any = None, train: bool = False
    ) -> dict[str, Any]:
        outputs = super().__call__(images, sizes, targets, proposals, train)
        mask = Classifier(28 * 28, self.dtype, name="fc1")(jnp.ones((1, 1))).reshape(28, 28)
        if targets is not None:

            def of_image(masks: Any, boxes: Any, rois: Any, objects: Any) -> Any:
                return project(masks[objects], boxes[objects], rois, 28)

            learnt = targets["masks"], targets["boxes"], outputs["rois"], outputs["roi_objects"]
            outputs["mask_targets"] = jax.vmap(of_image)(*learnt)
            outputs["mask_logits"] = jnp.broadcast_to(mask, outputs["mask_targets"].shape)
        elif not train:
            shape = (*outputs["valid"].shape, 28, 28)
            outputs["masks"] = jnp.where(
                outputs["valid"][..., None, None], jnp.broadcast_to(nn.sigmoid(mask), shape), 0
            )
        return outputs


def write_coco(
    root: Path, splits: Mapping[str, Sequence[tuple[np.ndarray, Sequence[Thing]]]], names: Sequence[str]
) -> str:
    """Write `coco:ROOT` of images uint8 (H, W, 3) with their objects; category ids count from 1."""
    (root / "annotations").mkdir(parents=True)
    for split, pictures in splits.items():
        (root / f"{split}2017").mkdir()
        images, rows = [], []
        for number, (pixels, things) in enumerate(pictures, start=1):
            height, width, _ = pixels.shape
            Image.fromarray(pixels).save(root / f"{split}2017/{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
            for category, box, segmentation in things:
                crowd = int(isinstance(segmentation, dict) and isinstance(segmentation["counts"], list))
                rows.append({
                    "id": len(rows) + 1, "image_id": number, "category_id": category, "bbox": np.asarray(box).tolist(),
                    "iscrowd": crowd, "area": float(box[2] * box[3]), "segmentation": segmentation,
                })  # fmt: skip
        categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
        file = root / f"annotations/instances_{split}2017.json"
        file.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return f"coco:{root}"


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """The polygon of a box."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def disc(size: tuple[int, int], middle: tuple[float, float], radius: Any) -> np.ndarray:
    """The pixels (H, W) of a disc around (row, column)."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2


def text_of(mask: np.ndarray) -> dict[str, Any]:
    """A mask as pycocotools' text."""
    found: Any = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [*mask.shape], "counts": found["counts"].decode()}


def write_blocks_with_masks(root: Path, splits: Mapping[str, tuple[int, int]]) -> str:
    """Write `coco:ROOT` of the images of `Blocks`, each block its own mask; {split: (images, seed)}."""
    made: dict[str, list[Any]] = {}
    for split, (count, seed) in splits.items():
        rows, made[split] = Blocks().rows(seed, count), []
        for i, (height, width) in enumerate(rows["sizes"]):
            boxes = rows["boxes"][i][rows["valid"][i]].astype(float)
            boxes[:, 2:] -= boxes[:, :2]
            labels = rows["labels"][i][rows["valid"][i]].tolist()
            things = [(label, box, rectangle(*box)) for label, box in zip(labels, boxes, strict=True)]
            made[split].append((rows["image"][i, :height, :width], things))
    return write_coco(root, made, NAMES[1:])
