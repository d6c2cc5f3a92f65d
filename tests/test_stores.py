"""Runs on an object store, which here is one in memory: what is fetched, what is copied back, and when it cannot be."""

import errno
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tiny import Stop, Tiny, assert_same, lines, tiny_config

import jaxcnn
from jaxcnn import UserError, cli, stores
from jaxcnn.distributed.interrupt import Interrupted
from jaxcnn.locations import Address
from jaxcnn.safe_files import only_trainer
from jaxcnn.training.initial_state import input_to_start_from, load_variables

RUN = Address("memory://bucket/run")
FINISHED = stores.COMMIT


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store's file system, which is empty before and after."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # of the copies
    fs: Any = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def files(store: Any) -> dict[str, bytes]:
    """What the store holds of the run, but for the lock."""
    found = {name.removeprefix("/bucket/run/"): store.cat_file(name) for name in store.find("/bucket/run")}
    return {name: data for name, data in found.items() if name != ".lock"}


def steps(store: Any) -> set[str]:
    """The finished checkpoints of the store."""
    names = (name.split("/") for name in files(store))
    return {parts[1] for parts in names if parts[0] == "checkpoints" and parts[2:] == [FINISHED]}


def put(store: Any, **contents: bytes) -> None:
    """Write files of the run; `__` stands for a slash."""
    for name, data in contents.items():
        store.pipe_file(f"/bucket/run/{name.replace('__', '/')}", data)


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def claimed(store: Any) -> Any:
    """A context in which a run's folder is copied back, as training has it; RUN/checkpoints/5 is finished."""

    def claim(folder: Path) -> None:
        with only_trainer(folder):
            stores.claim(folder)

    put(store, checkpoints__5__state__d=b"old arrays", checkpoints__5__info=b"old", metrics=b"one")
    store.pipe_file(f"/bucket/run/checkpoints/5/{FINISHED}", b"")
    return claim


def config(**values: Any) -> Any:
    small = {"data__name": "digits", "eval_every": 3, "checkpoint_every": 3, "keep_last": 2}
    return tiny_config(**small | values)


def test_a_run_is_trained_stopped_resumed_and_opened_there_as_on_a_disk(store, tmp_path):
    stop: Any = Stop(7)
    with pytest.raises(Interrupted, match=r"memory://bucket/run/checkpoints"):
        jaxcnn.train(config(), str(RUN), Tiny(10), interrupt=stop)
    assert steps(store) == {"6", "7"}
    assert {"config.json", "metrics.jsonl"} < files(store).keys()
    result = jaxcnn.train(config(), RUN, Tiny(10))
    assert json.loads(files(store)["result.json"]) == result
    assert steps(store) == {"9", "12"}
    there = tmp_path / "there"
    with stores.opened(RUN) as folder:
        write(there, "metrics.jsonl", (folder / "metrics.jsonl").read_text())
        assert not list(folder.glob("checkpoints/*/state"))  # until one is asked for

    jaxcnn.train(config(), tmp_path / "disk", Tiny(10))
    assert lines(there) == lines(tmp_path / "disk")
    ours, theirs = (jaxcnn.open_run(run, "9", model=Tiny(10)) for run in (RUN, tmp_path / "disk"))
    assert_same(ours.variables, theirs.variables)
    assert ours.evaluate()["workdir"] == str(RUN)
    assert_same(load_variables(RUN / "checkpoints" / "9", ours.variables, ("top1", "max"))[0], ours.variables)
    assert input_to_start_from(config(init_from=str(RUN)), None)["image_shape"] == [8, 8, 1]
    with pytest.raises(UserError, match=r"memory://bucket/run.*optimizer\.name"):
        jaxcnn.train(config(optimizer__name="sgd"), RUN, Tiny(10))
    assert not list(tmp_path.glob("jaxcnn-run-*"))


@pytest.mark.slow
def test_the_commands_take_addresses(store, tmp_path, capsys):
    from PIL import Image

    run, image, out = str(RUN), str(tmp_path / "x.png"), str(tmp_path / "curves.png")
    Image.new("L", (8, 8)).save(image)
    (tmp_path / "e.py").write_text(
        "from jaxcnn.config import base_config\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.model.name, config.model.overrides = 'tiny_of_tests:Tiny', {}\n"
        "    config.steps, config.global_batch_size, config.log_every = 2, 32, 1\n"
        "    return config\n"
    )
    (tmp_path / "tiny_of_tests.py").write_text(Path(__file__).with_name("helpers").joinpath("tiny.py").read_text())
    sys.path.insert(0, str(tmp_path))
    try:
        assert cli.main(["train", "--config", str(tmp_path / "e.py"), "--workdir", run, "--config.mesh.data=1"]) == 0
        assert cli.main(["evaluate", "--workdir", run]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["workdir"] == run
        assert cli.main(["predict", "--workdir", run, image]) == 0
        assert cli.main(["plot", run, "--out", out]) == 0
        assert cli.main(["evaluate", "--workdir", f"{run}s"]) == 2
    finally:
        sys.path.remove(str(tmp_path))
    captured = capsys.readouterr()
    assert f"{run}s/config.json" in captured.err
    assert Path(out).stat().st_size


def test_what_is_written_is_copied_while_the_run_goes_on(store, claimed, monkeypatch):
    monkeypatch.setattr(stores, "EVERY", 0.01)
    with stores.opened(RUN, arrays=True) as folder:
        claimed(folder)
        write(folder, "metrics", "one two")
        write(folder, "tensorboard/events", "1")
        write(folder, ".metrics.123", "half")
        until = time.monotonic() + 60
        while (copied := files(store))["metrics"] != b"one two" or "tensorboard/events" not in copied:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert ".metrics.123" not in files(store)


def test_a_checkpoint_appears_once_it_is_finished_and_vanishes_with_the_one_here(store, claimed):
    with stores.opened(RUN, arrays=True) as folder:
        claimed(folder)
        write(folder, "checkpoints/8/state/d", "arrays")
        write(folder, f"checkpoints/8/{FINISHED}", "")
        write(folder, "checkpoints/9/state/d", "half of the arrays")
        write(folder, f"checkpoints/9.orbax-checkpoint-tmp/{FINISHED}", "")
        (folder / "checkpoints/5").rename(folder / "checkpoints/damaged-5")
    assert steps(store) == {"8", "damaged-5"}
    assert not [name for name in files(store) if name.startswith(("checkpoints/5/", "checkpoints/9"))]


def test_one_that_is_replaced_is_there_until_the_other_is(store, claimed, monkeypatch):
    seen = []
    upload = MemoryFileSystem.put_file

    def put_file(self: Any, source: str, target: str, *arguments: Any, **keywords: Any) -> None:
        seen.append(steps(store))
        upload(self, source, target, *arguments, **keywords)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    with stores.opened(RUN, arrays=True) as folder:
        claimed(folder)
        (folder / "checkpoints/5").rename(folder / f"checkpoints/5{stores.SET_BACK}")
        write(folder, "checkpoints/5/info", "new")
        write(folder, f"checkpoints/5/{FINISHED}", "")
    assert seen == [{f"5{stores.SET_BACK}"}] * 2
    assert files(store) == {"metrics": b"one", "checkpoints/5/info": b"new", f"checkpoints/5/{FINISHED}": b""}


def test_what_a_kill_left_there_is_not_taken_for_a_checkpoint_and_is_removed(store, claimed):
    put(store, checkpoints__7__state__d=b"half")
    with stores.opened(RUN, arrays=True) as folder:
        assert sorted(path.name for path in folder.glob("checkpoints/*")) == ["5"]
        claimed(folder)
    assert not [name for name in files(store) if name.startswith("checkpoints/7")]


def test_a_name_there_leads_to_no_other_folder_here(store, claimed, tmp_path):
    store.store["/bucket/run/../../escaped"] = store.store["/bucket/run/metrics"]
    with stores.opened(RUN) as folder:
        assert (folder / "metrics").read_text() == "one"
        assert not (folder.parent.parent / "escaped").exists()
        assert not (folder.parent / "escaped").exists()


def run_in_vain(claimed: Any, monkeypatch: pytest.MonkeyPatch, ends: Callable[[Path], None]) -> None:
    """A run that ends so, once the store can no longer be written to."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    with stores.opened(RUN, arrays=True) as folder:
        claimed(folder)
        write(folder, "result.json", str(folder))
        monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
        ends(folder)


def test_a_store_that_cannot_be_written_to_leaves_the_run_here(store, claimed, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"memory://bucket/run .*no room") as caught:
        run_in_vain(claimed, monkeypatch, lambda _: None)
    (folder,) = tmp_path.glob("jaxcnn-run-*")
    assert str(folder) in str(caught.value)
    assert (folder / "result.json").read_text() == str(folder)


def test_an_error_of_the_run_stays_the_error_where_the_store_fails_too(store, claimed, monkeypatch, tmp_path, capsys):
    def ends(folder: Path) -> None:
        raise UserError(f"the loss of {folder}")

    with pytest.raises(UserError, match=r"^the loss of memory://bucket/run$"):
        run_in_vain(claimed, monkeypatch, ends)
    (folder,) = tmp_path.glob("jaxcnn-run-*")
    assert str(folder) in capsys.readouterr().err
    assert (folder / "result.json").exists()


def test_the_last_of_two_trainers_has_the_run_and_the_first_says_so(store, claimed, tmp_path):
    def first() -> None:
        with stores.opened(RUN, arrays=True) as folder:
            claimed(folder)
            write(folder, "metrics", "of the first")
            with stores.opened(RUN, arrays=True) as other:
                (other / ".lock").write_text("process 1 on another host")
                stores.claim(other)
                write(other, "metrics", "of the second")

    with pytest.raises(UserError, match="memory://bucket/run") as caught:
        first()
    (folder,) = tmp_path.glob("jaxcnn-run-*")
    assert str(folder) in str(caught.value)
    assert (folder / "metrics").read_text() == "of the first"
    assert files(store)["metrics"] == b"of the second"


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_package_that_is_missing_is_named(scheme, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{scheme}://bucket/run .*pip install {package}"):
        jaxcnn.open_run(f"{scheme}://bucket/run")


def test_a_scheme_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match="nonsense://bucket/run"):
        jaxcnn.open_run("nonsense://bucket/run")


def test_a_run_that_is_removed_there_while_it_trains_stays_here(store, claimed, tmp_path):
    def run() -> None:
        with stores.opened(RUN, arrays=True) as folder:
            claimed(folder)
            store.rm("/bucket/run", recursive=True)

    with pytest.raises(UserError, match="memory://bucket/run"):
        run()
    (folder,) = tmp_path.glob("jaxcnn-run-*")
    assert (folder / "metrics").read_text() == "one"


def test_a_full_disk_is_the_one_here(store, claimed, tmp_path):
    def run() -> None:
        with stores.opened(RUN) as folder:
            raise UserError(f"saving to {folder} failed: {os.strerror(errno.ENOSPC)}")

    with pytest.raises(UserError, match=rf"^saving to memory://bucket/run failed.*{tmp_path}.*TMPDIR"):
        run()


def test_what_a_checkpoint_says_of_itself_is_read_without_its_arrays(store, tmp_path):
    jaxcnn.train(config(steps=3), RUN, Tiny(10))
    arrays = [name for name in store.find("/bucket/run/checkpoints") if "/state/" in name]
    for name in arrays:
        store.pipe_file(name, store.cat_file(name)[:-1] + b"?")
    assert input_to_start_from(config(init_from=str(RUN)), None)["image_shape"] == [8, 8, 1]
    with pytest.raises(UserError, match=r"memory://bucket/run/checkpoints/3 cannot be read .*other bytes"):
        jaxcnn.open_run(RUN, model=Tiny(10))
