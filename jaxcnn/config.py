"""The one base config: every key of an experiment with its default, unit and legal values.

An experiment is a Python file whose `get_config()` starts from `base_config()` and sets what differs. The result is
locked: an unknown key or a wrong type is an error that names the key and its nearest neighbour, before data is read.
`jaxcnn.configfile` loads and stores configs.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference

from jaxcnn import UserError
from jaxcnn.safe_files import shown

Config = Any  # an ml_collections.ConfigDict: its keys are attributes that no type checker knows


class Rule(NamedTuple):
    """What values a key may hold: a predicate and its words."""

    accepts: Callable[[Any], bool]
    words: str


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


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and 0 < n <= _SIDE for n in value)


_ANY = Rule(lambda v: True, "anything")
_RISING = Rule(_ascending, "positive numbers that rise")
_FLOATS = Rule(lambda v: all(isinstance(x, int | float) and _finite(x) for x in v), "a list of numbers")
_SIDE = 4096  # pixels, at most
_SIDES = Rule(
    lambda v: 0 <= v <= _SIDE if isinstance(v, int) else _is_size(v), f"0 … {_SIDE}, or (height, width) of 1 … {_SIDE}"
)
_SIZES = Rule(
    lambda v: all(map(_is_size, v)), f"(height, width) pairs of 1 … {_SIDE}, such as ((192, 256), (256, 192))"
)
_DEVICES = Rule(lambda v: v == -1 or v >= 1, "-1 (the rest) or a positive number")

# key: (default, legal values, meaning with its unit)
KEYS: dict[str, tuple[Any, Rule, str]] = {
    "seed": (0, _between(0, 2**31), "seeds initialisation, shuffling, dropout and augmentation"),
    "steps": (0, _between(0, 2**31), "length of training in steps (0: see epochs)"),
    "epochs": (0.0, _at_least(0), "length of training in epochs (0: see steps)"),
    "global_batch_size": (128, _at_least(1), "examples a step, over all devices and processes"),
    "dtype": ("bfloat16", _one_of("bfloat16", "float32"), "compute type; state is float32 always"),
    "log_every": (50, _at_least(1), "steps between two lines of training metrics"),
    "eval_every": (0, _at_least(0), "steps between two evaluations (0: once an epoch)"),
    "checkpoint_every": (0, _at_least(0), "steps between two checkpoints (0: once an epoch)"),
    "keep_last": (3, _at_least(1), "newest checkpoints kept; the best by evaluation is kept besides"),
    "init_from": ("", _ANY, "run folder or checkpoint whose weights training starts from ('': fresh)"),
    "reset_head": (False, _ANY, "init_from: give the head fresh weights where the number of classes differs"),
    "task.name": ("classification", _one_of("classification"), "loss and metrics"),
    "task.label_smoothing": (0.0, _between(0, 1), "probability spread evenly over the classes"),
    "model.name": ("resnet20", _ANY, "a name of `jaxcnn models`"),
    "model.num_classes": (0, _at_least(0), "classes of the head (0: the data set's)"),
    "data.name": ("digits", _ANY, "digits | synthetic[:CLASSES[:EXAMPLES]] | tfds:NAME | folder:DIR | packed:DIR"),
    "data.dir": ("", _ANY, "folder of TFDS data sets ('': TFDS's own default)"),
    "data.train_split": ("train", _ANY, "split trained on; TFDS slices such as train[:90%] work"),
    "data.eval_split": ("", _ANY, "split evaluated on ('': test, or validation where there is no test)"),
    "data.image_size": (
        0,
        _SIDES,
        "pixels of the images that the network is given: a side, or (height, width) (0: as stored)",
    ),
    "data.eval_size": (0, _SIDES, "the same in evaluation and prediction (0: image_size)"),
    "data.buckets": (
        (),
        _SIZES,
        "instead of image_size, several (height, width): an image goes where the aspect is nearest, a batch has one",
    ),
    "data.resize": (
        0,
        _between(0, 8193),
        "shorter side of photographs before their centre is cut out for evaluation (0: eval_size × 256/224); of sizes "
        "that are no square, the longer side of what the photograph must cover",
    ),
    "data.augment": (
        "none",
        _ANY,
        "random changes to training images, joined by commas; see jaxcnn/data/images/augment_host.py",
    ),
    "data.pad": (4, _between(1, 513), "pixels that pad_crop pads on each side"),
    "data.interpolation": (
        "bilinear",
        _one_of("bilinear", "bicubic", "antialias"),
        "of training crops; antialias is slower, and what evaluation uses always",
    ),
    "data.on_error": ("stop", _one_of("stop", "skip"), "an image that cannot be read: an error, or go on without it"),
    "data.resident": (False, _ANY, "keep the data set in device memory, and take many steps a call"),
    "data.steps_per_call": (0, _at_least(0), "resident: steps a call at most (0: 50, on a CPU one)"),
    "data.mean": ((), _FLOATS, "mean of each channel, of pixels in 0 … 1 ((): the data set's)"),
    "data.std": ((), _FLOATS, "standard deviation of each channel ((): the data set's)"),
    "data.workers": (0, _at_least(0), "processes that read and decode (0: threads of this one)"),
    "data.prefetch": (8, _at_least(1), "batches read ahead"),
    "data.timeout": (600.0, _above(0), "seconds without a batch after which reading is given up"),
    "optimizer.name": ("adam", _one_of("adam", "adamw", "sgd"), "adam and sgd add the decay to the gradient"),
    "optimizer.learning_rate": (1e-3, _above(0), "peak rate"),
    "optimizer.schedule": ("cosine", _one_of("constant", "step", "cosine"), "rate after warm-up"),
    "optimizer.warmup_epochs": (0.0, _at_least(0), "linear warm-up from 0, in epochs"),
    "optimizer.warmup_steps": (0, _at_least(0), "the same in steps; one of the two is 0"),
    "optimizer.decay_epochs": ((), _RISING, "schedule=step: epochs at which the rate is multiplied"),
    "optimizer.decay_steps": ((), _RISING, "the same in steps; one of the two is ()"),
    "optimizer.decay_factor": (0.1, _above(0), "schedule=step: the multiplier"),
    "optimizer.final_scale": (0.0, _between(0, 1), "schedule=cosine: last rate as a share of the peak"),
    "optimizer.momentum": (0.9, _between(0, 1), "sgd: momentum"),
    "optimizer.nesterov": (False, _ANY, "sgd: Nesterov's form"),
    "optimizer.b1": (0.9, _between(0, 1), "adam, adamw: decay of the first moment"),
    "optimizer.b2": (0.999, _between(0, 1), "adam, adamw: decay of the second moment"),
    "optimizer.epsilon": (1e-8, _above(0), "adam, adamw: added to the denominator"),
    "optimizer.weight_decay": (0.0, _at_least(0), "on kernels only: norms and biases are left alone"),
    "optimizer.clip_norm": (0.0, _at_least(0), "largest global norm of the gradient (0: no clipping)"),
    "optimizer.accumulate": (1, _at_least(1), "micro-batches that a global batch is cut into, one after another"),
    "ema.decay": (0.0, _between(0, 1), "moving average of the weights, which evaluation then uses (0: off)"),
    "mesh.data": (-1, _DEVICES, "devices along the batch (-1: the rest)"),
    "mesh.model": (1, _DEVICES, "devices that the fully connected layers are cut over (-1: the rest)"),
    "mesh.placement": (
        "replicated",
        _one_of("replicated", "zero1", "fsdp"),
        "what is cut over `data`: nothing, optimizer state and moving average (zero1), or parameters too (fsdp)",
    ),
    "norm.scope": (
        "global",
        _one_of("global", "group", "shard"),
        "whose examples BatchNorm's statistics are over: all, or one place's along `data`, or norm.group places'",
    ),
    "norm.group": (2, _at_least(2), "scope=group: neighbouring places along `data` that share statistics"),
    "remat": ("none", _one_of("none", "block"), "computed anew in the backward pass, to save memory: a block's inside"),
}
# What may differ when a run is resumed: it changes how the run is watched or where it runs, or makes it longer.
RESUMABLE = frozenset(
    [
        *("steps", "epochs", "log_every", "eval_every", "checkpoint_every", "keep_last", "remat"),
        *("mesh.data", "mesh.model", "mesh.placement"),
        *("data.dir", "data.workers", "data.prefetch", "data.timeout", "data.on_error"),
        *("data.resident", "data.steps_per_call"),
    ]
)
_ALIASES = {"lr": "optimizer.learning_rate", "batch_size": "global_batch_size", "wd": "optimizer.weight_decay"}
SIZES = frozenset(["data.image_size", "data.eval_size"])  # keys that hold a side or (height, width)
OPEN = "model.overrides"  # free-form keyword arguments of create_model, which checks them


def base_config() -> Config:
    """Every key at its default, locked against unknown keys and wrong types."""
    config: Config = ConfigDict()
    for key, (default, _, _) in KEYS.items():
        group, _, leaf = key.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        group_of(config, key)[leaf] = FieldReference(default, field_type=object) if key in SIZES else default
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

    def visit(node: Config, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, ConfigDict):
                visit(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    visit(config, "")
    return dict(sorted(flat.items()))


def unknown_key(key: str) -> UserError:
    """The error for a key that does not exist, with its nearest neighbour."""
    leaves = {k.rsplit(".", 1)[-1]: k for k in KEYS}
    leaf = key.rpartition(".")[2][:300]
    near = [_ALIASES[leaf]] if leaf in _ALIASES else difflib.get_close_matches(key, KEYS, n=1, cutoff=0.6)
    near = near or [leaves[m] for m in difflib.get_close_matches(leaf, leaves, n=1)]
    hint = f"did you mean '{near[0]}'?" if near else "see jaxcnn/config.py for the keys"
    return UserError(f"config has no key '{key[:300]}': {hint}")


def typed(key: str, value: Any) -> Any:
    """`value` in the type of the key's default (a whole number is a float too), or the error that names both."""
    default = KEYS[key][0]
    if type(value) is int and not _finite(value):
        raise UserError(f"config.{key}={shown(value)}: an integer has 64 bits at most")
    if type(default) is float and type(value) is int:
        return float(value)
    if isinstance(value, list | tuple) and (type(default) is tuple or key in SIZES):
        return tuple(tuple(v) if type(v) is list else v for v in value)
    if type(value) is not type(default):
        raise UserError(
            f"config.{key}={shown(value)} is of type {type(value).__name__}: "
            f"it must be {type(default).__name__}, such as {default!r}"
        )
    return value


def height_width(value: int | tuple[int, int]) -> tuple[int, int] | None:
    """Return the (height, width) that the value of a key in `SIZES` means; None for 0."""
    return (value, value) if isinstance(value, int) and value else value or None  # type: ignore[return-value]


def validate(config: Config) -> None:
    """Check every value against its rule, and the rules between keys.

    Raises:
      UserError: naming the key, its value and the legal ones.
    """
    flat = flatten(config)
    if missing := sorted(KEYS.keys() - flat.keys()):
        raise UserError(
            f"config has lost {', '.join(missing)}: set the keys of a group one by one, do not replace the group"
        )
    for key, value in flat.items():
        if key.startswith(OPEN):
            if not isinstance(value, bool | int | float | str | tuple | list | None) or key.count(".") > 2:
                raise UserError(f"config.{key}={shown(value)}: an override is a number, text, truth value or list")
            continue
        if key not in KEYS:
            raise unknown_key(key)
        _, rule, _ = KEYS[key]
        if not rule.accepts(typed(key, value)):
            raise UserError(f"config.{key}={shown(value)}: it must be {rule.words}")
    data = config.data
    if data.buckets and data.image_size:
        raise UserError("config.data.buckets and config.data.image_size: set one of the two, the other stays () or 0")
    if len({height / width for height, width in data.buckets}) < len(data.buckets):
        raise UserError(
            f"config.data.buckets={data.buckets}: two have one aspect, and an image goes by its aspect alone"
        )
    largest = max(
        (max(size) for size in (height_width(data.eval_size or data.image_size), *data.buckets) if size), default=0
    )
    if data.resize and data.resize < largest:
        raise UserError(
            f"config.data.resize={data.resize} is less than config.data.image_size={data.image_size}, .eval_size="
            f"{data.eval_size} or .buckets={data.buckets}: the centre is cut out of what it was resized to"
        )
    if config.mesh.data == config.mesh.model == -1:
        raise UserError("config.mesh.data and config.mesh.model: one of the two can be -1, the rest of the devices")
    optimizer = config.optimizer
    if (config.steps > 0) == (config.epochs > 0):
        raise UserError("config.steps and config.epochs: set exactly one of the two, the other stays 0")
    if optimizer.warmup_steps and optimizer.warmup_epochs:
        raise UserError("config.optimizer.warmup_steps and .warmup_epochs: set one of the two, the other stays 0")
    if bool(optimizer.decay_steps) + bool(optimizer.decay_epochs) != (optimizer.schedule == "step"):
        raise UserError(
            "config.optimizer: schedule=step takes decay_steps or decay_epochs, one of the two; "
            "the other schedules take neither"
        )
    if config.global_batch_size % optimizer.accumulate:
        raise UserError(
            f"config.optimizer.accumulate={optimizer.accumulate} does not divide "
            f"config.global_batch_size={config.global_batch_size}"
        )
