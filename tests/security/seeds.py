"""Small whole files of every kind that is read from someone else."""

import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.numpy
from PIL import Image

from jaxcnn.config import base_config
from jaxcnn.configfile import to_json
from jaxcnn.data.sources.packed import FORMAT, VERSION


def config() -> dict[str, Any]:
    config = base_config()
    config.steps = 1
    config.model.overrides["dropout"] = 0.5
    config.data.mean = (0.5,)
    return json.loads(to_json(config))


def manifest() -> dict[str, Any]:
    shard = {"file": "train-00000-of-00001.array_record", "examples": 2, "bytes": 131072, "sha256": "0" * 64}
    return {
        "format": FORMAT, "version": VERSION, "source": "digits", "classes": ["a", "b"], "image_shape": [None, None, 3],
        "mean": [0.5] * 3, "std": [0.25] * 3, "splits": {"train": {"examples": 2, "shards": [shard], "skipped": []}},
    }  # fmt: skip


def coco() -> dict[str, Any]:
    """Annotations of two images of 24×20 pixels: a polygon, and a crowd's run lengths; with boxes."""
    images = [{"id": n, "file_name": f"{n}.png", "height": 20, "width": 24} for n in (1, 2)]
    bus = {"id": 1, "image_id": 1, "category_id": 6, "area": 12, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 5, 8.5]]}
    bus["bbox"] = [1, 1, 8, 7.5]
    lengths = {"size": [20, 24], "counts": [40, 20, 420]}
    crowd = bus | {"id": 2, "image_id": 2, "category_id": 1, "iscrowd": 1, "segmentation": lengths}
    return {"images": images, "annotations": [bus, crowd], "categories": [{"id": 1, "name": "person"}]}


def voc() -> bytes:
    """The annotation of an image of 24×20 pixels."""
    size = "<size><width>24</width><height>20</height><depth>3</depth></size>"
    box = "<bndbox><xmin>2</xmin><ymin>3.5</ymin><xmax>20</xmax><ymax>18</ymax></bndbox>"
    thing = f"<object><name>dog</name><difficult>1</difficult>{box}</object>"
    return f'<?xml version="1.0" encoding="utf-8"?><annotation>{size}{thing}{thing}</annotation>'.encode()


def metrics() -> bytes:
    lines = [
        {"step": n, "epoch": n / 2, "train/loss": 1.0, "train/top1": 0.5, "eval/loss": 2.0, "eval/top1": 0.1}
        for n in (1, 2, 3)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def images() -> dict[str, bytes]:
    """By kind; of 24×20 pixels that are no flat colour."""
    y, x = np.mgrid[:20, :24]
    colour = np.stack([x * 10, y * 12, x * y], -1).astype(np.uint8)
    colour, exif = Image.fromarray(colour), Image.Exif()
    exif[274] = 6

    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return {
        "jpeg": encoded(colour, "JPEG", exif=exif),
        "jpeg, progressive": encoded(colour, "JPEG", progressive=True, restart_marker_blocks=2),
        "jpeg, grey": encoded(colour.convert("L"), "JPEG"),
        "jpeg, CMYK": encoded(colour.convert("CMYK"), "JPEG"),
        "png": encoded(colour, "PNG", exif=exif),
        "png, palette": encoded(colour.convert("P"), "PNG", transparency=3),
        "png, 16 bits": encoded(Image.fromarray((x * y * 100).astype(np.uint16)), "PNG"),
        "webp": encoded(colour, "WEBP"),
        "webp, animated": encoded(colour, "WEBP", save_all=True, append_images=[colour.rotate(90)], lossless=True),
        "gif": encoded(colour.convert("P"), "GIF", save_all=True, append_images=[colour.rotate(90).convert("P")]),
        "bmp": encoded(colour, "BMP"),
        "tiff": encoded(colour, "TIFF"),
        "tiff, LZW": encoded(colour, "TIFF", compression="tiff_lzw"),
        "tiff, JPEG": encoded(colour, "TIFF", compression="jpeg"),
        "ppm": encoded(colour, "PPM"),
        "pgm, plain": b"P2 4 2 255\n" + b" ".join(b"%d" % n for n in range(8)),
    }


def unlabelled() -> dict[str, bytes]:
    """By kind of source; ten images of bytes, and two of 0 and 1 as text."""
    file = io.BytesIO()
    np.save(file, np.arange(10 * 4 * 3, dtype=np.uint8).reshape(10, 4, 3))
    line = b" ".join([b"0", b"1"] * (28 * 28 // 2)) + b"\n"
    return {"arrays": file.getvalue(), "binarized_mnist": 2 * line}


def weights() -> dict[str, bytes]:
    """Of two small tensors: safetensors, and torch's two formats without there being a torch."""
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.zeros(2, np.float16)}
    return {
        "safetensors": safetensors.numpy.save(arrays, {"config": "{}", "input": "{}"}),
        "zip": _zip(*_pickled(arrays, legacy=False)),
        "legacy": _legacy(*_pickled(arrays, legacy=True)),
    }


def idx() -> bytes:
    return struct.pack(">4I", 0x803, 2, 28, 28) + bytes(2 * 28 * 28)


def _stand_in(module: str, name: str) -> Any:
    def function() -> None: ...

    function.__module__, function.__qualname__ = module, name
    return function


class _Tensor:
    def __init__(self, key: str, array: np.ndarray):
        self.key, self.array = key, array

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        strides = tuple(n // self.array.itemsize for n in self.array.strides)
        return _REBUILD, (_Storage(self), 0, self.array.shape, strides, False, {})


class _Storage:
    def __init__(self, of: _Tensor):
        self.of = of


_REBUILD = _stand_in("torch._utils", "_rebuild_tensor_v2")
_KINDS = {"f": _stand_in("torch", "FloatStorage"), "e": _stand_in("torch", "HalfStorage")}


def _pickled(arrays: dict[str, np.ndarray], legacy: bool) -> tuple[bytes, dict[str, bytes]]:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, _Storage):
                return None
            array = obj.of.array
            return ("storage", _KINDS[array.dtype.char], obj.of.key, "cpu", array.size, *([None] if legacy else []))

    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    for function in (_REBUILD, *_KINDS.values()):
        setattr(modules[function.__module__], function.__qualname__, function)
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, modules):
        Pickler(file, 2).dump({name: _Tensor(str(i), array) for i, (name, array) in enumerate(arrays.items())})
    return file.getvalue(), {str(i): array.tobytes() for i, array in enumerate(arrays.values())}


def _zip(data: bytes, storages: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, storage in storages.items():
            archive.writestr(f"archive/data/{key}", storage)
    return file.getvalue()


def _legacy(data: bytes, storages: dict[str, bytes]) -> bytes:
    header = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    whole = b"".join(pickle.dumps(part, 2) for part in header) + data + pickle.dumps(sorted(storages), 2)
    counts = {"0": 6, "1": 2}
    return whole + b"".join(struct.pack("<q", counts[key]) + storages[key] for key in sorted(storages))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
