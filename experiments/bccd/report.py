"""Score the run of faster_rcnn.py on BCCD's test images, record it, and write the page about it.

    python experiments/bccd/report.py RUNS    # runs/bccd-faster_rcnn below RUNS; without it, the page alone

The record in experiments/results/bccd has the run's own config.json, metrics.jsonl and result.json, and test.json: the
scores of the last checkpoint on the test split. The page's figures come from these files.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "bccd"
RECORD, NAME = RESULTS / "faster_rcnn", "bccd-faster_rcnn"
SHOWN = range(0, 72, 8)  # nine of the test images
CANVASES = ((256, 320), (256, 448), (384, 512))  # for images of 240×320 pixels

HEAD = """    python experiments/bccd/report.py runs

# Blood cells: Faster R-CNN with a pyramid on a ResNet-18

The command above writes this page from the record beside it: do not edit it. The recipe is
[`faster_rcnn.py`](../../bccd/faster_rcnn.py). Scores are those of the last checkpoint of one run on the 72 test images,
in pixels of the stored images.
"""
PUBLISHED = """
Published on this data set, mAP at 0.5: 85.4 (Joshi et al. 2022), 92.4 (YOLOv8n) and 94.7 (NBCDC-YOLOv8). Those are
other protocols: other splits, images of full size and more, and weights of larger data sets to start from. Here a
network of {parameters:,} parameters started from random weights, on images of half the size.
"""
PADDING = """
The same weights on larger canvases: what torchvision's form makes of its padding, in which the run was trained, and
`mask_padding=True`, where nothing depends on the canvas.

"""
PICTURES = """
![loss and errors of the run](curves.png)

![precision-recall curve of each class at an IoU of 0.5](precision_recall.png)

![nine test images, truth and detections](predictions.jpg)
"""


def record(runs: Path) -> None:
    """Copy and score the run, and draw its curves and detections."""
    import jaxcnn
    from jaxcnn.commands.options import set_up_jax
    from jaxcnn.figures.curves import curves
    from jaxcnn.figures.overlays import box_cards

    set_up_jax()
    run = jaxcnn.open_run(runs / NAME)
    evaluation = run.evaluation({"data.eval_split": "test"})
    RECORD.mkdir(parents=True, exist_ok=True)
    scores = evaluation.scores | {"workdir": f"runs/{NAME}"}
    (RECORD / "test.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    for file in ("config.json", "metrics.jsonl", "result.json"):
        shutil.copy(runs / NAME / file, RECORD / file)
    lines = [json.loads(line) for line in (RECORD / "metrics.jsonl").open()]
    curves({"Faster R-CNN": lines}, run.task.headline, RESULTS / "curves.png")
    evaluation.draw_curves().savefig(RESULTS / "precision_recall.png", dpi=80)
    test: Any = evaluation.data.eval  # a `Boxed`
    images = [test.decoded(test.read(i)["image"]) for i in SHOWN]
    truth = [(test.truth(i)["boxes"], test.truth(i)["labels"], None) for i in SHOWN]
    found = []
    for prediction in run.predict(images):
        boxes, labels, scores, valid = (prediction.outputs[key] for key in ("boxes", "labels", "scores", "valid"))
        keep = valid & (scores >= 0.5)
        found.append((boxes[keep], labels[keep], scores[keep]))
    titles = [Path(test.file(i)).stem for i in SHOWN]
    cards = box_cards(images, titles, {"truth": truth, "detections": found}, run.input["class_names"])
    cards.savefig(RESULTS / "predictions.jpg", dpi=80)
    measure_padding(runs / NAME)


def measure_padding(run: Path) -> None:
    """Score the test images on several canvases, with the padding masked and as torchvision has it."""
    import jaxcnn

    rows = []
    for masked in (False, True):
        opened = jaxcnn.open_run(run, overrides={"model.overrides.mask_padding": masked})
        for canvas in CANVASES:
            found = opened.evaluate({"data.eval_split": "test", "data.buckets": (canvas,)})
            rows.append({"masked": masked, "canvas": canvas, **{key: found[f"eval/{key}"] for key in ("map50", "map")}})
    (RECORD / "padding.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def padding() -> str:
    """Return the table about padding."""
    from jaxcnn.text_table import markdown_table

    lines = [["canvas", "padding", "mAP at 0.5 %", "COCO's AP %"]]
    for row in json.loads((RECORD / "padding.json").read_text()):
        words = "masked" if row["masked"] else "zeros, as torchvision"
        scores = [f"{100 * row[key]:.3f}" for key in ("map50", "map")]
        lines.append(["{}×{}".format(*row["canvas"]), words, *scores])
    return markdown_table(lines)


def page() -> str:
    """Return the page about the record."""
    from jaxcnn.text_table import markdown_table

    test, result = (json.loads((RECORD / file).read_text()) for file in ("test.json", "result.json"))
    names = {"map50": "mAP at 0.5", "map50_11pt": "by 11 points", "map": "COCO's AP", "coco/ap75": "at 0.75"}
    names |= {key.removeprefix("eval/"): key.removeprefix("eval/ap/") for key in test if key.startswith("eval/ap/")}
    scores = [f"{100 * test[f'eval/{key}']:.1f}" for key in names]
    table = markdown_table([[f"{name} %" for name in names.values()], scores])
    where = (
        f"\n{result['step']:,} steps in {result['wall_time_s'] / 60:.0f} minutes on two shared Xeon cores with AMX,\n"
        f"busy with other work besides. Commit {result['commit']}.\n"
    )
    return HEAD + "\n" + table + PUBLISHED.format(**result) + where + PADDING + padding() + PICTURES


if __name__ == "__main__":
    if len(sys.argv) > 1:
        record(Path(sys.argv[1]))
    (RESULTS / "README.md").write_text(page(), encoding="utf-8")
