"""Open what was trained, predict and evaluate with it: what `jaxcnn.open_run` and the commands do.

Opening a run does not need its data set: a checkpoint knows its images' shape, normalisation and class names.
"""

import copy
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcnn import UserError, stores
from jaxcnn.config import Config, base_config, validate
from jaxcnn.configfile import from_json, set_key
from jaxcnn.data.batches import Slice
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.expected import Network, Relabelled, of_weights, with_settings
from jaxcnn.data.images.augment_device import normalize
from jaxcnn.data.images.decode import read_image
from jaxcnn.data.images.test_crops import make_views, plan, view_batches
from jaxcnn.data.prepare import cifar
from jaxcnn.data.sources import coco, voc_segmentation
from jaxcnn.data.sources.imagenet import class_names
from jaxcnn.locations import Address, place
from jaxcnn.models import list_models
from jaxcnn.models.grad_cam import grad_cam
from jaxcnn.safe_files import shown
from jaxcnn.tasks import create_task
from jaxcnn.tasks.base import Images
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.evaluation import (
    Evaluation,
    check_scored,
    densely,
    evaluate_rows,
    make_crops_step,
    make_views_step,
)
from jaxcnn.training.predicting import Prediction, predict_padded
from jaxcnn.training.program import Program, build_program, compiler_options
from jaxcnn.training.sharding import make_mesh, on_all, replicated
from jaxcnn.training.state import init_variables, shapes_of
from jaxcnn.training.train import network_of
from jaxcnn.weights.files import check_finite, checked_input, exported, from_paths, read_state_dict, some, to_paths
from jaxcnn.weights.torchvision import (
    CIFAR_NAMES,
    DETECTION_NAMES,
    SEGMENTATION_NAMES,
    find_network,
    from_state_dict,
    input_of,
    new_heads,
)

_CHUNK = 64  # images that are in memory and go through the network at once

Overrides = Mapping[str, Any] | Iterable[tuple[str, Any]]  # dotted key -> value, or its text as on the command line


@dataclass(frozen=True)
class TrainedModel:
    """A network with its weights, and what it expects of an image.

    Attributes:
      model: the Flax module; `model.apply(variables, normalize(images), train=False)` gives its endpoints, too.
      variables: {"params", "batch_stats"} as evaluation uses them, the moving average where the run kept one.
      config: of the run, or what stands for it.
      step: of the checkpoint.
      input: "image_shape" (H, W, C), "mean" and "std" per channel of pixels in 0 … 1, "class_names", and "resize" where
        images are resized to that shorter side before the centre is cropped. Where they are padded instead, "min_size",
        the shorter side that all of an image is brought to (0: its own).
      mesh: the devices that `evaluate` uses.
      source: folder or file that it was read from.
      averaged: steps of the checkpoints whose mean the variables are; () where they are one checkpoint's.
    """

    model: nn.Module
    variables: Any
    config: Config
    step: int
    input: dict[str, Any]
    mesh: Mesh
    source: str
    averaged: tuple[int, ...] = ()

    @classmethod
    def from_weights(cls, name: str, file: str | Path, overrides: Overrides = ()) -> "TrainedModel":
        """Read the weights of network `name`, torchvision's or those that `jaxcnn weights export` wrote.

        Args:
          file: .safetensors or torch's .pth; nothing in it is executed.
          overrides: of the config, such as {"dtype": "bfloat16"}; by default the file's own, or ImageNet's in float32.

        Raises:
          UserError: the file cannot be read, does not fit the network, or has values that are not finite.
        """
        file = Path(file)
        arrays = read_state_dict(file)
        if not any(key.startswith("params/") for key in arrays):  # Our own names have a slash, torch's have none.
            arrays, left = find_network(name, arrays)
            if left:
                print(f"{file}: passed over what is no part of {name} ({some(left)})", file=sys.stderr)
            if made := new_heads(name, arrays):
                print(f"{file} does not have {', '.join(made)} for its classes: initialised", file=sys.stderr)
            arrays = to_paths(from_state_dict(name, arrays))
        bias = arrays.get("params/head/bias")
        classes = len(bias) if bias is not None and bias.ndim == 1 else 1000
        config, given = _config_of_weights(file, name, classes, dict(overrides))
        model = network_of(config, classes, given["image_shape"])
        variables = from_paths(jax.eval_shape(lambda: init_variables(model, 0, given["image_shape"])), arrays)
        check_finite(variables)  # XLA's ReLU on a CPU takes a NaN for 0: the output would not show it.
        return cls(model, variables, config, 0, given, make_mesh(config.mesh.data, config.mesh.model), str(file))

    def normalize(self, images: Any) -> jax.Array:
        """Return uint8 images (N, H, W, C) of the network's size as the module takes them, float32."""
        return normalize(jnp.asarray(images), self.input["mean"], self.input["std"])

    def predict(self, images: Any) -> Any:
        """Return the `Prediction` of one image, or a list of them for several.

        Args:
          images: a path or an array, uint8 (H, W) or (H, W, C); several as a list of either, or uint8 (N, H, W, C).
            They are resized and cropped as `input` says, but for arrays of exactly its "image_shape". Where a network
            gives a class for each pixel, it sees all of each image, and its "label_map" is of the image's own size.

        Raises:
          UserError: an image cannot be read, or the network's output for it is not finite.
        """
        one = isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim < 4)
        several: Any = [images] if one else images
        predictions = list(self.predictions(several))
        for prediction in predictions:
            if prediction.error:
                raise UserError(prediction.error)
        return predictions[0] if one else predictions

    def predictions(self, images: Iterable[Any]) -> Iterator[Prediction]:
        """Yield the predictions of `images` in their order, read in chunks; one that fails has an `error`."""
        found = predict_padded(self, images) if self.task.padded else self._through(self.outputs, images)
        for prediction in found:
            if prediction.error:
                yield prediction
            else:
                summary, text = self.task.describe(dict(prediction.outputs), self.input["class_names"])
                yield prediction._replace(summary=summary, text=text)

    def features(self, images: Iterable[Any], endpoint: str) -> Iterator[Prediction]:
        """Yield, for each of `images` in their order, an endpoint's mean over space; one that fails has an `error`.

        The `outputs` are {"features": float32 (C,)}, of an endpoint without height and width all of it.

        Args:
          images: as `predict` takes several.
          endpoint: a name of the module's outputs, such as "stage4".

        Raises:
          UserError: there is no such endpoint; before any image is read.
        """
        if self.task.padded:
            raise UserError(f"features are those of networks that classify images: {self.source} is none")
        shape = (1, *self.input["image_shape"])
        found = jax.eval_shape(self._outputs, self.variables, jax.ShapeDtypeStruct(shape, jnp.uint8))
        names = [name for name, x in dict(found).items() if getattr(x, "ndim", 0) in (2, 4)]
        if endpoint not in names:
            raise UserError(
                f"{self.config.model.name} has no endpoint {shown(endpoint)}: take one of {', '.join(names)}"
            )

        def program(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            x = self._outputs(variables, images)[endpoint].astype(jnp.float32)
            return {"features": x.mean((1, 2)) if x.ndim == 4 else x}

        compiled = jax.jit(program, compiler_options=self._compiler_options)
        return self._through(lambda batch: jax.device_get(compiled(self._weights, batch)), images)

    def _through(self, outputs: Callable[[np.ndarray], dict[str, np.ndarray]], images: Iterable[Any]) -> Any:
        """Yield a `Prediction` with `outputs` of each image, read in chunks; one that fails has an `error`."""
        images = list(images)
        size = min(len(images), _CHUNK)  # All chunks have one size, so that one program is compiled.
        for start in range(0, len(images), size or 1):
            found = [self._read(image, start + i) for i, image in enumerate(images[start : start + size])]
            batch = np.zeros((size, *self.input["image_shape"]), np.uint8)  # Rows without an image stay zero.
            if good := [row for row, prediction in enumerate(found) if not prediction.error]:
                batch[good] = [found[row].image for row in good]
            values = outputs(batch) if good else {}
            for i, prediction in enumerate(found):
                mine = {key: value[i] for key, value in values.items()}
                if prediction.error:
                    yield prediction
                elif not all(np.isfinite(value).all() for value in mine.values()):
                    error = f"the network's output for {prediction.name} is not finite: check its weights"
                    yield prediction._replace(error=error)
                else:
                    yield prediction._replace(outputs=mine)

    def outputs(
        self, images: np.ndarray, sizes: np.ndarray | None = None, proposals: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Return what the task keeps of the outputs for uint8 images of the network's size, (N, …) each.

        Args:
          sizes: int32 (N, 2), height and width of each image within its canvas, where they are padded.
          proposals: float32 (N, R, 4), regions for a detector that is given them.
        """
        given = [] if sizes is None else [sizes] if proposals is None else [sizes, proposals]
        return jax.device_get(self._program(images, *given))

    def explain(self, images: np.ndarray, classes: Any = None) -> np.ndarray:
        """Return how much each pixel of images as `outputs` takes them speaks for a class: float32 (N, H, W) in 0 … 1.

        Args:
          classes: int (N,); None: the likeliest of each image. See `jaxcnn.models.grad_cam`.
        """
        images = jax.device_put(images, jax.local_devices()[0])
        program = jax.jit(lambda variables, x: grad_cam(self.model, variables, self.normalize(x), classes))
        return np.asarray(program(self._weights, images))

    @cached_property
    def task(self) -> Any:
        """The task of the config."""
        return create_task(self.config)

    @cached_property
    def _weights(self) -> Any:
        # One device does: the variables of a run are on all, and each would compute the same.
        return jax.device_put(self.variables, jax.local_devices()[0])

    @property
    def _compiler_options(self) -> dict[str, bool]:
        return compiler_options(self.config, jax.default_backend())

    def forward(
        self, variables: Any, images: jax.Array, sizes: jax.Array | None = None, proposals: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Return the arrays of `outputs`, as a function of the variables too: what is compiled and exported."""
        return self.task.predict(self._outputs(variables, images, sizes, proposals))

    def _outputs(
        self, variables: Any, images: jax.Array, sizes: jax.Array | None = None, proposals: jax.Array | None = None
    ) -> Any:
        """Return all that the network gives for uint8 images (N, H, W, C) of its size."""
        rngs = {"example": jax.random.split(jax.random.key(self.config.seed), images.shape[0])}
        given = {"sizes": sizes, "proposals": proposals}
        batch = {"image": self.normalize(images)} | {name: x for name, x in given.items() if x is not None}
        return self.task.forward(self.model, variables, batch, rngs, False)[0]

    @cached_property
    def _program(self) -> Callable[..., dict[str, jax.Array]]:
        return partial(jax.jit(self.forward, compiler_options=self._compiler_options), self._weights)

    def _read(self, image: Any, index: int) -> Prediction:
        shape = tuple(self.input["image_shape"])
        is_path = isinstance(image, str | Path)
        name = str(image) if is_path else f"image {index}"
        image = Path(image) if is_path else np.asarray(image)
        if not is_path and image.shape == shape and image.dtype == np.uint8:
            return Prediction(image, name=name)
        try:
            return Prediction(read_image(image, shape, self.input.get("resize")), name=name)
        except UserError as error:
            return Prediction(name=name, error=str(error))

    def evaluate(
        self, overrides: Overrides = (), protocol: str = "", scales: Sequence[float] = (), flip: bool = False
    ) -> dict[str, Any]:
        """Score every example of the evaluation set once, on all devices and processes.

        Args:
          overrides: of the config's `data.` keys and global_batch_size, such as {"data.eval_split": "train"}.
          protocol: a paper's test, "1crop", "10crop", "144crop" or "dense"; "": as the run itself evaluates.
          scales: of "dense", lengths in pixels of the shorter side; of segmentation, factors on the sides of images,
            over which the softmax of each pixel is averaged.
          flip: of segmentation, average over mirrored images too.

        Returns:
          "eval/…" scores, "eval/examples", and what was evaluated: "workdir", "checkpoint", "model", "data", "split".

        Raises:
          UserError: the data set is missing, or its classes or images are not the network's.
        """
        return self.evaluation(overrides, protocol, scales, flip, per_example=False).scores

    def evaluation(
        self, overrides: Overrides = (), protocol: str = "", scales: Sequence[float] = (), flip: bool = False,
        per_example: bool = True,
    ) -> Evaluation:  # fmt: skip
        """Do the same, and return the predictions of all examples beside the scores, in every process.

        Args:
          per_example: False leaves the predictions out.
        """
        self._check_protocol(protocol, scales, flip)
        config, data = self._data(overrides)
        program = build_program(config, self.model, data, self.mesh, per_example)
        if shapes_of(program.variables) != shapes_of(self.variables):
            theirs, ours = ("×".join(map(str, shape)) for shape in (self.input["image_shape"], data.image_shape))
            raise UserError(f"{self.source} takes images of {theirs}, those of {config.data.name} are {ours}")
        about = {
            "workdir": self.source, "checkpoint": list(self.averaged) or self.step,
            "model": config.model.name, "data": config.data.name, "split": data.eval.split,
        }  # fmt: skip
        # Weights that were made for the centre of an image are scored on it, though the data set would give all of it.
        if not protocol and "resize" in self.input and "resize" not in data.input:
            protocol = "1crop"
        if protocol:
            pixels: Any = scales
            step, batches, views = self._views(protocol, pixels, config, data, program, per_example)
            about |= {"protocol": protocol, "views": views.count, "scales": views.scales}
        elif scales or flip:
            factors, batches = tuple(scales) or (1.0,), data.eval_batches()
            step = make_views_step(self.model, program.task, data.preprocess, factors, flip, per_example)
            step = jax.jit(step, out_shardings=replicated(self.mesh), compiler_options=program.compiler_options)
            about |= {"views": len(factors) * (1 + flip), "scales": factors, "flip": flip}
        else:
            step, batches = program.compile_evaluation(), data.eval_batches()
        about |= program.task.about()
        constants = {"constants": program.constants()} if program.task.constants else {}
        scores, rows = evaluate_rows(
            step, self.variables | constants, batches, task=program.task, mesh=self.mesh, examples=data.eval_examples,
            broken=lambda: data.eval_broken,
        )  # fmt: skip
        if isinstance(data.eval, Relabelled) and data.eval.by_place and jax.process_index() == 0:
            print(f"{config.data.name}: {data.eval.by_place}", file=sys.stderr)
        check_scored(scores, data, config.data.name)
        for words in data.complaints(0):
            print(words, file=sys.stderr)
        return Evaluation(about | scores, rows, program.task, data, self.input["class_names"])

    def _check_protocol(self, protocol: str, scales: Sequence[float], flip: bool) -> None:
        """Refuse a test that the task does not have."""
        name = self.config.task.name
        if self.task.padded and protocol:
            instead = "leave it out" if self.task.detects else f"{name} has --flip and --scales without it"
            raise UserError(f"--protocol {protocol} cuts crops out of images: {instead}")
        if self.task.detects and (flip or scales):
            raise UserError(f"--flip and --scales average classes of pixels: {name} has none, leave them out")
        if not self.task.padded and (flip or (scales and protocol != "dense")):
            option = "--flip goes" if flip else "--scales goes with --protocol dense, or"
            raise UserError(f"{option} with segmentation: {name} mirrors by --protocol 10crop, 144crop or dense")

    def examples(self, count: int, overrides: Overrides = ()) -> dict[str, np.ndarray]:
        """Return the first examples of the evaluation set, of one size: "image" as `outputs` takes it, targets."""
        parts, size = [], None
        for batch in self._data(overrides)[1].eval_batches():
            size = size or batch["image"].shape[1:]
            if batch["image"].shape[1:] != size or sum(len(part["mask"]) for part in parts) >= count:
                break
            parts.append({key: value[batch["mask"] > 0] for key, value in batch.items()})
        return {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}

    def _data(self, overrides: Overrides) -> tuple[Config, Dataset]:
        """Return the config with the overrides, and its data set, of which only the evaluation split is read."""
        for key in dict(overrides):
            if not key.startswith("data.") and key != "global_batch_size":
                raise UserError(f"config.{key} is of the network: give it to open_run(workdir, overrides=…)")
        config = copy.deepcopy(self.config)
        _override(config, overrides)
        # Evaluation pads and masks: any batch will do, once it divides by the devices.
        config.global_batch_size += -config.global_batch_size % self.mesh.size
        config.data.resident = False  # What is read once need not stay on the devices.
        part = Slice(jax.process_index(), jax.process_count())
        config, _ = of_weights(config, self.input, self.task.padded)
        # A task without labels takes data of any classes, or of none.
        labelled = self.task.targets(Images(len(self.input["class_names"]), self.input["image_shape"])).keys()
        classes = self.input["class_names"] if labelled & {"label", "label_map", "labels"} else None
        network = Network(self.source, self.input["image_shape"][2], classes)
        data = Dataset(
            config, part, training=False, targets=self.task.targets, network=network,
            pixel_range=self.task.pixel_range, kept=partial(dict, self.input),
        )  # fmt: skip
        return config, data

    def _views(
        self, protocol: str, scales: Sequence[int], config: Config, data: Dataset, program: Program, per_example: bool
    ) -> Any:
        """Return the step, the batches and the views of a protocol; a broken image is an error there, never skipped."""
        size, batch = data.eval_image_shape[:2], config.global_batch_size
        trained = round(self.input.get("resize", 0) * max(size) / max(self.input["image_shape"][:2]))
        views = make_views(protocol, data.eval_image_shape, scales, data.input.get("resize", trained))
        batches = plan(data.eval, views, batch, self.mesh.size)
        shapes = len({rows.aspect for rows in batches})
        compiled = f", {shapes} shape{'s' * (shapes > 1)} of images to compile for" if protocol == "dense" else ""
        print(f"{protocol}: {views.count} view{'s' * (views.count > 1)} an image{compiled}", file=sys.stderr)
        step = make_crops_step(
            densely(self.model) if protocol == "dense" else self.model, program.task,
            partial(normalize, mean=data.mean, std=data.std), batch * math.prod(size), views.mirrored, per_example,
        )  # fmt: skip
        step = jax.jit(step, out_shardings=replicated(self.mesh), compiler_options=program.compiler_options)
        return step, view_batches(data.eval, views, batches, part=data.part, workers=config.data.workers), views


def open_run(
    workdir: str | Path | Address, checkpoint: str | int | Sequence[str | int] = "last", overrides: Overrides = (),
    model: nn.Module | None = None,
) -> TrainedModel:  # fmt: skip
    """Open the run in `workdir` at a checkpoint: "best", "last" or a step. It may be training still.

    Args:
      checkpoint: several of them give the mean of their weights (Izmailov et al. 2018, "Averaging weights leads to
        wider optima"), each counted once. The paper computes BatchNorm's statistics again over training images; here
        they are averaged, too.
      overrides: of its config, such as {"dtype": "float32", "mesh.data": 1}.
      model: the module that it was trained with, where that was none of `config.model`.

    Raises:
      UserError: the folder is no run, or the checkpoint is missing, unreadable or not of the config's model.
    """
    workdir = place(workdir, "workdir")
    with stores.opened(workdir) as folder:
        return _open(workdir, folder, checkpoint, overrides, model)


def _open(workdir: Path | Address, folder: Path, checkpoint: Any, overrides: Overrides, model: Any) -> TrainedModel:
    """Do what `open_run` does with the folder of a run, which is its `workdir` or stands for it."""
    # A run opens on the devices that are here, however its training was distributed.
    alone = {"mesh.data": "-1", "mesh.model": "1", "mesh.placement": "replicated", "norm.scope": "global"}
    config = from_json(folder / "config.json", [*alone.items(), ("optimizer.accumulate", "1"), *_texts(overrides)])
    name = config.model.name
    if model is None and name not in list_models() and ":" not in name and "model.name" not in dict(overrides):
        raise UserError(
            f"{workdir} holds '{name}', a network that train was given: give it to open_run(workdir, model=…) too, or "
            "train it by config.model.name=module:Class, which the commands can open"
        )
    mesh = make_mesh(config.mesh.data, config.mesh.model)
    checkpoints = Checkpoints(folder, create_task(config).best)
    several = [checkpoint] if isinstance(checkpoint, str | int) else checkpoint
    steps = sorted({checkpoints.resolve(str(which)) for which in several})
    step = steps[-1]
    info = checkpoints.info(step)
    try:
        info = info if isinstance(info, dict) else {}
        given = checked_input(info.get("input"), info.get("num_classes"))
    except ValueError as error:
        raise UserError(f"checkpoint {step} of {workdir} is damaged: of its 'info', {error}") from error
    given = _overridden(given, config, overrides)
    model = network_of(config, info["num_classes"], given["image_shape"], model)
    shapes = jax.eval_shape(lambda: init_variables(model, 0, given["image_shape"]))
    sharding = replicated(mesh)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
    if isinstance(checkpoint, str | int):
        return TrainedModel(model, checkpoints.restore_variables(step, like), config, step, given, mesh, str(workdir))
    variables = _mean((checkpoints.restore_variables(each, like) for each in steps), mesh)
    return TrainedModel(model, variables, config, step, given, mesh, str(workdir), tuple(steps))


def _mean(trees: Iterable[Any], mesh: Mesh) -> Any:
    """Return the mean of trees of arrays, added in float64 on the host; each array keeps its type.

    Raises:
      UserError: arrays of integers differ: they have no mean.
    """
    total, count, last = None, 0, None
    for tree in trees:
        tree = jax.device_get(tree)
        if last is not None:
            jax.tree.map(_check_integers, last, tree)
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
        total = wide if total is None else jax.tree.map(np.add, total, wide)
        count, last = count + 1, tree
    return jax.tree.map(lambda x, like: on_all(mesh, (x / count).astype(like.dtype)), total, last)


def _check_integers(first: np.ndarray, second: np.ndarray) -> None:
    if np.issubdtype(first.dtype, np.integer) and not np.array_equal(first, second):
        raise UserError("the checkpoints differ in arrays of integers, which have no mean: take one of them")


def _texts(overrides: Overrides) -> list[tuple[str, str]]:
    """Return overrides as the command line has them."""
    return [(key, value if isinstance(value, str) else repr(value)) for key, value in dict(overrides).items()]


def _override(config: Config, overrides: Overrides) -> None:
    for key, text in _texts(overrides):
        set_key(config, key, text)
    validate(config)


def _config_of_weights(file: Path, name: str, classes: int, overrides: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Return the config and the "input" that go with a file of weights: its own where `export` wrote it.

    Else those of the published weights: the size, statistics and names of ImageNet, CIFAR-10 or VOC.
    """
    values, given = exported(file, name, classes)
    if not values:
        task, data, known = "classification", "tfds:imagenet2012", class_names()
        if name in CIFAR_NAMES:
            data, known = "tfds:cifar10", cifar.CLASSES
        if name in SEGMENTATION_NAMES:
            task, data, known = "segmentation", "voc_segmentation:VOCdevkit", voc_segmentation.CLASSES
        if name in DETECTION_NAMES:
            task, data, known = "detection", "coco:data/coco", coco.class_names(classes)
        given = input_of(name, known if len(known) == classes else tuple(map(str, range(classes))))
        sides = {f"data.{key}": given[key] for key in ("min_size", "max_size") if key in given}
        size = sides or {"data.image_size": given["image_shape"][:2]}
        values = {
            "task.name": task, "model.name": name, "dtype": "float32", "steps": 1, "data.name": data, **size,
            "data.mean": given["mean"], "data.std": given["std"],
        }  # fmt: skip
    config = base_config(values.get("task.name", "classification"))
    _override(config, values | overrides)
    return config, _overridden(given, config, overrides)


def _overridden(given: dict[str, Any], config: Config, overrides: Overrides) -> dict[str, Any]:
    """Return the "input" of weights, but for the keys of `config.data` that `overrides` set."""
    keys = dict(overrides).keys()
    own = {leaf: config.data[leaf] if f"data.{leaf}" in keys else () for leaf in ("mean", "std")}
    sizes = ("image_size", "eval_size", "resize", "min_size", "max_size")
    own |= {leaf: config.data[leaf] if f"data.{leaf}" in keys else 0 for leaf in sizes}
    return with_settings(given, own)
