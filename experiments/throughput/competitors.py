"""One input pipeline in a process of its own, asked by `input.py` for batches: it may be another Python's.

    python competitors.py KIND CORES BATCH FOLDER INTERPOLATION|eval

Every one reads the files FOLDER/train/*/*.jpg, keeps none of them, and gives uint8 (BATCH, 224, 224, 3) in NumPy:
training crops of 8 to 100 % of the area (GoogLeNet's) in random order, not flipped, for ours are flipped on the device;
or evaluation's centre, the shorter side at 256. Each line of stdin is a number of batches, each line of stdout what
they took, as JSON. What the pipeline had ready before is taken first, and is not counted.
"""

import glob
import importlib
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

SIDE, RESIZE, AHEAD = 224, 256, 4  # AHEAD: batches that are read ahead at most
Batches = Iterator[np.ndarray]


def load(name: str) -> Any:
    """A package that other environments than this one may have."""
    return importlib.import_module(name)


def jaxcnn(folder: str, how: str, batch: int, cores: int, workers: int = 0) -> Batches:
    """Ours: the pipeline of `jaxcnn train`, in threads or in worker processes."""
    from jaxcnn.data.batches import eval_batches, train_batches
    from jaxcnn.data.images.augment_host import parse
    from jaxcnn.data.reader import Reader
    from jaxcnn.data.sources import make_source

    source, size = make_source(f"folder:{folder}", "train"), (SIDE, SIDE)
    options: Any = {"workers": workers, "prefetch": AHEAD}
    if how == "eval":
        reader = Reader(source, size, RESIZE, parse("none"))
        epochs = (eval_batches([reader], batch, **options) for _ in itertools.count())
        batches = itertools.chain.from_iterable(epochs)
    else:
        reader = Reader(source, size, RESIZE, parse("random_area(0.08,1)"), how)
        batches = train_batches([reader], batch, 0, 10**9, **options)
    return (rows["image"] for rows in batches)


def tf_data(folder: str, how: str, batch: int, cores: int, own_crops: bool = False) -> Batches:
    """tf.data as flax's ImageNet example and big_vision use it: crop and decode in one operation, then resize.

    TensorFlow's `sample_distorted_bounding_box` draws heights, not areas, uniformly: its crops (`own_crops`) are the
    smaller ones, and less work. Else boxes of our distribution, drawn beforehand, come along with the paths.
    """
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    tf: Any = load("tensorflow")
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    method, _, antialias = how.partition("+")

    def crop(data: Any, drawn: Any) -> Any:
        if not own_crops:
            return tf.image.decode_and_crop_jpeg(data, drawn, channels=3)
        box = tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4])
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data), bounding_boxes=box, min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0), max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        return tf.image.decode_and_crop_jpeg(data, tf.concat([begin[:2], size[:2]], 0), channels=3)

    def train(path: Any, box: Any) -> Any:
        image = tf.image.resize(crop(tf.io.read_file(path), box), (SIDE, SIDE), method, antialias=bool(antialias))
        return tf.saturate_cast(image, tf.uint8)

    def evaluate(path: Any, _: Any) -> Any:
        """The centre that is left of the resized image, decoded alone, as flax's example does it."""
        data = tf.io.read_file(path)
        height, width = tf.unstack(tf.io.extract_jpeg_shape(data)[:2])
        side = tf.cast(SIDE / RESIZE * tf.cast(tf.minimum(height, width), tf.float32), tf.int32)
        box = tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])
        image = tf.image.decode_and_crop_jpeg(data, box, channels=3)
        return tf.saturate_cast(tf.image.resize(image, (SIDE, SIDE), antialias=bool(antialias)), tf.uint8)

    paths, rng = files(folder), np.random.default_rng(0)
    shapes = (tf.io.extract_jpeg_shape(tf.io.read_file(path)).numpy() for path in paths)
    boxes = [random_crop(int(height), int(width), rng) for height, width, _ in shapes]
    data = tf.data.Dataset.from_tensor_slices((paths, boxes)).repeat().shuffle(len(paths))
    data = data.map(evaluate if method == "eval" else train, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    options = tf.data.Options()
    options.threading.private_threadpool_size, options.threading.max_intra_op_parallelism = cores, 1
    return data.batch(batch).prefetch(2).with_options(options).as_numpy_iterator()


def batched(folder: str, batch: int, read: Callable[[str], np.ndarray]) -> Batches:
    """A loop over the files, one after another, whose rows are written where they belong."""
    paths, rng = files(folder), np.random.default_rng(0)
    while True:
        rows = np.empty((batch, SIDE, SIDE, 3), np.uint8)
        for row, index in zip(rows, rng.integers(len(paths), size=batch), strict=True):
            row[:] = read(paths[index])
        yield rows


def torchvision(folder: str, how: str, batch: int, cores: int) -> Batches:
    """torchvision's transforms on Pillow's images, as in its ImageNet recipe; always with antialiasing."""
    torch, transforms, image = load("torch"), load("torchvision.transforms"), load("PIL.Image")
    torch.set_num_threads(1)
    mode = transforms.InterpolationMode.BICUBIC if how == "bicubic" else transforms.InterpolationMode.BILINEAR
    steps = [transforms.RandomResizedCrop(SIDE, interpolation=mode)]
    if how == "eval":
        steps = [transforms.Resize(RESIZE), transforms.CenterCrop(SIDE)]
    change = transforms.Compose(steps)
    return batched(folder, batch, lambda path: np.asarray(change(image.open(path).convert("RGB"))))


def opencv(folder: str, how: str, batch: int, cores: int) -> Batches:
    """OpenCV: the whole image decoded, the crop resized."""
    cv2, rng = load("cv2"), np.random.default_rng(0)
    cv2.setNumThreads(0)
    mode = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "eval": cv2.INTER_AREA}[how]

    def read(path: str) -> np.ndarray:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
        height, width = image.shape[:2]
        if how == "eval":
            h = w = round(SIDE / RESIZE * min(height, width))
            top, left = (height - h) // 2, (width - w) // 2
        else:
            top, left, h, w = random_crop(height, width, rng)
        return cv2.resize(image[top : top + h, left : left + w], (SIDE, SIDE), interpolation=mode)

    return batched(folder, batch, read)


def random_crop(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of 8 to 100 % of an image, of aspect 3/4 to 4/3."""
    for _ in range(10):
        area, aspect = height * width * rng.uniform(0.08, 1), np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
        h, w = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            return rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
    return 0, 0, height, width


def files(folder: str) -> list[str]:
    return sorted(glob.glob(f"{folder}/train/*/*.jpg"))


def cpu_seconds() -> float:
    """Processor time of this process and of its workers."""
    ticks = 0
    for worker in multiprocessing.active_children():
        with open(f"/proc/{worker.pid}/stat") as file:
            ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


KINDS: dict[str, Callable[..., Batches]] = {
    "jaxcnn": jaxcnn,
    "jaxcnn-workers": lambda *rest: jaxcnn(*rest, workers=rest[-1]),
    "tf.data": tf_data,
    "tf.data, its own crops": lambda *rest: tf_data(*rest, own_crops=True),
    "torchvision": torchvision,
    "opencv": opencv,
}


def main(kind: str, cores: int, batch: int, folder: str, how: str) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    batches = KINDS[kind](folder, how, batch, cores)
    for line in itertools.chain(["0"], sys.stdin):
        for _ in range(2 * AHEAD if line == "0" else AHEAD):
            next(batches)
        start, cpu, images = time.perf_counter(), cpu_seconds(), 0
        for rows in itertools.islice(batches, int(line)):
            assert rows.shape == (batch, SIDE, SIDE, 3)
            assert rows.dtype == np.uint8
            images += len(rows)
        spent = {"images": images, "seconds": time.perf_counter() - start, "cpu": cpu_seconds() - cpu}
        print(json.dumps(spent), flush=True)


if __name__ == "__main__":
    kind, cores, batch, folder, how = sys.argv[1:]
    main(kind, int(cores), int(batch), folder, how)
