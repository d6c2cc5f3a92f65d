"""Small data sets on the disk: TFDS's files written by hand (no TensorFlow, hence fast), and IDX files."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Each is an image, encoded bytes or an array, or {feature: bytes or array} of several, with its label.
Examples = list[tuple[Any, int]]


@pytest.fixture
def images() -> list[np.ndarray]:
    """Forty images of (6, 5, 1)."""
    return list(np.random.default_rng(0).integers(0, 256, (40, 6, 5, 1), dtype=np.uint8))


@pytest.fixture
def write_tfds(tmp_path: Path) -> Callable[..., str]:
    """`write_tfds({split: examples}) -> data_dir`: a TFDS data set, `mini` of five classes unless told otherwise."""

    def write(splits: dict[str, Examples], features: Any = None, folder: str = "mini/1.0.0", **info: Any) -> str:
        import tensorflow_datasets as tfds

        path, name = tmp_path / "tfds" / folder, folder.partition("/")[0]
        path.mkdir(parents=True)
        features = features or {
            "image": tfds.features.Image(shape=(6, 5, 1)),
            "label": tfds.features.ClassLabel(names=list("abcde")),
        }
        tfds.features.FeaturesDict(features).save_config(str(path))
        for split, examples in splits.items():
            _write_records(path / f"{name}-{split}.array_record-00000-of-00001", examples)
        described = [
            {
                "name": split,
                "shardLengths": [str(len(examples))],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, examples in splits.items()
        ]
        info = {"name": name, "version": path.name, "fileFormat": "array_record", "splits": described} | info
        (path / "dataset_info.json").write_text(json.dumps(info))
        return str(tmp_path / "tfds")

    return write


def _write_records(path: Path, examples: Examples) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for image, label in examples:
        example: Any = tf_example_pb2.Example()  # type: ignore[attr-defined]
        feature = example.features.feature
        if isinstance(image, bytes | dict):
            for name, data in (image if isinstance(image, dict) else {"image": image}).items():
                if isinstance(data, bytes):
                    feature[name].bytes_list.value.append(data)
                elif data.dtype == np.float32:
                    feature[name].float_list.value.extend(data.ravel().tolist())
                else:
                    feature[name].int64_list.value.extend(data.ravel().tolist())
        else:
            feature["image"].int64_list.value.extend(int(v) for v in image.ravel())
        feature["label"].int64_list.value.append(label)
        writer.write(example.SerializeToString())
    writer.close()


@pytest.fixture(scope="session")
def write_idx() -> Callable[..., None]:
    """`write_idx(path, array)`: an IDX file of unsigned bytes, gzipped where the name says so."""

    def write(path: Path, values: np.ndarray, magic: int | None = None, cut: int | None = None) -> None:
        header = struct.pack(f">{1 + values.ndim}I", magic or 0x800 + values.ndim, *values.shape)
        data = (header + values.astype(np.uint8).tobytes())[:cut]
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)

    return write
