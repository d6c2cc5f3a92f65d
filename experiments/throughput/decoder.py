"""How far our decoding is from libjpeg-turbo's own limit: milliseconds of processor time an image, on one core.

    python experiments/throughput/decoder.py [--library libturbojpeg.so] > table.md

The limit is TurboJPEG's cropping region, `tj3SetCroppingRegion` (version 3 on): called through ctypes with no work
around it, it skips the inverse transform of the rows above the crop and the columns beside it. Training crops are 8 to
100 % of the area, brought to 224 pixels, bilinear.
"""

import argparse
import ctypes
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import photographs
import simplejpeg

from jaxcnn.data.images import decode
from jaxcnn.data.images.augment_host import parse
from jaxcnn.data.images.decode import crop_resize

SIDE, BLOCK = 224, 16


class Region(ctypes.Structure):
    """In pixels; all 0 is the whole image."""

    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class Library:
    """The part of TurboJPEG 3 that decodes a region."""

    def __init__(self, path: str):
        self.tj = ctypes.CDLL(path)
        self.tj.tj3Init.restype = ctypes.c_void_p
        self.handle = ctypes.c_void_p(self.tj.tj3Init(1))  # for decompression
        data = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        self.tj.tj3DecompressHeader.argtypes = data
        self.tj.tj3SetCroppingRegion.argtypes = [ctypes.c_void_p, Region]
        self.tj.tj3Decompress8.argtypes = [*data, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]

    def crop(self, data: bytes, top: int, left: int, height: int, width: int) -> np.ndarray:
        """RGB of the crop, and the columns to its left that share its blocks."""
        start = left // BLOCK * BLOCK
        pixels = np.empty((height, left + width - start, 3), np.uint8)
        failed = self.tj.tj3SetCroppingRegion(self.handle, Region(0, 0, 0, 0))
        failed |= self.tj.tj3DecompressHeader(self.handle, data, len(data))
        failed |= self.tj.tj3SetCroppingRegion(self.handle, Region(start, top, pixels.shape[1], height))
        failed |= self.tj.tj3Decompress8(self.handle, data, len(data), pixels.ctypes.data, 0, 0)
        assert not failed
        return pixels


def milliseconds(ways: dict[str, Callable[[int], object]], images: int, rounds: int) -> dict[str, list[float]]:
    """Of each way, for one image, in each round; the ways are taken in turn."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.thread_time()
            for i in range(images):
                way(i)
            spent[name].append(1e3 * (time.thread_time() - start) / images)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", metavar="PATH", help="a libturbojpeg of version 3 (default: leave the limit out)")
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    with tempfile.TemporaryDirectory() as folder:
        files = [path.read_bytes() for path in photographs.make(Path(folder), options.files)]
    geometry, size = parse("random_area(0.08,1)").geometry, (SIDE, SIDE)
    assert geometry
    boxes = [geometry(decode.size_of(data), size, np.random.default_rng(i)) for i, data in enumerate(files)]
    headers = [header for data in files if (header := decode.read_header(data))]
    edges = [tuple(map(round, (b.top, b.left, b.top + b.height, b.left + b.width))) for b in boxes]
    crops = [(top, left, bottom - top, right - left) for top, left, bottom, right in edges]
    scales = [decode.scale_for(crop[2:], size) for crop in crops]
    ways: dict[str, Callable[[int], object]] = {
        "the whole image (simplejpeg)": lambda i: simplejpeg.decode_jpeg(files[i]),
        "the whole image at 1/8: little but entropy decoding": lambda i: decode.decode_jpeg(
            files[i], headers[i], 3, 0, 8
        ),
        "ours: header": lambda i: decode.read_header(files[i]),
        "ours: rows down to the crop": lambda i: decode.decode_jpeg(files[i], headers[i], 3, crops[i][0] + crops[i][2]),
        "the same, by 1/2 … 1/8 where the crop is large": lambda i: decode.decode_jpeg(
            files[i], headers[i], 3, crops[i][0] + crops[i][2], scales[i]
        ),
        "ours: all of it, crop_resize": lambda i: crop_resize(files[i], 3, boxes[i], size),
    }
    if options.library:
        library = Library(options.library)
        ways["libjpeg-turbo's cropping region"] = lambda i: library.crop(files[i], *crops[i])
    spent = milliseconds(ways, len(files), options.rounds)
    print(f"| {len(files)} images, {options.rounds} rounds | ms an image | min … max |\n|---|--:|--:|")
    for name, values in spent.items():
        print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} … {max(values):.3f} |")


if __name__ == "__main__":
    main()
