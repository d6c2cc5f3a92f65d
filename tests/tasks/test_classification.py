"""Cross-entropy and top-k against formulas written out in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.config import base_config
from jaxcnn.models import create_model
from jaxcnn.tasks import create_task


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def task_of(smoothing: float = 0.0) -> Any:
    config = base_config()
    config.task.label_smoothing = smoothing
    return create_task(config)


def objective(terms: Any) -> Any:
    """The undivided batch's objective: of each term sum / weight."""
    return sum(total / jnp.maximum(weight, 1) for total, weight in terms.values())


def score(logits: Any, labels: Any, mask: Any = None, smoothing: float = 0.0) -> tuple[float, dict[str, Any]]:
    labels = np.asarray(labels, np.int32)
    mask = np.ones(len(labels), np.float32) if mask is None else np.asarray(mask, np.float32)
    terms, sums = jax.jit(task_of(smoothing).loss)(
        {"logits": jnp.asarray(logits, jnp.float32)}, {"label": labels, "mask": mask}
    )
    assert set(sums) == {"loss", "top1", "top5"}
    return float(objective(terms)), {name: (float(s), float(w)) for name, (s, w) in sums.items()}


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (9, 7)).astype(np.float32), rng.integers(0, 7, 9)
    labels[:2] = logits[0].argmax(), logits[1].argmin()  # one is right, and one is not in the top five
    return logits, labels


def test_the_loss_is_the_mean_negative_log_probability_of_the_labels(batch):
    logits, labels = batch
    nll = -log_softmax(logits)[np.arange(9), labels]
    loss, sums = score(logits, labels)
    assert loss == pytest.approx(nll.mean(), rel=1e-6)
    assert sums["loss"] == (pytest.approx(nll.sum(), rel=1e-6), 9)


def test_smoothing_mixes_the_label_with_the_uniform_distribution_and_leaves_the_metric_alone(batch):
    logits, labels = batch
    log_p = log_softmax(logits)
    nll = -log_p[np.arange(9), labels]
    loss, sums = score(logits, labels, smoothing=0.1)
    assert loss == pytest.approx((0.9 * nll - 0.1 * log_p.mean(-1)).mean(), rel=1e-6)
    assert sums == score(logits, labels)[1]


def test_the_gradient_is_the_softmax_less_the_target_over_the_examples_that_count(batch):
    logits, labels = batch
    mask: Any = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], np.float32)
    task = task_of(0.2)
    grad = jax.jit(jax.grad(lambda x: objective(task.loss({"logits": x}, {"label": labels, "mask": mask})[0])))
    target = 0.8 * np.eye(7)[labels] + 0.2 / 7
    expected = (np.exp(log_softmax(logits)) - target) * mask[:, None] / 7
    np.testing.assert_allclose(grad(jnp.asarray(logits)), expected, atol=1e-7)


def test_padding_counts_for_nothing_whatever_it_holds(batch):
    logits, labels = batch
    padded = np.concatenate([logits, np.full((3, 7), 1e4, np.float32)])
    whole = score(logits, labels)
    assert score(padded, [*labels, 0, 3, 6], [1] * 9 + [0] * 3) == (pytest.approx(whole[0]), whole[1])


def test_a_batch_of_nothing_but_padding_has_loss_zero():
    loss, sums = score(np.ones((4, 7)), [0] * 4, [0] * 4)
    assert loss == 0
    assert set(sums.values()) == {(0, 0)}


def test_sums_of_the_parts_are_those_of_the_whole(batch):
    logits, labels = batch
    whole = score(logits, labels)[1]
    parts = [score(logits[i], labels[i])[1] for i in (slice(0, 2), slice(2, 3), slice(3, 9))]
    for name, pair in whole.items():
        np.testing.assert_allclose(np.sum([part[name] for part in parts], axis=0), pair, rtol=1e-6)


def test_top_k_counts_the_labels_among_the_k_highest_scores(batch):
    logits, labels = batch
    rank = np.argsort(np.argsort(-logits, -1), -1)[np.arange(9), labels]
    sums = score(logits, labels)[1]
    assert sums["top1"] == ((rank < 1).sum(), 9)
    assert sums["top5"] == ((rank < 5).sum(), 9)
    assert 0 < sums["top1"][0] < sums["top5"][0] < 9  # the batch tells the three apart


@pytest.mark.parametrize(
    ("row", "label", "top1"),
    [
        ([2, 2, 1], 0, 1),  # ties count for it
        ([2, 2, 1], 1, 1),
        ([2, 2, 1], 2, 0),
        ([np.nan, np.nan, np.nan], 0, 0),  # a broken network is never right
        ([np.nan, 0, 1], 2, 0),
        ([-np.inf, 0, np.inf], 2, 1),
    ],
)
def test_ties_count_and_not_a_number_never_does(row, label, top1):
    assert score([row], [label])[1]["top1"] == (top1, 1)


def test_with_five_classes_or_fewer_every_label_is_in_the_top_five():
    assert score(np.random.default_rng(0).normal(size=(8, 4)), [3] * 8)[1]["top5"] == (8, 8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_auxiliary_heads_add_three_tenths_of_their_loss_and_nothing_to_the_metrics(batch, smoothing):
    logits, labels = batch
    heads: Any = [np.random.default_rng(seed).normal(0, 3, logits.shape).astype(np.float32) for seed in (1, 2)]
    mask: Any = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], np.float32)
    task, targets = task_of(smoothing), {"label": labels, "mask": mask}
    terms, sums = task.loss({"logits": jnp.asarray(logits), "aux_logits": tuple(heads)}, targets)
    alone, metrics = score(logits, labels, mask, smoothing)
    # GoogLeNet, section 5: weight 0.3. The labels of the auxiliary heads are smoothed as the network's own.
    auxiliary = [score(head, labels, mask, smoothing)[0] for head in heads]
    assert objective(terms) == pytest.approx(alone + 0.3 * sum(auxiliary), rel=1e-6)
    assert {name: (pytest.approx(float(s)), float(w)) for name, (s, w) in sums.items()} == metrics


def test_the_auxiliary_loss_is_there_in_training_only():
    model: Any = create_model("googlenet", 10, jnp.float32, width=0.125, small_images=True)
    x = jnp.zeros((2, 32, 32, 3))

    def outputs(train: bool) -> Any:
        return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, train=train)[0])

    assert [head.shape for head in outputs(train=True)["aux_logits"]] == [(2, 10), (2, 10)]
    assert "aux_logits" not in outputs(train=False)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixed_image_has_two_labels_by_their_shares(batch, smoothing):
    logits, labels = batch
    other, share = (labels + 3) % 7, np.linspace(0, 1, 9, dtype=np.float32)
    rows = {"label": labels.astype(np.int32), "mask": np.ones(9, np.float32)}
    mixed = rows | {"other": other.astype(np.int32), "share": share}
    outputs = {"logits": jnp.asarray(logits), "aux_logits": (jnp.asarray(logits[::-1]),)}
    terms, sums = task_of(smoothing).loss(outputs, mixed)
    target = share[:, None] * np.eye(7)[labels] + (1 - share[:, None]) * np.eye(7)[other]
    target = (1 - smoothing) * target + smoothing / 7
    want = -(target * (log_softmax(logits) + 0.3 * log_softmax(logits[::-1]))).sum(-1).mean()
    assert float(objective(terms)) == pytest.approx(want, rel=1e-5)
    plain = task_of(smoothing).loss(outputs, rows)[1]
    assert {k: float(s) for k, (s, _) in sums.items()} == {k: float(s) for k, (s, _) in plain.items()}


def test_a_row_of_an_example_is_correct_where_top1_counts_it():
    """Of two classes that score the same the true one is predicted; NaN is never right."""
    logits = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 0], [0, np.nan, 0], [0, 9, 0]], np.float32)
    labels = np.array([0, 1, 2, 1, 1], np.int32)
    rows = task_of().per_example({"logits": jnp.asarray(logits)}, {"label": labels})
    rows = {name: np.asarray(x) for name, x in rows.items()} | {"example": np.arange(5)}
    assert rows["correct"].tolist() == [True, True, False, False, True]
    assert rows["correct"].sum() == score(logits, labels)[1]["top1"][0]
    assert rows["predicted"][[0, 1, 4]].tolist() == [0, 1, 1]
    assert rows["probability"][0] == pytest.approx(np.e / (2 * np.e + 1), rel=1e-6)
    assert rows["class_probability"][2] == pytest.approx(1 / (2 * np.e + 1), rel=1e-6)
    table = task_of().class_table(rows, ["a", "b", "c", "d"])
    assert table["accuracy"] == [1.0, 2 / 3, 0.0, ""]
    assert table["precision"] == [0.5, 2 / 3, "", ""]


def test_kernels_alone_decay_and_a_score_of_nothing_is_left_out():
    paths = ("head/kernel", "head/bias", "norm/scale", "kernel/bias")
    assert [task_of().parameters(path).decay for path in paths] == [True, False, False, False]
    sums = {"loss": (np.float64(3), np.float64(2)), "top1": (np.float64(0), np.float64(0))}
    assert task_of().scores(sums, {}) == {"loss": 1.5}


def test_the_five_likeliest_classes_are_described_likeliest_first():
    probabilities = np.array([0.1, 0.4, 0.05, 0.25, 0.15, 0.05], np.float32)
    found, words = task_of().describe({"probabilities": probabilities}, list("abcdef"))
    assert [row["class"] for row in found["top5"]] == list("bdeac")
    assert [row["index"] for row in found["top5"]] == [1, 3, 4, 0, 2]
    assert words.startswith("b 40.0%, d 25.0%")
