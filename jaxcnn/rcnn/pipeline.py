"""The stages of R-CNN after fine-tuning, and the run that they make: features, SVMs, regressions of boxes.

Features go through the cache (`cache.Cache`), so a pass that was killed goes on with the image where it was. The result
of a later stage is a file named by a digest of all that it depends on; where that is there, the stage is done.

The run has two checkpoints: 1 has the SVMs alone, and 2, the last, the regressions of boxes, too. Both columns of the
paper's tables come from one pipeline.
"""

import copy
import hashlib
import io
import json
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze

from jaxcnn import UserError
from jaxcnn.config import Config, validate
from jaxcnn.configfile import to_json
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.expected import Network, of_weights
from jaxcnn.locations import Address, place
from jaxcnn.models.rcnn import RCNN
from jaxcnn.rcnn import regression, svm
from jaxcnn.rcnn.cache import Arrays, Cache
from jaxcnn.rcnn.features import Extractor
from jaxcnn.safe_files import only_trainer, read_json, write_atomically
from jaxcnn.tasks import create_task
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.initial_state import input_to_start_from, load_variables
from jaxcnn.training.program import compiler_options
from jaxcnn.training.state import init_variables
from jaxcnn.training.train import network_of

ALONE, REGRESSED = 1, 2  # steps of the two checkpoints
Report = Callable[[str, int, int], None]  # stage, images done, images in all


def run(config: Config, workdir: Path, limit: int, report: Report) -> dict[str, Any]:
    """Train SVMs and regressions on the features of a fine-tuned classifier, and write the run of the detector.

    Args:
      config: of the task detection, a network of `models.rcnn`, `task.proposals`, and `init_from`, the run of the
        classifier.
      workdir: folder of the run, made if it must be; the stages' files are in it, too.
      limit: bytes that the features may take on the disk.
      report: told how far a stage is.

    Returns:
      What rcnn.json holds: "network", a digest of what features depend on; "images" and "windows" of the split;
      "features", the "seconds" that they took in all, after compilation, "seconds_an_image", and their "bytes";
      "seconds" of the other stages; and for each class how many "positives" and "negatives" its SVM was trained on.

    Raises:
      UserError: the config is not of R-CNN, or the weights, the data or the proposals do not fit it.
    """
    validate(config)
    if config.task.name != "detection":
        raise UserError(f"config.task.name={config.task.name}: R-CNN is of detection: base_config('detection')")
    if not config.init_from:
        raise UserError(
            "config.init_from is empty: name the run of the classifier, fine-tuned with config.data.windows"
        )
    if not config.task.proposals:
        raise UserError("config.task.proposals is empty: name the file that `jaxcnn data propose` wrote")
    with only_trainer(workdir):
        data, model = _data_and_model(config)
        return _Pipeline(config, workdir, data, model, Cache(workdir / "features", limit), report).run()


def _data_and_model(config: Config) -> tuple[Dataset, RCNN]:
    """Return the training images as evaluation has them, unchanged, one at a time; and the detector."""
    known, task = input_to_start_from(config, None), create_task(config)
    taking, _ = of_weights(config, known, padded=True)
    taking = copy.deepcopy(taking)
    taking.data.eval_split, taking.global_batch_size, taking.data.resident = config.data.train_split, 1, False
    source = f"config.init_from={config.init_from}"
    network = Network(source, known["image_shape"][2]) if known else None
    data = Dataset(taking, training=False, targets=task.targets, network=network)
    task.prepare(data)
    model = network_of(config, data.num_classes, data.image_shape)
    if not isinstance(model, RCNN):
        raise UserError(f"config.model.name={config.model.name} is no R-CNN: take rcnn_alexnet or rcnn_vgg16")
    side = model.setting("window")
    if known and tuple(known["image_shape"][:2]) != (side, side):
        height, width = known["image_shape"][:2]
        raise UserError(
            f"{source} was trained on images of {height}×{width}, the windows are {side}×{side}: set "
            "config.model.overrides.window to that, or take other weights"
        )
    if (there := known.get("context", model.context)) != model.context:
        raise UserError(
            f"{source} was trained on windows with {there} pixels of context, these have {model.context}: set "
            "config.model.overrides.context to that"
        )
    return data, model


def _facts_of(path: Path) -> dict[str, Any]:
    """Return the rcnn.json of an earlier call, {} where there is none that can be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class _Pipeline:
    """The stages of one call."""

    def __init__(
        self, config: Config, workdir: Path, data: Dataset, model: RCNN, cache: Cache, report: Report
    ):  # fmt: skip
        self.config, self.workdir, self.data, self.model, self.report = config, workdir, data, model, report
        # What is not taken of the weights is replaced below, so it needs no random numbers.
        shapes = jax.eval_shape(lambda: init_variables(model, config.seed, data.image_shape))
        fresh = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        weights: Path | Address = place(config.init_from, "config.init_from")
        self.variables, words = load_variables(weights, fresh, create_task(config).best, data.input, True)
        print(words, file=sys.stderr, flush=True)
        for name in ("fc6", "fc7"):
            old, new = (tree["params"].get(name, {}).get("kernel") for tree in (fresh, self.variables))
            if old is not None and old is new:
                raise UserError(
                    f"config.init_from={config.init_from} has no {name} of these windows: set "
                    "config.model.overrides.window, .backbone and .width to those of the weights"
                )
        self.extractor = Extractor(
            model, self.variables, data.eval_batches, data.mean, data.std,
            config.task.difficult, cache, compiler_options(config, jax.default_backend()),
        )  # fmt: skip
        self.total = data.eval_examples
        earlier = _facts_of(workdir / "rcnn.json")
        # Times of another network's features are none of this one's.
        self.facts = earlier if earlier.get("network") == self.extractor.network else {}
        self.facts["network"] = self.extractor.network
        self.before = {"seconds": 0.0, "windows": 0} | self.facts.get("features", {})

    def run(self) -> dict[str, Any]:
        """Do the stages that are not done yet, and write the run."""
        content, norms = self._features()
        settings = {"c": self.config.task.svm_c, "iou": self.config.task.svm_iou}
        found = self._stage("svm", [content, settings], partial(self._svm, norms[0]))
        boxes = self._stage("boxes", [content, {"ridge": self.config.task.ridge}], partial(self._boxes, norms[1]))
        self._write(found, boxes, norms)
        names = self.data.class_names
        counts = {name: dict(zip(names, found[name].tolist(), strict=True)) for name in ("positives", "negatives")}
        self.facts |= counts | {"norms": dict(zip(("features", "pool5"), norms, strict=True))}
        self._save_facts()
        return self.facts

    def _features(self) -> tuple[str, list[float]]:
        """Compute the features that are not cached; return a digest of the data, and mean norms of features and pool5.

        The digest is of the windows, their labels and the network: all that the later stages depend on.
        """
        content, windows, regressed = hashlib.sha256(), 0, 0
        try:
            for done, image in enumerate(self.extractor.windows(), start=1):
                key = self.extractor.key(image)
                content.update(key.encode())
                content.update(image.classes.tobytes() + image.overlap.tobytes())
                windows, regressed = windows + len(image.boxes), regressed + len(image.regressed)
                if len(image.boxes) and not self.extractor.cache.claim(key):
                    self.extractor.arrays(image)
                self.report("features", done, self.total)
        finally:  # The time that a run takes before it is stopped counts, too.
            self._save_facts()
        if not windows:
            raise UserError(f"{self.config.data.name} has no windows: take other proposals or another split")
        self.facts |= {"images": self.total, "windows": windows, "regressed": regressed}
        found = self._stage("norms", [content.hexdigest()], self._norms)
        if not found["norms"].all():  # The later stages scale by their inverse.
            raise UserError(f"all features of config.init_from={self.config.init_from} are 0: take other weights")
        return content.hexdigest(), found["norms"].tolist()

    def _norms(self) -> Arrays:
        """Return the mean norms of the features and of pool5, over windows of 200 images spread over all."""
        chosen = set(np.linspace(0, self.total - 1, min(self.total, 200)).round().astype(int).tolist())
        found = [
            self.extractor.arrays(image)
            for i, image in enumerate(self.extractor.windows())
            if i in chosen and len(image.boxes)
        ]
        features = np.concatenate([*svm.norms_of(each["features"] for each in found)])
        return {"norms": np.array([features.mean(), np.concatenate([each["norms"] for each in found]).mean()])}

    def _svm(self, norm: float) -> Arrays:
        """Return the SVMs' "weights" (F, classes) and "bias" (classes,), and how many windows they were trained on."""
        scale = svm.NORM / norm

        def pass_over(stage: str) -> Iterator[svm.Regions]:
            counter = iter(range(1, self.total + 1))
            return self.extractor.regions(lambda: self.report(stage, next(counter), self.total))

        positives = svm.positives_of(pass_over("objects"), self.model.num_classes)
        task = self.config.task
        found = svm.train(pass_over("SVMs"), positives, scale, task.svm_c, task.svm_iou)
        counts = np.array([len(rows) for rows in positives])
        # The features are not scaled in the network: their factor goes into the weights.
        return {
            "weights": found.weights * np.float32(scale), "bias": found.bias, "positives": counts,
            "negatives": found.negatives, "trained": found.trained,
        }  # fmt: skip

    def _boxes(self, norm: float) -> Arrays:
        """Return the regressions' "kernel" (C, 4, classes) and "bias" (4, classes)."""
        classes, scale = self.model.num_classes, svm.NORM / norm
        rows: list[list[np.ndarray]] = [[] for _ in range(classes)]
        wanted: list[list[np.ndarray]] = [[] for _ in range(classes)]
        for done, image in enumerate(self.extractor.windows(), start=1):
            if len(chosen := image.regressed):
                pool5, truth = self.extractor.arrays(image)["pool5"], image.boxes[image.owner[chosen]]
                moves, label = regression.targets(image.boxes[chosen], truth), image.overlap[chosen].argmax(1)
                counts = image.classes[image.owner[chosen]] > 0  # Not of objects that are no positives.
                for each in np.unique(label):
                    mine = counts & (label == each)
                    rows[each].append(pool5[mine])
                    wanted[each].append(moves[mine])
            self.report("boxes", done, self.total)
        width = next((part[0].shape[1] for part in rows if part), 0)
        kernel, bias = np.zeros((width, 4, classes), np.float32), np.zeros((4, classes), np.float32)
        for label in range(1, classes):
            if rows[label]:
                features = np.concatenate(rows[label]).astype(np.float32) * np.float32(scale)
                found = regression.fit(features, np.concatenate(wanted[label]), self.config.task.ridge)
                kernel[..., label], bias[:, label] = found[0] * scale, found[1]
        return {"kernel": kernel, "bias": bias}

    def _stage(self, name: str, depends: list[Any], compute: Callable[[], Arrays]) -> Arrays:
        """Return a stage's arrays from its file, or compute and write them; one that is damaged is computed again."""
        digest = hashlib.sha256(json.dumps([name, *depends], sort_keys=True).encode()).hexdigest()[:16]
        path = self.workdir / "stages" / f"{name}-{digest}.npz"
        path.parent.mkdir(exist_ok=True)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            memory, began, arrays = io.BytesIO(), time.monotonic(), compute()
            np.savez(memory, allow_pickle=False, **arrays)
            write_atomically(path, memory.getvalue())
            self.facts["seconds"] = self.facts.get("seconds", {}) | {name: round(time.monotonic() - began, 3)}
            self._save_facts()  # A run that is killed in a later stage does not do this one again.
            return arrays

    def _write(self, found: Arrays, boxes: Arrays, norms: list[float]) -> None:
        """Write config.json and the two checkpoints."""
        params = unfreeze(jax.device_get(self.variables["params"]))
        zeros = jax.tree.map(np.zeros_like, params["boxes"])
        params["head"] = {"kernel": found["weights"], "bias": found["bias"]}
        whole = jax.tree.map(np.zeros_like, params["boxes"])
        if boxes["kernel"].size:
            # The regression's layer has the classes last, as any head: (C, 4 · classes).
            kernel, bias = boxes["kernel"], boxes["bias"]
            whole = {"head": {"kernel": kernel.reshape(len(kernel), -1), "bias": bias.ravel()}}
        info = {
            "model": self.config.model.name, "num_classes": self.model.num_classes, "input": self.data.input,
            "norms": norms,
        }  # fmt: skip
        write_atomically(self.workdir / "config.json", to_json(self.config) + "\n")
        checkpoints = Checkpoints(self.workdir, create_task(self.config).best, keep_last=2)
        for step, each in ((ALONE, zeros), (REGRESSED, whole)):
            variables = {**self.variables, "params": params | {"boxes": each}}
            arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
            checkpoints.save_arrays(arrays, info | {"step": step}, {})
        checkpoints.close()

    def _save_facts(self) -> None:
        """Write rcnn.json, with what features have taken in this call and in those before."""
        extractor, now = self.extractor, dict(self.facts)
        seconds, windows = self.before["seconds"] + extractor.seconds, self.before["windows"] + extractor.computed
        now["features"] = {
            "seconds": seconds, "windows": windows, "bytes": extractor.cache.bytes, "not_kept": extractor.cache.refused,
        }  # fmt: skip
        if windows and "windows" in now:
            now["features"]["seconds_an_image"] = seconds / windows * now["windows"] / self.total
        self.facts = now
        write_atomically(self.workdir / "rcnn.json", json.dumps(now, indent=1) + "\n")
