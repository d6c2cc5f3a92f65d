"""The state a run starts from: the newest checkpoint of its folder, other weights, or fresh ones."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from jaxcnn import UserError, stores
from jaxcnn.config import RESUMABLE, Config
from jaxcnn.configfile import from_json, to_json
from jaxcnn.data.expected import differences, find_classes, of_weights, same_names
from jaxcnn.data.sources import path_kind
from jaxcnn.locations import Address, place
from jaxcnn.models.fcn import classifier_of
from jaxcnn.models.normalization import match_norms
from jaxcnn.models.trunk import CLASSIFIERS
from jaxcnn.tasks import create_task
from jaxcnn.training import onto_trunk
from jaxcnn.training.checkpoint import Checkpoints, Tree
from jaxcnn.training.program import Data, Program
from jaxcnn.training.state import TrainState, path_name, shapes_of
from jaxcnn.weights.files import checked_input


def check_resume(config: Config, workdir: Path) -> None:
    """Raise a UserError that names every key in which `config` differs from the run begun in `workdir` and may not."""
    path = workdir / "config.json"
    if not path.exists() or not any((workdir / "checkpoints").glob("[0-9]*")):
        return
    before, now = (json.loads(to_json(c)) for c in (from_json(path), config))  # as JSON has it: tuples are lists
    if (kind := path_kind(before["data.name"])) and kind == path_kind(now["data.name"]):
        before["data.name"] = now["data.name"]  # files may have moved: their checkpoint knows their classes and number
    changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k) and k not in RESUMABLE]
    if changed:
        words = "; ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in changed)
        raise UserError(
            f"--workdir {workdir} holds a run of another config ({words}): take another folder, or set these back"
        )


def restore_or_init(
    config: Config, program: Program, data: Data, checkpoints: Checkpoints
) -> tuple[int, TrainState, dict[str, float]]:
    """The step to go on from, the state on the mesh, and the time spent before: of the newest checkpoint, or fresh."""
    if checkpoints.steps:
        start = checkpoints.resolve("last")
        info = checkpoints.info(start)
        if "position" not in info:
            folder = checkpoints.folder.parent
            raise UserError(f"{folder} holds imported weights: give a new --workdir and --config.init_from={folder}")
        check_position(info["position"], data.position)
        state = checkpoints.restore(start, program.state)  # arrays of another model are the better reason, so first
        state = state.replace(constants=program.constants())
        check_norm(info, config, program)
        return start, state, info["spent"]
    state = program.init()
    if config.init_from:
        fresh = {"params": state.params, "batch_stats": state.batch_stats}
        best, reset = program.task.best, config.reset_head
        loaded, words = load_variables(place(config.init_from, "config.init_from"), fresh, best, data.input, reset)
        for line in filter(None, [_images_of(config, data), words, _other_network(config)]):
            if jax.process_index() == 0:
                print(line, file=sys.stderr, flush=True)
        state = state.replace(**loaded, ema=program.average_of(loaded))
    elif (params := program.task.initial(state.params, data)) is not state.params:
        begin = {"params": params, "batch_stats": state.batch_stats}
        state = state.replace(params=params, ema=program.average_of(begin))
    return 0, state, {}


def check_position(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a UserError unless the checkpoint's position is one in the data of this run."""
    for key, value in now.items():
        if saved.get(key) != value:
            raise UserError(
                f"the checkpoint was trained with {key} {saved.get(key)!r}, this run has {value!r}: "
                "its place in the data cannot be found again; take another --workdir"
            )


def check_norm(saved: dict[str, Any], config: Config, program: Program) -> None:
    """Raise a UserError if BatchNorm was over other numbers of images: per shard the devices are part of the model."""
    before, now = saved.get("normalised", program.normalised), program.normalised
    if before != now:
        raise UserError(
            f"the checkpoint was trained with BatchNorm over {before} images, config.norm.scope={config.norm.scope} "
            f"makes that {now} on these devices: train on as many as before, or in another --workdir"
        )


def input_to_start_from(config: Config, workdir: Path | None) -> dict[str, Any]:
    """Return the "input" of the weights that `config.init_from` names, {} of none, or of those that do not say.

    A run that goes on has taken from them what it needed: its own checkpoints say that, and the weights may be gone.

    Raises:
      UserError: there are no such weights.
    """
    if not config.init_from:
        return {}
    if (own := own_input(config, workdir)) is not None:
        return own
    with _weights_of(place(config.init_from, "config.init_from"), create_task(config).best) as (checkpoints, step):
        return _input(checkpoints.info(step))


def own_input(config: Config, workdir: Path | None) -> dict[str, Any] | None:
    """Return the "input" of the newest checkpoint in a run's folder that can be read, None where there is none."""
    if workdir and any((workdir / "checkpoints").glob("[0-9]*")):
        own = Checkpoints(workdir, create_task(config).best)
        for step in reversed(own.steps):
            with suppress(UserError):  # A damaged one is for `restore_or_init` to name.
                return _input(own.info(step))
    return None


def _images_of(config: Config, data: Data) -> str:
    """Return the line that says what the images take of `config.init_from`, or how data that was given differs."""
    known = input_to_start_from(config, None)
    taking, taken = of_weights(config, known, create_task(config).padded)
    if known and (other := differences(known, data.input, taking.data)):
        return f"warning: the data given is not as {config.init_from} expects: {other}"
    return taken and f"images as of {config.init_from}: {taken}"


def _other_network(config: Config) -> str:
    """Return the warning that the weights are of another classification network, whose arrays have the same shapes."""
    with _weights_of(place(config.init_from, "config.init_from"), create_task(config).best) as (checkpoints, _):
        try:
            theirs = classifier_of(from_json(checkpoints.folder.parent / "config.json"))
        except UserError:  # A folder of weights alone has none.
            return ""
    ours = classifier_of(config)
    if not {theirs, ours} <= CLASSIFIERS.keys() or theirs == ours:
        return ""
    key = "model.name" if config.model.name == ours else "model.overrides.backbone"
    return (
        f"warning: config.init_from={config.init_from} has weights of {theirs}, and this run is of {ours}: their "
        f"arrays have the same shapes, but they compute differently; set config.{key}={theirs} unless that is meant"
    )


def _input(info: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return checked_input(info.get("input"), info.get("num_classes"))
    except ValueError:
        return {}


@contextmanager
def _weights_of(path: Path | Address, best: tuple[str, str]) -> Iterator[tuple[Checkpoints, int]]:
    """Give the checkpoints and the step that `config.init_from` means."""
    if isinstance(path, Path) and path.is_file():
        raise UserError(
            f"config.init_from={path} is a file: make a folder of it first, "
            f"`jaxcnn weights import --model NAME {path} OUT`, and start from OUT"
        )
    run, which = (path.parent.parent, path.name) if path.parent.name == "checkpoints" else (path, "best")
    with stores.opened(run) as folder:
        with suppress(UserError):  # The best of a run of another task is that by its own score.
            best = create_task(from_json(folder / "config.json")).best
        checkpoints = Checkpoints(folder, best)
        yield checkpoints, checkpoints.resolve(which)


def load_variables(
    path: Path | Address,
    fresh: Tree,
    best: tuple[str, str],
    images: Mapping[str, Any] | None = None,
    reset_head: bool = False,
) -> tuple[Tree, str]:
    """Return the weights to start from: a run's folder (its best checkpoint) or one checkpoint, RUN/checkpoints/STEP.

    A head of the same classes in another order is put in this run's. A network on a trunk may start from its backbone
    as a classifier, whose fully connected layers become convolutions, or from another network on the same trunk.

    Args:
      fresh: {"params", "batch_stats"} of step 0, on the devices that the result is to be on.
      images: the "input" of this run's data: "image_shape" (H, W, C), for the error, and "class_names".
      reset_head: whether heads, auxiliary ones too, stay fresh where the classes differ, in number or by name.

    Returns:
      The weights, and what the log is to say of them ("" for nothing). The norms of either network may be frozen.

    Raises:
      UserError: there is no checkpoint; or it is of another model, of images that other weights go with, or, without
        `reset_head`, of another number of classes.
    """
    with _weights_of(path, best) as (checkpoints, step):
        return _load(checkpoints, step, path, fresh, images or {}, reset_head)


def _load(
    checkpoints: Checkpoints, step: int, path: Path | Address, fresh: Tree, images: Mapping[str, Any], reset_head: bool
) -> tuple[Tree, str]:
    info = checkpoints.info(step)  # refuses another format
    saved = checkpoints.variable_shapes(step)
    asked = match_norms(fresh, saved)  # frozen norms keep their affine in another collection than ordinary ones
    now = shapes_of(asked)
    if onto_trunk.has_trunk(now) and saved.keys() != now.keys():
        return _load_parts(checkpoints, step, path, fresh, images, reset_head)
    heads = [key for key in now if _differs_in_classes(key, saved.get(key, ()), now[key])]
    if not heads or saved | {key: now[key] for key in heads} != now:
        try:
            loaded = checkpoints.restore_variables(step, asked)
        except UserError as error:
            raise UserError(f"{error}{_other_images(info, images.get('image_shape', ()))}") from error
        kept, words = _head_of_classes(path, loaded, asked, _input(info).get("class_names"), images, reset_head)
        return match_norms(kept, fresh), words
    there, here = saved[heads[0]][-1], now[heads[0]][-1]
    if not reset_head:
        raise _other_classes(path, there, here)

    def like(keys: Any, x: Any) -> Any:
        shape = saved[path_name(keys)]  # a head of other classes need not divide; it is not kept
        cut = shape != x.shape and isinstance(x.sharding, NamedSharding)
        sharding = NamedSharding(x.sharding.mesh, PartitionSpec()) if cut else x.sharding
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

    loaded = checkpoints.restore_variables(step, jax.tree_util.tree_map_with_path(like, asked))
    merged = jax.tree.map(lambda old, new: old if old.shape == new.shape else new, loaded, asked)
    return match_norms(merged, fresh), f"the head starts afresh: {there} classes in {path}, {here} here"


def _load_parts(
    checkpoints: Checkpoints, step: int, path: Path | Address, fresh: Tree, images: Mapping[str, Any], reset_head: bool
) -> tuple[Tree, str]:
    """Do what `load_variables` does with weights of which a network on a trunk has a part."""
    info, there = checkpoints.info(step), checkpoints.variable_shapes(step)
    names = onto_trunk.renamed(there)
    saved = {here: there[name] for here, name in names.items()}
    asked = match_norms(fresh, saved)
    now, classifier = shapes_of(asked), not onto_trunk.has_trunk(there)
    heads = [key for key in now if _differs_in_classes(key, saved.get(key, ()), now[key])]
    if heads and not classifier and not reset_head:
        raise _other_classes(path, saved[heads[0]][-1], now[heads[0]][-1])
    source = f"config.init_from={path}"
    parts = onto_trunk.divide(source, saved, now, heads=not classifier)
    flat: Any = flatten_dict(asked, sep="/")
    anywhere = next(iter(flat.values())).sharding  # of what is read and not taken
    if isinstance(anywhere, NamedSharding):
        anywhere = NamedSharding(anywhere.mesh, PartitionSpec())

    def like(here: str) -> jax.ShapeDtypeStruct:
        taken = here in parts.taken
        return jax.ShapeDtypeStruct(saved[here], jnp.float32, sharding=flat[here].sharding if taken else anywhere)

    loaded = checkpoints.restore_variables(
        step, unflatten_dict({name: like(here) for here, name in names.items()}, sep="/")
    )
    arrays: Any = flatten_dict(loaded, sep="/")
    merged = {} if "batch_stats" not in fresh else {"batch_stats": {}}
    merged |= unflatten_dict(flat | {here: arrays[names[here]] for here in parts.taken}, sep="/")
    words = onto_trunk.describe(source, parts, saved, now)
    if not classifier:
        merged, more = _head_of_classes(path, merged, asked, _input(info).get("class_names"), images, reset_head)
        words = "\n".join(filter(None, [words, more]))
    return match_norms(merged, fresh), words


def _other_classes(path: Path | Address, there: int, here: int) -> UserError:
    return UserError(
        f"config.init_from={path} has {there} classes, this run {here}: config.reset_head=True takes the other "
        "weights and gives the head fresh ones"
    )


def _head_of_classes(
    path: Path | Address,
    loaded: Tree,
    fresh: Tree,
    saved: Sequence[str] | None,
    images: Mapping[str, Any],
    reset_head: bool,
) -> tuple[Tree, str]:
    """Return the weights with heads for this run's classes, as many as those they were trained on, and words of it."""
    here: Sequence[str] = images.get("class_names", ())
    if not saved or len(saved) != len(here):
        return loaded, ""
    if same_names(saved, here):
        return loaded, f"the head is kept: its classes in {path} are those of this run" if reset_head else ""
    first = next(i for i, (old, new) in enumerate(zip(saved, here, strict=True)) if not same_names([old], [new]))
    differ = f"class {first} is '{saved[first]}' in {path}, '{here[first]}' here"
    order: tuple[int, ...] = ()
    with suppress(UserError):
        order = find_classes(saved, here, str(path), "this run")
    if order == tuple(range(len(here))):  # one of the two has numbers for names
        return loaded, f"the head is kept, class by class in their order: {differ}"

    def change(keys: Any, old: Any, new: Any) -> Any:
        if not _by_class(path_name(keys)) or old.shape[-1:] != (len(here),):
            return old
        return jax.device_put(jnp.take(old, jnp.asarray(order), axis=-1), new.sharding) if order else new

    if order:
        words = f"the head follows the names of the classes: {differ}"
    elif reset_head:
        words = f"the head starts afresh: {differ}"
    else:
        return loaded, f"the head is kept though {differ}: config.reset_head=True gives it fresh weights"
    return jax.tree_util.tree_map_with_path(change, loaded, fresh), words


def _by_class(key: str) -> bool:
    """Return whether the last dimension of an array is the classes: of a head, or of a learnt enlarging of scores."""
    return key.split("/")[-2].partition("_")[0] in ("head", "enlarge")


def _differs_in_classes(key: str, saved: tuple[int, ...], now: tuple[int, ...]) -> bool:
    return _by_class(key) and saved != now and len(saved) == len(now) and saved[:-1] == now[:-1]


def _other_images(info: dict[str, Any], image_shape: Sequence[int]) -> str:
    """Words that say why weights may differ in shape, where the images do."""
    saved = info.get("input", {}).get("image_shape", image_shape)
    if list(saved) == list(image_shape):
        return ""
    there, here = ("×".join(map(str, shape)) for shape in (saved, image_shape))
    return f". Its images are {there}, this run's {here} (config.data.image_size)"
