"""Whatever is in a file of someone else, its reader gives what it promises or a UserError, and no other exception."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import Linear
from mutate import damaged, damaged_json

from jaxcnn import UserError, cli, models
from jaxcnn.config import base_config, validate
from jaxcnn.configfile import from_json, to_json
from jaxcnn.data.images.decode import MAX_PIXELS, Box, crop_resize, decode, read_header, read_image, size_of
from jaxcnn.data.prepare import cifar
from jaxcnn.data.prepare.idx import read_idx
from jaxcnn.data.sources import arrays, binarized_mnist, coco_segmentation, make_source
from jaxcnn.data.sources.packed import read_manifest
from jaxcnn.data.sources.tfds import _check_names
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.run_files import read_metrics
from jaxcnn.training.state import init_variables
from jaxcnn.training.trained import open_run
from jaxcnn.weights.files import exported, read_state_dict

fuzz = settings.get_profile("fuzz")
few = settings(fuzz, max_examples=max(10, fuzz.max_examples // 4))
IMAGES, WEIGHTS = seeds.images(), seeds.weights()
COCO = seeds.coco() | {"categories": [{"id": 1, "name": "person"}, {"id": 6, "name": "bus"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def value_of(read: Callable[[], Any]) -> Any:
    """What is read, or None where it is refused in the words for a user, which fit on a screen."""
    try:
        return read()
    except UserError as error:
        refusal = str(error)
    assert 0 < len(refusal) < 4000
    return None


@fuzz
@given(data=damaged_json(seeds.config()) | damaged(json.dumps(seeds.config()).encode()))
def test_config(folder, data):
    if config := value_of(lambda: from_json(seeds.write(folder / "config.json", data))):
        validate(config)
        assert value_of(lambda: from_json(seeds.write(folder / "again.json", to_json(config).encode()))) == config


@few
@given(data=damaged_json(seeds.coco()) | damaged(json.dumps(seeds.coco()).encode()))
def test_annotations_of_coco(folder, data):
    for place in ("annotations", "val2017"):
        (folder / place).mkdir(exist_ok=True)
    for image in seeds.coco()["images"]:
        seeds.write(folder / "val2017" / image["file_name"], IMAGES["png, palette"])
    seeds.write(folder / "annotations/instances_val2017.json", data)
    coco_segmentation._read.cache_clear()  # files that are written so soon after one another may have one date
    if source := value_of(lambda: make_source(f"coco_segmentation:{folder}", "val")):
        for index in range(len(source)):
            if example := value_of(lambda index=index: source.read(index)):
                assert example["label_map"].shape == (20, 24)


def check_boxes(name: str, split: str) -> None:
    """Whatever the source has is within its image and of a class."""
    if source := value_of(lambda: make_source(name, split)):
        for index in range(len(source)):
            truth, (height, width) = source.truth(index), source.pixels[index]
            assert np.isfinite(truth["boxes"]).all()
            assert (truth["boxes"][:, 2:] > truth["boxes"][:, :2]).all()
            assert (truth["boxes"] >= 0).all()
            assert (truth["boxes"][:, 2:] <= [width, height]).all()
            assert np.isfinite(truth["area"]).all()
            assert ((truth["labels"] > 0) & (truth["labels"] < source.num_classes)).all()
            value_of(lambda index=index: source.read(index))


@few
@given(data=damaged_json(COCO) | damaged(json.dumps(COCO).encode()))
def test_boxes_of_coco(folder, data):
    (folder / "annotations").mkdir(exist_ok=True)
    seeds.write(folder / "annotations/instances_val2017.json", data)
    check_boxes(f"coco:{folder}", "val")


@few
@given(data=damaged(seeds.voc()))
def test_boxes_of_voc(folder, data):
    for place in ("VOC/ImageSets/Main", "VOC/JPEGImages", "VOC/Annotations"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    seeds.write(folder / "VOC/ImageSets/Main/val.txt", b"a\n")
    seeds.write(folder / "VOC/JPEGImages/a.jpg", IMAGES["png, palette"])
    seeds.write(folder / "VOC/Annotations/a.xml", data)
    check_boxes(f"voc:{folder}/VOC", "val")


@fuzz
@given(data=damaged_json(seeds.manifest()) | damaged(json.dumps(seeds.manifest()).encode()))
def test_manifest(folder, data):
    seeds.write(folder / "manifest.json", data)
    if manifest := value_of(lambda: read_manifest(f"packed:{folder}")):
        for shard in (shard for shards in manifest.shards.values() for shard in shards):
            assert (folder / shard.file).resolve().parent == folder.resolve()
            assert 0 <= shard.examples <= shard.bytes
        assert all(name.isprintable() for name in manifest.classes)


@fuzz
@given(data=damaged(seeds.metrics()) | damaged_json(json.loads(seeds.metrics().splitlines()[0])))
def test_metrics(folder, data):
    for line in value_of(lambda: read_metrics(seeds.write(folder / "metrics.jsonl", data))) or ():
        assert type(line["step"]) is int
        assert all(type(value) in (int, float) for value in line.values())


@pytest.mark.parametrize("kind", WEIGHTS)
@fuzz
@given(data=st.data())
def test_weights(folder, kind, data):
    file = seeds.write(folder / "weights", data.draw(damaged(WEIGHTS[kind])))
    arrays = value_of(lambda: read_state_dict(file)) or {}
    assert sum(array.nbytes for array in arrays.values()) <= 16 * file.stat().st_size
    value_of(lambda: exported(file, 2))


@fuzz
@given(
    header=damaged_json({"__metadata__": {"a": "b"}, "x": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}})
)
def test_safetensors_header(folder, header):
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    value_of(lambda: read_state_dict(seeds.write(folder / "weights", data)))


@pytest.mark.parametrize("kind", IMAGES)
@fuzz
@given(data=st.data())
def test_image(folder, kind, data):
    image, channels = data.draw(damaged(IMAGES[kind])), data.draw(st.sampled_from((1, 3)))
    for read in (
        lambda: decode(image, channels),
        lambda: crop_resize(image, channels, Box(0, 0, *size_of(image)), (8, 8)),
        lambda: crop_resize(image, channels, Box(0, 0, *size_of(image)), (8, 8), "antialias"),
    ):
        try:
            pixels = read()
        except ValueError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.size <= MAX_PIXELS * channels
    read_header(image)
    value_of(lambda: read_image(seeds.write(folder / "image", image), (8, 8, 3), 16))


@few
@given(data=damaged(seeds.idx()))
def test_idx(folder, data):
    seeds.write(folder / "t-images-idx3-ubyte", data)
    seeds.write(folder / "t-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\2\1\2")
    value_of(lambda: read_idx(folder, "t"))


@few
@given(data=damaged(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}, 2)))
def test_cifar(folder, data):
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        seeds.write(folder / name, data)
    for images, labels in (value_of(lambda: cifar.read_splits(folder)) or {}).values():
        assert images.shape == (len(labels), 32, 32, 3)


@pytest.mark.parametrize("kind", ["arrays", "binarized_mnist"])
@few
@given(data=st.data())
def test_images_without_labels(folder, kind, data):
    module = {"arrays": arrays, "binarized_mnist": binarized_mnist}[kind]
    module._read.cache_clear()  # files of one tick of the clock are one to it
    content = data.draw(damaged(seeds.unlabelled()[kind]))
    for part in ("train", "valid", "test"):
        file = seeds.write(folder / f"binarized_mnist_{part}.amat", content)
    source = value_of(lambda: module.open_split(f"{kind}:{file if kind == 'arrays' else folder}", "test"))
    if source:
        image = source[len(source) - 1]["image"]
        assert (image.dtype, image.shape) == (np.uint8, source.image_shape)


FEATURES = {
    "featuresDict": {"features": {"image": {"image": {"dtype": "uint8", "shape": {"dimensions": ["8", "8", "3"]}}}}},
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
}
ABOUT = {"name": "x", "splits": [{"name": "train", "filepathTemplate": "{DATASET}-{SPLIT}", "shardLengths": ["1"]}]}


@few
@given(features=damaged_json(FEATURES), about=damaged_json(ABOUT))
def test_names_in_tfds_metadata(folder, features, about):
    seeds.write(folder / "features.json", features)
    seeds.write(folder / "dataset_info.json", about)
    try:
        _check_names(folder)
    except ValueError:
        return
    text = (folder / "dataset_info.json").read_text()
    assert "../" not in json.dumps([json.loads(text)["splits"]] if "splits" in json.loads(text) else [])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run's folder whose checkpoint promises no checksums, as an enemy would leave it."""
    folder = tmp_path_factory.mktemp("run")
    with mock.patch.dict(models._REGISTRY, linear=Linear):
        config = base_config()
        config.model.name, config.dtype, config.steps = "linear", "float32", 1
        seeds.write(folder / "config.json", to_json(config).encode())
        given = {"image_shape": (4, 4, 3), "mean": [0.5] * 3, "std": [0.2] * 3, "class_names": ["a", "b"]}
        info = {"step": 0, "model": "linear", "num_classes": 2, "input": given}
        checkpoints = Checkpoints(folder, ("top1", "max"), keep_last=1)
        checkpoints.save_arrays(init_variables(Linear(), 0, (4, 4, 3)), info, {"eval/top1": 0.5})
        checkpoints.close()
        metadata = folder / "checkpoints/0/_CHECKPOINT_METADATA"
        metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"custom_metadata": {}}))
        yield folder


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's readers that were given up
@few
@given(data=st.data())
def test_checkpoint(run, folder, data):
    files = sorted(path.relative_to(run) for path in (run / "checkpoints").rglob("*") if path.is_file())
    assert len(files) > 10
    copy, file = folder / "copy", data.draw(st.sampled_from(files))
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    try:
        strategy = damaged_json(json.loads((run / file).read_text()))
    except ValueError:
        strategy = damaged((run / file).read_bytes())
    seeds.write(copy / file, data.draw(strategy))
    if opened := value_of(lambda: open_run(copy, data.draw(st.sampled_from(("last", "best"))), [])):
        assert all(name.isprintable() for name in opened.input["class_names"])


@few
@given(data=st.data())
def test_no_traceback_of_plot(folder, capsys, data):
    seeds.write(folder / "metrics.jsonl", data.draw(damaged(seeds.metrics())))
    assert cli.main(["plot", str(folder), "--out", str(folder / "curves.png")]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
