"""The protocol of a task: what a batch means, what is minimised, what is measured, what is printed and drawn.

A new task is one file that subclasses `Task`, one line in `jaxcnn.tasks.TASKS` and its keys' rows in `jaxcnn.config`.
Every method has a default that is right for classification; step, loop, checkpoints, log and plots ask the task.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import UserError
from jaxcnn.config import Config

Batch = dict[str, jax.Array]
Sums = dict[str, tuple[Any, Any]]  # {name: (sum, weight)}: added over batches, micro-batches and shards, divided once
Terms = dict[str, tuple[jax.Array, jax.Array | None]]  # the same of the objective; weight None: the undivided sum
Rows = dict[str, np.ndarray]  # one row an example, in the order of the evaluation set
Table = Mapping[str, Sequence[Any]]  # {column: its values}, of one length
Variables = Any


class Images(NamedTuple):
    """What a task may know of a data set to say what its targets are.

    Attributes:
      image_shape: (H, W, C) of one bucket's images.
      levels: that a pixel may have, 2 or 256; 0: not known.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    levels: int = 0


class Group(NamedTuple):
    """How the optimizer treats a parameter.

    Attributes:
      multiplier: factor on the learning rate.
      decay: whether weight decay applies.
      frozen: no gradient, no optimizer state, not part of `grad_norm`.
    """

    multiplier: float = 1.0
    decay: bool = False
    frozen: bool = False


class Headline(NamedTuple):
    """A score that the progress bar, the log lines, result.json and the plots show.

    Attributes:
      name: of the score, without "train/" or "eval/".
      format: of its value, such as "top-1 {:.2%}".
      axis: label of its axis in a plot; "" where it is not plotted.
      error: whether the plot shows 1 - value.
    """

    name: str
    format: str
    axis: str = ""
    error: bool = False


class Features(NamedTuple):
    """A trained network whose features scores are of.

    Attributes:
      name: of the network and where it is from, for records.
      input: "image_shape" (H, W, C), and "mean" and "std" of each channel of pixels in 0 … 1.
    """

    name: str
    model: Any
    variables: Any
    input: Mapping[str, Any]


class Parts(Protocol):
    """What `make_step` builds an unusual update from; the spine's own code, not copies of it."""

    @property
    def model(self) -> Any:
        """The network, a flax.linen.Module."""
        ...

    def gradients(self, objective: Callable[..., Any] | None = None, player: str = "") -> Callable[[Any, Batch], Any]:
        """Return (state, batch) -> gradients of an objective with respect to one player.

        They are those of the global batch, over micro-batches, shards and devices.

        Args:
          objective: (variables, batch, rngs) -> terms, sums, new batch_stats.
        """
        ...

    def update(self, player: str, state: Any, result: Any) -> Any:
        """Return the state after the player's optimizer has taken a step along `result`, what `gradients` gave."""
        ...


class Task:
    """One kind of work; the defaults are those of image classification."""

    best: tuple[str, str] = ("top1", "max")  # the score that picks the best checkpoint, and "max" or "min"
    headline: tuple[Headline, ...] = ()  # none: `best` alone is shown
    padded: bool = False  # images are not cut, but padded within canvases: "sizes" int32 (2,) is then a target
    detects: bool = False  # predictions are boxes: evaluation writes them and draws curves
    players: tuple[str, ...] = ("",)  # names of the top-level parts of `params` with an optimizer each; "": one for all
    constants: Mapping[str, Any] = {}  # arrays that the step takes as arguments, never baked into the program
    # What pixels of 0 … 255 become, (low, high); None: they are centred and scaled by the data's mean and deviation.
    pixel_range: tuple[float, float] | None = None
    features: str = ""  # run folder of a network that `use_features` is given; "": none

    def __init__(self, config: Config | None = None):
        """Take what the task needs of a validated config."""

    def prepare(self, data: Any) -> None:
        """Take what the task needs of the data set besides shapes, such as the names of the classes.

        Called once, before anything is traced.

        Args:
          data: as `jaxcnn.training.program.Data`.
        """

    def targets(self, data: Images) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shape and type of one example's targets, the batch's entries besides the image and its name."""
        return {"label": jax.ShapeDtypeStruct((), np.int32)}

    def takes_proposals(self, model: Any) -> bool:
        """Return whether a network is given regions of the image, the target "proposals"."""
        return False

    def initial(self, params: Variables, data: Any) -> Variables:
        """Return the parameters that training begins with, of fresh ones; `data` is what is trained on."""
        return params

    def forward(
        self, model: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array], train: bool
    ) -> tuple[Any, Variables]:
        """Apply the model to a batch.

        Args:
          rngs: in training one key a stream ("dropout", "latent", "sampling"), functions of (seed, step); in
            evaluation "example" alone, (N,) keys, each a function of (seed, example).

        Returns:
          The model's outputs, and its new `batch_stats` under that name ({} in evaluation).
        """
        if not train:
            return model.apply(variables, batch["image"], train=False), {}
        return model.apply(variables, batch["image"], train=True, mutable=["batch_stats"], rngs=rngs)

    def loss(self, outputs: Any, batch: Batch) -> tuple[Terms, Sums]:
        """Return the terms of the objective, and the sums that the log shows, of the rows whose "mask" is 1.

        The objective is the sum over terms of global sum / global weight: padded rows, uneven shards and micro-batches
        are exact. Terms of one weight share the array.
        """
        raise NotImplementedError

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return fixed weights of terms, such as sampled anchors × images: they replace those that `loss` gives."""
        return {}

    def measure(self, outputs: Any, batch: Batch) -> Sums:
        """Return the sums of evaluation; leaves may be arrays, and counts are int32."""
        return self.loss(outputs, batch)[1]

    def collect(self, outputs: Any, batch: Batch) -> dict[str, jax.Array] | None:
        """Return rows (N, …) that go to the host for scores that do not add up, or None."""
        return None

    def scores(self, sums: Sums, rows: Rows) -> dict[str, float]:
        """Return {name: score} of a finished evaluation; a score that does not exist is left out.

        Args:
          sums: totals over all examples, int64 or float64.
          rows: what `collect` gave, one row an example in the order of "example", which is among them.
        """
        return {name: float(total) / float(weight) for name, (total, weight) in sums.items() if weight}

    def parameters(self, path: str) -> Group:
        """Return the optimizer group of the parameter at `path`, names joined by "/"; kernels alone decay."""
        return Group(decay=path.rpartition("/")[2] == "kernel")

    def averaged(self, path: str) -> bool:
        """Return whether the moving average keeps the variable at `path`, such as "params/head/kernel"."""
        return True

    def make_step(self, parts: Parts) -> Callable[[Any, Batch], tuple[Any, jax.Array]] | None:
        """Return None, or (state, batch) -> (state, loss) built from `parts` for an unusual update."""
        return None

    def use_features(self, network: Features) -> None:
        """Take the network that `features` names; its variables belong into `constants`."""

    def about(self) -> dict[str, Any]:
        """Return what result.json says of the scores besides them."""
        return {}

    def alarms(self, values: dict[str, float]) -> list[str]:
        """Return what is to be said of the metrics of a line of the log, {"train/NAME": value}; [] of good ones."""
        return []

    def of_crop(self, outputs: Any) -> jax.Array:
        """Return what a test protocol averages of the outputs for one crop an image, (N, …)."""
        raise self._lacks("test protocol over crops: leave --protocol out")

    def of_crops(self, crops: jax.Array) -> Any:
        """Return the outputs that `measure` scores, from `of_crop` of all crops of an image, (crops, N, …)."""
        raise self._lacks("test protocol over crops: leave --protocol out")

    def predict(self, outputs: Any) -> dict[str, jax.Array]:
        """Return what a prediction keeps of the model's outputs, (N, …) arrays."""
        raise self._lacks("predictions: define `predict`")

    def on_image(self, prediction: dict[str, np.ndarray], crop: Any) -> dict[str, np.ndarray]:
        """Return one image's prediction in pixels of the image itself.

        Args:
          crop: a `data.images.decode.Crop` of the image within the network's canvas, brought to the image's own size.
        """
        return prediction

    def describe(self, prediction: dict[str, np.ndarray], names: Sequence[str]) -> tuple[dict[str, Any], str]:
        """Return one image's prediction as a JSON object, and as the words of a line."""
        raise self._lacks("words for a prediction: define `describe`")

    def draw(
        self,
        images: Any,
        predictions: Any,
        names: Sequence[str],
        titles: Sequence[str] = (),
        targets: dict[str, np.ndarray] | None = None,
    ) -> Any:
        """Return a matplotlib figure of images (N, H, W, C) uint8 with their predictions.

        Of a task whose images are padded they may be a list, images (H, W, C) of several sizes.

        Args:
          predictions: what `predict` gave, (N, …) each.
          names: of the classes.
          titles: a line over each image, such as its file.
          targets: the truth to compare with, as a batch holds it, where it is known.
        """
        raise self._lacks("picture of predictions: define `draw`, or leave --save out")

    def show_from(self, threshold: float) -> None:
        """Leave what has a lower score out of `describe` and `draw`."""
        raise self._lacks("scores of boxes: leave --threshold out")

    def latents(self, model: Any, key: jax.Array, count: int, limit: float | None = None) -> jax.Array | None:
        """Return latents (count, …) to generate images of, drawn from their prior; None where nothing is generated.

        Args:
          limit: largest magnitude; None: the prior's own.
        """
        return None

    def generate(self, model: nn.Module, variables: Variables, z: jax.Array, image_shape: Sequence[int]) -> jax.Array:
        """Return the images of latents, float32 (N, H, W, C) in 0 … 1.

        Args:
          image_shape: (H, W, C) of the images that the network was trained on.
        """
        raise self._lacks("images to generate: sample goes with VAEs and GANs")

    def against(self, rows: Rows, reference: Rows) -> dict[str, float]:
        """Return {name: score} of the rows of `collect` against those of other images."""
        raise self._lacks("scores against other images: leave --reference out")

    def per_example(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Return rows (N, …) of which the tables and the picture below are made; `jaxcnn evaluate` alone asks for them.

        They come besides those of `collect`, as `scores` is given them: in the order of "example", without padding.
        """
        raise self._lacks("tables of examples: leave --predictions, --per-class and --confusion out")

    def example_table(self, rows: Rows, names: Sequence[str]) -> Table:
        """Return what `--predictions` writes of each row, classes by their `names`."""
        raise self._lacks("table of predictions: leave --predictions out")

    def class_table(self, rows: Rows, names: Sequence[str]) -> Table:
        """Return what `--per-class` writes of each class."""
        raise self._lacks("table of classes: leave --per-class out")

    def results(self, rows: Rows) -> list[dict[str, Any]]:
        """Return the detections in the rows of `collect` in COCO's result format."""
        raise self._lacks("boxes: leave --detections out")

    def draw_curves(self, rows: Rows) -> Any:
        """Return a matplotlib figure of the precision-recall curve of each class."""
        raise self._lacks("precision-recall curves: leave --curves out")

    @property
    def draws_mistakes(self) -> bool:
        """Return whether the task has a picture of mistakes."""
        return type(self).draw_mistakes is not Task.draw_mistakes

    def draw_mistakes(
        self, rows: Rows, names: Sequence[str], images_of: Callable[[Sequence[int]], Sequence[np.ndarray]]
    ) -> Any:
        """Return a matplotlib figure of which classes are taken for which, with the worst mistakes.

        Args:
          images_of: (examples) -> their images, uint8 (H, W, C), as the network is given them.
        """
        raise self._lacks("picture of mistakes: leave --confusion out")

    def _lacks(self, what: str) -> UserError:
        return UserError(f"task {type(self).__name__} has no {what}")
