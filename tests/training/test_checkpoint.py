"""Checkpoints: what is in them, which are kept, onto what they are restored, and what is said where they do not fit."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Tiny, assert_same, build, leaves, steps, tiny_config

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.training.checkpoint import FORMAT, Checkpoints, on_host, save_variables
from jaxcnn.training.initial_state import load_variables
from jaxcnn.training.state import check_tree

BEST = ("top1", "max")
ADAM = {"ema__decay": 0.9, "optimizer__weight_decay": 1e-3}


def info(step: int) -> dict[str, Any]:
    return {"step": step, "position": {"data": "blobs", "next_step": step}, "spent": {"wall_time_s": 0.1 + 0.2}}


def write(workdir: Path, state: Any, scores: dict[int, float | None], keep_last: int = 2) -> Checkpoints:
    """Save `state` at each step of `scores`, which has the metric or None."""
    checkpoints = Checkpoints(workdir, BEST, keep_last)
    for step, score in scores.items():
        checkpoints.save(state, info(step), {"eval/loss": 1.0} | ({} if score is None else {"eval/top1": score}))
    checkpoints.wait()
    return checkpoints


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def program() -> Any:
    return build(tiny_config(**ADAM))


@pytest.fixture(scope="module")
def state(program) -> Any:
    return steps(program, 3)[0]


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory) -> Path:
    """A run with one checkpoint, of step 3; not to be written to."""
    path = tmp_path_factory.mktemp("run")
    write(path, state, {3: 0.5}).close()
    return path


def test_all_of_the_state_comes_back_to_the_bit_and_so_does_what_was_said_with_it(program, state, folder):
    checkpoints = Checkpoints(folder, BEST)
    assert checkpoints.steps == [3]
    assert checkpoints.info(3) == info(3) | {"format": FORMAT}
    restored = checkpoints.restore(3, program.state)
    assert_same(restored, state)
    for part in (restored.opt_state, restored.ema, restored.batch_stats, restored.metrics):
        assert any(np.any(x) for x in leaves(part).values())
    assert isinstance(restored.opt_state, type(state.opt_state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)


@pytest.mark.parametrize(("there", "here"), [(8, 1), (1, 8)])
def test_a_checkpoint_is_restored_onto_other_devices_bit_for_bit_and_trains_on_there(there, here, tmp_path):
    saved, _ = steps(build(tiny_config(mesh__data=there, **ADAM)), 2)
    write(tmp_path, saved, {2: 0.5}).close()
    other = build(tiny_config(mesh__data=here, **ADAM))
    restored = Checkpoints(tmp_path, BEST).restore(2, other.state)
    assert_same(restored, saved)
    assert [x.sharding for x in jax.tree.leaves(restored)] == [x.sharding for x in jax.tree.leaves(other.state)]
    assert {len(x.devices()) for x in jax.tree.leaves(restored)} == {here}
    went_on = steps(other, 2, state=restored)[1]
    np.testing.assert_allclose(went_on, steps(build(tiny_config(mesh__data=there, **ADAM)), 4)[1][2:], rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_what_is_saved_is_the_state_of_that_moment_though_its_buffers_are_donated_at_once(devices, tmp_path):
    program = build(tiny_config(mesh__data=devices, **ADAM))
    big = jax.device_put(jnp.arange(2_000_000, dtype=jnp.float32), program.state.step.sharding)
    state = program.init().replace(batch_stats={"big": big})
    expected = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, BEST, 1)
    checkpoints.save(state, info(1), {})
    for _ in range(5):
        state = overwrite(state)
    assert float(state.batch_stats["big"][0]) == 7
    checkpoints.wait()
    like = jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y.sharding), expected, state)
    assert_same(checkpoints.restore(1, like), expected)
    checkpoints.close()


def test_saving_returns_while_the_writing_goes_on(state, tmp_path):
    checkpoints = Checkpoints(tmp_path, BEST, 1)
    big = state.replace(batch_stats={"big": jnp.ones(4_000_000)})
    writing = []
    for step in range(1, 6):  # one that is quick to write proves nothing
        checkpoints.save(big, info(step), {})
        writing.append(checkpoints.manager.is_saving_in_progress())
        checkpoints.wait()
        assert not checkpoints.manager.is_saving_in_progress()
        if any(writing):
            break
    assert any(writing)
    checkpoints.close()


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ({1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4}, [2, 4, 5], 2),  # the best stays though it is old
        ({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}, [3, 4], 4),  # and may be among the newest
        ({1: 0.5, 2: 0.7, 3: None, 4: None, 5: None}, [2, 4, 5], 2),  # one without a score is never the best
        ({1: None, 2: None, 3: None}, [2, 3], 3),  # without any score the best is the last
        ({1: 0.0, 2: None, 3: None}, [1, 2, 3], 1),  # a score of 0 is a score
    ],
)
def test_the_newest_and_the_best_are_kept_and_have_names(scores, kept, best, state, tmp_path):
    checkpoints = write(tmp_path, state, scores)
    checkpoints.close()
    for opened in (checkpoints, Checkpoints(tmp_path, BEST)):
        assert opened.steps == kept
        assert opened.resolve("last") == kept[-1]
        assert opened.resolve("best") == best
        assert opened.resolve(str(kept[0])) == kept[0]
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == kept


def test_of_equal_scores_the_newest_kept_is_the_best_also_after_a_restart(state, tmp_path):
    write(tmp_path, state, {1: 0.8, 2: 0.8, 3: 0.1}).close()
    checkpoints = write(tmp_path, state, {4: 0.1, 5: 0.1})
    checkpoints.close()
    best = checkpoints.resolve("best")
    assert best in (1, 2)
    assert checkpoints.steps == [best, 4, 5]


@pytest.mark.parametrize("name", ["7", "-3", "3.0", "newest", "", "²", "٣"])
def test_a_checkpoint_that_is_not_there_is_an_error_that_lists_those_that_are(name, folder):
    with pytest.raises(UserError, match=r"no checkpoint .* best, last, \[3\]"):
        Checkpoints(folder, BEST).resolve(name)


def test_a_folder_without_checkpoints_is_an_error_and_stays_as_it_is(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        Checkpoints(tmp_path / "none", BEST)
    assert not (tmp_path / "none").exists()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        Checkpoints(tmp_path, BEST).resolve("best")


def test_what_a_killed_save_left_is_never_listed_and_the_next_trainer_removes_it(state, folder, tmp_path):
    """As Orbax leaves it: the same folder under a temporary name, without the mark of a finished one."""
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    half = run / "checkpoints" / "4.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "3", half)
    reader = Checkpoints(run, BEST)
    assert reader.steps == [3]
    assert half.exists()
    with pytest.raises(UserError, match="there is no checkpoint '4'"):
        reader.resolve("4")
    trainer = Checkpoints(run, BEST, 2)
    assert trainer.steps == [3]
    trainer.save(state, info(5), {})
    trainer.close()
    assert trainer.steps == [3, 5]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["3", "5"]


def test_a_reader_beside_a_writer_changes_nothing_and_sees_what_is_finished(program, state, tmp_path):
    writer = write(tmp_path, state, {1: 0.1, 2: 0.2}, keep_last=5)
    half = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    half.mkdir()
    before = snapshot(tmp_path)
    reader = Checkpoints(tmp_path, BEST)
    assert reader.steps == [1, 2]
    assert_same(reader.restore_variables(2, program.variables), state.ema)
    assert reader.info(1) == info(1) | {"format": FORMAT}
    reader.close()
    assert snapshot(tmp_path) == before
    half.rmdir()
    writer.save(state, info(3), {})
    writer.close()
    assert Checkpoints(tmp_path, BEST).steps == [1, 2, 3]


def test_evaluation_takes_the_moving_average_where_there_is_one(program, state, folder, tmp_path):
    assert_same(Checkpoints(folder, BEST).restore_variables(3, program.variables), state.ema)
    bare = state.replace(ema={})
    write(tmp_path, bare, {3: 0.5}).close()
    found = Checkpoints(tmp_path, BEST).restore_variables(3, program.variables)
    assert_same(found, {"params": state.params, "batch_stats": state.batch_stats})
    with pytest.raises(AssertionError):
        assert_same(found, state.ema)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Tiny(7), r"head/kernel is \(4, 6\) where the config needs \(4, 7\)"),
        (Tiny(norm=False), "conv/bias is missing"),
        (create_model("resnet20", 6), "and [0-9]+ more$"),
    ],
)
def test_a_checkpoint_of_another_model_is_one_line_that_names_the_arrays(model, named, folder):
    other = build(tiny_config(**ADAM), model)
    checkpoints = Checkpoints(folder, BEST)
    for restore, like in ((checkpoints.restore, other.state), (checkpoints.restore_variables, other.variables)):
        with pytest.raises(UserError, match=named) as error:
            restore(3, like)
        assert "\n" not in str(error.value)
        assert str(folder / "checkpoints" / "3") in str(error.value)


def test_a_checkpoint_of_another_optimizer_does_not_resume(folder):
    other = build(tiny_config(**ADAM, optimizer__name="sgd"))
    with pytest.raises(UserError, match="another model or optimizer: opt_state"):
        Checkpoints(folder, BEST).restore(3, other.state)


def test_a_deeper_network_is_another_model_though_it_has_all_that_is_asked_for():
    def variables(name: str) -> Any:
        shape = (1, 8, 8, 3)
        return jax.eval_shape(create_model(name, 6).init, jax.random.key(0), jnp.zeros(shape))

    shallow, deep = variables("resnet20"), variables("resnet32")
    check_tree("it", deep, deep)
    with pytest.raises(UserError, match="stage1_block4"):
        check_tree("it", shallow, deep)
    with pytest.raises(UserError, match="stage1_block4"):
        check_tree("it", deep, shallow)


def test_weights_to_start_from_are_those_of_the_best_checkpoint_or_of_the_one_named(program, state, tmp_path):
    later = steps(program, 2, state=jax.tree.map(jnp.copy, state))[0]
    checkpoints = Checkpoints(tmp_path, BEST, 2)
    for step, it, score in ((3, state, 0.9), (5, later, 0.2)):
        checkpoints.save(it, info(step), {"eval/top1": score})
    checkpoints.close()
    best, _ = load_variables(tmp_path, program.variables, BEST)
    named, _ = load_variables(tmp_path / "checkpoints" / "5", program.variables, BEST)
    assert_same(best, state.ema)
    assert_same(named, later.ema)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "holds no checkpoints"),
        ("checkpoints/9", "there is no checkpoint '9'"),
        ("checkpoints", "holds no checkpoints"),
    ],
)
def test_weights_that_are_not_there_are_an_error(path, message, program, folder):
    with pytest.raises(UserError, match=message):
        load_variables(folder / path, program.variables, BEST)


def variables(classes: int, side: int = 4, fill: float = 1.0) -> Any:
    """As of a network with an auxiliary head, and a layer that fits one size of images."""
    head = {"kernel": np.full((3, classes), fill, np.float32), "bias": np.full(classes, fill, np.float32)}
    fc = {"kernel": np.full((side, side, 2, 3), fill, np.float32)}
    return jax.device_put({"params": {"fc6": fc, "aux1": {"head": head}, "head": head}, "batch_stats": {}})


@pytest.fixture
def imported(tmp_path) -> Path:
    about = {"step": 0, "model": "some", "num_classes": 5, "input": {"image_shape": (32, 32, 3)}}
    save_variables(tmp_path, variables(5), about)
    return tmp_path


def test_saved_variables_come_back_as_the_last_and_the_best(imported):
    for path in (imported, imported / "checkpoints" / "0"):
        assert_same(load_variables(path, variables(5, fill=0.0), BEST)[0], variables(5))
    checkpoints = Checkpoints(imported, BEST)
    assert checkpoints.resolve("last") == checkpoints.resolve("best") == 0


def test_heads_of_other_classes_stay_fresh_only_where_asked(imported):
    fresh = variables(7, fill=0.0)
    with pytest.raises(UserError, match=r"5 .* 7.*config\.reset_head=True"):
        load_variables(imported, fresh, BEST)
    loaded, words = load_variables(imported, fresh, BEST, reset_head=True)
    assert words == f"the head starts afresh: 5 classes in {imported}, 7 here"
    assert_same(loaded, variables(7, fill=0.0) | {"params": fresh["params"] | {"fc6": variables(5)["params"]["fc6"]}})
    assert load_variables(imported, variables(5), BEST, reset_head=True)[1] == ""
    fresh["params"]["head"]["kernel"] = jnp.zeros((4, 7))  # of other features is of another network
    with pytest.raises(UserError, match="head/kernel"):
        load_variables(imported, fresh, BEST, reset_head=True)


def test_a_head_of_something_else_does_not_follow_the_names_of_the_classes(tmp_path):
    tree = variables(3)
    tree["params"]["boxes"] = {"head": {"kernel": jnp.arange(12.0).reshape(3, 4)}}
    tree["params"]["head"]["bias"] = jnp.arange(3.0)
    given = {"image_shape": (32, 32, 3), "mean": [0.0] * 3, "std": [1.0] * 3, "class_names": ["a", "b", "c"]}
    save_variables(tmp_path, tree, {"step": 0, "model": "some", "num_classes": 3, "input": given})
    loaded, _ = load_variables(tmp_path, tree, BEST, {"class_names": ["c", "a", "b"]})
    assert loaded["params"]["head"]["bias"].tolist() == [2, 0, 1]
    assert_same(loaded["params"]["boxes"], tree["params"]["boxes"])


@pytest.mark.parametrize("classes", [5, 7])
@pytest.mark.parametrize("reset_head", [False, True])
def test_weights_of_other_images_are_refused_whatever_the_head(classes, reset_head, imported):
    with pytest.raises(UserError, match=r"fc6/kernel is .*Its images are 32×32×3, this run's 40×40×3"):
        load_variables(imported, variables(classes, side=5), BEST, {"image_shape": (40, 40, 3)}, reset_head)
    with pytest.raises(UserError) as caught:
        load_variables(imported, variables(classes, side=5), BEST, {"image_shape": (32, 32, 3)}, reset_head)
    assert "Its images" not in str(caught.value)


def test_a_file_of_weights_is_to_be_imported_first(tmp_path):
    (path := tmp_path / "resnet18.pth").touch()
    with pytest.raises(UserError, match=r"jaxcnn weights import .*resnet18\.pth"):
        load_variables(path, variables(5), BEST)


def test_a_damaged_file_of_scores_is_named(state, tmp_path):
    write(tmp_path, state, {3: 0.1, 4: 0.2}).close()
    (tmp_path / "checkpoints" / "3" / "metrics" / "metrics").write_text("")
    with pytest.raises(UserError, match=r"STEP/metrics/metrics"):
        Checkpoints(tmp_path, BEST)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's other reads, cut short
@pytest.mark.parametrize("lost", ["state/_METADATA", "state/d", "info/metadata"])
def test_a_damaged_checkpoint_is_named_with_the_one_to_go_on_from(lost, program, state, tmp_path):
    write(tmp_path, state, {2: 0.3, 3: 0.1, 4: 0.2}).close()
    damaged = tmp_path / "checkpoints" / "4" / lost
    shutil.rmtree(damaged) if damaged.is_dir() else damaged.write_bytes(b"")
    shutil.rmtree(tmp_path / "checkpoints" / "4" / "state" / "ocdbt.process_0", ignore_errors=True)
    checkpoints = Checkpoints(tmp_path, BEST)
    with pytest.raises(UserError, match=r"checkpoints/4 .*step 3$"):
        checkpoints.info(4) if "info" in lost else checkpoints.restore(4, program.state)
    assert_same(checkpoints.restore(3, program.state), state)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: full\nmore")]
)
def test_a_save_that_fails_says_that_what_was_saved_is_intact(error, state, tmp_path, monkeypatch):
    checkpoints = write(tmp_path, state, {1: 0.5})

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints.manager, "save", fail)
    with pytest.raises(UserError, match=r"earlier checkpoints are intact: .*(full|No space left on device)$"):
        checkpoints.save(state, info(2), {})
    assert Checkpoints(tmp_path, BEST).steps == [1]


def test_a_bit_that_flips_in_the_data_of_an_array_is_noticed(tmp_path):
    """Orbax alone would read another weight: its checksums are of its indexes."""
    noise = np.random.default_rng(0).normal(size=(300, 500)).astype(np.float32)
    arrays = jax.device_put({"params": {"noise": noise}, "batch_stats": {}})
    save_variables(tmp_path, arrays, {"step": 1})
    path = max((tmp_path / "checkpoints" / "1").rglob("*"), key=lambda path: path.stat().st_size)
    good = path.read_bytes()
    data = bytearray(good)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"1 .*state/\S*d/\w+"):
        Checkpoints(tmp_path, BEST).restore_variables(1, arrays)
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "0")
    path.write_bytes(good)  # The newest is sound, and the one before it is not.
    trainer = Checkpoints(tmp_path, BEST, 2)
    trainer.restore_variables(1, arrays)
    with pytest.raises(UserError, match=r"checkpoints/0 .*state/\S*d/\w+"):
        trainer.restore_variables(0, arrays)


def test_a_trainer_goes_on_from_the_checkpoint_before_one_that_is_damaged_and_saves_its_step_again(
    state, tmp_path, capsys
):
    write(tmp_path, state, {3: 0.1, 4: 0.9}).close()
    (tmp_path / "checkpoints" / "4" / "info" / "metadata").unlink()
    checkpoints = Checkpoints(tmp_path, BEST, 2)
    assert checkpoints.steps == [3]
    assert checkpoints.is_better({"eval/top1": 0.2})
    assert not checkpoints.is_better({"eval/top1": 0.1})
    assert "4 is damaged (info/metadata is missing): now damaged-4, going on from step 3" in capsys.readouterr().err
    checkpoints.save(state, info(4), {"eval/top1": 0.9, "eval/loss": 1.0})
    checkpoints.close()
    assert Checkpoints(tmp_path, BEST).resolve("best") == 4
    assert Checkpoints(tmp_path, BEST).info(4) == info(4) | {"format": FORMAT}


def test_a_step_that_is_saved_again_replaces_what_was_there(state, tmp_path):
    checkpoints = write(tmp_path, state, {1: 0.5, 2: None}, keep_last=3)
    checkpoints.save(state, info(2) | {"more": 1}, {"eval/top1": 0.7, "eval/loss": 1.0})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, BEST)
    assert checkpoints.steps == [1, 2]
    assert checkpoints.resolve("best") == 2
    assert checkpoints.info(2)["more"] == 1
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_one_that_is_kept_no_longer_leaves_in_one_move(state, tmp_path):
    checkpoints = Checkpoints(tmp_path, BEST, 1)
    for step in (1, 2):
        checkpoints.save(state, info(step), {})
        checkpoints.manager.wait_until_finished()  # as a kill right after would find it
        assert (tmp_path / "checkpoints" / ".deleted").is_dir()  # made while the disk had room for it
    assert [p.name for p in (tmp_path / "checkpoints" / ".deleted").iterdir()] == ["1"]
    assert Checkpoints(tmp_path, BEST).steps == [2]
    checkpoints.close()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_save_that_fails_on_its_way_leaves_nothing_behind(state, tmp_path, monkeypatch):
    checkpoints = write(tmp_path, state, {1: 0.5})

    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxcnn.training.checksums.seal", fail)
    checkpoints.save(state, info(2), {})
    with pytest.raises(UserError, match=r"failed, earlier checkpoints are intact: No space left on device$"):
        checkpoints.wait()
    assert [p.name for p in (tmp_path / "checkpoints").glob("[!.]*")] == ["1"]


def test_checkpoints_that_are_a_file_are_an_error(tmp_path):
    (tmp_path / "checkpoints").touch()
    for keep_last in (None, 1):
        with pytest.raises(UserError, match="checkpoints is a file"):
            Checkpoints(tmp_path, BEST, keep_last)


@pytest.mark.parametrize(
    ("direction", "scores", "best"),
    [
        ("min", {1: 3.0, 2: 0.5, 3: 2.0}, 2),
        ("max", {1: -3.0, 2: -7.0, 3: -5.0}, 1),
        ("min", {1: None, 2: 40.0, 3: None}, 2),  # an absent score is no score of 0 or -1
        ("max", {1: None, 2: -40.0, 3: None}, 2),
        ("max", {1: None, 2: None}, 2),  # the newest
    ],
)
def test_the_best_checkpoint_is_that_of_the_smallest_or_the_largest_score(state, tmp_path, direction, scores, best):
    checkpoints = Checkpoints(tmp_path, ("top1", direction), keep_last=1)
    for step, score in scores.items():
        measured = {} if score is None else {"eval/top1": score}
        known = [s for n, s in scores.items() if n < step and s is not None]
        better = score is not None and all(score < s if direction == "min" else score > s for s in known)
        assert checkpoints.is_better(measured) == better
        checkpoints.save(state, info(step), measured)
        checkpoints.wait()
    checkpoints.close()
    kept = Checkpoints(tmp_path, ("top1", direction))
    assert kept.resolve("best") == best
    assert kept.steps == sorted({best, max(scores)})


@pytest.mark.parametrize("found", [{}, {"format": FORMAT + 1}, {"format": "x"}])
def test_a_checkpoint_of_another_format_is_refused_with_its_place(state, tmp_path, monkeypatch, found):
    monkeypatch.setattr("jaxcnn.training.checkpoint.FORMAT", found.get("format"))
    write(tmp_path, state, {1: 0.5}).close()
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"checkpoints/1 has (no )?format"):
        Checkpoints(tmp_path, BEST).info(1)


@pytest.mark.parametrize("name", ["a [run]", "a*", "what?", "back\\slash"])
def test_a_folder_whose_checkpoints_orbax_would_not_find_again_is_refused_before_one_is_written(name, tmp_path):
    with pytest.raises(UserError, match="cannot be kept"):
        save_variables(tmp_path / name, variables(3), info(0))
    assert list(tmp_path.rglob("*")) == []


def test_other_characters_are_kept(tmp_path):
    for name in ("50% é #1", "{a}&b;c", "a]"):
        save_variables(tmp_path / name, variables(3), info(0))
        found = Checkpoints(tmp_path / name, ("none", "max")).restore_variables(0, variables(3, fill=0.0))
        assert_same(found, variables(3))


def test_an_array_that_is_spread_over_devices_is_gathered_for_a_process_with_a_folder_of_its_own():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    x = np.arange(48, dtype=np.float32).reshape(8, 6)
    for axes in ((), ("data", "model"), (None, "model"), (("data", "model"),)):
        spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)))
        np.testing.assert_array_equal(on_host(spread), x)
