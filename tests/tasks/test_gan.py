"""The GANs against torch's (tests/golden): networks, statistics, two rounds of both players; and the spine's part."""

from functools import cache, partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden import entry as golden_entry
from golden import golden
from nets import GENERATIVE, count
from pixels import Pixels
from tiny import Stop, assert_same, build, fit, leaves, lines, steps, tiny_config

from jaxcnn import UserError
from jaxcnn.distributed.interrupt import Interrupted
from jaxcnn.models import check_model, create_model
from jaxcnn.tasks.base import Features
from jaxcnn.tasks.frechet import distance, moments
from jaxcnn.tasks.gan import GAN
from jaxcnn.training import program as program_module
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.evaluation import Evaluation, evaluate_rows
from jaxcnn.weights.files import write_safetensors

FILE = "gan.npz"
# Ours: torch's modules, of the generator and of the discriminator.
PAPER = (
    {"project": "project", "norm0": "bn0"} | {f"up{i}": f"up{i}" for i in range(1, 5)}
    | {f"norm{i}": f"bn{i}" for i in range(1, 4)},
    {f"conv{i}": f"conv{i}" for i in range(1, 5)} | {f"norm{i}": f"bn{i}" for i in range(2, 5)} | {"head": "out"},
)  # fmt: skip
EXAMPLE = (
    {"project": "0", "norm0": "1", "up1": "3", "norm1": "4", "up2": "6", "norm2": "7", "up3": "9", "norm3": "10",
     "up4": "12"},
    {"conv1": "0", "conv2": "2", "norm2": "3", "conv3": "5", "norm3": "6", "conv4": "8", "norm4": "9", "head": "11"},
)  # fmt: skip
NAMES = {"dcgan_paper": PAPER, "dcgan_example": EXAMPLE}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def create(name: str, dtype: Any = jnp.float32) -> Any:
    return create_model("dcgan64", dtype=dtype, form=name.removeprefix("dcgan_"))


entry = partial(golden_entry, deviation=0.02)


def torch_name(name: str, path: str) -> str:
    """The entry of torch's state dict for a path such as "params/generator/up1/kernel"."""
    _, player, module, leaf = path.split("/")
    return f"{player}.{NAMES[name][player == 'discriminator'][module]}.{LEAVES[leaf]}"


def from_torch(name: str, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Our array for torch's entry."""
    module, leaf = path.split("/")[2:]
    key = f"{name}.{torch_name(name, path)}"
    if module == "project":  # ours (latents, 4·4·C); a linear layer (C·4·4, latents), or (latents, C, 4, 4)
        latents, channels = shape[0], shape[1] // 16
        if name == "dcgan_paper":
            linear = entry(key, (16 * channels, latents)).reshape(channels, 4, 4, latents)
            return linear.transpose(3, 1, 2, 0).reshape(shape)
        return entry(key, (latents, channels, 4, 4)).transpose(0, 2, 3, 1).reshape(shape)
    if module == "norm0" and name == "dcgan_paper" and "generator" in path:  # a value each, channels first
        return entry(key, shape).reshape(-1, 4, 4).transpose(1, 2, 0).reshape(shape)
    if module == "head":  # (4·4·C, 1)
        channels = shape[0] // 16
        flat = entry(key, (1, channels, 4, 4) if name == "dcgan_example" else (1, 16 * channels))
        return flat.reshape(channels, 4, 4).transpose(1, 2, 0).reshape(shape)
    if leaf != "kernel":
        return entry(key, shape)
    height, width, inside, out = shape
    if module.startswith("up"):  # torch's is turned by 180° about its centre
        return entry(key, (inside, out, height, width)).transpose(2, 3, 0, 1)[::-1, ::-1]
    return entry(key, (out, inside, height, width)).transpose(2, 3, 1, 0)


@cache
def variables(name: str) -> Any:
    """Variables with torch's values."""
    shapes: Any = jax.eval_shape(lambda: create(name).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    flat: Any = flatten_dict(shapes, sep="/")
    return unflatten_dict({path: jnp.asarray(from_torch(name, path, x.shape)) for path, x in flat.items()}, sep="/")


def inputs(seed: int, count: int = 4) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    z = rng.uniform(-1, 1, (count, 100)).astype(np.float32)
    return jnp.asarray(z), jnp.asarray(np.tanh(rng.standard_normal((count, 64, 64, 3))).astype(np.float32))


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("name", NAMES)
def test_both_players_have_torchs_sizes_outputs_and_statistics(name):
    model, made, (z, x) = create(name), variables(name), inputs(int(golden(FILE)[f"{name}/seed"]))
    for player in ("generator", "discriminator"):
        assert golden(FILE)[f"{name}/{player}_params"] == count(made["params"][player])
    for mode in ("eval", "train"):
        train = {"train": True, "mutable": ["batch_stats"]} if mode == "train" else {}

        @jax.jit
        def run(made: Any, train: Any = train) -> Any:
            return model.apply(made, z, method="generate", **train), model.apply(made, x, **train)

        images, outputs = run(made)
        (images, made_stats), (outputs, judged_stats) = (images, outputs) if train else ((images, {}), (outputs, {}))
        assert_close(images[:, ::6, ::6], golden(FILE)[f"{name}/{mode}/images"])
        assert_close(outputs["logits"], golden(FILE)[f"{name}/{mode}/discriminator_logits"])
    rows = {"generator": made_stats, "discriminator": judged_stats}
    for path, after in flatten_dict(rows["generator"]["batch_stats"]["generator"], sep="/").items():
        if name == "dcgan_paper" and path.startswith("norm0"):
            continue  # torch's order of the values is another
        check_statistics(name, "generator", path, after, made)
    for path, after in flatten_dict(rows["discriminator"]["batch_stats"]["discriminator"], sep="/").items():
        check_statistics(name, "discriminator", path, after, made)


def check_statistics(name: str, player: str, path: str, after: Any, made: Any) -> None:
    """Running statistics after a pass; torch's variance is the unbiased one of the batch, Flax's the biased."""
    module, leaf = path.split("/")
    before = made["batch_stats"][player][module][leaf]
    expected = golden(FILE)[f"{name}/train/{player}_after/{torch_name(name, f'_/{player}/{path}').partition('.')[2]}"]
    if leaf == "var":
        level = int(module[4:]) if player == "generator" else 5 - int(module[4:]) - 1
        n = 4 * (4 << level) ** 2
        after = 0.9 * before + (after - 0.9 * before) * n / (n - 1)
    assert_close(after[:16], expected)


class Golden(Pixels):
    """The golden images, and no others."""

    low = -1.0

    def preprocess(self, batch: dict[str, Any], seed: Any) -> dict[str, Any]:
        return batch | {"image": inputs(int(golden(FILE)["dcgan_example/seed"]))[1]}


@pytest.mark.slow
def test_two_rounds_of_both_players_are_torchs(monkeypatch):
    """Losses, gradients and how far the parameters moved; z of round 1 is of the next seed."""
    name, seed = "dcgan_example", int(golden(FILE)["dcgan_example/seed"])
    drawn = jnp.stack([inputs(seed)[0], np.random.default_rng(seed + 1).uniform(-1, 1, (4, 100)).astype(np.float32)])
    monkeypatch.setattr(GAN, "noise", lambda self, batch, size: drawn[batch["epoch"][0] - 1000])
    config = tiny_config(
        task__name="gan", global_batch_size=4, optimizer__name="adam", optimizer__learning_rate=2e-4,
        optimizer__b1=0.5,
    )  # fmt: skip
    data = Golden(4, image_shape=(64, 64, 3))
    program = build(config, create(name), data)
    begin = variables(name)
    state = program.init().replace(params=begin["params"], batch_stats=begin["batch_stats"])
    state = jax.device_put(jax.tree.map(jnp.copy, state), jax.devices()[0])
    before: dict[str, float] = {}
    for round_, tolerance, norm_tolerance in ((0, 1e-4, 5e-3), (1, 1e-3, 1e-2)):
        state, _ = steps(program, 1, data, state)
        sums = {key: float(total) - before.get(key, 0.0) for key, (total, _) in state.metrics.items()}
        before = {key: float(total) for key, (total, _) in state.metrics.items()}
        key = f"{name}/step{round_}"
        # The sums are of four images, the losses their means.
        assert sums["discriminator_real"] / 4 == pytest.approx(golden(FILE)[f"{key}/loss_real"], rel=tolerance)
        assert sums["discriminator_fake"] / 4 == pytest.approx(golden(FILE)[f"{key}/loss_fake"], rel=tolerance)
        assert sums["generator_loss"] == pytest.approx(golden(FILE)[f"{key}/loss_generator"], rel=tolerance)
        for player in ("generator", "discriminator"):
            norms = [golden(FILE)[k] for k in golden(FILE) if k.startswith(f"{key}/{player}_grad/")]
            assert sums[f"{player}_grad_norm"] == pytest.approx(np.linalg.norm(norms), rel=norm_tolerance)
    for player in ("generator", "discriminator"):
        start: Any = flatten_dict(begin["params"][player], sep="/")
        end: Any = flatten_dict(state.params[player], sep="/")
        for path, after in end.items():
            moved = np.linalg.norm(after - start[path])
            theirs = torch_name(name, f"params/{player}/{path}").partition(".")[2]
            assert moved == pytest.approx(golden(FILE)[f"{name}/after/{player}_moved/{theirs}"], rel=1e-2), path


# The spine's promises, on small players.


def gan_config(**values: Any) -> Any:
    return tiny_config(task__name="gan", **{"optimizer__b1": 0.5, "optimizer__learning_rate": 1e-3} | values)


DATA: dict[str, Any] = {"image_shape": (32, 32, 3)}
MODEL = create_model("dcgan32", dtype=jnp.float32, width=1 / 64, latent=3)
MLP = create_model("gan_mlp", dtype=jnp.float32, hidden=(4,), maxout=(3,), latent=3)


@pytest.mark.parametrize("model", ["gan_mlp", pytest.param("dcgan32", marks=pytest.mark.slow)])
def test_however_a_batch_is_divided_the_players_are_the_same(model):
    """Over devices where rows meet in BatchNorm (dcgan32); else in shards that are micro-batches, too."""
    rows_meet = model == "dcgan32"
    network = MODEL if rows_meet else MLP.clone(dropout=0.0)
    apart = {} if rows_meet else {"norm__scope": "shard", "optimizer__accumulate": 2}

    def run(**values: Any) -> Any:
        data = Pixels(16, **(DATA if rows_meet else {}))
        config = gan_config(optimizer__name="sgd", optimizer__momentum=0.0, **values)
        return steps(build(config, network, data), 2, data)

    (expected, losses), (state, found) = run(), run(mesh__data=8, **apart)
    assert found == pytest.approx(losses, rel=1e-4)
    for (path, x), y in zip(leaves(state.params).items(), leaves(expected.params).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6, err_msg=path)


def test_a_run_resumes_to_the_bit_and_averages_the_generator_alone(tmp_path):
    made: dict[str, Any] = {"ema__decay": 0.5, "steps": 6, "checkpoint_every": 3, "eval_every": 3, "log_every": 3}
    fit(gan_config(**made), tmp_path / "one", Pixels(), MLP)
    with pytest.raises(Interrupted):
        fit(gan_config(**made), tmp_path / "two", Pixels(), MLP, Stop(4))
    fit(gan_config(**made), tmp_path / "two", Pixels(), MLP)
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    program = build(gan_config(**made), MLP, Pixels())
    first, second = (Checkpoints(tmp_path / name, GAN.best).restore(6, program.state) for name in ("one", "two"))
    assert_same(first, second)
    assert set(first.ema["params"]) == {"generator"}
    assert (tmp_path / "one/samples/00000003.png").read_bytes() == (tmp_path / "two/samples/00000003.png").read_bytes()


def test_the_losses_of_the_generator_are_those_of_the_paper():
    def generator_loss(loss: str) -> tuple[float, float]:
        data = Pixels(16)
        state, _ = steps(build(gan_config(task__loss=loss), MLP, data), 1, data)
        return float(state.metrics["generator_loss"][0]), float(state.metrics["discriminator_loss"][0])

    (saturating, judge), (other, same) = generator_loss("minimax"), generator_loss("non_saturating")
    assert judge == same == pytest.approx(2 * np.log(2), abs=0.2)  # both begin undecided
    assert saturating < 0 < other
    assert -saturating == pytest.approx(other, abs=0.2)


def test_a_discriminator_that_has_won_is_said_and_one_that_has_not_is_not():
    task = GAN(gan_config())
    assert "discriminator's loss is 1.0e-05" in task.alarms({"train/discriminator_loss": 1e-5})[0]
    assert task.alarms({"train/discriminator_loss": 0.4}) == task.alarms({}) == []


class Means(nn.Module):
    """A network of features that are known: the means of the channels."""

    endpoints: ClassVar[dict[str, tuple[int, int]]] = {"stage1": (1, 3)}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        return {"stage1": images * self.param("scale", nn.initializers.ones_init(), ())}


def test_the_fid_is_of_the_features_of_as_many_images_as_are_evaluated(monkeypatch):
    given = {"image_shape": (5, 4, 3), "mean": (0.5,) * 3, "std": (0.5,) * 3}  # back to -1 … 1
    features = Features("means", Means(), {"params": {"scale": jnp.float32(1)}}, given)
    monkeypatch.setattr(program_module, "feature_network", lambda folder: features)
    found = []
    for batch, devices in ((37, 1), (16, 8)):
        data = Pixels(batch)
        data.low = -1.0
        program = build(gan_config(task__features="here", global_batch_size=batch, mesh__data=devices), MLP, data)
        state = program.init()
        found.append(evaluate_rows(
            program.eval_step, state.variables, data.eval_batches(), task=program.task, mesh=program.mesh, examples=37
        ))  # fmt: skip
    (scores, rows), (other, _) = found
    assert scores["eval/fid"] == pytest.approx(other["eval/fid"], rel=1e-4)
    real = 2 * data.rows(1, 37)["image"].mean((1, 2)) / 255 - 1
    np.testing.assert_allclose(rows["real"], real, atol=1e-5)
    assert scores["eval/fid"] == pytest.approx(distance(moments(real), moments(rows["made"])), rel=1e-4)
    same = program.task.against(rows, rows)
    assert same == {"fid": pytest.approx(scores["eval/fid"]), "fid_floor": pytest.approx(0, abs=1e-6)}
    assert scores["eval/fid_samples"] == 37
    source: Any = Pixels()
    evaluated = Evaluation(scores | {"split": "train"}, rows, program.task, source, ())
    named = {"eval/fid_floor": same["fid_floor"], "fid_reference": "37 images of train"}
    assert evaluated.against(evaluated).scores.items() >= named.items()
    assert program.task.about() == {"fid_features": "stage1 of means", "fid_reference": "the evaluation images"}
    assert program.task.best == ("fid", "min")
    with pytest.raises(UserError, match=r"config\.task\.endpoint='stage9' .*take one of stage1"):
        build(gan_config(task__features="here", task__endpoint="stage9"), MLP, Pixels())


def test_images_have_256_levels_for_the_features_and_grey_ones_three_equal_channels():
    task = GAN(gan_config(task__features="here"))
    given = {"image_shape": (2, 2, 3), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    task.use_features(Features("means", Means(), {}, given))
    found = task._features({"params": {"scale": jnp.float32(1)}}, jnp.full((1, 2, 2, 1), 0.3))
    np.testing.assert_allclose(found, np.full((1, 3), round(1.3 * 127.5) / 127.5 - 1), atol=1e-6)
    with pytest.raises(UserError, match="takes images of 3 channels, these have 2"):
        task._features({}, jnp.zeros((1, 2, 2, 2)))


def test_a_file_that_is_not_inceptions_is_refused_by_name(tmp_path):
    file = tmp_path / "weights.safetensors"
    write_safetensors(file, {"fc.bias": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=r"weights\.safetensors: \S+ is not there: take pytorch-fid's"):
        build(gan_config(task__features=str(file)), MLP, Pixels())


def test_the_player_that_is_no_number_stops_the_run_and_is_named(tmp_path):
    with pytest.raises(UserError, match="stopped at step 2: the loss of the discriminator is nan"):
        fit(gan_config(), tmp_path / "images", Pixels(damaged=(1,)), MLP)
    steep = gan_config(optimizer__learning_rate=1e3, optimizer__multipliers="generator=1e38")
    with pytest.raises(UserError, match=r"stopped at step 1: the loss of the generator .*, the weights after it"):
        fit(steep, tmp_path / "rate", Pixels(), MLP)


@pytest.mark.parametrize(
    ("name", "shape"), [("gan_mlp", (28, 28, 1)), ("dcgan32", (32, 32, 3)), ("dcgan64", (64, 64, 3))]
)
def test_both_players_are_made_and_their_parameters_are_those_of_the_table(name, shape):
    model = create_model(name)
    made: Any = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, *shape))))
    assert set(made["params"]) == {"generator", "discriminator"}
    assert count(made["params"]) == GENERATIVE[name]
    check_model(model, image_shape=shape)


def test_sides_that_no_dcgan_has_are_named():
    with pytest.raises(UserError, match=r"dcgan32 takes square images of 32 pixels, not 28×28: .*image_size=32"):
        build(gan_config(), MODEL, Pixels(image_shape=(28, 28, 3)))
    with pytest.raises(UserError, match=r"form='wide', it must be paper \| example"):
        create_model("dcgan64", form="wide")
