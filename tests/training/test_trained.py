"""The Python API: a run trained, opened and asked from Python, with a network of the registry or one's own."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image
from tiny import Blobs, Tiny, tiny_config

import jaxcnn
from jaxcnn import UserError, cli
from jaxcnn.distributed.interrupt import Interrupted
from jaxcnn.safe_files import only_trainer


def own_config(**values: Any) -> Any:
    """Eight steps on the digits, by a network that no registry knows."""
    return tiny_config(**{"steps": 8, "data__name": "digits", "model__name": "mine", "mesh__data": 2} | values)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of a module of one's own, and what `train` returned. Not to be written to."""
    workdir = tmp_path_factory.mktemp("own") / "new" / "run"
    return workdir, jaxcnn.train(own_config(), str(workdir), model=Tiny(10))


def test_every_name_of_the_api_is_there_and_no_other():
    assert set(jaxcnn.__all__) <= set(dir(jaxcnn))
    assert all(getattr(jaxcnn, name) is not None for name in jaxcnn.__all__)
    assert jaxcnn.list_models is __import__("jaxcnn.models").models.list_models
    with pytest.raises(AttributeError, match="trian"):
        _ = jaxcnn.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_a_module_of_ones_own_is_trained_and_opened_again(own):
    workdir, result = own
    assert result == json.loads((workdir / "result.json").read_text())
    assert result["eval/examples"] == 355
    assert json.loads((workdir / "config.json").read_text())["model.name"] == "mine"
    run = jaxcnn.open_run(workdir, model=Tiny(10))
    assert (run.step, run.config.model.name, run.input["image_shape"]) == (8, "mine", [8, 8, 1])
    scores = run.evaluate()
    assert {key: scores[key] for key in ("eval/loss", "eval/top1")} == pytest.approx(
        {key: result[key] for key in ("eval/loss", "eval/top1")}
    )
    with pytest.raises(UserError, match="'mine'"):
        jaxcnn.open_run(workdir)
    with pytest.raises(UserError, match="another model"):
        jaxcnn.open_run(workdir, model=Tiny(10, norm=False))


def test_the_same_call_finds_a_complete_run_and_another_config_is_refused_by_its_key(own):
    workdir, result = own
    assert jaxcnn.train(own_config(), workdir, model=Tiny(10)) == result
    with pytest.raises(UserError, match="seed was 0, is 1"):
        jaxcnn.train(own_config(seed=1), workdir, model=Tiny(10))
    with only_trainer(workdir), pytest.raises(UserError, match="in use by"):
        jaxcnn.train(own_config(), workdir, model=Tiny(10))


def test_a_config_is_checked_before_anything_is_made(tmp_path):
    config = own_config()
    config.log_every = 0
    with pytest.raises(UserError, match=r"config\.log_every=0"):
        jaxcnn.train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


class Noisy(Blobs):
    """Data that sends this process a signal with a later batch."""

    def train_batches(self, start: int, stop: int) -> Any:
        for step, batch in enumerate(super().train_batches(start, stop), start):
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def test_a_signal_stops_it_saved_and_the_same_call_goes_on_as_if_nothing_had_been(tmp_path):
    config = tiny_config(model__name="mine")
    alone = jaxcnn.train(config, tmp_path / "alone", model=Tiny(), data=Blobs())
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        jaxcnn.train(config, tmp_path / "cut", model=Tiny(), data=Noisy())
    assert signal.getsignal(signal.SIGTERM) is before
    assert list((tmp_path / "cut" / "checkpoints").glob("[0-9]*"))
    result = jaxcnn.train(config, tmp_path / "cut", model=Tiny(), data=Blobs())
    assert result["eval/loss"] == alone["eval/loss"]


def test_it_trains_in_a_thread_where_no_signal_can_be_handled(tmp_path):
    results: list[Any] = []
    config = tiny_config(steps=2, model__name="mine")
    thread = threading.Thread(target=lambda: results.append(jaxcnn.train(config, tmp_path, model=Tiny(), data=Blobs())))
    thread.start()
    thread.join(300)
    assert results[0]["step"] == 2


def test_one_image_gives_one_prediction_and_many_a_list_whatever_their_form(own):
    run = jaxcnn.open_run(own[0], model=Tiny(10))
    module: Any = run.model
    examples = run.examples(5)
    images = examples["image"]
    assert (images.dtype, images.shape, examples["label"].shape) == (np.uint8, (5, 8, 8, 1), (5,))
    one, many = run.predict(images[0]), run.predict(images)
    assert isinstance(one, jaxcnn.Prediction)
    assert one.outputs["probabilities"] == pytest.approx(many[0].outputs["probabilities"])
    assert len(many) == 5
    logits = np.asarray(module.apply(run.variables, run.normalize(images), train=False)["logits"])
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose([p.outputs["probabilities"] for p in many], expected, rtol=1e-5)
    assert [p.summary["top5"][0]["index"] for p in many] == expected.argmax(-1).tolist()
    assert one.summary["top5"][0]["class"] in one.text
    assert run.predict(images[0, :, :, 0]).summary == one.summary  # without channels
    assert run.predict([images[0].repeat(2, 0).repeat(2, 1)])[0].image.shape == (8, 8, 1)  # larger
    assert run.predict([]) == []
    for bad in (np.zeros((8, 8, 1)), np.zeros((8, 8, 2), np.uint8), "missing.png"):
        with pytest.raises(UserError, match=r"an image of|missing\.png"):
            run.predict(bad)


def test_evaluate_takes_overrides_of_the_data_and_refuses_those_of_the_network(own):
    run = jaxcnn.open_run(own[0], model=Tiny(10))
    assert run.evaluate({"data.eval_split": "train"})["eval/examples"] == 1442
    assert run.evaluate({"global_batch_size": 5})["eval/examples"] == 355
    assert run.config.data.eval_split == ""
    for key in ("dtype", "mesh.data", "model.name"):
        with pytest.raises(UserError, match=rf"config\.{key}"):
            run.evaluate({key: 1})
    with pytest.raises(UserError, match=r"did you mean 'data\.eval_split'"):
        run.evaluate({"data.eval_splt": "train"})


def test_a_module_that_breaks_the_conventions_is_refused_before_anything_is_trained(tmp_path):
    class Bare(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, images: Any, train: bool = False) -> Any:
            return nn.Dense(self.num_classes, name="head")(images.mean((1, 2)))

    with pytest.raises(UserError, match="Bare"):
        jaxcnn.train(own_config(), tmp_path / "run", model=Bare())
    with pytest.raises(UserError, match="10"):
        jaxcnn.train(own_config(), tmp_path / "run", model=Tiny(4))
    assert not list(tmp_path.rglob("config.json"))


def test_a_network_named_by_its_module_is_trained_opened_and_asked_by_the_name_alone(tmp_path, monkeypatch, capsys):
    """`tiny`, of tests/helpers and so on Python's path, stands for a module of the user's own in another folder."""
    monkeypatch.chdir(tmp_path)
    jaxcnn.train(own_config(model__name="tiny:Tiny", steps=2), "run")
    assert json.loads(Path("run/config.json").read_text())["model.name"] == "tiny:Tiny"
    run = jaxcnn.open_run("run")
    assert run.evaluate()["model"] == "tiny:Tiny"
    Image.fromarray(run.examples(1)["image"][0, :, :, 0]).save("seven.png")

    def last(*words: str) -> str:
        capsys.readouterr()
        assert cli.main([*words]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert json.loads(last("evaluate", "--workdir", "run"))["eval/examples"] == 355
    by_run = json.loads(last("predict", "--workdir", "run", "seven.png", "--json"))
    assert "tiny:Tiny" in last("weights", "export", "run", "run.safetensors")
    weights = ["--model", "tiny:Tiny", "--weights", "run.safetensors"]
    assert json.loads(last("predict", *weights, "seven.png", "--json")) == by_run
    lengths = ["--steps", "1", "--warmup", "1", "--repeats", "1"]
    assert json.loads(last("bench", "--config-json", "run/config.json", *lengths, "--json"))["model"] == "tiny:Tiny"


def test_a_module_given_is_recorded_under_its_own_name_and_not_as_the_network_of_the_config(tmp_path, capsys):
    config = own_config(model__name="resnet20", steps=2)
    result = jaxcnn.train(config, tmp_path, model=Tiny(10))
    assert result["model"] == json.loads((tmp_path / "config.json").read_text())["model.name"] == "Tiny"
    assert config.model.name == "resnet20"
    assert jaxcnn.train(config, tmp_path, model=Tiny(10)) == result
    assert jaxcnn.open_run(tmp_path, model=Tiny(10)).step == 2
    assert cli.main(["evaluate", "--workdir", str(tmp_path)]) == 2
    assert "'Tiny'" in capsys.readouterr().err


class TwoRates(nn.Module):
    """A network of a kernel and a bias, of 64 × 10 and 10 parameters."""

    @nn.compact
    def __call__(self, images: Any, train: bool = False) -> dict[str, Any]:
        return {"logits": nn.Dense(10, name="head")(images.reshape(len(images), -1))}


def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(tmp_path, monkeypatch, capsys):
    from jaxcnn.training.train import dry_run

    monkeypatch.chdir(tmp_path)
    config = own_config(global_batch_size=32)
    text = dry_run(config, TwoRates())
    assert json.loads(text[: text.index("\n}") + 2])["model.name"] == "mine"
    lines = text[text.index("\n}") + 3 :].splitlines()
    words = {line.split()[0]: line for line in lines}
    assert "650 parameters" in words["model"]
    assert "8 steps of 32" in words["training"]
    assert "image uint8 (32, 8, 8, 1)" in words["batch"]
    assert "all 650 parameters train" in words["optimizer"]
    assert "on 640" in words["optimizer"]  # the kernel decays, the bias does not
    assert "each device holds" in words["compiled"]
    (tmp_path / "tiny.py").write_text(
        "from jaxcnn.config import base_config\n\n\ndef get_config():\n    config = base_config()\n"
        "    config.steps = 3\n    config.mesh.data = 1\n    return config\n"
    )
    assert cli.main(["train", "--config", "tiny.py", "--dry-run", "--config.global_batch_size=8"]) == 0
    assert "3 steps of 8" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.py"]
    assert cli.main(["train", "--config", "tiny.py"]) == 2
    assert "--workdir" in capsys.readouterr().err
