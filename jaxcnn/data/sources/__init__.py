"""What a source of examples is, and the registry of kinds of sources.

A storage format is one module of this folder and one line of `KINDS`. The module has

    open_split(name, split, data_dir) -> Source
    split_sizes(name, data_dir) -> {split: number of examples}

and, where the defaults do not do, `labelled_splits(name, data_dir)` and `find(data_dir)`, the names of the data sets
that are at hand. Reading imports neither JAX nor TensorFlow, and this module loads a format only when it is asked for.
"""

import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, SupportsIndex

from jaxcnn import UserError
from jaxcnn.data import usable_cores
from jaxcnn.locations import Address, is_address, location

if TYPE_CHECKING:
    from fractions import Fraction

    import numpy as np


class Kind(NamedTuple):
    """A kind of source, which the part of a data set's name before the colon says.

    Attributes:
      module: its module in this folder.
      form: how the name of a data set of this kind is written.
      is_path: whether the rest of the name is a folder or a file, which may be moved between two parts of a run.
      marker: file that tells a folder of this kind from the others.
      slices: what a split may be besides those there are, as the end of a sentence.
      sliced: whether `make_source` takes the slices, as the format has none of its own.
    """

    module: str
    form: str
    is_path: bool = False
    marker: str = ""
    slices: str = ""
    sliced: bool = False


_SLICE = ", or to a slice such as train[90%:], with config.data.train_split=train[:90%]"
KINDS = {
    "digits": Kind("toy", "digits"),
    "synthetic": Kind("toy", "synthetic[:CLASSES[:EXAMPLES]]"),
    "synthetic_masks": Kind("toy", "synthetic_masks[:CLASSES[:EXAMPLES]]"),
    "synthetic_boxes": Kind("toy", "synthetic_boxes[:CLASSES[:EXAMPLES]]"),
    "tfds": Kind("tfds", "tfds:NAME", slices=_SLICE),
    "folder": Kind("folder", "folder:DIR", is_path=True, slices=_SLICE, sliced=True),
    "packed": Kind("packed", "packed:DIR", is_path=True, marker="manifest.json", slices=_SLICE, sliced=True),
    "binarized_mnist": Kind("binarized_mnist", "binarized_mnist:DIR", True, "binarized_mnist_train.amat"),
    "arrays": Kind("arrays", "arrays:FILE.npy", is_path=True),
    "frey": Kind("arrays", "frey:FILE.npy", is_path=True),
    "voc_segmentation": Kind("voc_segmentation", "voc_segmentation:DIR", is_path=True, marker="ImageSets"),
    "coco_segmentation": Kind("coco_segmentation", "coco_segmentation:DIR", is_path=True, marker="annotations"),
    "tfds_segmentation": Kind("tfds_segmentation", "tfds_segmentation:NAME", slices=_SLICE),
    "camvid": Kind("camvid", "camvid:DIR", is_path=True, marker="trainannot"),
    "masks": Kind("masks", "masks:DIR", is_path=True, marker="classes.txt"),
    "voc": Kind("voc", "voc:DIR", is_path=True, marker="Annotations"),
    "coco": Kind("coco", "coco:DIR", is_path=True, marker="annotations"),
    "tfds_detection": Kind("tfds_detection", "tfds_detection:NAME", slices=_SLICE),
}


class BadExample(UserError):
    """One example cannot be read: `config.data.on_error=skip` goes on without it."""


@dataclass(frozen=True, eq=False, repr=False)
class Source(ABC):
    """One split of a data set, with random access. Picklable, and safe to read from several threads.

    Attributes:
      name: as given to `make_source`.
      split: likewise.
      size: number of examples.
      class_names: name of each class, in the order of the labels.
      image_shape: (H, W, C); None where images differ in size.
      mean: of each channel, of pixels scaled to 0 … 1, over the training split.
      std: standard deviation, likewise.
      targets: names of what `read` gives besides "image".
    """

    name: str
    split: str
    size: int
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    targets: ClassVar[tuple[str, ...]] = ("label",)

    @property
    def levels(self) -> int:
        """Return how many values a pixel may have, 2 or 256."""
        return 256

    @property
    def num_classes(self) -> int:
        """Return the number of classes: labels are 0 … num_classes - 1."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.size

    def read(self, index: SupportsIndex) -> dict[str, Any]:
        """Return example `index` as it is stored: its image and its raw targets.

        "image" is an image file's bytes, or pixels uint8 (H, W, C). Raw targets, those in `targets`: "label" int, a
        class; "label_map" uint8 (H, W), a class for each pixel, `VOID` where it has none; "boxes" float32 (n, 4), x1,
        y1, x2, y2 in pixels, with a row for each in "labels", "difficult", "crowd" and "area"; see `boxed.Boxed`.

        Raises:
          IndexError: `index` is not in 0 … len - 1.
          BadExample: it cannot be read, or its label is no class.
        """
        i = index.__index__()
        if not 0 <= i < self.size:
            raise IndexError(f"{self!r} has no example {i}")
        with self.naming(i, Exception):  # the storage's libraries each raise what they like
            example = self._read(i)
        label = example.get("label", 0)
        if "label" in example and not 0 <= label < self.num_classes:
            hint = "a split without labels? take another" if label == -1 else self.fix
            raise BadExample(f"{self.where(i)} has label {label}, not 0 … {self.num_classes - 1}: {hint}")
        return example

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Return example `index` with its image decoded: uint8 (H, W, C).

        Raises:
          IndexError, BadExample: as of `read`; the image cannot be decoded, or is of another shape than it should be.
        """
        example = self.read(index)
        with self.naming(index.__index__(), ValueError):
            return example | {"image": self.decoded(example["image"])}

    def decoded(self, image: "bytes | np.ndarray") -> "np.ndarray":
        """Decode an image of this source: uint8 (H, W, C).

        Raises:
          ValueError: it cannot be decoded, or is of another shape than it should be.
        """
        from jaxcnn.data.images.decode import decode

        pixels = decode(image, self.image_shape[-1])
        if any(want not in (None, have) for want, have in zip(self.image_shape, pixels.shape, strict=True)):
            raise ValueError(f"its shape is {pixels.shape}, not {self.image_shape}")
        return pixels

    def sizes(self, skip: bool = False) -> "np.ndarray":
        """Return the height and width of every image, int64 (N, 2), from their headers, which threads read.

        Args:
          skip: whether an example that cannot be read has the size 1 × 1, and is not an error.

        Raises:
          BadExample: an example cannot be read.
        """
        import numpy as np

        from jaxcnn.data.images.decode import size_of

        height, width, _ = self.image_shape
        if height and width:
            return np.tile(np.array([height, width]), (self.size, 1))

        def size(i: int) -> tuple[int, int]:
            try:
                with self.naming(i, Exception):
                    return size_of(self._image(i))
            except BadExample:
                if not skip:
                    raise
                return 1, 1

        with ThreadPoolExecutor(usable_cores()) as threads:
            return np.array(list(threads.map(size, range(self.size))), np.int64).reshape(-1, 2)

    def __repr__(self) -> str:
        """Return a name without a path: the same data elsewhere reads the same."""
        return f"<{path_kind(self.name) or self.name}, {self.split}: {self.size} examples>"

    def where(self, index: int) -> str:
        """Return what an error calls example `index`; a source of files names the file too."""
        return f"{self.name}, split '{self.split}', example {index}"

    def file(self, index: int) -> str:
        """Return the file of example `index`, from the split's folder; "" where it has none of its own."""
        return ""

    @property
    def strata(self) -> "tuple[tuple[Fraction, np.ndarray], ...]":
        """Return groups of examples, each with its share of every training batch; () where batches take any example.

        The shares add up to 1. A group is the numbers of its examples, int (n,).
        """
        return ()

    @property
    def left_out(self) -> dict[str, int]:
        """Return how many files beside the examples are no images, by their ending; a source of files may have some."""
        return {}

    @property
    def fix(self) -> str:
        """Return what an error about one example advises."""
        return "get the data again"

    @contextmanager
    def naming(self, index: int, kind: type[Exception]) -> Iterator[None]:
        """Turn an error of this kind, within, into a BadExample that names example `index`; a UserError stays."""
        try:
            yield
        except UserError:
            raise
        except kind as error:
            raise BadExample(f"{self.where(index)} cannot be read ({one_line(error)}): {self.fix}") from error

    def _image(self, index: int) -> "bytes | np.ndarray":
        """Return the image of example `index` alone, where that is less to read."""
        return self.read(index)["image"]

    @abstractmethod
    def _read(self, index: int) -> dict[str, Any]: ...


def make_source(name: str, split: str = "train", *, data_dir: str = "") -> Source:
    """Open one split of a data set.

    Args:
      name: `digits`, `synthetic[_masks][:CLASSES[:EXAMPLES]]`, `tfds:NAME[/CONFIG][:VERSION]`, or a form of KINDS
        with a DIR, such as `folder:DIR`, whose DIR may be an address, gs://BUCKET/DIR.
      split: `train` or `test`; or what DIR has, or a slice of it such as `train[:90%]`; for TFDS any of its splits, or
        an expression of slices.
      data_dir: folder of TFDS data sets ('': TFDS_DATA_DIR, or ~/tensorflow_datasets).

    Raises:
      UserError: no such data set or split, or it is not prepared, or is no set of labelled 8-bit images.
    """
    module = _module(name)
    if not KINDS[kind_of(name)].sliced:
        return module.open_split(name, split, data_dir)
    from jaxcnn.data.sources.slices import sliced, split_and_bounds

    whole, bounds = split_and_bounds(split)
    source = module.open_split(name, whole, data_dir)
    return sliced(source, split, bounds) if bounds else source


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split of a data set; arguments and errors are those of `make_source`."""
    return _module(name).split_sizes(name, data_dir)


def labelled_splits(name: str, data_dir: str = "") -> list[str]:
    """Return the splits whose labels are known; arguments and errors are those of `make_source`."""
    module = _module(name)
    return list(getattr(module, "labelled_splits", module.split_sizes)(name, data_dir))


def eval_split(name: str, data_dir: str = "") -> str:
    """Return the split to evaluate on: `val`, as folders name it, or `test`, or `validation` where no test has labels.

    Raises:
      UserError: there is none, or as of `make_source`.
    """
    splits = labelled_splits(name, data_dir)
    for split in ("val", "test", "validation"):
        if split in splits:
            return split
    raise UserError(
        f"data set '{name}' has no labelled val, test or validation split: set config.data.eval_split to one of "
        f"{', '.join(splits)}{KINDS[kind_of(name)].slices}"
    )


def describe_sources(data_dir: str = "") -> list[dict[str, Any]]:
    """Describe what is at hand: the built-in sources, and the TFDS data sets found in `data_dir`.

    Returns:
      One dict each: name, splits {name: examples}, image_shape, num_classes (empty or None where it cannot be read)
      and status, 'ready' or the obstacle.
    """
    modules = [
        import_module(f"{__name__}.{module}") for module in dict.fromkeys(kind.module for kind in KINDS.values())
    ]
    rows = []
    for name in (name for module in modules if hasattr(module, "find") for name in module.find(data_dir)):
        row = {"name": name, "splits": {}, "image_shape": None, "num_classes": None, "status": "ready"}
        rows.append(row)
        try:
            row["splits"] = split_sizes(name, data_dir)
            # Opening a data set with boxes reads all its examples, so a slice of one is opened.
            one = "[:1]" if KINDS[kind_of(name)].slices else ""
            source = make_source(name, next(iter(row["splits"])) + one, data_dir=data_dir)
            row |= {"image_shape": source.image_shape, "num_classes": source.num_classes}
        except UserError as error:
            row["status"] = str(error)
    return rows


def one_line(error: BaseException) -> str:
    """Return what an error of a library or of the system says, for a line of ours."""
    text = getattr(error, "strerror", None) or f"{error}"
    return " ".join(text.split())[:200] or type(error).__name__


def kind_of(name: str) -> str:
    """Return what the name of a data set begins with: a key of `KINDS`, if there is such a data set."""
    return name.partition(":")[0]


def path_kind(name: str) -> str:
    """Return the kind of a data set whose name holds a path, or ''."""
    kind = kind_of(name)
    return kind if kind in KINDS and KINDS[kind].is_path else ""


def path_of(name: str) -> Path:
    """Return the folder in the name of a data set.

    Raises:
      UserError: there is none.
    """
    kind, _, folder = name.partition(":")
    if not folder or "\0" in folder:
        raise UserError(f"cannot read the data set name {name!r}: write {KINDS[kind].form}")
    return Path(os.path.abspath(location(folder, f"{kind}:")))


def address_of(name: str) -> Address | None:
    """Return the address of an object store in the name of a data set, None where it names no such place."""
    folder = name.partition(":")[2]
    return Address(folder) if is_address(folder) else None


def missing(name: str) -> str:
    """Return what an error adds about a folder that is not there: a relative one may be meant from elsewhere."""
    path = name.partition(":")[2]
    if os.path.isabs(path) or path.startswith(("~", "file:")) or is_address(path):
        return ""
    return f" ('{path}' counts from the folder that this runs in; --config.data.name gives a run another)"


def is_plain(name: str) -> bool:
    """Return whether a name that a file of someone else's gives is a file's own, and leads to no other folder."""
    return not set("/\\\0") & set(name) and name not in (".", "..")


def _module(name: str) -> Any:
    """Import the module of a data set's kind.

    Raises:
      UserError: there is no such kind.
    """
    if (kind := kind_of(name)) not in KINDS:
        raise UserError(f"no data set '{name}': {_hint(name)} (jaxcnn data list shows those at hand)")
    return import_module(f"{__name__}.{KINDS[kind].module}")


def _hint(name: str) -> str:
    """Return what may have been meant by a name that is none."""
    from jaxcnn.data.sources.tfds import STATISTICS

    if is_address(name) and "://" in name:
        return f"images on an object store are folder:{name}"
    if "://" in name:
        location(name, "data set")  # which refuses a web address
    kind, _, rest = name.partition(":")
    alone = {key: not k.form.startswith(f"{key}:") for key, k in KINDS.items()}  # whether the kind is a name by itself
    known = {n: f"tfds:{n}" for n in STATISTICS}
    known |= {key: k.form if alone[key] else f"{key}:{rest}" for key, k in KINDS.items() if alone[key] or rest}
    path = Path(os.path.expanduser(name))
    if name and name not in known and "\0" not in name and path.is_dir():
        fitting = [key for key, k in KINDS.items() if k.is_path and (path / k.marker).exists()]
        return f"it is a folder, write {max(fitting, key=lambda key: bool(KINDS[key].marker))}:{name}"
    near = [known[n] for n in difflib.get_close_matches(kind, known, n=2)]
    *forms, last = (k.form for k in KINDS.values())
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(forms)} and {last}"
