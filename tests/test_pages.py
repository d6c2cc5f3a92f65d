"""The pages for readers: links lead somewhere, commands are ones that exist, and README.md runs as it is written."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxcnn import cli
from jaxcnn.configfile import from_json, load_config
from jaxcnn.papers.counted import counted

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(
    path.relative_to(ROOT)
    for folder in ("", "jaxcnn", "jaxcnn/*", "experiments", "notebooks", "experiments/results")
    for path in ROOT.glob(f"{folder}/*.md".lstrip("/"))
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXECUTED = re.compile(r"^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that a Markdown page's headings have on GitHub."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(page: Path) -> list[str]:
    """Return the commands in the shell blocks of a page, each on one line and without its comment."""
    blocks = [text for language, text in EXECUTED.findall(page.read_text()) if language == "sh"]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings_that_are_there(page):
    for link in LINK.findall((ROOT / page).read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_landing_page_is_short_and_lists_the_page_of_each_folder():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(text) if not link.startswith("http")}
    folders = {path.resolve() for path in (ROOT / "jaxcnn").rglob("README.md")}
    assert folders | {ROOT / "experiments" / "GUIDE.md", ROOT / "experiments" / "README.md"} <= linked


def test_the_table_of_networks_has_their_parameters():
    rows = re.findall(r"^\| [^|]*\| `(\w+)`[^|]*\| ([\d,]+) \|", README.read_text(), re.MULTILINE)
    assert len(rows) >= 8
    known = counted()
    assert dict(rows) == {name: f"{known[name]['parameters']:,}" for name, _ in rows}


def test_the_scores_of_the_landing_page_are_those_of_recorded_runs():
    index = (ROOT / "experiments" / "README.md").read_text()
    scores = {
        "fashion_mnist-alexnet": ("top1 0.8867", "88.67 %"), "fashion_mnist-vgg11": ("top1 0.9026", "90.26 %"),
        "fashion_mnist-googlenet": ("top1 0.8945", "89.45 %"), "fashion_mnist-resnet20": ("top1 0.9345", "93.45 %"),
        "camvid/fcn8s": ("miou 0.3049", "0.305"), "bccd/faster_rcnn": ("map50 0.8990", "0.899"),
        "mnist-iwae50": ("iwae -101.4717", "−101.5 nats"),
    }  # fmt: skip
    for run, (recorded, told) in scores.items():
        (row,) = [line for line in index.splitlines() if line.startswith(f"| [{run}](")]
        assert recorded in row
        assert told in README.read_text()


class Parsed(Exception):
    """A command's words are ones that it takes."""


def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command stop, by `Parsed`, when argparse has taken its words; those it leaves must be overrides."""
    take, depth = argparse.ArgumentParser.parse_known_args, 0

    def parsed(parser: Any, args: Any = None, namespace: Any = None) -> Any:
        nonlocal depth
        depth += 1  # A subcommand's parser is called within its parent's.
        try:
            found, rest = take(parser, args, namespace)
        finally:
            depth -= 1
        if depth:
            return found, rest
        raise Parsed(found, rest)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parsed)


def jaxcnn_words(command: str) -> list[str]:
    """Return the words of a `jaxcnn` command, without the variables before it; [] of another command."""
    words = shlex.split(command.replace("…", ""))
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    return words[1:] if words[:1] == ["jaxcnn"] else []


def takes(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """Return what argparse makes of a command: its arguments, and the overrides that are left."""
    with monkeypatch.context() as patched:
        parse_only(patched)
        with pytest.raises(Parsed) as parsed:
            cli.main(words)
    return parsed.value.args


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_are_ones_that_exist_with_options_and_keys_that_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(ROOT / page):
        words = jaxcnn_words(command)
        if words[:1] == ["launch"]:
            takes(words, monkeypatch)
            words = words[words.index("--") + 1 :]
        if not words or words in (["train"], ["train", "--workdir", "DIR"]):
            continue
        if words[0] == "train" and not {"--config", "--config-json", "--data"} & set(words):
            words = [*words, "--config", "FILE"]  # `jaxcnn train … --config.KEY=VALUE`
        arguments, left = takes(words, monkeypatch)
        overrides = [(key, value) for key, _, value in (word[len("--config.") :].partition("=") for word in left)]
        assert all(word.startswith("--config.") and "=" in word for word in left), command
        config = getattr(arguments, "config", None)
        if config and config != "FILE":
            load_config(config, overrides)
        elif file := getattr(arguments, "config_json", None):
            from_json(file, overrides)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_other_commands_name_scripts_and_targets_that_are_there(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(ROOT / page):
        words = shlex.split(command.replace("…", ""))
        for script in (word for word in words if re.fullmatch(r"experiments/\S+\.(py|sh|sbatch|yaml|toml)", word)):
            assert (ROOT / script).is_file(), command
        assert words[0] != "make" or words[1] in targets, command


# Sections whose blocks are run here as they are written, and commands that are run with other files or elsewhere: by
# the tests of the file named, or on what no machine of the tests has. All other commands are recorded runs'.
RUN_HERE = [
    ("README.md", ("Start", "Six commands", "Add a network")),
    ("experiments/GUIDE.md", ("Experiments and their configs",)),
    ("jaxcnn/papers/README.md", ("The papers' tables",)),
    ("jaxcnn/training/README.md", ("Speed",)),
]
RUN_ELSEWHERE = {
    "make (demo|test|aot)": ".ci/run",  # which installs, tests and compiles; `make demo` is the recorded digits' run
    "pip install ": "requirements.lock",
    "jaxcnn data check (folder|camvid|tfds):": "tests/commands/test_data.py",
    "jaxcnn data pack ": "tests/commands/test_data.py",
    "jaxcnn data prepare ": "tests/data/test_prepare.py",
    "jaxcnn data show ": "tests/commands/test_data_show.py",
    "python experiments/fashion_mnist_jpeg/make.py ": "experiments/results/fashion_mnist_jpeg-resnet18/result.json",
    "jaxcnn launch ": "tests/commands/test_launch.py",
    "(sbatch|kubectl|TPU=NAME) ": "experiments/launch",  # clusters
    "jaxcnn train --config experiments/imagenet/": "tests/commands/test_scaling.py",  # ImageNet; compiled there
    "jaxcnn scaling ": "tests/commands/test_scaling.py",
    "jaxcnn (train|evaluate) .*gs://": "tests/test_stores.py",
    "XLA_FLAGS=|jaxcnn train … --config.(mesh|norm)": "tests/training/test_placement.py",
    "jaxcnn weights |jaxcnn train .*init_from=": "tests/commands/test_weights.py",
    "jaxcnn predict --workdir runs/resnet50 ": "tests/commands/test_predict.py",
    "jaxcnn (evaluate|predict) --workdir runs/camvid-fcn8s ": "tests/commands/test_segmentation_commands.py",
    "jaxcnn (evaluate|predict) --workdir runs/bccd": "tests/commands/test_detection_commands.py",
    "jaxcnn (evaluate|sample|predict) --workdir runs/mnist-iwae5 ": "tests/commands/test_sample.py",
    "(JAXCNN_NOTEBOOK_QUICK=1 )?jupyter ": "tests/test_notebooks.py",
}


def section(page: Path, heading: str) -> str:
    """Return the text below a heading of the first or second level, down to the next."""
    return re.split(rf"^##? {re.escape(heading)}$", page.read_text(), flags=re.MULTILINE)[1].split("\n## ")[0]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_command_is_run_by_a_test_or_recorded_or_says_where_it_is_run(page):
    here = "".join(section(ROOT / name, heading) for name, headings in RUN_HERE for heading in headings)
    here += section(ROOT / "experiments" / "GUIDE.md", "Recipes")  # tests/test_recipes.py
    recorded = re.findall(r"`jaxcnn train --config (\S+) ", (ROOT / "experiments" / "README.md").read_text())
    for command in commands(ROOT / page):
        (run_by,) = [place for form, place in RUN_ELSEWHERE.items() if re.match(form, command)] or [""]
        if command not in here and not any(f"--config {config} " in command for config in recorded):
            assert run_by, f"{command}: run it in a test, record it, or say in RUN_ELSEWHERE where it is run"
            assert (ROOT / run_by).exists(), run_by


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the experiments, and `jaxcnn` in its bin/."""
    made = tmp_path_factory.mktemp("pages")
    (made / "experiments").symlink_to(ROOT / "experiments")
    (command := made / "bin" / "jaxcnn").parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m jaxcnn.cli "$@"\n')
    command.chmod(0o755)
    return made


def run_blocks(folder: Path, text: str) -> str:
    """Run the blocks of a page's text in the folder, and return what they print."""
    paths = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    printed = ""
    for language, block in EXECUTED.findall(text):
        if block.startswith("make "):  # Installing is not for a test.
            continue
        if "class TinyNet" in block:
            (folder / "my_net.py").write_text(block)
            continue
        words = ["bash", "-euc", block] if language == "sh" else [sys.executable, "-c", block]
        result = subprocess.run(words, cwd=folder, env=os.environ | paths, capture_output=True, text=True)
        assert result.returncode == 0, block + result.stderr
        printed += result.stdout
    return printed


@pytest.mark.slow
def test_the_landing_page_runs_as_it_is_written(folder):
    python, six, _ = (run_blocks(folder, section(README, heading)) for heading in RUN_HERE[0][1])
    assert float(python.split("top-1 ")[1].split("%")[0]) > 90
    assert python.splitlines()[-1].startswith("7 ")
    assert "resnet20" in six
    for name in ("mistakes.png", "top5.png", "curves.png", "runs/mine/result.json", "runs/tiny/result.json"):
        assert (folder / name).stat().st_size > 100, name
    assert '"my_net:TinyNet"' in (folder / "runs" / "tiny" / "config.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "headings"), RUN_HERE[1:], ids=[page for page, _ in RUN_HERE[1:]])
def test_the_blocks_of_other_pages_run_as_they_are_written(page, headings, folder):
    for heading in headings:
        assert run_blocks(folder, section(ROOT / page, heading))


def test_the_worked_example_is_short_and_the_recipe_of_the_landing_page_is_the_guides():
    example = next(text for _, text in EXECUTED.findall(README.read_text()) if "class TinyNet" in text)
    assert len(example.splitlines()) < 60
    tuned = [line for line in commands(README) if ("resnet18" in line and "import" in line) or "finetune" in line]
    assert tuned
    assert {*tuned} <= {*commands(ROOT / "experiments" / "GUIDE.md")}
