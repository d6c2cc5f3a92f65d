"""Write `generation.md`: the recorded runs of VAEs and GANs beside the papers' figures, with curves and samples.

    python experiments/results/generation.py

It reads each run's `result.json` and, where there is one, `evaluation.json`, the last line that `jaxcnn evaluate`
printed of it. A run that is not recorded is left out.
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent
PUBLISHED = {"vae": 86.76, "iwae5": 85.54, "iwae50": 84.78}  # IWAE paper, Table 1, one stochastic layer
HEADING = """    python experiments/results/generation.py

# VAEs and GANs: recorded runs

On two shared Xeon cores with AMX, one core a run, beside other work; no GPU. All are far shorter than the papers', and
show an order and a course, no state of the art. Each run's folder has its config, its commit and its times.
"""


def main() -> None:
    parts = [HEADING, likelihoods(), frey(), manifold(), gans()]
    (RESULTS / "generation.md").write_text("\n".join(part for part in parts if part), encoding="utf-8")


def recorded(name: str) -> dict[str, Any] | None:
    """Return the result of a run, with what was evaluated afterwards under "again"; None where it is not recorded."""
    file = RESULTS / name / "result.json"
    if not file.exists():
        return None
    again = file.with_name("evaluation.json")
    return json.loads(file.read_text()) | {"again": json.loads(again.read_text()) if again.exists() else {}}


def table(heading: str, rows: list[list[Any]]) -> str:
    columns = heading.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def likelihoods() -> str:
    """Return the tables of log p(x), of the two binarisations apart."""
    text = ""
    for prefix, title, words in (
        ("mnist-", "MNIST, binarised anew at every use", "Burda et al. 2015, Table 1, after 3,280 epochs:"),
        (
            "mnist-static_",
            "MNIST, the fixed binarisation",
            "Another data set: not to be compared with the table above.",
        ),
    ):
        rows = []
        for name, published in PUBLISHED.items():
            if not (run := recorded(f"{prefix}{name}")):
                continue
            again = run["again"]
            rows.append([
                f"[{name}]({prefix}{name}/result.json)", f"{run['epoch']:.4g}", f"{-run['eval/elbo']:.2f}",
                f"{-run['eval/iwae']:.2f}", f"{-again['eval/iwae']:.2f}" if again else "",
                f"{run['eval/active_units']:.0f}", f"{published:.2f}" if prefix == "mnist-" else "none",
                f"{run['train_time_s'] / 60:.1f}",
            ])  # fmt: skip
        if rows:
            heading = "network | epochs | -ELBO | -log p(x), k = 100 | k = 5,000 | active units | published | minutes"
            text += f"\n## {title}\n\n{words} 784-200-200-50, mirrored.\n\n{table(heading, rows)}"
    return text + (
        "\nNats an image, means of the 10,000 test images; k = 5,000 importance samples is the published protocol, "
        "here of the first\n1,000 test images: `jaxcnn evaluate --workdir DIR --config.task.eval_samples=5000 "
        '--config.data.eval_split="test[:1000]"`.\n'
    )


def frey() -> str:
    """Return the bounds of the Frey faces by the number of latents."""
    rows = []
    for latents in (2, 5, 10, 20):
        if run := recorded(f"frey-{latents}"):
            last = [run[key] for key in ("train/elbo", "eval/elbo", "eval/iwae")]
            rows.append([f"[{latents}](frey-{latents}/result.json)", run["step"], *(f"{x:.1f}" for x in last)])
    return "" if not rows else (
        "\n## Frey faces, a Gaussian decoder\n\nKingma and Welling 2013, Figure 2, has curves of the bound alone, here "
        "[drawn](frey.png) from `metrics.jsonl`: density of grey\nvalues, nats a frame, of 200 frames held out at "
        "random.\n\n"
        + table("latents | steps of 100 frames | bound, training | bound, held out | log p(x), k = 100", rows)
        + "\n![Bounds over steps](frey.png)\n\n![Samples](frey-10/samples.png)\n"
    )  # fmt: skip


def manifold() -> str:
    """Return the picture of the two latents."""
    run = recorded("mnist-manifold")
    return "" if not run else (
        f"\n## The manifold of two latents\n\nKingma and Welling 2013, Figure 4: [{run['epoch']:.4g} epochs]"
        f"(mnist-manifold/result.json), bound of the test images {run['eval/elbo']:.2f} nats.\n\n"
        "![Manifold](mnist-manifold/manifold.png)\n"
    )  # fmt: skip


def gans() -> str:
    """Return the FIDs of the GANs, each by its own features."""
    rows, pictures = [], ""
    for name in ("fashion_mnist", "cifar10"):
        if not (run := recorded(f"{name}-dcgan32")):
            continue
        again = run["again"]
        scores = [f"{again[f'eval/{key}']:.3f}" if again else "" for key in ("fid", "fid_floor")]
        of = [again.get("fid_features", "").partition(" of runs/")[0], again.get("fid_reference", "")]
        rows.append([f"[{name}]({name}-dcgan32/result.json)", run["step"], *scores, *of])
        pictures += f"\n![{name}]({name}-dcgan32/samples.png)\n"
    return "" if not rows else (
        "\n## DCGANs of 32 pixels\n\nFréchet distances of 10,000 generated images, and as the floor of the 10,000 test "
        "images, to training images, by the\nfeatures of a classifier of ours: distances of other features, those in "
        "print among them, do not compare.\n`jaxcnn evaluate --workdir DIR --reference SPLIT "
        "--config.task.features=DIR`\n\n"
        + table("data | steps of 64 | FID | floor | features | reference", rows) + pictures
    )  # fmt: skip


if __name__ == "__main__":
    main()
