"""Segmentation networks start from a classifier's weights, or from a coarser network's, and say what of them."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from nets import filled, images, quick
from tiny import build, tiny_config
from tiny_dense import Patches

from jaxcnn import UserError
from jaxcnn.configfile import to_json
from jaxcnn.models import create_model
from jaxcnn.models.normalization import match_norms
from jaxcnn.training.checkpoint import Checkpoints, save_variables
from jaxcnn.training.initial_state import load_variables, restore_or_init
from jaxcnn.training.onto_trunk import renamed

BEST = ("miou", "max")
SMALL = {"vgg11": {"width": 0.125}, "googlenet": {"width": 0.125}, "alexnet": {"width": 0.125}}


def shapes(name: str, classes: int, **overrides: Any) -> Any:
    model = create_model(name, classes, jnp.float32, **overrides)
    side = 64 if hasattr(model, "trunk") else model.image_size  # type: ignore[attr-defined]
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))


def classifier(folder: Path, name: str, classes: int = 7, **overrides: Any) -> Any:
    return kept(folder, name, filled(shapes(name, classes, **(SMALL.get(name, {}) | overrides))), classes)


def kept(folder: Path, name: str, variables: Any, classes: int, names: tuple[str, ...] = ()) -> Any:
    """Variables, which now are a run's in `folder`, too."""
    given = {"image_shape": (64, 64, 3), "mean": [0.5] * 3, "std": [0.5] * 3}
    given["class_names"] = names or [f"c{i}" for i in range(classes)]
    save_variables(folder, variables, {"step": 0, "model": name, "num_classes": classes, "input": given})
    return variables


def fresh(name: str, backbone: str, classes: int = 5, **overrides: Any) -> Any:
    """Variables of step 0 that can be told from all others."""
    made = shapes(name, classes, backbone=backbone, **(SMALL.get(backbone, {}) | overrides))
    return jax.device_put(jax.tree.map(lambda x: np.full(x.shape, -7, np.float32), made))


def arrays(tree: Any) -> dict[str, Any]:
    flat: Any = flatten_dict(tree, sep="/")
    return flat


def assert_parts(loaded: Any, saved: Any, new: set[str]) -> None:
    """All arrays are the weights' but for those of the modules `new`, which are as they were."""
    here, there = arrays(loaded), arrays(saved)
    names = renamed(there)
    for path, x in here.items():
        if ".".join(path.split("/")[1:-1]).startswith(tuple(new)):
            assert (np.asarray(x) == -7).all(), path
        else:
            np.testing.assert_array_equal(x, there[names[path]], err_msg=path)


@pytest.mark.parametrize(
    ("name", "backbone", "took", "left", "new"),
    [
        ("fcn8s", "vgg11", "fc6, fc7, trunk (20", "head", {"head", "score_pool3", "score_pool4"}),
        ("fcn32s", "alexnet", "fc6, fc7, trunk (14", "head", {"head"}),
        ("fcn16s", "googlenet", "trunk (114", "aux1, aux2, head", {"head", "score_stage4"}),
        ("fcn_resnet50_tv", "resnet18", "trunk (100", "head", {"aux", "head", "hidden"}),
    ],
)
def test_a_classifiers_layers_are_taken_with_their_weights_and_its_head_is_left(
    name, backbone, took, left, new, tmp_path
):
    saved = classifier(tmp_path, backbone)
    loaded, words = load_variables(tmp_path, fresh(name, backbone), BEST)
    assert_parts(loaded, saved, new)
    assert words == f"config.init_from={tmp_path}: took {took} arrays); left {left}; made new {', '.join(sorted(new))}"
    # A head of as many classes is that of other classes still.
    assert load_variables(tmp_path, fresh(name, backbone, classes=7), BEST)[1] == words


def test_a_classifier_scores_the_same_as_a_convolution(tmp_path):
    saved = classifier(tmp_path, "vgg11")
    x = images(1, 256, 288, 3)
    loaded = load_variables(tmp_path, fresh("fcn32s", "vgg11", classes=7), BEST)[0]
    loaded["params"]["head"] = saved["params"]["head"]
    model: Any = create_model("fcn32s", 7, jnp.float32, backbone="vgg11", width=0.125, padding=0)
    dense: Any = create_model("vgg11", 7, jnp.float32, width=0.125).clone(dense=True)  # the mean over all windows
    scores = quick(model.apply)(loaded, x)["scores"][0]
    assert scores.shape == (1, 2, 3, 7)
    expected = quick(dense.apply)(saved, x)["logits"]
    np.testing.assert_allclose(scores.mean((1, 2)), expected, rtol=1e-4, atol=1e-4)


def test_a_finer_network_starts_from_a_coarser_one_and_its_new_skip_is_new(tmp_path):
    coarse = kept(tmp_path / "32s", "fcn32s", filled(shapes("fcn32s", 5, backbone="vgg11", width=0.125)), 5)
    loaded, words = load_variables(tmp_path / "32s", fresh("fcn16s", "vgg11"), BEST, {"class_names": list("abcde")})
    assert_parts(loaded, coarse, {"score_pool4"})
    first, second = words.splitlines()
    assert "took fc6, fc7, head, trunk (22 arrays); left nothing; made new score_pool4" in first
    assert "the head is kept though class 0 is 'c0'" in second
    middle = kept(tmp_path / "16s", "fcn16s", filled(shapes("fcn16s", 5, backbone="vgg11", width=0.125)), 5)
    loaded, words = load_variables(tmp_path / "16s", fresh("fcn8s", "vgg11"), BEST)
    assert_parts(loaded, middle, {"score_pool3"})
    assert words.endswith("made new score_pool3")
    # And back: what a coarser network has no use for is left.
    _, words = load_variables(tmp_path / "16s", fresh("fcn32s", "vgg11"), BEST)
    assert words.endswith("left score_pool4; made new nothing")


def test_scores_of_other_classes_are_made_new_only_where_asked(tmp_path):
    learnt = {"backbone": "vgg11", "width": 0.125, "enlarging": "all_learnt"}
    coarse = kept(tmp_path, "fcn32s", filled(shapes("fcn32s", 3, **learnt)), 3)
    begin = fresh("fcn16s", "vgg11", enlarging="all_learnt")
    with pytest.raises(UserError, match=r"3 classes, this run 5: config\.reset_head=True"):
        load_variables(tmp_path, begin, BEST)
    loaded, words = load_variables(tmp_path, begin, BEST, reset_head=True)
    assert_parts(loaded, coarse, {"head", "score_pool4", "enlarge_stride"})
    assert words.endswith("; params/enlarge_stride32/kernel is (64, 64, 3) there, (4, 4, 5) here")
    again, words = load_variables(tmp_path, fresh("fcn32s", "vgg11", enlarging="all_learnt"), BEST, reset_head=True)
    assert_parts(again, coarse, {"head", "enlarge_stride"})
    assert words == f"the head starts afresh: 3 classes in {tmp_path}, 5 here"


def test_classes_in_another_order_are_found_by_their_names(tmp_path):
    variables = filled(shapes("fcn32s", 3, backbone="vgg11", width=0.125))
    kept(tmp_path, "fcn32s", variables, 3, ("sky", "road", "tree"))
    given = {"class_names": ["tree", "sky", "road"]}
    loaded, words = load_variables(tmp_path, fresh("fcn16s", "vgg11", classes=3), BEST, given)
    np.testing.assert_array_equal(loaded["params"]["head"]["bias"], variables["params"]["head"]["bias"][[2, 0, 1]])
    assert "the head follows the names of the classes" in words


def test_fully_connected_layers_of_another_window_are_left_and_made_new(tmp_path):
    saved = classifier(tmp_path, "vgg11", small_images=True)  # fc6 sees 2×2 there
    loaded, words = load_variables(tmp_path, fresh("fcn32s", "vgg11"), BEST)
    assert (np.asarray(loaded["params"]["fc6"]["kernel"]) == -7).all()
    np.testing.assert_array_equal(loaded["params"]["fc7"]["kernel"], saved["params"]["fc7"]["kernel"])
    assert "params/fc6/kernel is (2, 2, 64, 512) there, (7, 7, 64, 512) here" in words
    loaded, words = load_variables(tmp_path, fresh("fcn32s", "vgg11", fc6_window=2), BEST)
    np.testing.assert_array_equal(loaded["params"]["fc6"]["kernel"], saved["params"]["fc6"]["kernel"])


def test_frozen_norms_take_the_affine_of_ordinary_ones(tmp_path):
    saved = classifier(tmp_path, "resnet20")
    begin = fresh("fcn_resnet50_tv", "resnet20", frozen_norm=True)
    loaded, _ = load_variables(tmp_path, begin, BEST)
    ordinary = match_norms(loaded, {f"params/trunk/{path}": x for path, x in arrays(saved["params"]).items()})
    here = arrays(ordinary["params"]["trunk"])
    assert here.keys() == {path for path in arrays(saved["params"]) if not path.startswith("head")}
    for path, x in here.items():
        np.testing.assert_array_equal(x, arrays(saved["params"])[path])


@pytest.mark.parametrize(
    ("backbone", "overrides", "words"),
    [
        ("vgg13", {"width": 0.125}, r"params/trunk/stage1_conv2/kernel is missing there, \(3, 3, 8, 8\) in this run"),
        (
            "vgg11",
            {"width": 0.25},
            r"params/trunk/stage1_conv1/kernel is \(3, 3, 3, 8\) there, \(3, 3, 3, 16\) in this",
        ),
        ("resnet18", {}, r"params/trunk/stage1_block1/conv1/kernel is missing"),
    ],
)
def test_weights_of_another_backbone_are_refused(backbone, overrides, words, tmp_path):
    classifier(tmp_path, "vgg11")
    with pytest.raises(
        UserError, match=rf"{tmp_path} is of another backbone: {words}.*model\.overrides\.backbone"
    ) as e:
        load_variables(tmp_path, fresh("fcn32s", backbone, **overrides), BEST)
    assert "\n" not in str(e.value)


def test_the_best_checkpoint_is_that_by_the_score_of_its_own_task(tmp_path):
    variables = filled(shapes("resnet20", 7))
    checkpoints = Checkpoints(tmp_path, ("top1", "max"), 2)
    for step, score in ((3, 0.9), (5, 0.2)):
        marked = jax.tree.map(lambda x, step=step: np.full(x.shape, step, np.float32), variables)
        checkpoints.save_arrays(marked, {"step": step, "model": "resnet20", "num_classes": 7}, {"eval/top1": score})
    checkpoints.close()
    (tmp_path / "config.json").write_text(to_json(tiny_config(model__name="resnet20")))
    loaded, _ = load_variables(tmp_path, fresh("fcn32s", "resnet20"), BEST)
    assert float(loaded["params"]["trunk"]["stem_conv"]["kernel"][0, 0, 0, 0]) == 3


def test_a_run_says_at_its_start_what_it_took(tmp_path, capsys):
    saved = classifier(tmp_path / "classifier", "vgg11")
    values = {"task__name": "segmentation", "init_from": str(tmp_path / "classifier")}
    config, data = tiny_config(**values), Patches(16)
    model = create_model("fcn16s", data.num_classes, jnp.float32, backbone="vgg11", width=0.125)
    program = build(config, model, data)
    zeros = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), program.state)  # drawing takes long to compile
    program = replace(program, init=zeros)
    _, state, _ = restore_or_init(config, program, data, Checkpoints(tmp_path / "run", BEST, 1))
    words = f"{tmp_path}/classifier: took fc6, fc7, trunk (20 arrays); left head; made new head, score_pool4"
    assert words in capsys.readouterr().err
    np.testing.assert_array_equal(state.params["fc6"]["kernel"], saved["params"]["fc6"]["kernel"])
    assert not np.any(state.params["score_pool4"]["head"]["kernel"])


@pytest.mark.parametrize(("saved", "warned"), [("resnet20", True), ("plain20", False)])
def test_weights_of_a_network_that_computes_differently_are_taken_with_a_warning(saved, warned, tmp_path, capsys):
    """A plain network has the arrays of a residual one, as torchvision's ResNet-50 has those of the paper's."""
    classifier(tmp_path, saved)
    (tmp_path / "config.json").write_text(to_json(tiny_config(model__name=saved)))
    config = tiny_config(task__name="segmentation", init_from=str(tmp_path), model__name="fcn_resnet50_tv")
    config.model.overrides.backbone = "plain20"
    model, data = create_model("fcn_resnet50_tv", 6, jnp.float32, backbone="plain20"), Patches(16)
    program = build(config, model, data)
    zeros = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), program.state)
    restore_or_init(config, replace(program, init=zeros), data, Checkpoints(tmp_path / "run", BEST, 1))
    words = f"has weights of {saved}, and this run is of plain20"
    assert (words in capsys.readouterr().err) == warned
