"""Pixel-wise cross-entropy against formulas in float64, the scores against golden cases, and runs of a toy network."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CLASSES, Stop, assert_same, build, fit, leaves, lines, steps, tiny_config
from tiny_dense import Patches, TinyDense

from jaxcnn.config import VOID, base_config
from jaxcnn.distributed.interrupt import Interrupted
from jaxcnn.models import create_model
from jaxcnn.tasks import create_task
from jaxcnn.tasks.segmentation import class_iou, median_frequency, scores_of
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.evaluation import Totals, evaluate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "segmentation_metrics.json").read_text())


def task_of(weights: Any = None, **values: Any) -> Any:
    config = base_config("segmentation")
    config.task.update(values)
    task: Any = create_task(config)
    task.class_weights = weights
    return task


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


Batch = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture
def batch() -> Batch:
    """Outputs and targets of four images, the last of them padding with a network's NaN in it."""
    rng = np.random.default_rng(0)
    logits, aux = rng.normal(0, 3, (2, 4, 5, 6, CLASSES)).astype(np.float32)
    logits[3] = np.nan
    labels = rng.integers(0, CLASSES, (4, 5, 6)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = VOID
    labels[1, 3:] = VOID
    targets = {"label_map": labels, "mask": np.array([1, 1, 1, 0], np.float32)}
    return {"logits": jnp.asarray(logits), "aux_logits": (jnp.asarray(aux),)}, targets


def by_hand(batch: Batch, weights: Any, aux_weight: float) -> tuple[float, float]:
    """Sum and weight of the objective, in float64, pixel by pixel."""
    outputs, targets = batch
    total = weight = 0.0
    maps = [log_softmax(np.asarray(x)) for x in (outputs["logits"], *outputs["aux_logits"])]
    for place in np.ndindex(3, 5, 6):  # of the rows whose mask is 1
        if (label := targets["label_map"][place]) != VOID:
            nll = [-log_p[place][label] for log_p in maps]
            total += weights[label] * (nll[0] + aux_weight * nll[1])
            weight += weights[label]
    return total, weight


@pytest.mark.parametrize("weighted", [False, True])
def test_the_objective_is_the_weighted_mean_over_the_pixels_that_count_or_their_sum(batch, weighted):
    weights = np.linspace(0.5, 3, CLASSES).astype(np.float32) if weighted else None
    applied = np.ones(CLASSES) if weights is None else weights
    for aux_weight in (0.5, 0.0):
        total, weight = by_hand(batch, applied, aux_weight)
        terms, _ = jax.jit(task_of(weights, aux_weight=aux_weight).loss)(*batch)
        assert [float(x) for x in terms["cross_entropy"]] == pytest.approx([total, weight], rel=1e-5)
    terms, _ = task_of(weights, reduction="sum").loss(*batch)
    assert float(terms["cross_entropy"][0]) == pytest.approx(by_hand(batch, applied, 0.5)[0], rel=1e-5)
    assert terms["cross_entropy"][1] is None


def test_the_metric_has_neither_weights_nor_auxiliary_heads_and_is_that_of_evaluation(batch):
    outputs, targets = batch
    total, pixels = by_hand(batch, np.ones(CLASSES), 0.0)
    right = (np.asarray(outputs["logits"])[:3].argmax(-1) == targets["label_map"][:3]).sum()
    task = task_of(np.arange(CLASSES, dtype=np.float32), reduction="sum")
    sums, measured = task.loss(outputs, targets)[1], task.measure(outputs, targets)
    for found in (sums["loss"], measured["loss"]):
        assert [float(x) for x in found] == pytest.approx([total, pixels], rel=1e-5)
    assert [float(x) for x in sums["pixel_accuracy"]] == [right, pixels]
    assert task.scores(jax.device_get(measured), {})["pixel_accuracy"] == pytest.approx(right / pixels)


def test_the_gradient_is_that_of_the_pixels_that_count_and_a_row_of_padding_has_none(batch):
    outputs, targets = batch

    def objective(logits: jax.Array) -> jax.Array:
        total, weight = task_of().loss({"logits": logits}, targets)[0]["cross_entropy"]
        return total / weight

    logits = jnp.nan_to_num(outputs["logits"], nan=7.0)  # rows of padding are of evaluation alone
    gradient = np.asarray(jax.grad(objective)(logits))
    counted = (targets["label_map"] != VOID) & (targets["mask"] > 0)[:, None, None]
    assert (gradient[~counted] == 0).all()
    expected = np.exp(log_softmax(np.asarray(logits)))[counted]
    expected -= np.eye(CLASSES)[targets["label_map"][counted]]
    np.testing.assert_allclose(gradient[counted], expected / counted.sum(), atol=1e-7)


def test_a_batch_without_a_pixel_that_counts_has_loss_zero_and_no_scores(batch):
    outputs, targets = batch
    void = targets | {"label_map": np.full_like(targets["label_map"], VOID)}
    terms, sums = task_of().loss(outputs, void)
    assert [float(x) for x in (*terms["cross_entropy"], *sums["loss"])] == [0, 0, 0, 0]
    assert task_of().scores(jax.device_get(task_of().measure(outputs, void)), {}) == {}


def one_hot(prediction: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[prediction]


@pytest.mark.parametrize("case", GOLDEN)
def test_scores_are_the_golden_ones_absent_classes_included_however_the_images_come(case):
    golden = GOLDEN[case]
    truth, prediction = (np.array(golden[key]) for key in ("truth", "prediction"))
    task, totals = task_of(), Totals()
    task.class_names = tuple("abcdef"[: golden["classes"]])
    for i in range(len(truth)):  # image by image, with a row of padding behind each
        outputs = {"logits": jnp.asarray(one_hot(prediction[[i, 0]], golden["classes"]))}
        targets = {"label_map": truth[[i, 0]].astype(np.uint8), "mask": np.array([1, 0], np.float32)}
        sums = jax.tree.map(lambda x: x[None], task.measure(outputs, targets))
        totals.add({"examples": np.ones(1, np.int32), "sums": sums, "rows": {}})
    matrix = totals.sums["confusion"][0]
    assert matrix.dtype == np.int64
    assert matrix.tolist() == golden["confusion"]
    scores = task.scores(totals.sums, {})
    names = {"pixel_accuracy": "pixel_accuracy", "mean_accuracy": "mean_accuracy", "miou": "mean_iou"}
    for ours, theirs in (names | {"fw_iou": "frequency_weighted_iou"}).items():
        assert scores[ours] == pytest.approx(golden[theirs], abs=1e-12)
    of_classes = {name: value for name, value in zip("abcdef", golden["class_iou"], strict=False) if value is not None}
    assert {key: scores[f"iou/{key}"] for key in of_classes} == pytest.approx(of_classes, abs=1e-12)
    assert len(scores) == 5 + len(of_classes)


@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.integers(0, 9), min_size=n * n, max_size=n * n)))
@settings(max_examples=60, deadline=None)
def test_scores_are_fractions_a_perfect_prediction_has_all_and_names_do_not_matter(counts):
    matrix = np.array(counts).reshape(-1, round(len(counts) ** 0.5))
    if not matrix.any():
        return
    scores, order = scores_of(matrix), np.random.default_rng(0).permutation(len(matrix))
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores_of(matrix[order][:, order]) == pytest.approx(scores)
    assert set(scores_of(np.diag(matrix.sum(1))).values()) == {1.0}
    assert scores_of(1_000_000_000 * matrix) == pytest.approx(scores)
    assert np.isnan(class_iou(matrix)).sum() == ((matrix.sum(0) + matrix.sum(1)) == 0).sum()


def test_median_frequency_balances_classes_and_gives_an_absent_one_no_weight():
    weights = median_frequency([0.4, 0.1, 0.0, 0.2])
    assert weights.tolist() == pytest.approx([0.5, 2.0, 0.0, 1.0])
    assert weights.dtype == np.float32


def test_biases_have_a_rate_of_their_own_and_do_not_decay():
    task = task_of(bias_multiplier=2.0)
    assert [task.parameters(path) for path in ("a/kernel", "a/bias", "norm/scale")] == [
        (1.0, True, False), (2.0, False, False), (1.0, False, False)
    ]  # fmt: skip


def segmentation(**values: Any) -> Any:
    return tiny_config(task__name="segmentation", **values)


def one_step(**values: Any) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and parameters after one step of plain gradient descent on 16 images with unequal numbers of pixels."""
    sgd = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.1, "optimizer__momentum": 0.0}
    data = Patches(16, image_shape=(6, 8, 3))
    state, (loss,) = steps(build(segmentation(**sgd | values), TinyDense(norm=False), data), 1, data)
    return loss, leaves(state.params)


SUM = {"task__reduction": "sum", "optimizer__learning_rate": 1e-4}
SPLITS: tuple[dict[str, Any], ...] = (
    {"mesh__data": 8},
    {"mesh__data": 4, "norm__scope": "shard", "optimizer__accumulate": 2, **SUM},
)


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: "-".join(split))
def test_eight_devices_and_micro_batches_have_the_loss_and_the_gradients_of_one(split):
    loss, params = one_step(**split)
    expected_loss, expected = one_step(**{key: split[key] for key in SUM if key in split})
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for path, x in params.items():
        np.testing.assert_allclose(x, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("fcn8s", {"backbone": "vgg11_bn", "width": 0.125, "fc6_window": 2, "padding": 19}),
        ("fcn_resnet50_tv", {"backbone": "resnet20"}),
    ],
)
def test_the_networks_on_eight_devices_are_those_on_one(name, overrides):
    model, data = create_model(name, CLASSES, jnp.float32, **overrides), Patches(16, image_shape=(32, 32, 3))
    sgd = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.05}
    one, eight = (steps(build(segmentation(**sgd, mesh__data=n), model, data), 2, data) for n in (1, 8))
    np.testing.assert_allclose(eight[1], one[1], rtol=1e-5)
    for (path, x), y in zip(leaves(eight[0].params).items(), leaves(one[0].params).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=4e-5, err_msg=path)


def evaluated(batch: int, devices: int) -> dict[str, float]:
    data = Patches(batch, image_shape=(6, 8, 3))
    program = build(segmentation(global_batch_size=batch, mesh__data=devices), TinyDense(), data)
    return evaluate(
        program.eval_step, program.init().variables, data.eval_batches(),
        task=program.task, mesh=program.mesh, examples=37,
    )  # fmt: skip


def test_scores_do_not_depend_on_devices_and_the_batch():
    expected = evaluated(37, 1)
    assert expected.keys() >= {"eval/miou", "eval/pixel_accuracy", "eval/mean_accuracy", "eval/fw_iou", "eval/iou/0"}
    for batch, devices in ((16, 8), (5, 1)):
        found = evaluated(batch, devices)
        assert found.pop("eval/loss") == pytest.approx(expected["eval/loss"], rel=1e-6)
        assert found == {key: value for key, value in expected.items() if key != "eval/loss"}


def test_a_run_learns_keeps_its_best_checkpoint_and_resumes_to_the_bit(tmp_path):
    made: dict[str, Any] = {
        "steps": 16, "checkpoint_every": 4, "eval_every": 4, "ema__decay": 0.5, "optimizer__learning_rate": 0.05
    }  # fmt: skip
    data, model = Patches(image_shape=(6, 8, 3)), TinyDense(dropout=0.2)
    result = fit(segmentation(**made), tmp_path / "one", data, model)
    assert result["eval/miou"] > 0.3
    assert {"eval/iou/0", "train/pixel_accuracy", "best/eval/miou"} <= result.keys()
    with pytest.raises(Interrupted):
        fit(segmentation(**made), tmp_path / "two", data, model, Stop(9))
    assert fit(segmentation(**made), tmp_path / "two", data, model)["eval/miou"] == result["eval/miou"]
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    program = build(segmentation(**made), model, data)
    first, second = (Checkpoints(tmp_path / name, ("miou", "max")) for name in ("one", "two"))
    assert_same(first.restore(16, program.state), second.restore(16, program.state))
    scored = {line["eval/miou"]: line["step"] for line in reversed(lines(tmp_path / "one")) if "eval/miou" in line}
    assert first.resolve("best") == scored[max(scored)]
