"""The task of detection on a toy detector: what is learnt from, eight devices, every image once, files and words."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Stop, assert_same, build, fit, leaves, lines, steps, tiny_config
from tiny_boxes import CLASSES, NAMES, Annotations, Blocks, M, TinyBoxes

from jaxcnn import UserError
from jaxcnn.config import base_config
from jaxcnn.distributed.interrupt import Interrupted
from jaxcnn.tasks import create_task
from jaxcnn.tasks.base import Group, Images
from jaxcnn.tasks.detection import to_stored
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.evaluation import evaluate_rows


def task_of(**values: Any) -> Any:
    config = base_config("detection")
    config.model.name = values.pop("model", "resnet20")
    config.task.update(values)
    return create_task(config)


def detection(**values: Any) -> Any:
    return tiny_config(task__name="detection", task__max_boxes=M, **values)


def test_targets_have_room_for_the_objects_and_the_best_score_is_the_metrics():
    targets = task_of(max_boxes=9).targets(Images(CLASSES, (8, 8, 3)))
    assert {name: x.shape for name, x in targets.items()} == {
        "boxes": (9, 4), "labels": (9,), "valid": (9,), "difficult": (9,), "crowd": (9,), "sizes": (2,),
        "original_sizes": (2,),
    }  # fmt: skip
    assert task_of().best == ("map50", "max")
    assert task_of(metric="coco").best == ("map", "max")


@pytest.mark.parametrize(("difficult", "learnt"), [(False, [1, 0, 0, 0]), (True, [1, 1, 0, 0])])
def test_crowds_are_not_learnt_from_and_difficult_objects_only_where_the_config_says_so(difficult, learnt):
    seen = {}

    class Model:
        def apply(self, variables: Any, images: Any, **options: Any) -> Any:
            seen.update(options)
            return {}, {}

    flags = {"valid": [1, 1, 1, 0], "difficult": [0, 1, 0, 0], "crowd": [0, 0, 1, 0]}
    batch = {name: jnp.array([values], bool) for name, values in flags.items()}
    batch |= {"image": jnp.zeros((1, 2, 2, 3)), "boxes": jnp.zeros((1, 4, 4)), "labels": jnp.zeros((1, 4), int)}
    batch |= {"sizes": jnp.array([[2, 2]]), "example": jnp.array([5])}
    model: Any = Model()
    task_of(difficult=difficult).forward(model, {}, batch, {}, True)
    assert seen["targets"]["valid"].tolist() == [[bool(x) for x in learnt]]
    assert seen["targets"]["example"] is batch["example"]
    assert seen["sizes"] is batch["sizes"]


def test_boxes_come_to_pixels_of_the_stored_image_and_stay_in_it():
    boxes = np.array([[[1, 2, 3, 4], [-5, 0, 99, 8]]], np.float32)
    found = to_stored(boxes, np.array([[8, 10]]), np.array([[16, 30]]))
    np.testing.assert_array_equal(found, [[[3, 4, 9, 8], [0, 0, 30, 16]]])


def test_biases_have_a_rate_and_a_decay_of_their_own():
    task = task_of(bias_multiplier=2.0, bias_decay=True)
    assert task.parameters("rpn/conv/bias") == Group(2.0, True)
    assert task.parameters("rpn/conv/kernel") == Group(1.0, True)
    assert task.parameters("trunk/stem_norm/scale") == Group()
    assert task_of().parameters("rpn/conv/bias") == Group()


@pytest.mark.parametrize(
    ("stages", "trained"), [(-1, "stem stage1 stage2 stage3 stage4"), (5, "stem stage1 stage2 stage3 stage4"),
                            (3, "stage2 stage3 stage4"), (0, "")],
)  # fmt: skip
def test_the_last_stages_of_the_backbone_train(stages, trained):
    task = task_of(model="fcn_resnet50_tv", trainable_stages=stages)
    paths = {name: f"trunk/{name}_block1/conv1/kernel" for name in ("stage1", "stage2", "stage3", "stage4")}
    paths |= {"stem": "trunk/stem_conv/kernel"}
    assert {name for name, path in paths.items() if not task.parameters(path).frozen} == set(trained.split())
    assert not task.parameters("head/kernel").frozen


@pytest.mark.parametrize(
    ("model", "path", "words"),
    [
        ("fcn32s_alexnet", "trunk/conv1/kernel", r"'conv1' of the backbone does not say its stage.*optimizer\.freeze"),
        ("resnet20", "trunk/conv1/kernel", "model resnet20 has no backbone of stages"),
    ],
)
def test_stages_that_parameters_are_not_called_after_are_refused(model, path, words):
    with pytest.raises(UserError, match=words):
        task_of(model=model, trainable_stages=1).parameters(path)


def one_step(**values: Any) -> tuple[float, dict[str, np.ndarray], dict[str, Any]]:
    sgd = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.1, "optimizer__momentum": 0.0}
    data = Blocks(16)
    state, (loss,) = steps(build(detection(**sgd | values), TinyBoxes(), data), 1, data)
    return loss, leaves(state.params), state.metrics


@pytest.mark.parametrize("form", ["torchvision", "paper"])
def test_eight_devices_have_the_loss_and_the_gradients_of_one(form):
    loss, params, metrics = one_step(task__loss_form=form, mesh__data=8)
    expected_loss, expected, _ = one_step(task__loss_form=form)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for path, x in params.items():
        np.testing.assert_allclose(x, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
    terms = [float(metrics[name][0] / metrics[name][1]) for name in ("objectness", "rpn_box", "classifier", "box")]
    assert sum(terms) == pytest.approx(loss, rel=1e-5)
    assert min(terms) > 0


def test_micro_batches_have_the_gradients_of_the_batch_where_images_weigh_alike(monkeypatch):
    # All regions: a micro-batch draws others, as its key is its own.
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: jnp.ones(shape, bool))
    parts, expected = (one_step(task__loss_form="port", optimizer__accumulate=n) for n in (4, 1))
    assert parts[0] == pytest.approx(expected[0], rel=1e-5)
    for path, x in parts[1].items():
        np.testing.assert_allclose(x, expected[1][path], rtol=1e-5, atol=1e-6, err_msg=path)


def evaluated(batch: int, devices: int) -> tuple[dict[str, float], Any, Any]:
    data = Blocks(batch)
    program = build(detection(global_batch_size=batch, mesh__data=devices), TinyBoxes(), data)
    task: Any = program.task
    scores, rows = evaluate_rows(
        program.eval_step, program.init().variables, data.eval_batches(), task=task, mesh=program.mesh, examples=37
    )
    return scores, rows, task


def test_scores_and_detections_do_not_depend_on_devices_and_the_batch():
    expected, rows, task = evaluated(37, 1)
    assert expected.keys() >= {"eval/map50", "eval/map50_11pt", "eval/map", "eval/coco/ap50", "eval/ap/red"}
    assert "eval/ap/never" not in expected
    assert "eval/coco/ap_large" not in expected
    results = task.results(rows)
    assert {row["image_id"] for row in results} <= {7 * example + 3 for example in range(37)}
    assert {row["category_id"] for row in results} <= {1, 18, 44, 90}
    for batch, devices in ((16, 8), (5, 1)):
        scores, rows, task = evaluated(batch, devices)
        assert scores == pytest.approx(expected, abs=1e-9)
        for row, other in zip(task.results(rows), results, strict=True):
            assert (row["image_id"], row["category_id"]) == (other["image_id"], other["category_id"])
            assert row["bbox"] == pytest.approx(other["bbox"], abs=0.021)  # an edge that rounds either way, and a width


def rows_of(data: Blocks, **changes: Any) -> dict[str, np.ndarray]:
    """What a perfect detector would be collected: the truth of every image, with scores of 1 by its annotations."""
    count = len(data.eval.rows["mask"])
    rows = {"boxes": np.zeros((count, M, 4), np.float32), "labels": np.zeros((count, M), np.int32)}
    rows |= {"valid": np.zeros((count, M), bool), "example": np.arange(count, dtype=np.int32)}
    rows |= {"scores": np.tile(np.linspace(0.9, 0.8, M, dtype=np.float32), (count, 1))}
    for i in range(count):
        truth = data.eval.truth(i)
        n = len(truth["labels"])
        rows["boxes"][i, :n], rows["labels"][i, :n], rows["valid"][i, :n] = truth["boxes"], truth["labels"], True
    return rows | changes


@pytest.fixture
def prepared() -> tuple[Any, Blocks]:
    task, data = task_of(), Blocks()
    task.prepare(data)
    return task, data


def test_a_perfect_detector_scores_one_and_its_tables_say_so(prepared):
    task, data = prepared
    rows = rows_of(data)
    scores = task.scores({}, rows)
    assert {scores[name] for name in ("map50", "map50_11pt", "map", "ap/red", "ap/green", "ap/blue")} == {1.0}
    images = task.example_table(rows, NAMES)
    counted = [int((~(t["difficult"] | t["crowd"])).sum()) for t in map(data.eval.truth, range(37))]
    assert images == {"objects": counted, "boxes": counted, "hits": counted}
    classes = task.class_table(rows, NAMES)
    assert classes["class"] == list(NAMES[1:])
    assert (classes["objects"][-1], classes["ap50"], classes["coco_ap"]) == (
        0,
        [1.0, 1.0, 1.0, ""],
        [1.0, 1.0, 1.0, ""],
    )
    figure = task.draw_curves(rows)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"{n} 100.0%" for n in ("red", "green", "blue")
    ]


def test_without_detections_the_scores_are_zero_and_the_list_is_empty(prepared):
    task, data = prepared
    rows = rows_of(data, valid=np.zeros((37, M), bool))
    scores = task.scores({}, rows)
    assert (scores["map50"], scores["map50_11pt"], scores["map"], scores["ap/red"]) == (0, 0, 0, 0)
    assert task.results(rows) == []
    assert task.draw_curves(rows).axes


def test_a_set_without_objects_has_no_scores(prepared):
    task, data = prepared
    data.eval.rows["valid"][:] = False
    rows = rows_of(data)
    rows["valid"][:, 0], rows["labels"][:, 0] = True, 1  # all of them false
    assert task.scores({}, rows) == {}
    assert task.scores({}, {name: x[:0] for name, x in rows.items()}) == {}
    assert not task.draw_curves(rows).legends


def test_the_scores_are_of_the_boxes_in_the_file_as_rounded(prepared):
    task, data = prepared
    noise = np.random.default_rng(0).normal(0, 2, (37, M, 4)).astype(np.float32)
    rows = rows_of(data)
    rows["boxes"] += noise
    results = json.loads(json.dumps(task.results(rows)))
    assert all(round(x, 2) == x for row in results for x in row["bbox"])
    by_number = {number: example for example, number in enumerate(data.eval.numbers)}
    again = {name: np.zeros_like(x) for name, x in rows.items()} | {"example": rows["example"]}
    for row in results:
        example = by_number[row["image_id"]]
        k = int(again["valid"][example].sum())
        x, y, width, height = row["bbox"]
        again["boxes"][example, k] = x, y, x + width, y + height
        again["labels"][example, k] = data.eval.category_ids.index(row["category_id"])
        again["scores"][example, k], again["valid"][example, k] = row["score"], True
    assert task.scores({}, again) == task.scores({}, rows)


def test_classes_of_a_wider_head_are_no_part_of_the_list_and_of_the_scores(prepared):
    task, data = prepared
    plain = task.scores({}, rows_of(data))
    data.input["class_names"] = (*NAMES, "5", "6")
    task.prepare(data)
    rows = rows_of(data)
    rows["valid"][:, -1], rows["labels"][:, -1] = True, 6
    assert task.scores({}, rows) == plain
    assert len(task.results(rows)) == len(task.results(rows_of(data)))


def test_an_overlap_that_is_a_threshold_counts_although_annotations_are_float32():
    task, data = task_of(), Blocks(eval_examples=1)
    box = np.array([539.09, 121.4, 543.09, 148.64], np.float32)  # no float32 has such corners
    data.eval.rows["boxes"][0, 0], data.eval.rows["labels"][0, 0] = box / 2, 1
    data.eval.rows["valid"][:], data.eval.rows["crowd"][:], data.eval.rows["difficult"][:] = False, False, False
    data.eval.rows["valid"][0, 0] = True
    task.prepare(data)
    rows = rows_of(data)
    rows["boxes"][0, 0] = box + np.array([1, 0, 1, 0])  # 3 of 5 columns are common
    assert task.scores({}, rows)["map"] == pytest.approx(0.3)  # IoUs of 0.5, 0.55 and 0.6 of ten


def prediction() -> dict[str, np.ndarray]:
    return {
        "boxes": np.array([[1, 2, 11.5, 9], [0, 0, 4, 4], [0, 0, 0, 0]], np.float32),
        "scores": np.array([0.75, 0.25, 0], np.float32), "labels": np.array([2, 1, 0], np.int32),
        "valid": np.array([True, True, False]),
    }  # fmt: skip


def test_words_have_the_likely_boxes_and_the_list_has_all_unless_a_threshold_is_given():
    task = task_of()
    summary, text = task.describe(prediction(), NAMES)
    first = {"class": "green", "index": 2, "score": 0.75, "box": [1.0, 2.0, 11.5, 9.0]}
    assert summary["boxes"] == [first, {"class": "red", "index": 1, "score": 0.25, "box": [0.0, 0.0, 4.0, 4.0]}]
    assert text == "green 75.0% at 1, 2, 12, 9"
    task.show_from(0.7)
    assert task.describe(prediction(), NAMES) == ({"boxes": [first]}, text)
    task.show_from(0.8)
    assert task.describe(prediction(), NAMES) == ({"boxes": []}, "nothing of a score of 0.8 or more")


def test_margins_of_either_sign_count_in_scores_and_lists_and_those_of_0_or_more_are_shown():
    task, rows = task_of(model="rcnn_alexnet"), Blocks().rows(1, 4)
    task.source, found = Annotations(rows), prediction()
    found["scores"] = np.array([1.5, -0.25, 0], np.float32)
    summary, text = task.describe(found, NAMES)
    assert [row["score"] for row in summary["boxes"]] == [1.5, -0.25]
    assert text == "green 1.50 at 1, 2, 12, 9"
    # The objects themselves are the detections, with margins below 0: they are found all the same.
    boxes = 2 * rows["boxes"]
    rows = rows | {"boxes": boxes, "scores": np.linspace(-2, -1, 4 * M, dtype=np.float32).reshape(4, M)}
    assert len(task.results(rows)) == rows["valid"].sum()
    assert task.scores({}, rows)["map50"] == 1
    with pytest.raises(UserError, match="--threshold 2: scores of resnet20 are 0 … 1"):
        task_of().show_from(2)
    task.show_from(-0.5)
    assert len(task.describe(found, NAMES)[0]["boxes"]) == 2


def test_a_drawing_has_the_truth_beside_the_detections_or_these_alone():
    task, many = task_of(), {name: np.stack([x, x]) for name, x in prediction().items()}
    rows = Blocks().rows(1, 2)
    figure = task.draw(rows["image"], many, NAMES, targets=rows)
    assert [axes.get_title() for axes in figure.axes] == ["truth", "detections"] * 2
    assert [len(axes.patches) for axes in figure.axes] == [rows["valid"][0].sum(), 1, rows["valid"][1].sum(), 1]
    alone = task.draw(list(rows["image"]), {name: list(x) for name, x in many.items()}, NAMES, ["a", "b"])
    assert [(axes.get_title(), len(axes.patches)) for axes in alone.axes] == [("a", 1), ("b", 1)]


def test_a_run_learns_keeps_its_best_checkpoint_and_resumes_to_the_bit(tmp_path):
    made: dict[str, Any] = {
        "steps": 120, "checkpoint_every": 40, "eval_every": 40, "optimizer__learning_rate": 0.03, "log_every": 40
    }  # fmt: skip
    data, model = Blocks(16), TinyBoxes(dropout=0.1)
    result = fit(detection(**made), tmp_path / "one", data, model)
    assert result["eval/map50"] > 0.8
    assert {"eval/ap/red", "train/objectness", "best/eval/map50"} <= result.keys()
    with pytest.raises(Interrupted):
        fit(detection(**made), tmp_path / "two", data, model, Stop(90))
    assert fit(detection(**made), tmp_path / "two", data, model)["eval/map50"] == result["eval/map50"]
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    program = build(detection(**made), model, data)
    first, second = (Checkpoints(tmp_path / name, ("map50", "max")) for name in ("one", "two"))
    assert_same(first.restore(120, program.state), second.restore(120, program.state))
