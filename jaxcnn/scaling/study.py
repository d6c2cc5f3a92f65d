"""What `jaxcnn scaling` is asked for: one request for each program to compile."""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn import UserError
from jaxcnn.config import KEYS, Config, every_key, flatten, unknown_key
from jaxcnn.configfile import from_json, load_config, to_json
from jaxcnn.scaling.chips import Topology, parse_topology

# Compiling takes the shapes of the data only: these stand in for data sets that need not be there.
_STAND_INS = {
    "tfds:imagenet2012": "synthetic:1000:1281167", "tfds:cifar10": "synthetic:10:50000",
    "tfds:cifar100": "synthetic:100:50000", "camvid:data/camvid": "synthetic_masks:11:367",
    "voc_segmentation:data/VOCdevkit/VOC2011": "synthetic_masks:21:8498",
    "coco_segmentation:data/coco": "synthetic_masks:21:92518",
    "voc:data/VOCdevkit/VOC2007": "synthetic_boxes:20:5011", "voc:data/VOC0712": "synthetic_boxes:20:16551",
    "coco:data/coco": "synthetic_boxes:80:118287", "voc:data/BCCD": "synthetic_boxes:3:205",
}  # fmt: skip
_GRID = {"config": str, "topology": list, "batch_per_chip": list, "set": dict, "sweep": dict, "published": list}
_STUDY = {"title": str, "about": str, "unfit": bool, "run": list}


@dataclass(frozen=True)
class Grid:
    """A config on a grid: topologies × batches × what is swept."""

    config: str
    topologies: Sequence[str]
    batches: Sequence[int] = ()  # images a chip; empty keeps the global batch whatever the slice: strong scaling
    overrides: Sequence[tuple[str, str]] = ()
    sweep: Mapping[str, Sequence[str]] | None = None  # config key -> values, as texts
    published: Sequence[Mapping[str, Any]] = ()  # to put beside the prediction: {"images_per_sec_per_chip", "source"}
    json: bool = False


@dataclass(frozen=True)
class Request:
    """One program to compile, and what its row says of it."""

    config: Config
    topology: Topology
    row: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Grids with a title, what they are about, and whether a program that does not fit is expected."""

    title: str
    about: str
    grids: list[Grid]
    unfit: bool = False


def read_study(path: Path) -> Study:
    """Read the study in a TOML file; its configs are Python and are executed when its requests are made.

    Raises:
      UserError: a missing or broken file, an unknown key or a wrong type, named.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"study {path} cannot be read: {error.strerror}: experiments/scaling/ has some") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"study {path} is no TOML: {error}") from error
    _check(path, values, _STUDY, "run")
    grids = [_grid(path, table) for table in values["run"]]
    return Study(values.get("title", path.stem), values.get("about", ""), grids, values.get("unfit", False))


def _grid(path: Path, table: Any) -> Grid:
    _check(path, table, _GRID, "config", "topology")
    for batch in table.get("batch_per_chip", ()):
        _expect(path, "batch_per_chip", type(batch) is int and batch > 0, "a list of whole numbers, 1 or more")
    sweep = table.get("sweep", {})
    for swept in sweep.values():
        _expect(path, "sweep", isinstance(swept, list) and swept, '"KEY" = [VALUE, …], dotted keys in quotes')
    for key, value in table.get("set", {}).items():
        _expect(path, "set", not isinstance(value, dict), f"\"KEY\" = VALUE, dotted keys in quotes: '{key}' is a table")
    for figure in table.get("published", ()):
        types = {key: type(value) for key, value in figure.items()} if isinstance(figure, dict) else {}
        sound = types.pop("images_per_sec_per_chip", None) in (int, float)
        words = "{ images_per_sec_per_chip = NUMBER, source = TEXT }, and why = TEXT where one is due"
        _expect(path, "published", sound and types in ({"source": str}, {"source": str, "why": str}), words)
    return Grid(
        str(path.parent / table["config"]), [str(name) for name in table["topology"]], table.get("batch_per_chip", ()),
        overrides=[(key, _text(value)) for key, value in table.get("set", {}).items()],
        sweep={_full(key): [_text(value) for value in swept] for key, swept in sweep.items()},
        published=table.get("published", ()),
    )  # fmt: skip


def _expect(path: Path, key: str, sound: Any, words: str) -> None:
    if not sound:
        raise UserError(f"study {path}: '{key}' must be {words}")


def _check(path: Path, values: Any, known: dict[str, type], *due: str) -> None:
    if not isinstance(values, dict):
        raise UserError(f"study {path}: '{values}' should be a table, [[run]]")
    for key, value in values.items():
        if key not in known:
            raise UserError(f"study {path} has no key '{key}': {', '.join(known)}")
        if not isinstance(value, known[key]):
            raise UserError(f"study {path}: '{key}' must be of type {known[key].__name__}")
    if missing := [key for key in due if not values.get(key)]:
        raise UserError(f"study {path} lacks '{missing[0]}'")


def stand_in(config: Config) -> None:
    """Replace a data set that need not be there by a synthetic one of its shapes, read step by step."""
    if config.data.name in _STAND_INS:
        config.data.name = _STAND_INS[config.data.name]
        config.data.train_split, config.data.eval_split, config.init_from = "train", "", ""
    config.data.resident = False


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _full(key: str) -> str:
    """Return a key in full: one of `mesh` goes by its last name, too."""
    return f"mesh.{key}" if f"mesh.{key}" in KEYS else key


def sweep_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return {"mesh.model": ["1", "2"]} of ["model=1,2"].

    Raises:
      UserError: an unknown key, or no values.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        key = _full(name)
        if key not in every_key() and not key.startswith("model.overrides."):
            raise unknown_key(key)
        if key in found or not all(values.split(",")):
            raise UserError(f"--sweep {text}: write each key once, as --sweep {key}=VALUE,VALUE")
        found[key] = values.split(",")
    return found


def requests_of(grid: Grid, number: int = 0) -> list[Request]:
    """Return the programs of a grid, the `number`th of a study; all are checked before any is compiled.

    Raises:
      UserError: an unknown slice, a bad config, a batch that does not divide.
    """
    found: dict[str, Request] = {}
    sweep = grid.sweep or {}
    keys = [*sweep, *(key for key, _ in grid.overrides)]
    if "mesh.data" in keys:
        raise UserError("config.mesh.data follows from the slice: set config.mesh.model, or another --topology")
    if "global_batch_size" in keys and grid.batches:
        raise UserError("config.global_batch_size follows from the images a chip: give one of the two")
    slices = [parse_topology(name) for name in grid.topologies]
    for values in itertools.product(*sweep.values()):
        variant = dict(zip(sweep, values, strict=True))
        for batch, topology in itertools.product(grid.batches or [None], slices):
            overrides = [*grid.overrides, *variant.items()]
            if batch is not None:
                overrides.append(("global_batch_size", _text(batch * topology.chips)))
            load = from_json if grid.json else load_config
            request = _request(grid, number, load(grid.config, overrides), variant, topology)
            found.setdefault(topology.name + to_json(request.config), request)  # what is asked for twice is one row
    return list(found.values())


def _request(grid: Grid, number: int, config: Config, variant: dict[str, str], topology: Topology) -> Request:
    # Here, so that `jaxcnn scaling --help` loads no JAX.
    from jax.sharding import AbstractMesh

    from jaxcnn.training.gradients import group_size
    from jaxcnn.training.sharding import AXES, check_batch

    devices, model = topology.chips * topology.chip.devices, config.mesh.model
    model = devices if model == -1 else model  # the rest, where the file itself says so
    if devices % model:
        raise UserError(f"{topology.name} has {devices} devices: config.mesh.model={model} must divide them")
    config.mesh.data, config.mesh.model = devices // model, model
    mesh = AbstractMesh((devices // model, model), AXES)
    check_batch(mesh, config.global_batch_size, config.optimizer.accumulate)
    group_size(config, devices // model)
    notes = ["data.resident=False: one step is compiled"] if config.data.resident else []
    stand_in(config)
    batch = config.global_batch_size / topology.chips
    texts = {key: value for key, value in flatten(config).items() if key in variant}
    row = {
        "run": number, "config": grid.config, "model": config.model.name, "dtype": config.dtype, "variant": texts,
        "topology": topology.name, "chip": topology.version, "chips": topology.chips,
        "mesh": {"data": devices // model, "model": model},
        "batch_per_chip": int(batch) if batch.is_integer() else batch, "global_batch_size": config.global_batch_size,
        "remat": config.remat, "placement": config.mesh.placement,
        "published": [dict(figure) for figure in grid.published], "notes": notes,
    }  # fmt: skip
    return Request(config, topology, row)
