"""TFDS data sets whose images have a `segmentation_mask`, such as Oxford-IIIT Pet's trimaps.

As `tfds:` they are data sets of labelled images; as `tfds_segmentation:` each pixel has a class. The classes have the
names of the feature where it is TFDS's LabeledImage, and else those of `NAMES`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxcnn import UserError
from jaxcnn.data.images.decode import size_of
from jaxcnn.data.images.label_maps import numbering, read_index_png, renumbered
from jaxcnn.data.sources import BadExample, Source, imagenet, tfds
from jaxcnn.safe_files import printable

MASK = "segmentation_mask"
# Names of the numbers in a mask, and the first of these numbers.
NAMES = {"oxford_iiit_pet": (("pet", "background", "border"), 1)}


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `tfds_segmentation:NAME[/CONFIG][:VERSION]`; `split` may be a slice, as of `tfds:`.

    Raises:
      UserError: as of `tfds:`; or the data set has no masks, or does not say what their classes are.
    """
    builder = _builder(name, data_dir)
    mask = builder.info.features[MASK]
    names, first = NAMES.get(builder.name, (tuple(getattr(mask, "names", None) or ()), 0))
    if not names:
        raise UserError(f"{name} does not name the classes of its masks: export it, and read it as masks:DIR")
    records = tfds.records(builder, name, split, ["image", MASK])
    about = len(records), tuple(map(printable, names)), (None, None, 3), imagenet.MEAN, imagenet.STD
    meanings = numbering(range(first, first + len(names)))
    return _Masks(name, split, *about, builder.data_dir, records, meanings)


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: int(info.num_examples) for split, info in _builder(name, data_dir).info.splits.items()}


@dataclass(frozen=True, eq=False, repr=False)
class _Masks(Source):
    folder: str
    records: Any  # TFDS's data source, whose images and masks are left encoded
    meanings: np.ndarray
    targets: ClassVar[tuple[str, ...]] = ("label_map",)

    def _read(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        try:
            labels = renumbered(read_index_png(record[MASK]), self.meanings)
            if labels.shape != (size := size_of(record["image"])):
                raise ValueError(f"it is of {labels.shape} pixels, its image of {size}")
        except ValueError as error:
            raise BadExample(f"{self.where(index)}: its mask cannot be used ({error}): {self.fix}") from error
        return {"image": record["image"], "label_map": labels}

    @property
    def fix(self) -> str:
        """Return what an error about one example advises."""
        return f"delete {self.folder} and prepare it again"


def _builder(name: str, data_dir: str) -> Any:
    builder = tfds.builder_of(name, data_dir)
    features = builder.info.features
    if "image" not in features or MASK not in features:
        raise UserError(f"{name} has features {', '.join(sorted(features))}, not 'image' and '{MASK}': take another")
    return builder
