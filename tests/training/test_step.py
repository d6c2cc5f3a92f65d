"""One update: donation, randomness, accumulation, the moving average, metrics and faults, on one device and several."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Blobs, Tiny, assert_same, build, leaves, steps, tiny_config

from jaxcnn.data.batches import on_devices
from jaxcnn.tasks.base import Task
from jaxcnn.training.sharding import make_mesh
from jaxcnn.training.step import make_eval_step

SGD = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.1}


def batch_of(program: Any, step: int = 0) -> Any:
    size = program.largest_batch["label"].shape[0]
    return next(on_devices(Blobs(size).train_batches(step, step + 1), program.mesh))


@pytest.fixture(scope="module")
def plain() -> Any:
    return build(tiny_config(**SGD))


@pytest.mark.parametrize("devices", [1, 8])
def test_the_old_state_is_donated_and_the_batch_and_loss_are_not(devices):
    program = build(tiny_config(mesh__data=devices, ema__decay=0.9))
    state, batch = program.init(), batch_of(program)
    new, loss = program.train_step(state, batch)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    newer, _ = program.train_step(new, batch)
    assert np.isfinite(float(loss))
    assert int(newer.step) == 2
    for x in jax.tree.leaves(newer):
        assert x.sharding.is_fully_replicated
        assert len(x.devices()) == devices


def test_a_numpy_batch_is_refused_under_the_transfer_guard(plain):
    state, batch = plain.init(), batch_of(plain)
    with jax.transfer_guard("disallow"):
        state, _ = plain.train_step(state, batch)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            plain.train_step(state, Blobs().rows(0, 16))


@pytest.mark.parametrize(
    ("dropout", "augment", "accumulate"),
    [(0.5, "none", 1), (0.0, "pad_crop_flip", 1), (0.5, "pad_crop_flip", 2), (0.0, "none", 1)],
)
def test_draws_are_a_function_of_seed_step_and_epoch(dropout, augment, accumulate):
    drawn = dropout > 0 or augment != "none"
    data = Blobs(augment=augment)
    config = tiny_config(**SGD, optimizer__accumulate=accumulate)
    program = build(config, Tiny(dropout=dropout), data)

    def loss(seed: int, step: int) -> float:
        state = program.init().replace(seed=jnp.uint32(seed), step=jnp.int32(step))
        state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, program.state))
        batch = batch_of(program)
        batch["epoch"] = jnp.full_like(batch["epoch"], step)
        return float(program.train_step(state, batch)[1])

    again, other_step, other_seed = loss(3, 5), loss(3, 6), loss(4, 5)
    assert loss(3, 5) == again
    assert (other_step != again) == drawn
    assert (other_seed != again) == drawn


class Ruler(nn.Module):
    """Statistics of the last batch and the one before it: the mean of the images."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        last = self.variable("batch_stats", "last", jnp.zeros, ())
        previous = self.variable("batch_stats", "previous", jnp.zeros, ())
        if train:
            previous.value, last.value = last.value, jax.random.normal(self.make_rng("dropout"))
        return {"logits": jnp.zeros((len(images), 6)) + self.param("x", nn.initializers.zeros, (6,))}


def test_micro_batches_have_draws_of_their_own():
    state, _ = steps(build(tiny_config(optimizer__accumulate=2), Ruler()), 1)
    assert state.batch_stats["previous"] != 0
    assert state.batch_stats["previous"] != state.batch_stats["last"]


@pytest.mark.parametrize(("accumulate", "devices"), [(2, 1), (4, 4)])
def test_accumulating_is_one_batch_where_rows_do_not_meet_in_batch_norm(accumulate, devices):
    model = Tiny(norm=False)
    whole, losses = steps(build(tiny_config(**SGD), model), 3)
    config = tiny_config(**SGD, optimizer__accumulate=accumulate, mesh__data=devices)
    parts, part_losses = steps(build(config, model), 3)
    np.testing.assert_allclose(part_losses, losses, rtol=2e-6)
    for (path, a), b in zip(leaves(whole).items(), leaves(parts).values(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6, err_msg=path)


def test_micro_batch_i_is_rows_i_and_every_kth_after():
    program = build(tiny_config(**SGD, optimizer__accumulate=2, mesh__data=4))
    data, model = Blobs(), Tiny()
    rows = data.rows(1000, 16)
    state = jax.device_get(program.init())
    stats, grads = state.batch_stats, []

    def loss(params: Any, stats: Any, images: Any, labels: Any) -> Any:
        variables = {"params": params, "batch_stats": stats}
        out: Any = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return -(labels * jax.nn.log_softmax(out[0]["logits"])).sum(-1).mean(), out[1]["batch_stats"]

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    for i in range(2):
        images = data.preprocess({"image": rows["image"][i::2]}, None)["image"]
        labels = np.eye(6)[rows["label"][i::2]]

        grad, stats = gradient(state.params, stats, images, labels)
        grads.append(grad)
    expected = jax.tree.map(lambda x, a, b: x - 0.1 * (a + b) / 2, state.params, *grads)
    new, _ = steps(program, 1)
    for got, want in ((new.params, expected), (new.batch_stats, stats)):
        for (path, a), b in zip(leaves(got).items(), leaves(want).values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6, err_msg=path)


def test_cutting_a_batch_into_micro_batches_moves_no_rows_between_devices():
    program = build(tiny_config(**SGD, optimizer__accumulate=2, mesh__data=4))
    text = program.train_step.lower(program.state, program.largest_batch).compile().as_text()
    assert "all-reduce" in text
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute") if op in text]


def test_the_moving_average_follows_its_recursion_and_warms_up():
    program = build(tiny_config(**SGD, optimizer__warmup_steps=4, ema__decay=0.3))
    state = program.init()
    expected = {k: v.astype(np.float64) for k, v in leaves(state.ema).items()}
    assert_same(state.ema, {"params": state.params, "batch_stats": state.batch_stats})
    for t in range(5):
        state, _ = steps(program, 1, state=state)
        d = min(0.3, (1 + t) / (10 + t))  # 1/10, 2/11, 3/12, then 0.3
        new = leaves({"params": state.params, "batch_stats": state.batch_stats})
        expected = {k: d * v + (1 - d) * new[k] for k, v in expected.items()}
    for path, x in leaves(state.ema).items():
        np.testing.assert_allclose(x, expected[path], rtol=1e-5, atol=1e-7, err_msg=path)
    assert_same(state.variables, state.ema)


def test_without_a_moving_average_evaluation_uses_the_weights(plain):
    state = plain.init()
    assert state.ema == {}
    assert state.variables == {"params": state.params, "batch_stats": state.batch_stats}


def test_metrics_add_up_from_step_to_step():
    program = build(tiny_config(**SGD, optimizer__warmup_steps=4, ema__decay=0.3))
    state, losses = steps(program, 4)
    sums = {k: (float(s), float(w)) for k, (s, w) in state.metrics.items()}
    assert set(sums) == set(program.metrics) == {"loss", "top1", "top5", "learning_rate", "grad_norm"}
    assert sums["loss"] == (pytest.approx(16 * sum(losses), rel=1e-5), 64)
    assert sums["learning_rate"] == (pytest.approx(0.1 * (0 + 1 + 2 + 3) / 4), 4)
    assert 0 <= sums["top1"][0] <= sums["top5"][0] <= sums["top1"][1] == 64


def test_the_gradients_norm_is_that_before_clipping(plain):
    norms = []
    for program in (plain, build(tiny_config(**SGD, optimizer__clip_norm=0.01))):
        before = leaves(program.init().params)
        state, _ = steps(program, 1)
        moved = sum(((x - before[k]) ** 2).sum() for k, x in leaves(state.params).items())
        norms.append((float(state.metrics["grad_norm"][0]), np.sqrt(moved) / 0.1))
    assert norms[0][0] == norms[1][0] == pytest.approx(norms[0][1], rel=1e-4)
    assert norms[1][1] == pytest.approx(0.01, rel=1e-4)


def test_the_first_fault_is_the_one_remembered(plain):
    state, _ = steps(plain, 2)
    assert int(state.fault["step"]) == -1
    data = Blobs(damaged=(2, 4))
    state, losses = steps(plain, 3, data, state)
    assert np.isnan(losses).tolist() == [True, True, True]
    assert int(state.fault["step"]) == 2
    assert np.isnan(state.fault["loss"])


class Cusp(nn.Module):
    """A finite loss whose gradient is not a number."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x = self.param("zero", nn.initializers.zeros, (6,))
        return {"logits": jnp.zeros((len(images), 6)) + 0 * jnp.sqrt(x)}


def test_a_gradient_that_is_not_finite_is_a_fault_though_the_loss_is_finite():
    state, losses = steps(build(tiny_config(**SGD), Cusp()), 1)
    assert np.isfinite(losses).all()
    assert int(state.fault["step"]) == 0
    assert not np.isfinite(state.fault["grad_norm"])


class Steep(nn.Module):
    """Large gradients of a small loss: at the highest rates the weights leave the range of float32 in one step."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        return {"logits": jnp.full((len(images), 6), 100.0) * self.param("x", nn.initializers.zeros, (6,))}


def test_weights_that_are_no_longer_finite_are_a_fault_of_the_step_that_made_them():
    state, losses = steps(build(tiny_config(optimizer__name="sgd", optimizer__learning_rate=3e38), Steep()), 1)
    assert np.isfinite(losses).all()
    assert np.isfinite(state.fault["grad_norm"])
    assert int(state.fault["step"]) == 0


def test_a_batch_of_padding_alone_has_loss_zero_and_is_no_fault(plain):
    rows = Blobs().rows(0, 16) | {"mask": np.zeros(16, np.float32)}
    state, loss = plain.train_step(plain.init(), next(on_devices(iter([rows]), plain.mesh)))
    assert float(loss) == 0
    assert int(state.fault["step"]) == -1


def test_an_example_draws_for_itself_in_evaluation_and_not_what_a_step_of_training_draws():
    class Keys(Task):
        def forward(self, model: Any, variables: Any, batch: Any, rngs: Any, train: bool) -> Any:
            return jax.random.key_data(rngs["example"]), {}

        def measure(self, outputs: Any, batch: Any) -> Any:
            return {}

        def collect(self, outputs: Any, batch: Any) -> Any:
            return {"key": outputs}

    step: Any = make_eval_step(Tiny(), Keys(), lambda batch, _: batch, 3, make_mesh(1))
    rows = jax.jit(step)({}, {"example": jnp.arange(4), "mask": jnp.ones(4)})["rows"]["key"][0]
    trained = [jax.random.key_data(jax.random.fold_in(jax.random.key(3), step)) for step in range(4)]
    assert len({tuple(key) for key in np.concatenate([rows, trained]).tolist()}) == 8


def test_every_leaf_of_the_state_is_an_array_of_its_own(plain):
    state = plain.init()
    pointers = [x.addressable_shards[0].data.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
