"""Score the runs of fcn8s.py on CamVid's test images, record them, and write the page about them.

    python experiments/camvid/report.py RUNS    # runs/camvid-fcn32s … below RUNS; without it, the page alone

A record in experiments/results/camvid has the run's own config.json, metrics.jsonl and result.json, and test.json: what
`evaluate` says of the last checkpoint. The page's figures come from these files.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "camvid"
NETS = {"fcn32s": "FCN-32s", "fcn16s": "FCN-16s", "fcn8s": "FCN-8s", "resnet18": "torchvision's form, ResNet-18"}
SHOWN = range(0, 233, 30)  # eight of the test images

HEAD = """    python experiments/camvid/report.py runs

# CamVid: FCN-32s, 16s, 8s and a small ResNet form

By the command above, of the records beside this page: do not edit it. [`fcn8s.py`](../../camvid/fcn8s.py) says what was
trained. Scores are of the 233 test images at their own size, by the last checkpoint, one run each; void counts nowhere.
"""
PUBLISHED = """
Published on this split, FCN-8 at full width: mean IoU 57.0 %, pixel accuracy 88.0 % (Tiramisu paper, arXiv:1611.09326).
That is another protocol: 134.5 million parameters from ImageNet's weights, and a training until it has converged. The
runs here have a quarter of the width, a classifier of CIFAR-10 to start from (the ResNet none), and minutes.
"""


def record(runs: Path) -> None:
    """Copy and score the runs that there are, and draw their curves and predictions."""
    import jaxcnn
    from jaxcnn.commands.options import set_up_jax
    from jaxcnn.data.sources import make_source
    from jaxcnn.figures.curves import curves
    from jaxcnn.figures.overlays import mask_cards

    set_up_jax()
    trained = {name: runs / f"camvid-{name}" for name in NETS if (runs / f"camvid-{name}" / "result.json").exists()}
    opened = {name: jaxcnn.open_run(folder) for name, folder in trained.items()}
    first = next(iter(opened.values()))
    test = make_source(first.config.data.name, "test")
    examples = [test[i] for i in SHOWN]
    images, lines = [example["image"] for example in examples], {}
    maps = {"truth": [example["label_map"] for example in examples]}
    for name, run in opened.items():
        folder, result = RESULTS / name, trained[name] / "result.json"
        folder.mkdir(parents=True, exist_ok=True)
        kept, test_file = folder / "result.json", folder / "test.json"
        if not (test_file.exists() and kept.exists() and kept.read_bytes() == result.read_bytes()):  # not scored yet
            scores = run.evaluate({"data.eval_split": "test"}) | {"workdir": f"runs/camvid-{name}"}
            test_file.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        for file in ("config.json", "metrics.jsonl", "result.json"):
            shutil.copy(trained[name] / file, folder / file)
        lines[NETS[name]] = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        maps[NETS[name].partition(",")[0]] = [found.outputs["label_map"] for found in run.predict(images)]
    curves(lines, first.task.headline, RESULTS / "curves.png")
    titles = [Path(test.file(i)).stem for i in SHOWN]
    mask_cards(images, titles, maps, first.input["class_names"]).savefig(RESULTS / "predictions.jpg", dpi=80)


def page() -> str:
    """Return the page about the records that there are."""
    from jaxcnn.text_table import markdown_table

    names = [name for name in NETS if (RESULTS / name / "test.json").exists()]
    test, result = (
        {n: json.loads((RESULTS / n / file).read_text()) for n in names} for file in ("test.json", "result.json")
    )
    rows = [["net", "parameters", "steps", "minutes", "mean IoU %", "pixel accuracy %", "mean accuracy %"]]
    rows += [
        [NETS[n], f"{result[n]['parameters']:,}", str(result[n]["step"]), f"{result[n]['wall_time_s'] / 60:.0f}"]
        + [f"{100 * test[n][f'eval/{score}']:.1f}" for score in ("miou", "pixel_accuracy", "mean_accuracy")]
        for n in names
    ]
    classes = [key.removeprefix("eval/iou/") for key in test[names[0]] if key.startswith("eval/iou/")]
    by_class = [["IoU %", *(NETS[n].partition(",")[0] for n in names)]]
    by_class += [[c, *(f"{100 * test[n].get(f'eval/iou/{c}', 0):.1f}" for n in names)] for c in classes]
    about = next(iter(result.values()))
    where = (
        f"\nHardware: one of two shared Xeon cores with AMX, busy with other work besides. Commit {about['commit']}.\n"
    )
    pictures = (
        "\n![loss and errors of the runs](curves.png)\n\n![eight test images, truth and predictions](predictions.jpg)\n"
    )
    return (
        HEAD
        + "\n"
        + markdown_table(rows)
        + PUBLISHED
        + order(test)
        + where
        + "\n"
        + markdown_table(by_class)
        + pictures
    )


def order(test: dict[str, Any]) -> str:
    """Return a sentence on whether finer nets score higher."""
    nets = [name for name in ("fcn32s", "fcn16s", "fcn8s") if name in test]
    scores = [test[name]["eval/miou"] for name in nets]
    holds = "holds" if scores == sorted(scores) else "does not hold"
    words = " < ".join(NETS[name] for name in nets)
    return f"\nThe paper's order, {words} by mean IoU, {holds} here, of one run each.\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        record(Path(sys.argv[1]))
    (RESULTS / "README.md").write_text(page(), encoding="utf-8")
