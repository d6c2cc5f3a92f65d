"""PASCAL VOC's detection, and other data sets of its layout.

    DIR/JPEGImages/NAME.jpg, Annotations/NAME.xml, ImageSets/Main/{train,val,trainval,test,…}.txt

DIR is the folder of a year (VOC2007), VOCdevkit, or its parent folder. A split is a list of images; the lists of one
class, such as dog_train, are no splits. The classes are VOC's twenty, or the lines of DIR/classes.txt.

In the files pixels count from 1, and those of both corners belong to a box. Here corners are points from 0, so xmin,
ymin, xmax, ymax becomes xmin - 1, ymin - 1, xmax, ymax, in this module alone. A box whose corners lie in one row or
column is left out and counted.
"""

from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from jaxcnn import UserError
from jaxcnn.data.sources import Source, is_plain, missing, one_line, path_of
from jaxcnn.data.sources.boxed import AnnotatedImage, Annotation, checked_size, clipped, make_boxed
from jaxcnn.data.sources.masks import NAMES, read_classes
from jaxcnn.data.sources.pairs import lines_of
from jaxcnn.data.sources.voc_segmentation import CLASSES
from jaxcnn.safe_files import printable, read_bytes, shown

_LISTS = "ImageSets/Main"
_WITHIN = ("VOC*", "VOCdevkit/VOC*", "TrainVal/VOCdevkit/VOC*")  # the archive of 2011 has TrainVal
_MAX_XML = 2**22  # bytes of a file; a thousand objects take a tenth of it
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def open_split(name: str, split: str, data_dir: str = "") -> Source:
    """Return the source of `voc:DIR`.

    Raises:
      UserError: DIR is no such folder or has no such split, an image or its annotation is missing, or an annotation is
        damaged, or has a class that is unknown or a box outside of its image.
    """
    root = _root(name)
    lists = _lists(root)
    if split not in lists:
        raise UserError(f"{name} has no split '{split}': its lists are {', '.join(lists)}")
    classes = _classes(root)
    labels = {name: label for label, name in enumerate(classes, start=1)}
    found = [_picture(root, file, number, labels) for number, file in enumerate(lists[split])]
    pictures, dropped = [picture for picture, _ in found], sum(dropped for _, dropped in found)
    return make_boxed(name, split, root, pictures, classes, list(labels.values()), dropped)


def split_sizes(name: str, data_dir: str = "") -> dict[str, int]:
    """Return the number of examples of each split; errors are those of `open_split`."""
    return {split: len(files) for split, files in _lists(_root(name)).items()}


def labelled_splits(name: str, data_dir: str = "") -> list[str]:
    """Return the splits whose first image has an annotation; VOC's tests from 2008 on are published without."""
    root = _root(name)
    lists = _lists(root).items()
    return [split for split, files in lists if files and (root / f"Annotations/{files[0]}.xml").is_file()]


def _root(name: str) -> Path:
    """Return the folder of a year."""
    path = path_of(name)
    places = [path, *(folder for pattern in _WITHIN for folder in sorted(path.glob(pattern)))]
    found = [folder for folder in places if (folder / _LISTS).is_dir()]
    if len(found) == 1 or found[:1] == [path]:
        return found[0]
    if found:
        years = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise UserError(f"{path} has several years: write voc:{path}/YEAR, of {years}")
    raise UserError(
        f"{path} has no {_LISTS}{missing(name)}: write voc:DIR, where DIR is VOCdevkit or the folder of a year in it"
    )


def _classes(root: Path) -> tuple[str, ...]:
    return tuple(read_classes(root / NAMES)[0]) if (root / NAMES).is_file() else CLASSES[1:]


def _lists(root: Path) -> dict[str, list[str]]:
    """Return the names of the images in each list; the lists of one class, CLASS_train.txt, are left out."""
    of_a_class = tuple(f"{name}_" for name in _classes(root))
    paths = [path for path in sorted((root / _LISTS).glob("*.txt")) if not path.name.startswith(of_a_class)]
    if not paths:
        raise UserError(f"{root / _LISTS} has no lists of images: get the data set again")
    lists = {path.stem: [line.split()[0] for line in lines_of(path)] for path in paths}
    for split, names in lists.items():
        if bad := [name for name in names if not is_plain(name)]:
            file = root / _LISTS / f"{split}.txt"
            raise UserError(f"{file} names {shown(bad[0])}, which is no name of an image: correct that line")
    return lists


def _picture(root: Path, file: str, number: int, labels: dict[str, int]) -> tuple[AnnotatedImage, int]:
    """Return an image with its objects, and the number of objects that are left out as they have no area."""
    path = root / f"Annotations/{file}.xml"
    try:
        annotation = read_xml(read_bytes(path, _MAX_XML))
        size = _number(annotation, "size/height"), _number(annotation, "size/width")
        rows = [_object(element) for element in annotation.findall("object")]
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}, which a list names: add it, or remove the name") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the annotation {path} ({one_line(error)}): replace the file") from error
    height, width = checked_size(*size, str(path))
    if not (root / (image := f"JPEGImages/{file}.jpg")).is_file():
        raise UserError(f"there is no {root / image}, which a list names: add it, or remove the name")
    objects = []
    for name, difficult, (left, top, right, bottom) in rows:
        if name not in labels:
            raise UserError(
                f"{path} has an object of class {shown(printable(name))}, which is none of {len(labels)}, "
                f"{', '.join(list(labels)[:3])} …: correct it, or list the data set's classes in {root / NAMES}"
            )
        box = clipped((left - 1, top - 1, right, bottom), (height, width), str(path))
        if box is not None and left < right and top < bottom:  # as written; one pixel wide, a box is left out too
            area = (box[2] - box[0]) * (box[3] - box[1])
            objects.append(Annotation(box, labels[name], difficult, False, area))
    return AnnotatedImage(image, (height, width), objects, number), len(rows) - len(objects)


def _object(element: Element) -> tuple[str, bool, list[float]]:
    """Return an object's class, whether it is difficult, and its corners as in the file."""
    name, difficult = (element.findtext(key, default).strip() for key, default in (("name", ""), ("difficult", "0")))
    return name, difficult == "1", [_number(element, f"bndbox/{corner}") for corner in _CORNERS]


def _number(element: Element, path: str) -> float:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"<{element.tag}> has no {path}")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"its {path} is {shown(text[:50])}, which is no number") from None


def read_xml(data: bytes) -> Element:
    """Return the root of an XML document.

    Raises:
      ValueError: it is no XML, or declares a document type, without which there are no entities to expand.
    """

    def refuse(*_: Any) -> NoReturn:
        raise ValueError("it declares a document type, which no annotation needs")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise ValueError(f"it is no XML: {error}") from None
    return builder.close()
