"""torchvision's arithmetic of masks as its definition reads, slow and plain: training targets and pasting."""

import numpy as np


def resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) as `interpolate(mask, size)` gives it: the pixel at ⌊place · old / new⌋."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, mask.shape, strict=True))
    return mask[rows][:, columns]


def bilinear(mask: np.ndarray, y: float, x: float) -> float:
    """RoIAlign's sample of a map: 0 more than a cell outside, the edge's value nearer."""
    height, width = mask.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = (1 - across) * mask[top, left] + across * mask[top, right]
    lower = (1 - across) * mask[bottom, left] + across * mask[bottom, right]
    return float((1 - down) * upper + down * lower)


def projected(mask: np.ndarray, roi: np.ndarray, size: int) -> np.ndarray:
    """`project_masks_on_boxes` of one mask (H, W) and one region: RoIAlign, adaptive sampling, corners not aligned."""
    x1, y1, x2, y2 = map(float, roi)
    wide, tall = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    across, down = int(np.ceil(wide / size)), int(np.ceil(tall / size))
    out = np.zeros((size, size))
    for i in range(size):
        ys = [y1 + (i + (k + 0.5) / down) * tall / size for k in range(down)]
        for j in range(size):
            xs = [x1 + (j + (k + 0.5) / across) * wide / size for k in range(across)]
            out[i, j] = np.mean([bilinear(mask, y, x) for y in ys for x in xs])
    return out


def pasted(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`paste_masks_in_image` of one mask with padding 1, before the threshold: float (H, W)."""
    cells = len(mask)
    padded = np.zeros((cells + 2, cells + 2), np.float32)
    padded[1:-1, 1:-1] = mask
    box = np.asarray(box, np.float32)
    half = (box[2:] - box[:2]) * np.float32(0.5) * np.float32((cells + 2) / cells)
    middle = (box[2:] + box[:2]) * np.float32(0.5)
    x1, y1, x2, y2 = (int(edge) for edge in (*(middle - half), *(middle + half)))
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    out = np.zeros(size, np.float32)
    for y in range(max(y1, 0), min(y2 + 1, size[0])):
        for x in range(max(x1, 0), min(x2 + 1, size[1])):
            v = max((y - y1 + 0.5) * (cells + 2) / height - 0.5, 0)
            u = max((x - x1 + 0.5) * (cells + 2) / width - 0.5, 0)
            out[y, x] = bilinear(padded, v, u)
    return out
