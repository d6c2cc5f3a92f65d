"""The one base config: every key of an experiment with its default, unit and legal values.

An experiment is a Python file whose `get_config()` starts from `base_config()` and sets what differs. The result is
locked: an unknown key or a wrong type is an error that names the key and its nearest neighbour, before data is read.
`jaxcnn.configfile` loads and stores configs. A new task adds its rows to `TASK_KEYS`.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference

from jaxcnn import UserError
from jaxcnn.safe_files import shown

Config = Any  # an ml_collections.ConfigDict: its keys are attributes that no type checker knows

VOID = 255  # of a label map, a pixel that counts nowhere: neither in a loss nor in a score
MASK_MARGIN = 1  # pixels around the box of an object that its mask in a batch covers, too


class Rule(NamedTuple):
    """Which values a key may hold.

    Attributes:
      accepts: whether a value of the right type is legal.
      words: the legal values, for errors.
      types: types that the key takes; empty for the type of its default alone.
    """

    accepts: Callable[[Any], bool]
    words: str
    types: tuple[type, ...] = ()


Row = tuple[Any, Rule, str]  # default, legal values, meaning with its unit


def _finite(value: float) -> bool:
    return abs(value) < (2**63 if isinstance(value, int) else float("inf"))  # integers may be too large for a float


def _at_least(low: float) -> Rule:
    return Rule(lambda v: _finite(v) and v >= low, f"{low} or more")


def _above(low: float) -> Rule:
    return Rule(lambda v: _finite(v) and v > low, f"more than {low}")


def _between(low: float, high: float) -> Rule:
    return Rule(lambda v: low <= v < high, f"at least {low} and less than {high}")


def _one_of(*names: str) -> Rule:
    return Rule(lambda v: v in names, " | ".join(names))


def _ascending(values: Iterable[float]) -> bool:
    values = list(values)
    return all(isinstance(v, int | float) and _finite(v) and v > 0 for v in values) and values == sorted(set(values))


def names_of(text: str) -> list[str]:
    """Return the names in a list with commas: "stem, stage1" -> ["stem", "stage1"]."""
    return [name.strip() for name in text.split(",")] if text else []


def factors_of(text: str) -> dict[str, float]:
    """Return the factor of each name: "head=10,stage1=0.1" -> {"head": 10.0, "stage1": 0.1}.

    Raises:
      ValueError: an entry is not NAME=NUMBER.
    """
    pairs = [entry.partition("=") for entry in names_of(text)]
    return {name.strip(): float(factor) for name, _, factor in pairs}


def _positive_factors(text: str) -> bool:
    try:
        return all(name and 0 < factor < float("inf") for name, factor in factors_of(text).items())
    except ValueError:
        return False


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and 0 < n <= _SIDE for n in value)


_ANY = Rule(lambda v: True, "anything")
_RISING = Rule(_ascending, "positive numbers that rise")
_FLOATS = Rule(lambda v: all(isinstance(x, int | float) and _finite(x) for x in v), "a list of numbers")
_SIDE = 4096  # pixels, at most
_SIDES = Rule(
    lambda v: 0 <= v <= _SIDE if isinstance(v, int) else _is_size(v),
    f"0 … {_SIDE}, or (height, width) of 1 … {_SIDE}",
    (int, tuple),
)
_SIZES = Rule(lambda v: all(map(_is_size, v)), f"(height, width) pairs of 1 … {_SIDE}: ((192, 256), (256, 192))")
_SHORTER = Rule(
    lambda v: 0 <= v <= _SIDE if isinstance(v, int) else v != () and all(_is_size((n, n)) for n in v) and _ascending(v),
    f"0 … {_SIDE}, or several of 1 … {_SIDE} that rise: (640, 720, 800)",
    (int, tuple),
)
_DEVICES = Rule(lambda v: v == -1 or v >= 1, "-1 (all remaining) or a positive number")

# The keys of each task, which only a config of that task has.
# fmt: off
TASK_KEYS: dict[str, dict[str, Row]] = {
    "classification": {
        "task.label_smoothing": (0.0, _between(0, 1), "probability spread evenly over the classes"),
    },
    "gan": {
        "task.loss": ("non_saturating", _one_of("non_saturating", "minimax"), "of the generator: -log D(G(z)), or "
                      "log(1 - D(G(z)))"),
        "task.prior": ("uniform", _one_of("uniform", "normal"), "of the latents: -1 … 1, or N(0, I)"),
        "task.features": ("", _ANY, "run folder of a classifier, or Inception's weights, whose features "
            "eval/fid is of ('': no FID)"),
        "task.endpoint": ("", _ANY, "its endpoint whose mean over space is the feature ('': the last)"),
    },
    "vae": {
        "task.objective": ("elbo", _one_of("elbo", "iwae"), "bound that is maximised: with the KL in closed form, or "
                           "that of importance weights"),
        "task.samples": (1, _at_least(1), "latents drawn of an example in training, k of IWAE"),
        "task.beta": (1.0, _at_least(0), "objective=elbo: weight of the KL"),
        "task.likelihood": ("bernoulli", _one_of("bernoulli", "gaussian", "discretized_logistic"), "p(x|z) of a pixel"),
        "task.pixels": ("fresh", _one_of("fresh", "fixed", "grey"), "binarised anew at every use, binary in the data, "
                        "or grey: three data sets, whose scores do not compare"),
        "task.eval_samples": (100, _at_least(1), "importance samples an example of eval/iwae (published tables: 5000)"),
        "task.output_bias": ("zero", _one_of("zero", "mean"), "first bias of the output: 0, or the logit of the "
                             "training images' mean"),
    },
    "segmentation": {
        "task.reduction": ("mean", _one_of("mean", "sum"), "cross-entropy over the pixels that count: their mean, or "
                           "the undivided sum of FCN's released recipe, whose rates are 1e-10 and less"),
        "task.class_weights": ("none", _one_of("none", "median_frequency"), "weight of a pixel by its class: 1, or the "
                               "median of all classes' frequencies in the training split over its own"),
        "task.aux_weight": (0.5, _at_least(0), "weight of each auxiliary head's loss"),
        "task.bias_multiplier": (1.0, _above(0), "factor on the rate of biases (FCN: 2)"),
    },
    "detection": {
        "task.max_boxes": (100, _between(1, 2**16), "objects of an image that a batch has room for"),
        "task.difficult": (False, _ANY, "also train on objects that are marked difficult"),
        "task.loss_form": ("torchvision", _one_of("torchvision", "port", "paper", "fast_rcnn"), "how the losses are "
                           "divided, see jaxcnn/tasks/detection_loss.py"),
        "task.proposals": ("", Rule(lambda v: all(names_of(v)), "FILE.npz,FILE.npz"), "files with region proposals of "
                           "all images, see `jaxcnn data propose`; Fast R-CNN needs them ('': the network's own)"),
        "task.max_proposals": (2000, _between(1, 2**16), "proposals of an image that a batch has room for; more are "
                               "cut by rank"),
        "task.rpn_weight": (0.0, _at_least(0), "λ, factor on the RPN's box loss (0: the form's own; paper 10, else 1)"),
        "task.box_weight": (1.0, _at_least(0), "λ of the head, factor on its box loss (0: classes alone)"),
        "task.metric": ("voc", _one_of("voc", "coco"), "score of the best checkpoint: eval/map50, or eval/map of COCO"),
        "task.bias_multiplier": (1.0, _above(0), "factor on the rate of biases (Fast R-CNN: 2)"),
        "task.bias_decay": (False, _ANY, "weight decay applies to biases (Fast R-CNN: True)"),
        "task.svm_c": (0.001, _above(0), "`jaxcnn rcnn`: C of the SVMs, for features of a mean norm of 20"),
        "task.svm_iou": (0.3, _between(0, 1), "`jaxcnn rcnn`: IoU with its objects below which a window is a negative "
                         "of a class"),
        "task.ridge": (1000.0, _at_least(0), "`jaxcnn rcnn`: λ of the regressions of boxes"),
        "task.trainable_stages": (-1, _between(-1, 6), "stages of the backbone that train, counted from the last; the "
                                  "earlier ones are frozen (-1: all train)"),
    },
}
# The keys that every config has.
KEYS: dict[str, Row] = {
    "seed": (0, _between(0, 2**31), "seeds initialisation, shuffling, dropout and augmentation"),
    "steps": (0, _between(0, 2**31), "length of training in steps (0: see epochs)"),
    "epochs": (0.0, _at_least(0), "length of training in epochs (0: see steps)"),
    "global_batch_size": (128, _at_least(1), "examples a step, over all devices and processes"),
    "dtype": ("bfloat16", _one_of("bfloat16", "float32"), "compute type; state is float32 always"),
    "deterministic": (False, _ANY, "ask XLA for deterministic GPU operations, which may be slower"),
    "onednn": (True, _ANY, "on a CPU in bfloat16, convolutions and products by oneDNN (jaxlib 0.12 or newer)"),
    "log_every": (50, _at_least(1), "steps between two lines of training metrics"),
    "eval_every": (0, _at_least(0), "steps between two evaluations (0: once an epoch)"),
    "checkpoint_every": (0, _at_least(0), "steps between two checkpoints (0: once an epoch)"),
    "keep_last": (3, _at_least(1), "newest checkpoints kept; the best by evaluation is kept besides"),
    "init_from": ("", _ANY, "run folder or checkpoint whose weights training starts from ('': fresh)"),
    "reset_head": (False, _ANY, "init_from: give the head fresh weights where the classes differ"),
    "task.name": ("classification", Rule(lambda v: v in TASK_KEYS, " | ".join(TASK_KEYS)),
                  "what a batch means: its loss, its scores and its own keys"),
    "model.name": ("resnet20", _ANY, "a name of `jaxcnn models`, or module:Class for a network of your own"),
    "model.num_classes": (0, _at_least(0), "classes of the head (0: the data set's)"),
    "data.name": ("digits", _ANY, "digits | synthetic[_masks|_boxes][:CLASSES[:EXAMPLES]] | tfds:NAME | folder:DIR | "
                  "packed:DIR | binarized_mnist:DIR | arrays:FILE.npy | frey:FILE.npy | "
                  "voc_segmentation:DIR | coco_segmentation:DIR | tfds_segmentation:NAME | camvid:DIR | masks:DIR | "
                  "voc:DIR | coco:DIR | tfds_detection:NAME"),
    "data.dir": ("", _ANY, "folder of TFDS data sets ('': TFDS's own default)"),
    "data.train_split": ("train", _ANY, "split trained on; slices such as train[:90%] work of tfds:, folder:, packed:"),
    "data.eval_split": ("", _ANY, "split evaluated on ('': test, or validation where there is no test)"),
    "data.image_size": (0, _SIDES, "pixels of the network's images: a side, or (height, width) (0: as stored)"),
    "data.eval_size": (0, _SIDES, "the same in evaluation and prediction (0: image_size; of tasks that see all of an "
                       "image: as stored)"),
    "data.buckets": ((), _SIZES, "instead of image_size, several (height, width): an image goes where the aspect is "
                     "nearest, a batch has one; of tasks that see all of an image: into the smallest that holds it"),
    "data.resize": (0, _between(0, 8193), "shorter side of photographs before their centre is cut out for evaluation "
                    "(0: eval_size × 256/224); of sizes that are no square, the longer side of what they must cover"),
    "data.min_size": (0, _SHORTER, "of tasks that see all of an image: pixels that its shorter side is brought to (0: "
                      "as stored); of several one is drawn for each training image, and evaluation has the largest"),
    "data.max_size": (0, _between(0, _SIDE + 1), "of the same tasks: pixels of the longer side at most, for which the "
                      "shorter one may have less than min_size (0: no limit)"),
    "data.windows": ("", Rule(lambda v: all(names_of(v)), "FILE,FILE"), "of a data set with boxes: the examples are "
                     "windows, of objects and of the proposals in these files, as R-CNN is fine-tuned ('': images)"),
    "data.context": (16, _between(0, 2**11), "pixels around the box in such a window, on each side"),
    "data.augment": ("none", _ANY, "random changes to training images, joined by commas; see "
                     "jaxcnn/data/images/augment_host.py"),
    "data.pad": (4, _between(1, 513), "pixels that pad_crop pads on each side"),
    "data.interpolation": ("bilinear", _one_of("bilinear", "bicubic", "antialias"),
                           "of training crops; antialias is slower, and what evaluation uses always"),
    "data.on_error": ("stop", _one_of("stop", "skip"), "an image that cannot be read: an error, or go on without it"),
    "data.resident": (False, _ANY, "keep the data set in device memory, and take many steps a call"),
    "data.steps_per_call": (0, _at_least(0), "resident: steps a call at most (0: 50, on a CPU one)"),
    "data.mean": ((), _FLOATS, "mean of each channel, of pixels in 0 … 1 ((): the data set's)"),
    "data.std": ((), _FLOATS, "standard deviation of each channel ((): the data set's)"),
    "data.workers": (0, _at_least(0), "processes that read and decode (0: threads of this one)"),
    "data.prefetch": (8, _at_least(1), "batches read ahead"),
    "data.timeout": (600.0, _above(0), "seconds without a batch after which reading is given up"),
    "optimizer.name": ("adam", _one_of("adam", "adamw", "sgd", "rmsprop", "adagrad", "lars", "lamb"),
                       "adamw and lamb decouple the weight decay; the others add it to the gradient"),
    "optimizer.learning_rate": (1e-3, _above(0), "peak rate"),
    "optimizer.base_batch_size": (0, _at_least(0), "batch that the rate is stated for; it scales to others (0: off)"),
    "optimizer.batch_scaling": ("linear", _one_of("linear", "sqrt"),
                                "base_batch_size: as the batch (Goyal et al. 2017) or its root (Krizhevsky 2014)"),
    "optimizer.schedule": ("cosine", _one_of("constant", "step", "cosine", "polynomial"), "rate after warm-up"),
    "optimizer.warmup_epochs": (0.0, _at_least(0), "linear warm-up from 0, in epochs"),
    "optimizer.warmup_steps": (0, _at_least(0), "the same in steps; one of the two is 0"),
    "optimizer.decay_epochs": ((), _RISING, "schedule=step: epochs at which the rate is multiplied"),
    "optimizer.decay_steps": ((), _RISING, "the same in steps; one of the two is ()"),
    "optimizer.decay_factor": (0.1, _above(0), "schedule=step: the multiplier"),
    "optimizer.power": (1.0, _above(0), "schedule=polynomial: its power (LARS: 2; DeepLab: 0.9)"),
    "optimizer.final_scale": (0.0, _between(0, 1), "schedule=cosine, polynomial: last rate as a share of the peak"),
    "optimizer.momentum": (0.9, _between(0, 1), "sgd, lars, rmsprop: momentum (0: none)"),
    "optimizer.nesterov": (False, _ANY, "sgd, lars, rmsprop: Nesterov's form of the momentum"),
    "optimizer.b1": (0.9, _between(0, 1), "adam, adamw, lamb: decay of the first moment"),
    "optimizer.b2": (0.999, _between(0, 1), "adam, adamw, lamb: decay of the second moment"),
    "optimizer.rms_decay": (0.9, _between(0, 1), "rmsprop: decay of the mean square (Tieleman and Hinton 2012)"),
    "optimizer.initial_accumulator": (0.0, _at_least(0), "adagrad: first sum of squares (TensorFlow: 0.1)"),
    "optimizer.trust_coefficient": (0.001, _above(0), "lars: η, share of a layer's norm by which it moves"),
    "optimizer.initial_second_moment": (0.0, _at_least(0), "adam, adamw, lamb: what the second moment begins at (Burda "
                                        "et al. 2015: 1)"),
    "optimizer.epsilon": (1e-8, _above(0), "adam, adamw, lamb, rmsprop: added to the denominator (LAMB's paper: 1e-6)"),
    "optimizer.weight_decay": (0.0, _at_least(0), "on kernels only: norms and biases are left alone"),
    "optimizer.freeze": ("", Rule(lambda v: all(names_of(v)), "NAME,NAME"),
                         "parameters that stay as they are: stem,stage1 (/head: of modules of the top level alone)"),
    "optimizer.multipliers": ("", Rule(_positive_factors, "NAME=FACTOR,NAME=FACTOR with positive factors"),
                              "factors on the rate of some parameters: head=10"),
    "optimizer.clip_norm": (0.0, _at_least(0), "largest global norm of the gradient (0: no clipping)"),
    "optimizer.accumulate": (1, _at_least(1), "micro-batches that a global batch is divided into, one after another"),
    "ema.decay": (0.0, _between(0, 1), "moving average of the weights, which evaluation then uses (0: off)"),
    "mesh.data": (-1, _DEVICES, "devices along the batch axis (-1: all remaining)"),
    "mesh.model": (1, _DEVICES, "devices that the fully connected layers are sharded over (-1: all remaining)"),
    "mesh.placement": ("replicated", _one_of("replicated", "zero1", "fsdp"), "what is sharded over `data`: nothing, "
                       "optimizer state and moving average (zero1), or parameters too (fsdp)"),
    "norm.scope": ("global", _one_of("global", "group", "shard"), "examples that BatchNorm's statistics are over: all, "
                   "or those of one place along `data`, or of norm.group places"),
    "norm.fused": ("auto", _one_of("auto", "off"), "auto: on a TPU, BatchNorm of bottlenecks in a form that saves "
                   "memory traffic, see jaxcnn/models/fused_norm.py; off: the plain form everywhere"),
    "norm.group": (2, _at_least(2), "scope=group: neighbouring places along `data` that share statistics"),
    "remat": ("none", _one_of("none", "block"), "rematerialisation: recompute each block's activations in the backward "
              "pass to save memory"),
}
# What may differ when a run is resumed: it changes how the run is watched or where it runs, or makes it longer.
RESUMABLE = frozenset({
    "steps", "epochs", "log_every", "eval_every", "checkpoint_every", "keep_last", "remat",
    "mesh.data", "mesh.model", "mesh.placement",
    "data.dir", "data.workers", "data.prefetch", "data.timeout", "data.on_error", "data.resident",
    "data.steps_per_call", "norm.fused",
})
# fmt: on
_ALIASES = {"lr": "optimizer.learning_rate", "batch_size": "global_batch_size", "wd": "optimizer.weight_decay"}
SIZES = frozenset(["data.image_size", "data.eval_size"])  # keys that hold a side or (height, width)
OPEN = "model.overrides"  # free-form keyword arguments of create_model, which checks them


def keys_of(task: str) -> dict[str, Row]:
    """Return the rows of all keys that a config of `task` has.

    Raises:
      UserError: there is no such task.
    """
    _, rule, words = KEYS["task.name"]
    if not isinstance(task, str) or task not in TASK_KEYS:
        raise UserError(f"config.task.name={shown(task)}: it must be {rule.words}")
    return KEYS | {"task.name": (task, rule, words)} | TASK_KEYS[task]


def every_key() -> dict[str, Row]:
    """Return the rows of all keys of all tasks, for what reads keys before it knows the task."""
    return {key: row for task in TASK_KEYS for key, row in keys_of(task).items()}


def base_config(task: str = "classification") -> Config:
    """Return every key of `task` at its default, locked against unknown keys and wrong types."""
    config: Config = ConfigDict()
    for key, (default, rule, _) in keys_of(task).items():
        group, _, leaf = key.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        # ConfigDict holds a key to the type of its default, unless a reference lists more types.
        group_of(config, key)[leaf] = FieldReference(default, rule.types) if rule.types else default
    config.model.overrides = ConfigDict()
    config.lock()
    config.model.overrides.unlock()
    return config


def group_of(config: Config, key: str) -> Config:
    """The part of `config` that holds dotted `key`: itself, or one of its groups."""
    group = key.rpartition(".")[0]
    return config[group] if group else config


def flatten(config: Config) -> dict[str, Any]:
    """Dotted keys to values, overrides included, in the order of the keys' names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        else:
            flat[key] = value
    return dict(sorted(flat.items()))


def unknown_key(key: str, keys: Mapping[str, Row] | None = None) -> UserError:
    """Return the error for a key that is not in `keys` (default: those of all tasks), with its nearest neighbour."""
    keys = every_key() if keys is None else keys
    leaves = {k.rsplit(".", 1)[-1]: k for k in keys}
    leaf = key.rpartition(".")[2][:300]
    near = [_ALIASES[leaf]] if leaf in _ALIASES else difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    near = near or [leaves[m] for m in difflib.get_close_matches(leaf, leaves, n=1)]
    hint = f"did you mean '{near[0]}'?" if near else "`jaxcnn config` lists the keys"
    if owners := [task for task, rows in TASK_KEYS.items() if key in rows]:
        hint = f"it is a key of task.name={' | '.join(owners)}; base_config(task=…) picks the task"
    return UserError(f"config has no key '{key[:300]}': {hint}")


def typed(key: str, value: Any, keys: Mapping[str, Row] = KEYS) -> Any:
    """Return `value` in a type that the row of `key` takes (a whole number is a float too).

    Raises:
      UserError: it is of another type.
    """
    default, rule, _ = keys[key]
    types = rule.types or (type(default),)
    if type(value) is int and not _finite(value):
        raise UserError(f"config.{key}={shown(value)}: an integer has 64 bits at most")
    if float in types and type(value) is int:
        return float(value)
    if tuple in types and isinstance(value, list | tuple):
        return tuple(tuple(v) if type(v) is list else v for v in value)
    if type(value) not in types:
        names = " or ".join(each.__name__ for each in types)
        given = f"config.{key}={shown(value)} is of type {type(value).__name__}"
        raise UserError(f"{given}: it must be {names}, such as {default!r}")
    return value


def height_width(value: int | tuple[int, int]) -> tuple[int, int] | None:
    """Return the (height, width) that a value of `data.image_size` or `.eval_size` means; None for 0."""
    return (value, value) if isinstance(value, int) and value else value or None  # type: ignore[return-value]


def sides_of(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the sides that a value of `data.min_size` means, one or several."""
    return value if isinstance(value, tuple) else (value,)


def _largest_side(config: Config) -> int:
    sizes = (height_width(config.data.eval_size or config.data.image_size), *config.data.buckets)
    return max((max(size) for size in sizes if size), default=0)


# What two keys must not be together, and what to do: {c.KEY} is a value of the config.
# fmt: off
_CONFLICTS: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (lambda c: (c.steps > 0) == (c.epochs > 0),
     "config.steps and config.epochs: set exactly one of the two, the other stays 0"),
    (lambda c: bool(c.data.buckets and c.data.image_size),
     "config.data.buckets and config.data.image_size: set one of the two, the other stays () or 0"),
    (lambda c: len({height / width for height, width in c.data.buckets}) < len(c.data.buckets),
     "config.data.buckets={c.data.buckets}: two have one aspect, and an image goes by its aspect alone"),
    (lambda c: 0 < c.data.resize < _largest_side(c),
     "config.data.resize={c.data.resize} is less than config.data.image_size={c.data.image_size}, .eval_size="
     "{c.data.eval_size} or .buckets={c.data.buckets}: the centre is cut out of what it was resized to"),
    (lambda c: 0 < c.data.max_size < max(sides_of(c.data.min_size)),
     "config.data.max_size={c.data.max_size} is less than .min_size={c.data.min_size}: raise it, or set it to 0"),
    (lambda c: bool(c.data.windows) and c.task.name != "classification",
     "config.data.windows are classified: leave it out of task.name={c.task.name}, which sees whole images"),
    (lambda c: c.mesh.data == c.mesh.model == -1,
     "config.mesh.data and config.mesh.model: one of the two can be -1, all remaining devices"),
    (lambda c: bool(c.optimizer.warmup_steps and c.optimizer.warmup_epochs),
     "config.optimizer.warmup_steps and .warmup_epochs: set one of the two, the other stays 0"),
    (lambda c: bool(c.optimizer.decay_steps) + bool(c.optimizer.decay_epochs) != (c.optimizer.schedule == "step"),
     "config.optimizer: schedule=step takes decay_steps or decay_epochs, one of the two; the others take neither"),
    (lambda c: c.global_batch_size % c.optimizer.accumulate != 0, "config.optimizer.accumulate="
     "{c.optimizer.accumulate} does not divide config.global_batch_size={c.global_batch_size}"),
)
# fmt: on


def validate(config: Config) -> None:
    """Check every value against its rule, and the rules between keys.

    Raises:
      UserError: naming the key, its value and the legal ones.
    """
    flat = flatten(config)
    keys = keys_of(flat.get("task.name", "classification"))
    if missing := sorted(keys.keys() - flat.keys()):
        raise UserError(
            f"config lacks {', '.join(missing)}: set the keys of a group one by one instead of replacing the group, "
            "and choose a task by base_config(task=…) instead of setting task.name"
        )
    for key, value in flat.items():
        _check_value(key, value, keys)
    for broken, words in _CONFLICTS:
        if broken(config):
            raise UserError(words.format(c=config))


def _check_value(key: str, value: Any, keys: Mapping[str, Row]) -> None:
    if key.startswith(OPEN):
        if not isinstance(value, bool | int | float | str | tuple | list | None) or key.count(".") > 2:
            raise UserError(f"config.{key}={shown(value)}: an override is a number, text, truth value or list")
        return
    if key not in keys:
        raise unknown_key(key, keys)
    rule = keys[key][1]
    if not rule.accepts(typed(key, value, keys)):
        raise UserError(f"config.{key}={shown(value)}: it must be {rule.words}")
