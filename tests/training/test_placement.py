"""The same numbers wherever the state lies and whatever BatchNorm is over; what is cut, and what crosses the wire."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny import CLASSES, Blobs, Tiny, assert_same, build, fit, leaves, lines, ripple, steps, tiny_config

from jaxcnn import UserError
from jaxcnn.models import create_model
from jaxcnn.models.layers import Classifier, Endpoint, FullyConnected, batch_norm, conv
from jaxcnn.training import sharding
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.hlo import collectives
from jaxcnn.training.initial_state import check_norm
from jaxcnn.training.sharding import make_mesh
from jaxcnn.training.state import init_variables, path_name

# Adam's division by a root near 0 would magnify rounding: here its epsilon is large.
ADAM = {"optimizer__learning_rate": 0.01, "optimizer__epsilon": 0.01, "ema__decay": 0.9, "global_batch_size": 32}
TOLERANCE = 1e-5  # of an array's largest element: all is float32, and sums over rows and features differ in their order
SPLITS = {
    "data": {"mesh__data": 8},
    "model": {"mesh__data": 4, "mesh__model": 2},
    "rest": {"mesh__data": 2, "mesh__model": -1},  # six classes are not cut over four devices
    "zero1": {"mesh__data": 8, "mesh__placement": "zero1"},
    "fsdp": {"mesh__data": 8, "mesh__placement": "fsdp"},
    "model-zero1": {"mesh__data": 4, "mesh__model": 2, "mesh__placement": "zero1"},
    "model-fsdp": {"mesh__data": 4, "mesh__model": 2, "mesh__placement": "fsdp"},
}


class Network(nn.Module):
    """A VGG in miniature: two convolutions with BatchNorm, three fully connected layers."""

    num_classes: int = CLASSES
    dropout: float = 0.3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x = images
        for i in (1, 2):
            x = conv(8, 3, dtype=self.dtype, kernel_init=ripple, name=f"conv{i}")(x)
            x = nn.relu(batch_norm(train, dtype=self.dtype, name=f"norm{i}")(x))
            x = Endpoint(name=f"stage{i}")(x)
        for layer in ("fc6", "fc7"):
            x = nn.relu(FullyConnected(16, self.dtype, kernel_init=ripple, name=layer)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return {"logits": Classifier(self.num_classes, self.dtype, kernel_init=ripple, name="head")(x)}


@pytest.fixture(autouse=True)
def _small_arrays_are_cut_too(monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST", 32)


@functools.cache  # what one test has compiled serves the others
def program_of(model: nn.Module | None = None, **values: Any) -> Any:
    return build(tiny_config(**ADAM | values), model or Network(), Blobs(32, augment="pad_crop_flip"))


def run(model: nn.Module | None = None, **values: Any) -> tuple[Any, list[float]]:
    return steps(program_of(model, **values), 3, Blobs(32, augment="pad_crop_flip"))


def assert_close(got: tuple[Any, list[float]], want: tuple[Any, list[float]]) -> None:
    np.testing.assert_allclose(got[1], want[1], rtol=5e-6)
    for (path, x), y in zip(leaves(got[0]).items(), leaves(want[0]).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE * np.abs(y).max(), err_msg=path)


@pytest.mark.parametrize("split", SPLITS)
def test_losses_and_state_are_those_of_one_device(split):
    assert_close(run(**SPLITS[split]), run(mesh__data=1))


@pytest.mark.parametrize("split", [pytest.param("data", marks=pytest.mark.slow), "model-fsdp"])
def test_and_so_they_are_with_micro_batches_and_rematerialisation(split):
    parts: dict[str, Any] = {"optimizer__accumulate": 2}
    assert_close(run(**SPLITS[split], **parts, remat="block"), run(mesh__data=1, **parts))


@pytest.mark.parametrize("split", ["model-fsdp", "zero1"])
def test_the_same_split_twice_is_the_same_to_the_bit(split):
    first, second = run(**SPLITS[split]), run(**SPLITS[split])
    assert first[1] == second[1]
    assert_same(first[0], second[0])


@pytest.mark.parametrize("split", ["zero1", "model-fsdp"])
def test_the_state_lies_where_the_program_says_before_and_after_a_step(split):
    program = program_of(**SPLITS[split])
    for count in (0, 1):
        now, _ = steps(program, count, Blobs(32))
        for said, x in zip(jax.tree.leaves(program.state), jax.tree.leaves(now), strict=True):
            assert x.sharding.is_equivalent_to(said.sharding, x.ndim)
            assert {s.data.shape for s in x.addressable_shards} == {said.sharding.shard_shape(x.shape)}


@pytest.mark.parametrize(
    ("split", "params", "moments"),
    [("data", 1, 1), ("zero1", 1, 8), ("fsdp", 8, 8), ("model", 2, 2), ("model-fsdp", 8, 8)],
)
def test_a_fully_connected_layer_is_cut_into_so_many_parts(split, params, moments):
    state = program_of(**SPLITS[split]).state
    assert state.batch_stats["norm1"]["mean"].sharding.is_fully_replicated
    (adam,) = (part for part in state.opt_state if hasattr(part, "mu"))
    for tree, parts in ((state.params, params), (adam.mu, moments), (adam.nu, moments), (state.ema["params"], moments)):
        kernel = tree["fc6"]["kernel"]
        assert kernel.size == parts * np.prod(kernel.sharding.shard_shape(kernel.shape))


@pytest.mark.parametrize(
    ("path", "shape", "over_data", "expected"),
    [
        ("fc6/kernel", (6, 6, 256, 4096), False, P(None, None, None, "model")),
        ("fc6/kernel", (6, 6, 256, 4096), True, P(None, None, "data", "model")),
        ("0/mu/head/kernel", (4096, 1000), True, P("data", "model")),
        ("head/bias", (1000,), True, P("model")),
        ("head/bias", (999,), False, P()),
        ("aux1/fc/kernel", (4, 4, 128, 1024), False, P(None, None, None, "model")),
        ("stage1_conv1/kernel", (3, 3, 3, 64), False, P()),
        ("stage1_conv1/kernel", (3, 3, 512, 512), True, P(None, None, None, "data")),
        ("stage1_conv1/kernel", (3, 3, 512, 511), True, P(None, None, "data")),
        ("stage1_conv1/kernel", (3, 3, 1, 1), True, P()),
        ("headless/kernel", (64, 64), False, P()),
        ("count", (), True, P()),
    ],
)
def test_the_rules(path, shape, over_data, expected):
    got = sharding.spec(path, shape, make_mesh(4, 2), over_data)
    assert tuple(got) == tuple(expected) + (None,) * (len(got) - len(expected))


@pytest.mark.parametrize(("name", "share"), [("vgg16", 0.894), ("alexnet", 0.962)])
def test_what_lies_over_model_is_nearly_all_of_the_old_networks(name, share):
    model = create_model(name)
    params = jax.eval_shape(lambda: init_variables(model, 0, (224, 224, 3)))["params"]
    mesh = make_mesh(4, 2)
    sizes = {True: 0, False: 0}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        sizes["model" in sharding.spec(path_name(path), x.shape, mesh, False)] += x.size
    assert sizes[True] / sum(sizes.values()) == pytest.approx(share, abs=5e-4)


# What each group of rows would do by itself, averaged.
def apart(model: nn.Module, groups: int) -> tuple[Any, Any]:
    """Parameters and statistics after one step of SGD at rate 0.1, each of so many groups a batch of its own."""
    state, data = jax.device_get(program_of(model, mesh__data=1).init()), Blobs(32)
    rows = data.rows(1000, 32)
    images, labels = data.preprocess(rows, None)["image"], np.eye(CLASSES)[rows["label"]]

    def loss(params: Any, images: Any, labels: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        out: Any = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return -(labels * jax.nn.log_softmax(out[0]["logits"])).sum(-1).mean(), out[1]["batch_stats"]

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    parts = [
        gradient(state.params, *part) for part in zip(np.split(images, groups), np.split(labels, groups), strict=True)
    ]
    grads, stats = jax.tree.map(lambda *x: sum(x) / groups, *parts)
    return jax.tree.map(lambda x, g: x - 0.1 * g, state.params, grads), stats


@pytest.mark.parametrize(
    ("groups", "values"),
    [
        (8, {"mesh__data": 8, "norm__scope": "shard"}),
        (4, {"mesh__data": 8, "norm__scope": "group"}),
        (2, {"mesh__data": 8, "norm__scope": "group", "norm__group": 4, "mesh__placement": "zero1"}),
        (1, {"mesh__data": 8, "norm__scope": "group", "norm__group": 8, "mesh__placement": "fsdp"}),
        (1, {"mesh__data": 8}),
        (4, {"mesh__data": 4, "mesh__model": 2, "norm__scope": "shard"}),
        (2, {"mesh__data": 4, "mesh__model": 2, "norm__scope": "group", "mesh__placement": "fsdp"}),
        (1, {"mesh__data": 1, "norm__scope": "shard"}),
        (1, {"mesh__data": 1, "mesh__model": 2, "norm__scope": "shard"}),
    ],
)
def test_statistics_are_over_the_rows_that_the_scope_says(groups, values):
    model = Network(dropout=0.0)
    sgd = {"optimizer__name": "sgd", "optimizer__momentum": 0.0, "optimizer__learning_rate": 0.1}
    program = build(tiny_config(global_batch_size=32, **sgd | values), model, Blobs(32))
    state, _ = steps(program, 1, Blobs(32))
    params, stats = apart(model, groups)
    for got, want in ((state.params, params), (state.batch_stats, stats)):
        for (path, x), y in zip(leaves(got).items(), leaves(want).values(), strict=True):
            np.testing.assert_allclose(x, y, rtol=5e-5, atol=2e-6, err_msg=path)
    if groups > 1:  # so that the comparison could fail
        whole, _ = apart(model, 1)
        assert np.abs(leaves(whole)["['conv1']['kernel']"] - leaves(params)["['conv1']['kernel']"]).max() > 1e-3


def test_per_shard_placement_and_rematerialisation_change_nothing_but_rounding():
    shard = {"mesh__data": 4, "norm__scope": "shard", "optimizer__accumulate": 2}
    assert_close(run(**shard, mesh__placement="fsdp", remat="block"), run(**shard))


def test_shards_have_draws_of_their_own():
    class Draw(nn.Module):
        @nn.compact
        def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
            drawn = self.variable("batch_stats", "drawn", jnp.zeros, ())
            if train:
                drawn.value = jax.random.normal(self.make_rng("dropout"))
            return {"logits": jnp.zeros((len(images), CLASSES)) + self.param("x", nn.initializers.zeros, (CLASSES,))}

    means = {n: float(run(Draw(), mesh__data=n, norm__scope="shard")[0].batch_stats["drawn"]) for n in (1, 2, 8)}
    assert len(set(means.values())) == 3


def sent(model: nn.Module | None = None, **values: Any) -> dict[str, Any]:
    program = program_of(model, **values)
    return collectives(program.train_step.lower(program.state, program.largest_batch).compile())


def size(tree: Any) -> int:
    return sum(x.size * 4 for x in jax.tree.leaves(tree))


SHARD, GROUP = {"norm__scope": "shard"}, {"norm__scope": "group"}
# A norm meets once forward and once backward. Where something is cut over `data`, what is computed of all of it, such
# as the gradients' norm, meets once more; over `model`, so do the gradients of what a fully connected layer takes.
SENT = {
    "data": (SPLITS["data"], {"all-reduce": 1 + 2 * 2}),
    "group": (SPLITS["data"] | GROUP, {"all-reduce": 1 + 2 * 2}),
    "shard": (SPLITS["data"] | SHARD, {"all-reduce": 1}),
    "zero1": (SPLITS["zero1"], {"all-reduce": 5 + 1, "all-gather": 5}),
    "zero1-shard": (SPLITS["zero1"] | SHARD, {"all-reduce": 1 + 1, "all-gather": 5}),
    "fsdp": (SPLITS["fsdp"], {"all-reduce": 5 + 1, "all-gather": 7}),
    "model": (SPLITS["model"], {"all-reduce": 5 + 4, "all-gather": 5, "all-to-all": 2}),
    "model-zero1": (SPLITS["model-zero1"], {"all-reduce": 5 + 5, "all-gather": 5 + 5, "all-to-all": 2}),
    "model-fsdp": (SPLITS["model-fsdp"], {"all-reduce": 5 + 5, "all-gather": 12, "all-to-all": 2}),
    "model-shard": (SPLITS["model"] | SHARD, {"all-reduce": 10 + 1, "all-gather": 3, "all-to-all": 2}),
}


@pytest.mark.parametrize("name", SENT)
def test_so_many_collectives_of_each_kind_are_in_a_step(name):
    values, expected = SENT[name]
    assert {kind: number for kind, (number, _) in sent(**values).items()} == expected


def test_what_crosses_the_wire_are_the_gradients_and_what_is_cut():
    params = program_of(mesh__data=1).state.params
    cut = [x for x in jax.tree.leaves(params) if x.size >= 32 and any(n % 8 == 0 for n in x.shape)]
    classifier = size({name: params[name] for name in ("fc6", "fc7", "head")})
    bytes_of = {name: {kind: n for kind, (_, n) in sent(**values).items()} for name, (values, _) in SENT.items()}
    assert sent(mesh__data=1) == {}
    for name in ("data", "shard", "group"):
        assert size(params) < bytes_of[name]["all-reduce"] < 1.1 * size(params)
    assert bytes_of["zero1"]["all-gather"] == bytes_of["zero1-shard"]["all-gather"] == size(cut)
    assert size(cut) < bytes_of["fsdp"]["all-gather"] < 1.2 * size(cut)  # once, for both directions
    # Not the classifier's weights are gathered but the rows that its layers take, 8 of each two devices.
    inputs = 4 * 8 * (params["fc6"]["kernel"].size // 16 + 16 + 16)
    assert bytes_of["model-shard"]["all-gather"] == inputs < 0.6 * classifier
    assert inputs < bytes_of["model"]["all-gather"] < 1.1 * inputs


def test_gradients_of_micro_batches_cross_the_wire_once_where_the_step_speaks_of_a_shard():
    values: dict[str, Any] = {"mesh__data": 8, "norm__scope": "shard", "optimizer__accumulate": 4}
    assert {kind: number for kind, (number, _) in sent(**values).items()} == {"all-reduce": 1}
    program = program_of(**values)
    text = program.train_step.lower(program.state, program.largest_batch).compile().as_text()
    assert not [line for line in text.splitlines() if " all-reduce(" in line and "while/body" in line]


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "googlenet", "googlenet_tv", "resnet18"])
def test_every_family_takes_every_scope_and_placement(name):
    """Traced, not compiled: what can be told of types and shapes is told there."""
    width: dict[str, Any] = {} if "resnet" in name else {"width": 0.125}
    model = create_model(name, CLASSES, jnp.bfloat16, small_images=True, **width)
    data = Blobs(32, image_shape=(32, 32, 3))
    values = {"norm__scope": "group", "optimizer__accumulate": 2, "remat": "block", "mesh__placement": "fsdp"}
    program = build(tiny_config(**ADAM, mesh__data=4, mesh__model=2, **values), model, data)
    state, _ = jax.eval_shape(program.train_step, program.state, program.largest_batch)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, program.state)


@pytest.mark.parametrize(("name", "inside"), [("resnet20", 19), ("vgg11", 8), ("googlenet", 57 + 2)])
def test_rematerialisation_keeps_what_blocks_give_and_computes_their_inside_anew(name, inside):
    """A convolution is there three times, forward and twice backward; the first has no gradient of the images."""

    def convolutions(remat: str) -> int:
        data = Blobs(8, image_shape=(32, 32, 3))
        config = tiny_config(global_batch_size=8, remat=remat)
        overrides = {} if name == "resnet20" else {"small_images": True, "width": 0.125}
        program = build(config, create_model(name, CLASSES, **overrides), data)
        return (
            program.train_step.trace(program.state, program.largest_batch)
            .lower()
            .as_text()
            .count("stablehlo.convolution")
        )

    assert convolutions("block") - convolutions("none") == inside


ONE = {"mesh__data": 1}


@pytest.mark.parametrize(
    ("there", "here"),
    [
        *((SPLITS["data"], ONE), (ONE, SPLITS["model-fsdp"]), (SPLITS["model-fsdp"], SPLITS["zero1"])),
        (SPLITS["zero1"], SPLITS["model"]),
    ],
)
def test_a_checkpoint_opens_on_every_other_placement_to_the_bit_and_trains_on(there, here, tmp_path):
    state, _ = run(**there)
    checkpoints = Checkpoints(tmp_path, ("top1", "max"), keep_last=1)
    checkpoints.save(state, {"step": 3}, {})
    checkpoints.close()
    program = program_of(**here)
    restored = Checkpoints(tmp_path, ("top1", "max")).restore(3, program.state)
    assert_same(restored, state)
    for said, x in zip(jax.tree.leaves(program.state), jax.tree.leaves(restored), strict=True):
        assert x.sharding.is_equivalent_to(said.sharding, x.ndim)
    data = Blobs(32, augment="pad_crop_flip")
    assert_close(steps(program, 1, data, restored), steps(program_of(**there), 1, data, state))


@dataclasses.dataclass
class Watched(Blobs):
    """Counts, when each batch is taken, the programs that were compiled until then."""

    compiled: list[str] = dataclasses.field(default_factory=list)
    seen: list[int] = dataclasses.field(default_factory=list)

    def train_batches(self, start: int, stop: int) -> Any:
        for batch in super().train_batches(start, stop):
            self.seen.append(len(self.compiled))
            yield batch


def test_a_run_on_cut_weights_is_the_run_of_one_device_and_compiles_nothing_more_once_it_runs(tmp_path, capsys):
    data = Watched(32)

    def note(event: str, *_: Any, **__: Any) -> None:
        data.compiled.append(event) if "backend_compile" in event else None

    jax.monitoring.register_event_duration_secs_listener(note)
    values: dict[str, Any] = {"log_every": 2, "eval_every": 4, "checkpoint_every": 3, "steps": 12, "keep_last": 9}
    try:
        fit(tiny_config(**ADAM, **values, **SPLITS["model-fsdp"]), tmp_path / "cut", data, Network())
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert data.seen[0] > 0
    assert len(data.seen) == 12
    # Batches 3 and 6 come before and after the first checkpoint, for which newer Orbax compiles slices of its own.
    assert data.seen[0] == data.seen[3]
    assert data.seen[6] == data.seen[11] == len(data.compiled)
    said = capsys.readouterr().err
    assert "mesh data 4 × model 2" in said
    assert "params     - × - × data × model" in said
    assert "BatchNorm over 32 images of 32, scope global" in said
    assert " × all-gather of " in said
    fit(tiny_config(**ADAM, **values), tmp_path / "one", Blobs(32), Network())
    assert "placement" not in capsys.readouterr().err
    for got, want in zip(lines(tmp_path / "cut"), lines(tmp_path / "one"), strict=True):
        assert got == pytest.approx(want, rel=1e-4)
        assert "eval/loss" not in got or got["eval/examples"] == 37


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mesh__data": 8, "norm__scope": "group", "norm__group": 3}, r"norm\.group=3 does not divide the 8 places"),
        ({"mesh__data": 4, "mesh__model": 2, "global_batch_size": 36}, r"does not divide by 8.* that does is 32$"),
        ({"mesh__data": -1, "mesh__model": 16}, r"asks for -1 × 16 devices, there are 8 .*mesh\.model must divide"),
        ({"mesh__data": 3, "mesh__model": -1}, r"asks for 3 × -1 devices, there are 8 .*mesh\.data must divide their"),
        ({"mesh__data": 3, "mesh__model": 3}, r"config\.mesh asks for 3 × 3 devices, there are 8"),
        ({"mesh__data": -1, "mesh__model": -1}, r"one of the two can be -1"),
    ],
)
def test_what_does_not_come_out_even_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        program_of(**ADAM | values)


def test_weights_that_a_run_starts_from_are_placed_and_so_is_their_moving_average(tmp_path):
    fit(tiny_config(**ADAM | {"steps": 2}), tmp_path / "one", Blobs(32), Network())
    start = {"init_from": str(tmp_path / "one"), "steps": 2}
    for name, split in (("whole", {"mesh__data": 1}), ("cut", SPLITS["model-fsdp"])):
        fit(tiny_config(**ADAM | start | split), tmp_path / name, Blobs(32), Network())
    whole, cut = (lines(tmp_path / name) for name in ("whole", "cut"))
    assert whole != lines(tmp_path / "one")
    for got, want in zip(cut, whole, strict=True):
        assert got == pytest.approx(want, rel=1e-4)


def test_a_head_of_other_classes_need_not_divide_to_be_left_out(tmp_path):
    fit(tiny_config(**ADAM | {"steps": 1}), tmp_path / "seven", Blobs(32), Network(num_classes=7))
    begun = {"init_from": str(tmp_path / "seven"), "reset_head": True, "steps": 1}
    assert fit(tiny_config(**ADAM | begun | SPLITS["model-fsdp"]), tmp_path / "six", Blobs(32), Network())["step"] == 1


def test_a_network_without_a_norm_says_so_and_goes_on_anywhere(tmp_path, capsys):
    shard = ADAM | SHARD | {"checkpoint_every": 1}
    for devices in (2, 8):
        config = tiny_config(**shard | {"mesh__data": devices, "steps": devices})
        assert fit(config, tmp_path, Blobs(32), Tiny(norm=False))["step"] == devices
    assert "no BatchNorm" in capsys.readouterr().err


def test_per_shard_the_devices_are_part_of_the_model(tmp_path):
    shard = ADAM | {"norm__scope": "shard", "checkpoint_every": 1}
    fit(tiny_config(**shard | {"mesh__data": 4, "steps": 1}), tmp_path, Blobs(32), Network())
    with pytest.raises(UserError, match=r"8 images.*config\.norm\.scope=shard.* 4 "):
        fit(tiny_config(**shard | {"mesh__data": 8, "steps": 2}), tmp_path, Blobs(32), Network())
    check_norm({}, tiny_config(**shard), SimpleNamespace(normalised=8))  # type: ignore[arg-type]  # an older version's
    four = {"mesh__data": 4, "mesh__model": 2, "mesh__placement": "fsdp", "steps": 2}
    assert fit(tiny_config(**shard | four), tmp_path, Blobs(32), Network())["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "googlenet", "resnet20"])
def test_the_papers_networks_on_eight_devices_are_those_on_one(name):
    width: dict[str, Any] = {} if "resnet" in name else {"width": 0.125}
    small: dict[str, Any] = {} if name == "resnet20" else {"small_images": True}
    model, data = create_model(name, CLASSES, jnp.float32, **width, **small), Blobs(32, image_shape=(32, 32, 3))
    sgd = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.01, "global_batch_size": 32}

    def two_steps(**values: Any) -> tuple[Any, list[float]]:
        return steps(build(tiny_config(**sgd, **values), model, data), 2, data)

    one, eight = two_steps(), two_steps(**SPLITS["model-fsdp"], remat="block")
    np.testing.assert_allclose(eight[1], one[1], rtol=1e-5)
    for (path, x), y in zip(leaves(eight[0].params).items(), leaves(one[0].params).values(), strict=True):
        # The rows of the batch reversed, on one device, move ResNet-20's by up to 3.5e-5.
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=4e-5, err_msg=path)
