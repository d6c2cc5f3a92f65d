"""Write `experiments/README.md`, the index of the recorded runs: what each was, its score, and how to repeat it.

    python experiments/results/index.py [FILE]

A run is a folder with a `result.json` and a `config.json`. Its command names the experiment whose config is the
recorded one, but for keys that only say where it runs and how it is watched; where there is none, the recorded config
itself. Any other record is a page of Markdown that begins with the command that made it; that of a scaling study is in
the study's file.
"""

import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcnn.config import RESUMABLE, base_config, flatten

ROOT = Path(__file__).parents[2]
EXPERIMENTS, RESULTS = ROOT / "experiments", ROOT / "experiments" / "results"
HEADING = """# Recorded runs

By `python experiments/results/index.py`, which a test runs: do not edit this page. A run's folder holds its
`config.json`, `metrics.jsonl` and `result.json` as the run wrote them. Scores are those of the last checkpoint, on the
number of examples given; a commit with + had changes. `sweeps/` has lists of runs for `jaxcnn sweep`, `launch/` scripts
for clusters. [How to write an experiment, and recipes](GUIDE.md).

"""
TITLES = {  # of pages without a heading
    "compiled-layers": "Layers as the compilers of TPU and GPU see them",
    "fused-norm": "BatchNorm of bottlenecks from Gram matrices: derivation, memory traffic, what was dropped",
    "generation": "VAEs and GANs: likelihoods, bounds, distances and pictures",
    "precision": "bfloat16 against float32, network by network",
    "throughput-boxes": "NMS and RoIAlign beside torchvision's",
    "throughput-input": "Reading and decoding beside tf.data, torchvision and OpenCV",
    "throughput-step": "Our training step beside plain Flax and PyTorch, on a CPU",
}
MACHINES = {
    "compiled-layers": "two shared CPU cores, for TPU and GPU",
    "dcgan-svm": "two shared Xeon cores",
    "faults": "two CPU cores",
    "fused-norm": "two shared CPU cores, for TPU and GPU",
    "generation": "two shared Xeon cores",
    "precision": "two shared CPU cores",
    "scaling/simulated": "two shared CPU cores as 1 to 8 devices",
    "throughput-boxes": "two shared CPU cores",
    "throughput-input": "two shared CPU cores",
    "throughput-step": "two shared Xeon cores with AMX",
}
COMMANDS = {  # where neither the page nor a study's file has it
    "scaling/simulated": "jaxcnn scaling --config experiments/digits/resnet20.py --measure --devices 1,2,4,8 "
    "--batch-per-chip 16 --steps 10 --warmup 3 --repeats 5 --out experiments/results/scaling/simulated",
}


def plain(config: Any) -> dict[str, Any]:
    """Return a config as its JSON file has it."""
    return json.loads(json.dumps(flatten(config)))


def what_counts(config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that the outcome depends on."""
    return {key: value for key, value in config.items() if key in ("steps", "epochs") or key not in RESUMABLE}


def recipes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every experiment as FILE[:ARGUMENT], with its config."""
    for file in sorted(EXPERIMENTS.glob("*/*.py")):
        if "\ndef get_config(" not in file.read_text(encoding="utf-8"):
            continue
        module, name = runpy.run_path(str(file)), str(file.relative_to(ROOT))
        for argument in module.get("ARGUMENTS", (None,)):
            if argument is None:
                yield name, plain(module["get_config"]())
            else:
                yield f"{name}:{argument}", plain(module["get_config"](argument))


def runs() -> Iterator[list[str]]:
    """Yield the row of each recorded run."""
    known = list(recipes())
    for file in sorted(RESULTS.rglob("result.json")):
        folder, result = file.parent, json.loads(file.read_text(encoding="utf-8"))
        recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        # A key that is newer than the record had the effect of its default.
        complete = plain(base_config(recorded.get("task.name", "classification"))) | recorded
        recipe = next((name for name, config in known if what_counts(config) == what_counts(complete)), "")
        name = str(folder.relative_to(RESULTS))
        source = f"--config {recipe}" if recipe else f"--config-json experiments/results/{name}/config.json"
        best = next(key for key in result if key.startswith("best/")).removeprefix("best/")
        yield [
            f"[{name}](results/{name}/result.json)",
            f"{result['model']}, {recorded['data.name']}",
            f"{best.removeprefix('eval/')} {result[best]:.4f} ({result['eval/examples']:,})",
            f"{result['epoch']:.4g}",
            f"{result['device_count']} × {result['device_kind']}, {result['wall_time_s'] / 60:.0f} min",
            result["commit"],
            f"`jaxcnn train {source} --workdir runs/{name}`",
        ]


def studies() -> Iterator[list[str]]:
    """Yield the row of each other record, a page of Markdown."""
    for file in sorted(RESULTS.rglob("*.md")):
        if file.name == "README.md":
            continue
        path, text = file.relative_to(RESULTS), file.read_text(encoding="utf-8")
        name = str(path.parent if path.name == "scaling.md" else path.with_suffix(""))
        study = EXPERIMENTS / f"{name}.toml"
        comments = re.findall("^# (.*)", study.read_text(encoding="utf-8"), re.MULTILINE) if study.exists() else []
        title = re.match("# (.*)", text)
        commit = re.search("[Cc]ommit ([0-9a-f]{7,}[+]?)", text)
        yield [
            f"[{title[1] if title else TITLES.get(name, name)}](results/{path})",
            comments[1].partition(",")[0] if comments else MACHINES.get(name, "see there"),
            commit[1] if commit else "see there",
            f"`{comments[0] if comments else COMMANDS.get(name) or command_in(text)}`",
        ]


def command_in(text: str) -> str:
    """Return the commands in the lines that a page begins with, or the first one in its text."""
    first = re.match("((?: {4}.*\n)+)", text)
    if first:
        return " && ".join(line.strip() for line in first[1].splitlines())
    inline = re.search("`([^`]+)`", text)
    return inline[1] if inline else ""


def table(heading: str, rows: Iterator[list[str]]) -> str:
    """Return rows of Markdown below the names of their columns."""
    columns = heading.split(", ")
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, ["---"] * len(columns), *rows])


def index() -> str:
    """Return the page."""
    ours = table("run, what, score (examples), epochs, hardware and time, commit, again", runs())
    others = table("record, hardware, commit, again", studies())
    return f"{HEADING}## Training\n\n{ours}\n## Measurements and studies\n\n{others}"


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else EXPERIMENTS / "README.md"
    out.write_text(index(), encoding="utf-8")
