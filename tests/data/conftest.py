"""Small data sets on the disk: TFDS's files written by hand (no TensorFlow, so tests stay fast), and IDX files."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """The PNG of uint8 (H, W, C)."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def write_tfds(tmp_path: Path) -> Callable[..., str]:
    """`write_tfds({split: [(stored image, label), …]}) -> data_dir`: a data set `mini` of five classes."""

    def write(
        splits: dict[str, list[tuple[Any, int]]], features: Any = None, folder: str = "mini/1.0.0", **info: Any
    ) -> str:
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.proto import tf_example_pb2 as proto

        path = tmp_path / "tfds" / folder
        path.mkdir(parents=True)
        name = folder.partition("/")[0]
        features = features or {
            "image": tfds.features.Image(shape=(6, 5, 1)),
            "label": tfds.features.ClassLabel(names=list("abcde")),
        }
        tfds.features.FeaturesDict(features).save_config(path)
        for split, examples in splits.items():
            writer = ArrayRecordWriter(str(path / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
            for image, label in examples:
                example = proto.Example()
                if isinstance(image, bytes):
                    example.features.feature["image"].bytes_list.value.append(image)
                else:
                    example.features.feature["image"].int64_list.value.extend(int(v) for v in image.ravel())
                example.features.feature["label"].int64_list.value.append(label)
                writer.write(example.SerializeToString())
            writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        described = [
            {"name": split, "shardLengths": [str(len(examples))], "numBytes": "1", "filepathTemplate": template}
            for split, examples in splits.items()
        ]
        info = {"name": name, "version": path.name, "fileFormat": "array_record", "splits": described} | info
        (path / "dataset_info.json").write_text(json.dumps(info))
        return str(tmp_path / "tfds")

    return write
