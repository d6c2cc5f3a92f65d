"""`jaxcnn config`: which keys a word stands for, what is printed of them, and the nearest of a misspelt one."""

import json
import subprocess
import sys

import pytest

from jaxcnn import cli
from jaxcnn.config import TASK_KEYS, every_key


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["config", *argv]) == 0
    return capsys.readouterr().out


def keys(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    return [json.loads(line)["key"] for line in printed(capsys, *argv, "--json").splitlines()]


def test_without_a_word_every_key_of_every_task_is_listed(capsys):
    found = keys(capsys)
    assert set(found) == every_key().keys() | {"model.overrides"}
    assert found.count("task.bias_multiplier") == sum("task.bias_multiplier" in rows for rows in TASK_KEYS.values())


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer.name", ["optimizer.name"]),
        ("config.optimizer.name", ["optimizer.name"]),
        ("learning_rate", ["optimizer.learning_rate"]),
        ("name", ["task.name", "model.name", "data.name", "optimizer.name"]),
        ("norm", ["norm.scope", "norm.fused", "norm.group"]),
        ("model.overrides.dropout", ["model.overrides"]),
        ("bias_multiplier", ["task.bias_multiplier"] * 2),
    ],
)
def test_a_word_is_a_key_or_a_group_or_a_last_word(word, expected, capsys):
    assert keys(capsys, word) == expected


def test_a_key_has_its_default_its_legal_values_and_its_task(capsys):
    first, *rest = printed(capsys, "label_smoothing").splitlines()
    assert first == "task.label_smoothing = 0.0"
    assert rest[0].startswith("    task.name=classification: ")
    assert "[at least 0 and less than 1]" in " ".join(map(str.strip, rest))
    assert json.loads(printed(capsys, "data.resident", "--json")) == {
        "key": "data.resident", "default": False, "types": ["bool"], "legal": "True | False", "task": "",
        "meaning": "keep the data set in device memory, and take many steps a call",
    }  # fmt: skip


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_lines_fit_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = printed(capsys).splitlines()
    assert max(len(line) for line in lines if line.startswith(" ")) <= min(columns, 100)


@pytest.mark.parametrize(
    ("word", "near"),
    [("learning_rat", "optimizer.learning_rate"), ("optimiser", "group 'optimizer'"), ("qqq", "`jaxcnn config`")],
)
def test_an_unknown_word_is_refused_with_the_nearest(word, near, capsys):
    assert cli.main(["config", word]) == 2
    assert near in capsys.readouterr().err


def test_the_help_of_train_names_it_and_no_jax_is_loaded(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "`jaxcnn config`" in " ".join(capsys.readouterr().out.split())
    probe = "import sys; from jaxcnn.cli import main; main(['config']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], stdout=subprocess.DEVNULL, check=False).returncode == 0
