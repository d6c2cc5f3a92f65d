"""TFDS data sets kept as ArrayRecord.

They are read through their files alone, without TensorFlow and without the code that generates a data set:

    ROOT/NAME[/CONFIG]/VERSION/{dataset_info.json, features.json, NAME-SPLIT.array_record-*}

TFDS imports what features.json names and opens what dataset_info.json names, wherever it is: both are looked at first.
"""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.sources import Source, imagenet, is_plain, one_line
from jaxcnn.locations import location
from jaxcnn.safe_files import printable, read_json

ARRAY_RECORD = "array_record"
# Mean and standard deviation per channel of the training split; for ImageNet those of the published weights.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "imagenet2012": (imagenet.MEAN, imagenet.STD),
    "mnist": ((0.1307,), (0.3081,)),
}
_CHANNELS = (1, 2, 3, 4)


def data_root(data_dir: str = "") -> Path:
    """Return the folder of TFDS data sets: `data_dir`, or TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR")
    # Without a home the folder is one that is not there: nothing is found, and `prepare` says so.
    return location(given, "folder of TFDS") if given else Path(os.path.expanduser("~/tensorflow_datasets"))


def find(data_dir: str = "") -> list[str]:
    """Return the names, with config and version, of the prepared data sets, and one whose status says how to get it."""
    root = data_root(data_dir)
    folders = [f for parent in (*root.glob("*"), *root.glob("*/*")) for f in _versions(parent)]
    names = [f"{kind_at(f)}:{f.parent.relative_to(root)}:{f.name}" for f in sorted(folders)]
    return names if any(name.startswith("tfds:fashion_mnist") for name in names) else [*names, "tfds:fashion_mnist"]


def labelled_splits(name: str, data_dir: str = "") -> list[str]:
    """Return the splits with labels: in ImageNet's test split all are -1. Errors are those of `open_split`."""
    hidden = "test" if re.match(r"tfds:imagenet2012\b", name) else ""
    return [split for split in split_sizes(name, data_dir) if split != hidden]


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: int(info.num_examples) for split, info in _builder(name, data_dir).info.splits.items()}


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `tfds:NAME[/CONFIG][:VERSION]`; `split` may be an expression such as `train[:90%]`.

    Raises:
      UserError: the data set is not prepared, or damaged, or is no set of labelled 8-bit images in ArrayRecord, or
        has no such split.
    """
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    image, label = builder.info.features["image"], builder.info.features["label"]
    encoded = isinstance(image, tfds.features.Image)
    kept = records(builder, name, split, ["image"] if encoded else [])
    height, width, channels = (*image.shape, 1)[:3]
    mean, std = STATISTICS.get(builder.name, ((0.5,) * channels, (0.25,) * channels))
    shape, names = (height, width, channels), imagenet.readable(tuple(map(printable, label.names)))
    return _Tfds(name, split, len(kept), names, shape, mean, std, builder.data_dir, kept)


def records(builder: Any, name: str, split: str, encoded: Sequence[str]) -> Any:
    """Return the examples of a split, whose features `encoded` are left as the bytes of their files.

    Raises:
      UserError: there is no such split, or its files are damaged.
    """
    import tensorflow_datasets as tfds

    decoders = {feature: tfds.decode.SkipDecoding() for feature in encoded} or None
    try:
        found = builder.as_data_source(split, decoders=decoders, file_format=ARRAY_RECORD)
        len(found)  # opens the files
    except ValueError as error:  # unknown, malformed or empty
        splits = ", ".join(builder.info.splits)
        raise UserError(
            f"{name} has no split '{split}' ({one_line(error)}): take one of {splits}, or a slice such as train[:90%]"
        ) from error
    except Exception as error:  # whatever ArrayRecord raises
        raise _damaged(builder.data_dir, error) from error
    return found


@dataclass(frozen=True, eq=False, repr=False)
class _Tfds(Source):
    folder: str
    records: Any  # TFDS's data source, whose images are left encoded

    def _read(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        return {"image": record["image"], "label": int(record["label"])}

    @property
    def fix(self) -> str:
        return f"delete {self.folder} and prepare it again"


def _versions(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the complete versions in a folder, oldest first: a build that was interrupted has another name."""
    found = [path.parent for path in folder.glob(f"{pattern}/dataset_info.json")]
    numbers = {p: re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", p.name) for p in found}
    return sorted((p for p, n in numbers.items() if n), key=lambda p: [int(n) for n in p.name.split(".")])


def kind_at(folder: Path) -> str:
    """Return the kind of source that a data set is: where images have objects and no label, one of boxes."""
    with contextlib.suppress(OSError, ValueError):
        # The first "features" are those of an example; what they have within comes after them.
        names = next(v for k, v in _pairs(read_json(folder / "features.json")) if k == "features")
        return "tfds_detection" if "objects" in names and "label" not in names else "tfds"
    return "tfds"


def _locate(name: str, data_dir: str) -> Path:
    """Return the folder of the newest version that fits `name`."""
    match = re.fullmatch(r"tfds\w*:(\w+)(?:/([^/:]+))?(?::([\d.*]+))?", name)
    if not match:
        raise UserError(f"cannot read the data set name '{name}': write tfds:NAME[/CONFIG][:VERSION]")
    base, config, version = match[1], match[2] or "", match[3] or "*"
    folder = data_root(data_dir) / base
    if not config and not _versions(folder):
        configs = sorted(p.name for p in folder.glob("*") if _versions(p))
        if len(configs) > 1:
            raise UserError(f"{folder} has several configs: write tfds:{base}/CONFIG, of {', '.join(configs)}")
        config = "".join(configs)
    folder = folder / config
    if found := _versions(folder, version):
        return found[-1]
    if others := _versions(folder):
        raise UserError(f"{folder} has no version {version}: take one of {', '.join(p.name for p in others)}")
    option = f" --data-dir {shlex.quote(data_dir)}" if data_dir else ""
    command = f"jaxcnn data prepare {name.partition(':')[2]}{option}"
    raise UserError(f"data set '{name}' is not prepared in {folder}: run {command}")


def builder_of(name: str, data_dir: str) -> Any:
    """Return TFDS's reader of a prepared data set in ArrayRecord.

    Raises:
      UserError: it is not prepared, is damaged, or is of another format.
    """
    folder = _locate(name, data_dir)
    import tensorflow_datasets as tfds

    try:
        _check_names(folder)
        builder: Any = tfds.builder_from_directory(folder)
    except Exception as error:  # whatever its JSON files cause
        raise _damaged(folder, error) from error
    check_format(builder)
    return builder


def _builder(name: str, data_dir: str) -> Any:
    """Return the reader of a data set, checked to be labelled 8-bit images."""
    import tensorflow_datasets as tfds

    builder = builder_of(name, data_dir)
    features = builder.info.features
    if "image" not in features or "label" not in features:
        fix = f"write tfds_detection:{name.partition(':')[2]}" if "objects" in features else "take another data set"
        raise UserError(f"{name} has features {', '.join(sorted(features))}, not 'image' and 'label': {fix}")
    image, label = features["image"], features["label"]
    if not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"the label of {name} is {type(label).__name__}, no class: take another data set")
    channels = (*image.shape, 1)[2] if len(image.shape) in (2, 3) else None
    if channels not in _CHANNELS or image.np_dtype not in (np.uint8, bool):
        raise UserError(
            f"images of {name} are {np.dtype(image.np_dtype)} {image.shape}, not uint8 (H, W, C): take another set"
        )
    return builder


def _check_names(folder: Path) -> None:
    """Raise ValueError where the JSON files name code other than TFDS's own features, or files outside of `folder`."""
    import tensorflow_datasets as tfds

    features = [kind for kind in vars(tfds.features).values() if isinstance(kind, type)]
    known = {f"{kind.__module__}.{kind.__name__}" for kind in features}
    about, code = (read_json(folder / f"{stem}.json") for stem in ("dataset_info", "features"))
    if not isinstance(about, dict) or not isinstance(code, dict) or "type" in code:
        raise ValueError("its JSON files are not TFDS's, or are of before version 4.6")
    for key, value in _pairs(code):
        if key in ("pythonClassName", "python_class_name") and isinstance(value, str) and value not in known:
            raise ValueError(f"features.json names {value[:80]!r}, which is none of TFDS's features")
        if key in ("jsonFeature", "json_feature") and isinstance(value, dict) and value not in ({}, {"json": "{}"}):
            raise ValueError("features.json has a feature of another kind than images and labels")
    for key, value in _pairs({"about": about, "features": code}):
        parts = key.split("/")  # a feature may be called image/filename: what TFDS opens for it is below the folder
        names = [*parts, value] if key in ("name", "filepathTemplate", "filepath_template") else parts
        if "" in parts[:-1] or any(isinstance(name, str) and not is_plain(name) for name in names):
            raise ValueError("its JSON files name a file outside of the folder")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each key with its value, of all objects in a value of JSON."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []


def check_format(builder: Any) -> None:
    """Raise UserError unless the files of a prepared data set are ArrayRecord."""
    formats = sorted(f.value for f in builder.info.available_file_formats())
    if ARRAY_RECORD not in formats:
        raise UserError(
            f"{builder.data_dir} holds {', '.join(formats)} files, but jaxcnn reads {ARRAY_RECORD}: delete it and run "
            f"jaxcnn data prepare {builder.name}, or prepare into another folder with --data-dir DIR"
        )


def _damaged(folder: str | Path, error: Exception) -> UserError:
    return UserError(f"{folder} is damaged ({one_line(error)}): delete it and prepare it again")
