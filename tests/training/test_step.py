"""One update: donation, randomness, accumulation, the moving average, metrics and faults, on one device and several."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Blobs, Tiny, assert_same, build, leaves, steps, tiny_config

from jaxcnn.training.mesh import on_devices

SGD = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.1}


def batch_of(program: Any, step: int = 0) -> Any:
    size = program.batch["label"].shape[0]
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
    ("dropout", "augment", "drawn"), [(0.5, "none", True), (0.0, "pad_crop_flip", True), (0.0, "none", False)]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_draws_are_a_function_of_seed_and_step(dropout, augment, drawn, accumulate):
    data = Blobs(augment=augment)
    config = tiny_config(**SGD, optimizer__accumulate=accumulate)
    program = build(config, Tiny(dropout=dropout), data)

    def loss(seed: int, step: int) -> float:
        state = program.init().replace(seed=jnp.uint32(seed), step=jnp.int32(step))
        state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, program.state))
        return float(program.train_step(state, batch_of(program))[1])

    again, other_step, other_seed = loss(3, 5), loss(3, 6), loss(4, 5)
    assert loss(3, 5) == again
    assert (other_step != again) == drawn
    assert (other_seed != again) == drawn


def test_micro_batches_do_not_share_their_draws():
    data = Blobs(8)
    data.preprocess = lambda images, rng: jnp.zeros(images.shape) + (0 if rng is None else jax.random.normal(rng))
    one = build(tiny_config(**SGD, global_batch_size=8), Tiny(norm=False), data)
    two = build(tiny_config(**SGD, global_batch_size=8, optimizer__accumulate=2), Tiny(norm=False), data)
    same = {"image": np.zeros((8, *data.image_shape), np.uint8), "label": np.zeros(8, np.int32), "mask": np.ones(8, "f")}
    grads = [p.train_step(p.init(), next(on_devices(iter([same]), p.mesh)))[0] for p in (one, two)]
    kernels = [np.asarray(s.params["conv"]["kernel"] - p.init().params["conv"]["kernel"]) for s, p in zip(grads, (one, two))]
    # Every image of a micro-batch is one constant: two draws make a gradient that no single draw of it is a multiple of.
    assert np.abs(kernels[1]).max() > 0


@pytest.mark.parametrize(("accumulate", "devices"), [(2, 1), (4, 1), (4, 4)])
def test_accumulating_is_one_batch_where_rows_do_not_meet_in_batch_norm(accumulate, devices):
    model = Tiny(norm=False)
    whole, losses = steps(build(tiny_config(**SGD), model), 3)
    config = tiny_config(**SGD, optimizer__accumulate=accumulate, mesh__data=devices)
    parts, part_losses = steps(build(config, model), 3)
    np.testing.assert_allclose(part_losses, losses, rtol=2e-6)
    for (path, a), b in zip(leaves(whole).items(), leaves(parts).values(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("devices", [1, 4])
def test_micro_batch_i_is_rows_i_and_every_kth_after(devices):
    program = build(tiny_config(**SGD, optimizer__accumulate=2, mesh__data=devices))
    data, model = Blobs(), Tiny()
    rows = data.rows(1000, 16)
    state = jax.device_get(program.init())
    stats, grads = state.batch_stats, []
    for i in range(2):
        images = data.preprocess(jnp.asarray(rows["image"][i::2]), None)
        labels = jax.nn.one_hot(rows["label"][i::2], 6)

        def loss(params: Any, stats: Any = stats, images: Any = images, labels: Any = labels) -> Any:
            variables = {"params": params, "batch_stats": stats}
            out: Any = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return -(labels * jax.nn.log_softmax(out[0]["logits"])).sum(-1).mean(), out[1]["batch_stats"]

        grad, stats = jax.grad(loss, has_aux=True)(state.params)
        grads.append(grad)
    expected = jax.tree.map(lambda x, a, b: x - 0.1 * (a + b) / 2, state.params, *grads)
    new, _ = steps(program, 1)
    for got, want in ((new.params, expected), (new.batch_stats, stats)):
        for (path, a), b in zip(leaves(got).items(), leaves(want).values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6, err_msg=path)


def test_cutting_a_batch_into_micro_batches_moves_no_rows_between_devices():
    program = build(tiny_config(**SGD, optimizer__accumulate=2, mesh__data=4))
    text = program.train_step.lower(program.state, program.batch).compile().as_text()
    assert "all-reduce" in text
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute") if op in text]


def test_the_moving_average_follows_its_recursion_and_warms_up():
    program = build(tiny_config(**SGD, ema__decay=0.3))
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
    assert state.variables is state.ema


def test_without_a_moving_average_evaluation_uses_the_weights(plain):
    state = plain.init()
    assert state.ema == {}
    assert state.variables == {"params": state.params, "batch_stats": state.batch_stats}


def test_metrics_add_up_from_step_to_step():
    config = tiny_config(**SGD, optimizer__warmup_steps=4)
    program = build(config)
    state, losses = steps(program, 4)
    sums = {k: (float(s), float(w)) for k, (s, w) in state.metrics.items()}
    assert set(sums) == set(program.metrics) == {"loss", "top1", "top5", "learning_rate", "grad_norm"}
    assert sums["loss"] == (pytest.approx(16 * sum(losses), rel=1e-5), 64)
    assert sums["learning_rate"] == (pytest.approx(0.1 * (0 + 1 + 2 + 3) / 4), 4)
    assert 0 <= sums["top1"][0] <= sums["top5"][0] <= sums["top1"][1] == 64


def test_the_gradients_norm_is_that_before_clipping():
    rate = {"optimizer__name": "sgd", "optimizer__learning_rate": 1.0, "optimizer__momentum": 0.0}
    free, clipped = build(tiny_config(**rate)), build(tiny_config(**rate, optimizer__clip_norm=0.01))
    norms = []
    for program in (free, clipped):
        before = leaves(program.init().params)
        state, _ = steps(program, 1)
        moved = np.sqrt(sum(((x - before[k]) ** 2).sum() for k, x in leaves(state.params).items()))
        norms.append((float(state.metrics["grad_norm"][0]), moved))
    assert norms[0][0] == norms[1][0] == pytest.approx(norms[0][1], rel=1e-5)
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


def test_a_rate_that_throws_the_weights_to_infinity_is_a_fault_of_that_step():
    state, losses = steps(build(tiny_config(optimizer__name="sgd", optimizer__learning_rate=1e39)), 1)
    assert np.isfinite(losses).all()
    assert not all(np.isfinite(x).all() for x in leaves(state.params).values())
    assert int(state.fault["step"]) == 0


def test_every_leaf_of_the_state_is_an_array_of_its_own(plain):
    state = plain.init()
    pointers = [x.addressable_shards[0].data.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
