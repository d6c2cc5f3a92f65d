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
from PIL import Image

from jaxcnn import cli
from jaxcnn.configfile import from_json, load_config
from jaxcnn.data.sources import make_source
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
        overrides = [tuple(word.removeprefix("--config.").split("=", 1)) for word in left]
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


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run README.md's Python and its six commands, its network too, in a folder; return it and what each printed."""
    folder = tmp_path_factory.mktemp("landing")
    Image.fromarray(make_source("digits", "test")[7]["image"][..., 0]).save(folder / "seven.png")
    (command := folder / "bin" / "jaxcnn").parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m jaxcnn.cli "$@"\n')
    command.chmod(0o755)
    paths = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    printed = []
    for heading in ("Start", "Six commands", "Add a network"):
        section = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
        for language, text in EXECUTED.findall(section):
            if text.startswith("make "):  # Installing is not for a test; what `make demo` runs is in the Makefile.
                continue
            if "class TinyNet" in text:
                (folder / "my_net.py").write_text(text)
                continue
            words = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
            result = subprocess.run(words, cwd=folder, env=os.environ | paths, capture_output=True, text=True)
            assert result.returncode == 0, text + result.stderr
            printed.append(result.stdout)
    return folder, printed


@pytest.mark.slow
def test_the_landing_page_runs_as_it_is_written(done):
    folder, (python, six, _) = done
    assert float(re.search(r"top-1 ([\d.]+)%", python)[1]) > 90
    assert "resnet20" in six
    for name in ("mistakes.png", "top5.png", "curves.png", "runs/mine/result.json", "runs/tiny/result.json"):
        assert (folder / name).stat().st_size > 100, name
    assert '"my_net:TinyNet"' in (folder / "runs" / "tiny" / "config.json").read_text()


def test_the_worked_example_is_short_and_the_recipe_of_the_landing_page_is_the_guides():
    example = next(text for _, text in EXECUTED.findall(README.read_text()) if "class TinyNet" in text)
    assert len(example.splitlines()) < 60
    tuned = [line for line in commands(README) if ("resnet18" in line and "import" in line) or "finetune" in line]
    assert tuned
    assert {*tuned} <= {*commands(ROOT / "experiments" / "GUIDE.md")}
