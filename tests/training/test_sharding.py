"""One device, two and eight: the same numbers from the same code."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Blobs, Tiny, assert_same, build, leaves, steps, tiny_config

from jaxcnn import UserError
from jaxcnn.data.batches import on_devices
from jaxcnn.models import create_model
from jaxcnn.training.sharding import AXES, check_batch, make_mesh, over_rows

SGD = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.05}
# All is float32; what differs between splits is the order of sums over rows.
TOLERANCE: Any = {"rtol": 2e-5, "atol": 2e-6}


def run(devices: int, count: int = 4, **values: Any) -> tuple[Any, list[float]]:
    data = Blobs(augment="pad_crop_flip")
    program = build(tiny_config(mesh__data=devices, ema__decay=0.9, **SGD | values), Tiny(dropout=0.3), data)
    return steps(program, count)


@pytest.fixture(scope="module")
def alone() -> tuple[Any, list[float]]:
    state, losses = run(1)
    assert losses[0] != losses[-1]
    return state, losses


@pytest.mark.parametrize("devices", [2, 8])
def test_losses_statistics_and_weights_are_those_of_one_device_dropout_and_augmentation_included(alone, devices):
    state, losses = run(devices)
    np.testing.assert_allclose(losses, alone[1], rtol=2e-6)
    for (path, x), y in zip(leaves(state).items(), leaves(alone[0]).values(), strict=True):
        np.testing.assert_allclose(x, y, err_msg=path, **TOLERANCE)


def test_the_same_split_twice_is_the_same_to_the_bit():
    first, second = run(8), run(8)
    assert first[1] == second[1]
    assert_same(first[0], second[0])


def test_batch_norm_takes_its_statistics_over_the_global_batch():
    """Rows sorted by brightness: statistics of a shard would be far from those of the batch."""
    data = Blobs()
    rows = data.rows(0, 16)
    rows["image"] = np.sort(rows["image"], axis=0)
    program = build(tiny_config(mesh__data=8, **SGD))
    state = program.init()
    kernel = np.asarray(state.params["conv"]["kernel"])
    images = np.asarray(data.preprocess(rows, None)["image"])
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))  # N, H, W, C, 3, 3
    conv = np.einsum("nhwcij,ijcf->nhwf", windows, kernel)
    state, _ = program.train_step(state, next(on_devices(iter([rows]), program.mesh)))
    norm = state.batch_stats["norm"]
    np.testing.assert_allclose(norm["mean"], 0.1 * conv.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * conv.var((0, 1, 2)), rtol=1e-4)
    shards = conv.reshape(8, 2, *conv.shape[1:]).var((1, 2, 3)).mean(0)
    assert (np.abs(shards / conv.var((0, 1, 2)) - 1) > 0.1).any()


def test_devices_meet_in_all_reduces_and_one_device_meets_nobody():
    def compiled(devices: int) -> str:
        program = build(tiny_config(mesh__data=devices, **SGD))
        return program.train_step.lower(program.state, program.largest_batch).compile().as_text()

    assert "all-reduce" in compiled(2)
    assert "all-reduce" not in compiled(1)


@pytest.mark.slow
def test_resnet20_on_eight_devices_is_resnet20_on_one():
    def resnet(devices: int) -> tuple[Any, list[float]]:
        data = Blobs(image_shape=(8, 8, 3))
        program = build(tiny_config(mesh__data=devices, **SGD), create_model("resnet20", 6, jnp.float32), data)
        return steps(program, 3, data)

    (one, losses), (eight, others) = resnet(1), resnet(8)
    np.testing.assert_allclose(others, losses, rtol=1e-4)
    for (path, x), y in zip(leaves(eight.params).items(), leaves(one.params).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4, err_msg=path)


def test_a_mesh_names_its_axes_and_takes_all_devices_unless_told():
    assert make_mesh().axis_names == AXES == ("data", "model")
    assert dict(make_mesh().shape) == {"data": 8, "model": 1}
    assert make_mesh(3).devices.flatten().tolist() == jax.devices()[:3]
    assert dict(make_mesh(-1, 2).shape) == {"data": 4, "model": 2}


@dataclass(frozen=True)
class Device:
    """A GPU of one of several nodes, as JAX describes it."""

    id: int
    slice_index: int
    device_kind: str = "GPU"
    platform: str = "gpu"
    process_index: int = 0


@pytest.mark.parametrize(
    ("data", "model", "nodes"),
    [
        (-1, 1, [[0], [0], [1], [1], [2], [2]]),
        (-1, 2, [[0, 0], [1, 1], [2, 2]]),  # the rows, along `model`, stay within a node
        (1, 6, [[0, 0, 1, 1, 2, 2]]),  # three nodes do not divide `data`: as many neighbours as there are
    ],
)
def test_only_data_crosses_the_network_between_nodes(data, model, nodes):
    shuffled = [Device(i, i % 3) for i in range(6)]  # JAX's order need not be that of the nodes
    devices = shuffled if data == -1 else sorted(shuffled, key=lambda device: device.slice_index)
    found = make_mesh(data, model, devices).devices
    assert [[device.slice_index for device in row] for row in found] == nodes
    assert len(set(found.flat)) == 6


@pytest.mark.parametrize(("data", "model"), [(9, 1), (8, 2), (0, 1)])
def test_more_devices_than_there_are_is_an_error_that_says_how_many(data, model):
    with pytest.raises(UserError, match=r"config\.mesh\.data=-1"):
        make_mesh(data, model)


@pytest.mark.parametrize(
    ("batch", "devices", "accumulate", "nearest"), [(12, 8, 1, 16), (100, 8, 3, 96), (3, 8, 1, 8), (8, 2, 3, 6)]
)
def test_a_batch_that_does_not_spread_is_an_error_with_the_nearest_that_does(batch, devices, accumulate, nearest):
    with pytest.raises(UserError, match=rf"global_batch_size={batch} .* nearest that does is {nearest}$"):
        check_batch(make_mesh(devices), batch, accumulate)
    check_batch(make_mesh(devices), nearest, accumulate)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_batches_arrive_in_order_none_lost_their_rows_cut_over_the_devices(count):
    mesh, data = make_mesh(4), Blobs(8)
    sent = list(data.train_batches(0, count))
    with jax.transfer_guard("disallow"):
        arrived = list(on_devices(iter(sent), mesh))
    assert len(arrived) == count
    for batch, original in zip(arrived, sent, strict=True):
        for key, x in batch.items():
            assert x.sharding == over_rows(mesh)
            assert x.dtype == original[key].dtype
            for shard in x.addressable_shards:
                np.testing.assert_array_equal(shard.data, original[key][shard.index])
            assert [s.index[0].start for s in x.addressable_shards] == [0, 2, 4, 6]


def test_batches_are_on_their_way_before_they_are_asked_for():
    drawn = []

    def watched() -> Any:
        for batch in Blobs().train_batches(0, 6):
            drawn.append(batch)
            yield batch

    batches = on_devices(watched(), make_mesh(1))
    next(batches)
    assert len(drawn) == 3
