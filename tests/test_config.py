"""Experiments: keys, types, legal values, overrides, files, config.json, and every experiment that is shipped."""

import ast
import json
import math
import re
import runpy
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxcnn import UserError
from jaxcnn.config import (
    KEYS,
    TASK_KEYS,
    Config,
    Rule,
    base_config,
    flatten,
    height_width,
    keys_of,
    typed,
    unknown_key,
    validate,
)
from jaxcnn.configfile import config_hash, from_json, load_config, set_key, to_json
from jaxcnn.data.images import augment_device
from jaxcnn.data.images.augment_host import parse
from jaxcnn.models import create_model, list_models
from jaxcnn.training.initial_state import check_resume
from jaxcnn.training.program import build_program
from jaxcnn.training.sharding import make_mesh

# A run may go on with another length, elsewhere, and watched otherwise; whatever else differs, it is another run.
MAY_DIFFER = {
    *("steps", "epochs", "log_every", "eval_every", "checkpoint_every", "keep_last"),
    *("data.dir", "data.workers", "data.prefetch", "data.timeout", "data.on_error"),
    *("data.resident", "data.steps_per_call"),
    *("mesh.data", "mesh.model", "mesh.placement", "norm.fused", "remat"),
}
# Other programs lie beside the experiments: those have a get_config().
FOLDER = Path(__file__).parents[1] / "experiments"
FILES = sorted(path for path in FOLDER.glob("*/*.py") if "\ndef get_config(" in path.read_text())
# Every FILE, or FILE:ARGUMENT where a file has several recipes, as --config takes them.
EXPERIMENTS = [
    f"{path}:{name}" if name else str(path)
    for path in FILES
    for name in runpy.run_path(str(path)).get("ARGUMENTS", [""])
]
ROWS = keys_of("classification")
INF, NAN = float("inf"), float("nan")

# Every key that has a rule: legal values besides the default, the extreme ones, and illegal ones of the right type.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "seed": ([2**31 - 1], [-1, 2**31]),
    "steps": ([1], [-1]),
    "epochs": ([0.5], [-0.5, INF, NAN]),
    "global_batch_size": ([1], [0, -8]),
    "dtype": (["bfloat16", "float32"], ["float16", "float64", "bf16", ""]),
    "log_every": ([1], [0]),
    "eval_every": ([1], [-1]),
    "checkpoint_every": ([1], [-1]),
    "keep_last": ([1], [0]),
    "task.name": (["classification"], ["classify", ""]),
    "task.label_smoothing": ([0.1], [-0.1, 1.0, NAN]),
    "model.num_classes": ([10], [-1]),
    "data.image_size": ([224, (96, 128)], [-1, 4097, (8,), (0, 8), (8.0, 8)]),
    "data.eval_size": ([0, 96, (96, 128)], [-1, (96, 128, 3)]),
    "data.buckets": ([(), ((96, 128), (128, 96))], [(96,), ((96,),), ((0, 8),)]),
    "data.resize": ([256], [-1, 8193]),
    "data.min_size": ([520, (640, 800)], [-1, 4097, (), (800, 640), (0, 640), (640.0, 800), (640, 4097)]),
    "data.max_size": ([1333], [-1, 4097]),
    "data.windows": (["a.npz", "a.npz, b.npz"], ["a.npz,,b.npz", ","]),
    "data.context": ([0, 16, 2047], [-1, 2048]),
    "data.interpolation": (["bilinear", "bicubic", "antialias"], ["nearest", ""]),
    "data.on_error": (["stop", "skip"], ["ignore", ""]),
    "data.steps_per_call": ([1], [-1]),
    "data.pad": ([1], [0]),
    "data.mean": ([(0.5,), (0.4, 0, -1.5)], [("a",), (NAN,), (INF,), (0.5, None)]),
    "data.std": ([(0.5,)], [("a",), (NAN,)]),
    "data.workers": ([2], [-1]),
    "data.prefetch": ([1], [0]),
    "data.timeout": ([0.5, 3600.0], [0.0, -1.0]),
    "optimizer.name": (["adam", "adamw", "sgd", "rmsprop", "adagrad", "lars", "lamb"], ["lion", "Adam"]),
    "optimizer.learning_rate": ([1e-9], [0.0, -0.1, INF, NAN]),
    "optimizer.base_batch_size": ([256], [-1]),
    "optimizer.batch_scaling": (["linear", "sqrt"], ["root", ""]),
    "optimizer.schedule": (["constant", "cosine", "polynomial"], ["linear", ""]),
    "optimizer.warmup_epochs": ([0.5], [-1.0, INF]),
    "optimizer.warmup_steps": ([1], [-1]),
    "optimizer.decay_epochs": ([], [(3, 2), (2, 2), (0, 1), (-1,), ("a",), (INF,)]),
    "optimizer.decay_steps": ([], [(3, 2), (2, 2), (0, 1), (-1,), ("a",), (INF,)]),
    "optimizer.decay_factor": ([10.0], [0.0, -0.1, INF]),
    "optimizer.power": ([0.9, 2.0], [0.0, -1.0, INF]),
    "optimizer.final_scale": ([0.5], [-0.1, 1.0]),
    "optimizer.momentum": ([0.0], [-0.1, 1.0]),
    "optimizer.b1": ([0.0], [-0.1, 1.0]),
    "optimizer.b2": ([0.0], [-0.1, 1.0]),
    "optimizer.rms_decay": ([0.0], [-0.1, 1.0]),
    "optimizer.initial_accumulator": ([0.1], [-0.1, INF]),
    "optimizer.initial_second_moment": ([1.0], [-0.1, INF]),
    "optimizer.trust_coefficient": ([1.0], [0.0, -0.1]),
    "optimizer.epsilon": ([1.0], [0.0, -1e-8]),
    "optimizer.weight_decay": ([1e-4], [-1e-4, INF]),
    "optimizer.freeze": (["stem", "stem, stage1_block1/conv1"], ["stem,,stage1", ","]),
    "optimizer.multipliers": (
        ["head=10", "head = 0.5, stage1=1e-3"],
        ["head", "head=", "=1", "head=0", "head=-1", "head=nan", "head=inf", "head=ten", "head=1,,stem=2"],
    ),
    "optimizer.clip_norm": ([1.0], [-1.0, INF]),
    "optimizer.accumulate": ([4], [0, -1]),
    "ema.decay": ([0.9999], [-0.1, 1.0]),
    "mesh.data": ([1, 8], [0, -2]),
    "mesh.model": ([1, 8], [0, -2]),
    "mesh.placement": (["replicated", "zero1", "fsdp"], ["zero2", ""]),
    "norm.scope": (["global", "group", "shard"], ["local", ""]),
    "norm.fused": (["auto", "off"], ["on", ""]),
    "norm.group": ([3], [1, 0]),
    "remat": (["block"], ["all", ""]),
}


def config_with(**values: Any) -> Config:
    """A config that trains one epoch, but for `values`: keys with `__` for the dot."""
    config = base_config()
    config.epochs = 1
    for name, value in values.items():
        put(config, name.replace("__", "."), value)
    return config


def put(config: Config, key: str, value: Any) -> None:
    group, _, leaf = key.rpartition(".")
    (config[group] if group else config)[leaf] = value


def refusal(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        validate(config)
    return str(caught.value)


# Keys, types and legal values.


def test_the_defaults_are_legal_once_there_is_a_length():
    validate(config_with())
    assert flatten(base_config()) == dict(sorted((key, default) for key, (default, _, _) in ROWS.items()))


@pytest.mark.parametrize("group", ["", "task", "model", "data", "optimizer", "ema", "mesh", "norm"])
def test_no_key_can_be_added(group):
    config = base_config()
    with pytest.raises(AttributeError, match="locked"):
        (config[group] if group else config).nothing_of_the_kind = 1


def test_overrides_of_the_model_are_free():
    config = config_with()
    config.model.overrides.dropout = 0.5
    validate(config)
    assert flatten(config)["model.overrides.dropout"] == 0.5


@pytest.mark.parametrize("value", [{"x": 1}, {1, 2}, b"x"])
def test_an_override_that_config_json_could_not_hold_is_refused(value):
    config = base_config()
    config.epochs = 1
    config.model.overrides.odd = value
    with pytest.raises(UserError, match=r"config\.model\.overrides\.odd.*an override is"):
        validate(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", "1"), ("seed", 1.5), ("epochs", "2"), ("data.name", 3), ("optimizer.nesterov", 1), ("data.mean", 0.5)],
)
def test_a_value_of_another_type_is_refused_where_it_is_set(key, value):
    with pytest.raises(TypeError, match=key.rsplit(".", maxsplit=1)[-1]):
        put(base_config(), key, value)


@pytest.mark.parametrize(("key", "value"), [("seed", None), ("seed", True), ("data.name", None), ("data.mean", None)])
def test_a_type_that_configdict_lets_through_is_refused_by_validation(key, value):
    config = config_with()
    put(config, key, value)
    assert f"config.{key}={value!r}" in refusal(config)


def test_a_whole_number_is_a_float_too():
    config = config_with(optimizer__weight_decay=1)
    validate(config)
    assert type(config.optimizer.weight_decay) is float


def test_the_table_of_values_covers_every_rule():
    assert VALUES.keys() == {key for key, (_, rule, _) in ROWS.items() if rule.words != "anything"}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, (legal, _) in VALUES.items() for v in legal])
def test_a_legal_value_is_accepted(key, value):
    config = config_with()
    put(config, key, value)
    if key == "steps":
        config.epochs = 0
    validate(config)


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, (_, illegal) in VALUES.items() for v in illegal])
def test_an_illegal_value_is_named_with_its_key_and_the_legal_ones(key, value):
    config = config_with()
    put(config, key, value)
    assert f"config.{key}={value!r}: it must be {ROWS[key][1].words}" in refusal(config)


OF_SEGMENTATION: dict[str, tuple[list[Any], list[Any]]] = {
    "task.reduction": (["mean", "sum"], ["average", ""]),
    "task.class_weights": (["none", "median_frequency"], ["balanced"]),
    "task.aux_weight": ([0.0, 0.4], [-0.1, INF]),
    "task.bias_multiplier": ([2.0], [0.0, -1.0]),
}


def test_the_keys_of_another_task_have_their_rules_and_exist_for_it_alone():
    config = base_config("segmentation")
    config.epochs = 1
    assert {key for key in flatten(config) if key.startswith("task.")} == {"task.name", *OF_SEGMENTATION}
    for key, (legal, illegal) in OF_SEGMENTATION.items():
        for value in illegal:
            put(config, key, value)
            assert f"config.{key}={value!r}: it must be " in refusal(config)
        for value in legal:
            put(config, key, value)
            validate(config)
    with pytest.raises(UserError, match=r"task\.reduction.*task\.name=segmentation"):
        set_key(base_config(), "task.reduction", "sum")


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0.0), (10, 1.0)])
def test_the_length_is_in_steps_or_in_epochs(steps, epochs):
    assert "exactly one" in refusal(config_with(steps=steps, epochs=epochs))


def test_warm_up_is_in_steps_or_in_epochs():
    assert "warmup" in refusal(config_with(optimizer__warmup_steps=1, optimizer__warmup_epochs=1.0))


@pytest.mark.parametrize(
    ("schedule", "steps", "epochs", "legal"),
    [
        ("step", (1, 2), (), True),
        ("step", (), (1.5, 2), True),
        ("step", (), (), False),
        ("step", (1,), (1,), False),
        ("cosine", (1,), (), False),
        ("constant", (), (1,), False),
    ],
)
def test_only_the_step_schedule_decays_and_in_one_unit(schedule, steps, epochs, legal):
    names = ("schedule", "decay_steps", "decay_epochs")
    config = config_with(**{f"optimizer__{k}": v for k, v in zip(names, (schedule, steps, epochs), strict=True)})
    if legal:
        validate(config)
    else:
        assert "schedule=step" in refusal(config)


def test_micro_batches_divide_the_batch():
    validate(config_with(global_batch_size=12, optimizer__accumulate=4))
    message = refusal(config_with(global_batch_size=12, optimizer__accumulate=5))
    assert "accumulate=5" in message
    assert "12" in message


def test_the_longer_side_has_as_many_pixels_as_the_largest_shorter_one():
    validate(config_with(data__min_size=(640, 800), data__max_size=800))
    assert "config.data.max_size=799" in refusal(config_with(data__min_size=(640, 800), data__max_size=799))


@pytest.mark.parametrize("group", [{"name": "digits"}, ConfigDict({"name": "digits"})], ids=["dict", "ConfigDict"])
def test_a_group_replaced_whole_is_refused_with_what_it_lost(group):
    assert "data.image_size" in refusal(config_with(data=group))


# Tasks, and keys of several types.


@pytest.fixture
def counting(monkeypatch):
    """A second task, with a key of its own."""
    rows = {"task.most": (9, Rule(lambda v: v > 0, "1 or more"), "largest number")}
    monkeypatch.setitem(TASK_KEYS, "counting", rows)
    default, _, words = KEYS["task.name"]
    monkeypatch.setitem(KEYS, "task.name", (default, Rule(lambda v: v in TASK_KEYS, " | ".join(TASK_KEYS)), words))
    return "counting"


def test_a_config_has_the_keys_of_its_task_only(counting):
    config = base_config(counting)
    config.epochs = 1
    validate(config)
    assert (config.task.name, config.task.most) == (counting, 9)
    with pytest.raises(AttributeError, match="locked"):
        config.task.label_smoothing = 0.1
    assert "task.most" not in flatten(base_config())
    config.task.most = 0
    assert "config.task.most=0" in refusal(config)


def test_a_key_of_another_task_names_its_task_and_a_misspelt_one_its_nearest(counting):
    config = base_config(counting)
    set_key(config, "task.most", "3")
    assert config.task.most == 3
    with pytest.raises(UserError, match=r"task\.label_smoothing.*task\.name=classification"):
        set_key(config, "task.label_smoothing", "0.1")
    with pytest.raises(UserError, match=r"'task\.mots'.*'task\.most'"):
        set_key(config, "task.mots", "1")
    assert "'task.most'" in str(unknown_key("task.mots"))  # where no task is known, the keys of all are


def test_a_config_of_one_task_cannot_become_another(counting):
    config = config_with()
    with pytest.raises(UserError, match=r"task\.name='counting'"):
        set_key(config, "task.name", counting)
    set_key(config, "task.name", "classification")
    put(config, "task.name", counting)
    assert "task.most" in refusal(config)
    with pytest.raises(UserError, match=r"task\.name='sorting'.*counting"):
        base_config("sorting")


def test_a_misspelt_key_of_a_task_in_a_file_names_its_nearest(counting, experiment):
    assert "'most'" in load_error(experiment(f"config = base_config('{counting}')", "config.task.mots = 1"))
    assert "'label_smoothing'" in load_error(experiment("config.task.label_smoothin = 0.1"))


def test_config_json_says_its_task(counting, tmp_path):
    config = base_config(counting)
    config.epochs, config.task.most = 1, 4
    (tmp_path / "config.json").write_text(to_json(config))
    assert flatten(from_json(tmp_path / "config.json")) == flatten(config)
    (tmp_path / "config.json").write_text('{"epochs": 1, "task": {"most": 4}}')  # the default task has no such key
    with pytest.raises(UserError, match=r"task\.most"):
        from_json(tmp_path / "config.json")


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("(3, 4)", (3, 4)), ("3,4", (3, 4))])
def test_a_key_may_take_two_types(monkeypatch, tmp_path, text, value):
    monkeypatch.setitem(KEYS, "side", (0, Rule(lambda v: True, "a side or two", (int, tuple)), "side"))
    config = config_with()
    set_key(config, "side", text)
    validate(config)
    assert config.side == value
    (tmp_path / "config.json").write_text(to_json(config))
    assert from_json(tmp_path / "config.json").side == value
    config.side = (7, 8)
    assert flatten(config)["side"] == (7, 8)
    with pytest.raises(TypeError):
        config.side = "3"
    with pytest.raises(UserError, match=r"config\.side=.*int or tuple"):
        typed("side", 1.5)


# Overrides from the command line.


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "7", 7),
        ("mesh.data", "-1", -1),
        ("epochs", "3", 3.0),
        ("epochs", "2.5", 2.5),
        ("optimizer.learning_rate", "5e-4", 5e-4),
        ("optimizer.learning_rate", "1E-3", 1e-3),
        ("optimizer.weight_decay", "-1e-4", -1e-4),  # set by its type; validation says what is legal
        ("optimizer.nesterov", "true", True),
        ("optimizer.nesterov", "True", True),
        ("optimizer.nesterov", "FALSE", False),
        ("data.mean", "(0.5, 0.4, -0.3)", (0.5, 0.4, -0.3)),
        ("data.mean", "0.5,0.4", (0.5, 0.4)),
        ("data.mean", "0.5", (0.5,)),
        ("data.mean", "", ()),
        ("optimizer.decay_steps", "[3, 9]", (3, 9)),
        ("data.name", "3", "3"),
        ("data.name", "tfds:cifar10", "tfds:cifar10"),
        ("init_from", "", ""),
        ("model.overrides.dropout", "0.1", 0.1),
        ("model.overrides.kind", "bare", "bare"),
        ("model.overrides.wide", "True", True),
    ],
)
def test_text_becomes_a_value_of_the_type_of_its_key(key, text, value):
    config = base_config()
    set_key(config, key, text)
    assert flatten(config)[key] == value
    assert type(flatten(config)[key]) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "due"),
    [
        ("seed", "1.5", "int"),
        ("seed", "1e3", "int"),
        ("seed", "seven", "int"),
        ("seed", "", "int"),
        ("seed", "True", "int"),
        ("seed", "{[]: 1}", "int"),
        ("epochs", "ten", "float"),
        ("epochs", "nan", "float"),
        ("optimizer.nesterov", "1", "bool"),
        ("optimizer.nesterov", "yes", "bool"),
        ("optimizer.nesterov", "", "bool"),
    ],
)
def test_text_of_another_type_is_refused(key, text, due):
    with pytest.raises(UserError, match=rf"config\.{key}=.*must be {due}"):
        set_key(base_config(), key, text)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("sed", "'seed'"),
        ("globl_batch_size", "'global_batch_size'"),
        ("data.nmae", "'data.name'"),
        ("model.nmae", "'model.name'"),
        ("optimizer.lerning_rate", "'optimizer.learning_rate'"),
        ("learning_rate", "'optimizer.learning_rate'"),
        ("optimiser.momentum", "'optimizer.momentum'"),
        ("model.overrides.a.b", ""),
        ("qqqq", "jaxcnn config"),
    ],
)
def test_an_unknown_key_names_its_nearest(key, near):
    with pytest.raises(UserError, match=f"no key '{key}'.*{near}"):
        set_key(base_config(), key, "1")


# Files.


@pytest.fixture
def experiment(tmp_path):
    """`experiment(line, …)`: a config file whose get_config() has these lines, the first of them line 6."""

    def write(*lines: str, last: str = "return config") -> Path:
        head = ["", "from jaxcnn.config import base_config", "def get_config():", "    config = base_config()"]
        body = ["config.epochs = 1", *lines, last]
        (tmp_path / "mine.py").write_text("\n".join([*head, *(f"    {line}" for line in body)]) + "\n")
        return tmp_path / "mine.py"

    return write


def load_error(path: Path | str, *overrides: tuple[str, str]) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_overrides_go_over_what_the_file_sets(experiment):
    config = load_config(experiment("config.seed = 3", "config.data.pad = 2"), [("seed", "4"), ("seed", "5")])
    assert (config.seed, config.data.pad, config.epochs) == (5, 2, 1.0)


def test_an_override_is_validated(experiment):
    assert "config.seed=-1" in load_error(experiment(), ("seed", "-1"))
    assert "exactly one" in load_error(experiment(), ("steps", "10"))
    assert "'seed'" in load_error(experiment(), ("sed", "1"))


def test_a_missing_file_is_named(tmp_path):
    assert f"{tmp_path}/nowhere.py does not exist" in load_error(tmp_path / "nowhere.py")
    assert f"{tmp_path} does not exist" in load_error(tmp_path)


def test_a_file_that_is_not_python_is_not_executed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "not a Python file" in load_error(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("config.data.nmae = 'x'", ["no key 'nmae'", "'name'"]),
        ("config.epocs = 3", ["no key 'epocs'", "'epochs'"]),
        ("config['task']['nam'] = 'x'", ["no key 'nam'", "'name'"]),
        ("config.optimizer.learning_rat = 1.0", ["no key 'learning_rat'", "'learning_rate'"]),
        ("config.modle.name = 'x'", ["'modle'", '"model"']),
        ("config.seed = 'x'", ["TypeError", "'seed'", "int"]),
        ("1 / 0", ["ZeroDivisionError", "division by zero"]),
        ("raise ValueError('two\\nlines')", ["ValueError", "two lines"]),
        ("raise KeyError('gone')", ["KeyError: gone"]),
        ("import nothing_of_the_kind", ["ModuleNotFoundError", "'nothing_of_the_kind'"]),
        ("def f(:", ["SyntaxError", "invalid syntax"]),
    ],
)
def test_a_fault_in_a_file_is_told_with_its_file_line_and_words(experiment, line, words):
    path = experiment("config.seed = 1", line)
    message = load_error(path)
    assert message.startswith(f"{path}:7: ")
    assert all(word in message for word in words)


def test_a_users_error_raised_by_a_file_is_kept(experiment):
    assert load_error(experiment("from jaxcnn import UserError", "raise UserError('as I say')")) == "as I say"


@pytest.mark.parametrize("last", ["pass", "return config.to_dict()", "config.unlock(); return config", "return 3"])
def test_get_config_returns_a_locked_config(experiment, last):
    assert "must return the ConfigDict made by base_config()" in load_error(experiment(last=last))


def test_a_key_smuggled_in_is_found(experiment):
    lines = ("with config.unlocked():", "    config.data.wrokers = 3")
    assert "'data.wrokers': did you mean 'data.workers'" in load_error(experiment(*lines))


def test_a_file_without_get_config_is_told_so(tmp_path):
    (tmp_path / "empty.py").write_text("config = 1\n")
    assert "defines no get_config()" in load_error(tmp_path / "empty.py")


# Arguments: --config FILE:ARGUMENT.


@pytest.fixture
def family(tmp_path):
    """`family(signature, name)`: a file whose get_config takes an argument and puts it in `model.name`."""

    def write(signature: str = "name", file: str = "family.py", known: str = "ARGUMENTS = ('small', 'large')") -> Path:
        body = ["from jaxcnn.config import base_config", known, f"def get_config({signature}):"]
        body += [
            "    config = base_config()",
            "    config.epochs = 1",
            "    if name == 'odd': raise ValueError('an odd one')",
        ]
        body += ["    config.model.name = name", "    return config"]
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("\n".join(body) + "\n")
        return tmp_path / file

    return write


def test_the_argument_reaches_get_config(family):
    path = family()
    assert load_config(f"{path}:small").model.name == "small"
    assert load_config(f"{path}:large", [("seed", "3")]).seed == 3
    assert load_config(family("name='default'")).model.name == "default"
    assert load_config(f"{family(known='')}:a:b").model.name == "a:b"  # the first colon that ends a file


def test_a_missing_argument_is_an_error_that_lists_them(family):
    path = family()
    assert all(words in load_error(path) for words in (f"{path}:ARGUMENT", "small", "large"))


def test_an_unknown_argument_names_the_file_and_its_nearest(family):
    path = family()
    message = load_error(f"{path}:smal")
    assert all(words in message for words in (str(path), "'smal'", "small", "large"))


def test_an_argument_that_the_file_refuses_is_the_files_own_error(family):
    path = family(known="")
    message = load_error(f"{path}:odd")
    assert message.startswith(f"{path}:6: ")
    assert "an odd one" in message


@pytest.mark.parametrize("argument", ["small", ""])
def test_a_file_without_an_argument_refuses_one(experiment, argument):
    path = experiment()
    assert f"{path} takes no argument" in load_error(f"{path}:{argument}")


def test_a_file_whose_name_holds_a_colon_comes_first(family):
    family()
    inner = family("name='inner'", file="family.py:small.py", known="")
    assert load_config(inner).model.name == "inner"
    outer = family(file="a:b/family.py")
    assert load_config(f"{outer}:small").model.name == "small"


def test_a_missing_file_with_an_argument_is_named_without_it(tmp_path):
    assert f"{tmp_path}/no.py does not exist" in load_error(f"{tmp_path}/no.py:resnet50")


# config.json.

_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_steps = st.lists(st.integers(1, 10**9), unique=True).map(sorted).map(tuple)


@settings(max_examples=50, deadline=None, database=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    rate=st.floats(0, exclude_min=True, allow_infinity=False),
    mean=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(tuple),
    decay=_steps,
    nesterov=st.booleans(),
    name=st.text(),
    overrides=st.dictionaries(st.sampled_from(["dropout", "width", "kind"]), _scalars | st.lists(_scalars)),
)
def test_a_config_comes_back_from_json_exactly(tmp_path_factory, seed, rate, mean, decay, nesterov, name, overrides):
    config = config_with(seed=seed, optimizer__learning_rate=rate, optimizer__decay_steps=decay, data__mean=mean)
    config.optimizer.schedule = "step" if decay else "cosine"
    config.optimizer.nesterov, config.data.name = nesterov, name
    config.model.overrides.update(overrides)
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_text(to_json(config))
    back = from_json(path)
    assert repr(flatten(back)) == repr(flatten(config))
    assert config_hash(back) == config_hash(config)
    with pytest.raises(AttributeError, match="locked"):
        back.nothing = 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a run's config.json"),
        ('{"seed": 1', "not a run's config.json"),
        ("[]", "not a run's config.json"),
        ('{"epochs": 1, "seed": "x"}', "config.seed='x'"),
        ('{"epochs": 1, "sed": 1}', "'seed'"),
        ('{"seed": 1}', "exactly one"),
    ],
)
def test_a_broken_json_is_refused(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        from_json(tmp_path / "config.json")


def test_a_folder_without_config_json_is_no_run(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}/config\.json does not exist.*train"):
        from_json(tmp_path / "config.json")


def test_overrides_go_over_config_json(tmp_path):
    (tmp_path / "config.json").write_text(to_json(config_with(seed=3)))
    assert from_json(tmp_path / "config.json", [("seed", "4"), ("data.mean", "0.5")]).seed == 4
    with pytest.raises(UserError, match=r"config\.seed=-1"):
        from_json(tmp_path / "config.json", [("seed", "-1")])


def other(value: Any) -> Any:
    """Another value of the same type."""
    return not value if isinstance(value, bool) else value + type(value)((1,) if isinstance(value, tuple) else "1")


def test_the_hash_changes_with_any_value():
    hashes = {config_hash(base_config())}
    for key, value in flatten(base_config()).items():
        config = base_config()
        put(config, key, other(value))
        hashes.add(config_hash(config))
    config = base_config()
    config.model.overrides.dropout = 0.5
    assert len(hashes | {config_hash(config)}) == len(ROWS) + 2
    assert config_hash(base_config()) in hashes


# Resuming.


@pytest.fixture
def begun(tmp_path):
    """`begun(config)`: the folder of a run of it that has a checkpoint."""

    def write(config: Config) -> Path:
        (tmp_path / "checkpoints" / "10").mkdir(parents=True)
        (tmp_path / "config.json").write_text(to_json(config))
        return tmp_path

    return write


def test_a_resumed_config_may_not_differ_and_every_difference_is_named(begun):
    workdir = begun(config_with())
    check_resume(config_with(), workdir)
    changed = config_with(seed=5, model__name="resnet56", log_every=7)
    changed.model.overrides.dropout = 0.5
    with pytest.raises(UserError) as caught:
        check_resume(changed, workdir)
    message = str(caught.value)
    for words in ("seed was 0, is 5", "'resnet20', is 'resnet56'", "overrides.dropout was None, is 0.5", str(workdir)):
        assert words in message
    assert "log_every" not in message


@pytest.mark.parametrize("key", ROWS)
def test_only_what_does_not_change_the_training_may_differ(begun, key):
    workdir, changed = begun(config_with()), config_with()
    put(changed, key, other(flatten(changed)[key]))
    if key in MAY_DIFFER:
        check_resume(changed, workdir)
    else:
        with pytest.raises(UserError, match=key):
            check_resume(changed, workdir)


@pytest.mark.parametrize("value", [(1, 2), [1, 2], None, 1.5, "a"])
def test_a_run_resumes_with_the_overrides_it_began_with(begun, value):
    config = config_with()
    config.model.overrides.widths = value
    check_resume(config, begun(config))


def test_before_the_first_checkpoint_anything_may_change(tmp_path):
    check_resume(config_with(), tmp_path)
    (tmp_path / "config.json").write_text(to_json(config_with(seed=3)))
    check_resume(config_with(seed=4), tmp_path)


# The experiments.

# Name of the data -> (classes, image, training examples).
DATA = {
    "digits": (10, (8, 8, 1), 1_438),
    "tfds:fashion_mnist": (10, (28, 28, 1), 60_000),
    "tfds:cifar10": (10, (32, 32, 3), 50_000),
    "tfds:imagenet2012": (1000, (None, None, 3), 1_281_167),
    "folder:photos": (2, (None, None, 3), 200),
    "folder:data/fashion_mnist_jpeg": (10, (None, None, 3), 60_000),
    "synthetic:1000:12800": (1000, (32, 32, 3), 12_800),
    "synthetic:2:12800": (2, (32, 32, 3), 12_800),
    "tfds:mnist": (10, (28, 28, 1), 59_600),
    "binarized_mnist:data/binarized_mnist": (1, (28, 28, 1), 50_000),
    "camvid:data/camvid": (11, (360, 480, 3), 367),
    "voc_segmentation:data/VOCdevkit/VOC2011": (21, (500, 500, 3), 8_498),
    "coco_segmentation:data/coco": (21, (480, 480, 3), 92_518),
    "voc:data/VOCdevkit/VOC2007": (21, (608, 1024, 3), 5_011),
    "voc:data/VOC0712": (21, (608, 1024, 3), 16_551),
    "voc:data/BCCD": (4, (256, 320, 3), 205),
    "coco:data/coco": (81, (800, 1088, 3), 118_287),
    "frey:data/frey/freyfaces.npy": (1, (28, 20, 1), 1_565),
}


class Shapes:
    """What a run asks of its data, of the sizes in `DATA` and with nothing in it."""

    def __init__(self, config: Config):
        classes, (height, width, channels), examples = DATA[config.data.name]
        size = config.data.image_size
        self.config, self.num_classes = config, config.model.num_classes or classes
        height, width = height_width(size) or (height, width)
        self.image_shape = (height, width, channels)
        self.buckets = self.eval_buckets = ((height, width),)
        self.steps_per_epoch = Fraction(examples, config.global_batch_size)
        self.eval_examples, self.eval_broken, self.position, self.input = 1, 0, {"examples": examples}, {}

    def preprocess(self, batch: dict[str, Any], seed: jax.Array | None) -> dict[str, Any]:
        if seed is not None:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), batch["example"])
            batch = augment_device.augment(parse(self.config.data.augment).device, self.config.data.pad, keys, batch)
        return batch | {"image": batch["image"].astype(jnp.float32)}

    def complaints(self, epoch: float) -> list[str]:
        raise NotImplementedError

    def train_batches(self, start: int, stop: int) -> Any:
        raise NotImplementedError

    def eval_batches(self) -> Any:
        raise NotImplementedError


def named(path: Path | str) -> str:
    return "/".join(str(path).split("/")[-2:])


def test_there_are_experiments():
    assert len(EXPERIMENTS) >= 2


def test_every_network_of_224_pixels_has_an_experiment_on_imagenet():
    networks: dict[str, Any] = {name: create_model(name) for name in list_models()}
    ours = {name: network for name, network in networks.items() if type(network).__module__.startswith("jaxcnn.")}
    large = {name for name, network in ours.items() if network.image_size == 224}  # other tests may register their own
    recipes = {recipe.rpartition(":")[2]: recipe for recipe in EXPERIMENTS if "/imagenet/" in recipe}
    assert recipes.keys() == large
    assert all(load_config(recipe).model.name == name for name, recipe in recipes.items())


@pytest.mark.parametrize("path", FILES, ids=named)
def test_an_experiment_imports_nothing_of_ours_but_the_config(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module or "")
    assert {name for name in imported if name.split(".")[0] == "jaxcnn"} == {"jaxcnn.config"}


# Deep networks of a family that a shallower one of the same file stands for, which take a minute each to trace, and
# ablations of one recipe.
DEEP = re.compile("resnet(34|101|152)|vgg1[369]|googlenet_tv|_bn|fast_rcnn.py:(?!multi_task|alexnet$)")


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(recipe, marks=[pytest.mark.slow] * bool(DEEP.search(str(recipe)))) for recipe in EXPERIMENTS],
    ids=named,
)
def test_an_experiments_step_keeps_the_shapes_of_the_state(recipe):
    config = load_config(recipe)
    data = Shapes(config)
    model = create_model(config.model.name, data.num_classes, jnp.dtype(config.dtype), **config.model.overrides)
    program = build_program(config, model, data, make_mesh(1))
    state, loss = jax.eval_shape(program.train_step, program.state, program.largest_batch)
    assert loss.shape == ()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), program.state
    )
    assert {str(x.dtype) for x in jax.tree.leaves(state)} == {"float32", "int32", "uint32"}
    assert program.total_steps == (config.steps or math.ceil(config.epochs * data.steps_per_epoch))


def test_config_json_is_plain_sorted_json():
    values = json.loads(to_json(config_with(seed=3)))
    assert list(values) == sorted(values)
    assert values["seed"] == 3
    assert values["data.mean"] == []
