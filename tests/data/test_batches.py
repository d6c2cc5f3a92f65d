"""What is read, in which order, by whom."""

import gc
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn import UserError
from jaxcnn.data.batches import Slice, eval_batches, steps_per_epoch, train_batches
from jaxcnn.data.images.augment_host import parse
from jaxcnn.data.images.decode import resize
from jaxcnn.data.reader import Reader
from jaxcnn.data.sources import Source


class Numbers(Source):
    """A source whose example i is the image and the label i."""

    def __init__(self, size):
        super().__init__("numbers", "all", size, tuple(map(str, range(size))), (2, 2, 1), (0.5,), (0.5,))

    def _read(self, index):
        return {"image": np.full((2, 2, 1), index % 256, np.uint8), "label": index}


def reader(source, seed=0, **kwargs):
    return Reader(source, (2, 2), 0, parse("none"), seed=seed, **kwargs)


def labels(batches):
    return [b["label"].tolist() for b in batches]


def train(size, batch, start, stop, seed=0, **kwargs):
    return labels(train_batches([reader(Numbers(size), seed)], batch, start, stop, **kwargs))


sizes = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, 12), st.sampled_from([1, 2, 3, 4])))


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_evaluation_counts_every_example_once_whatever_the_batch_and_the_processes(case):
    size, local, processes = case
    shares = [
        list(eval_batches([reader(Numbers(size))], local * processes, part=Slice(p, processes)))
        for p in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1, "a process would wait for the others"
    seen = [int(x) for share in shares for b in share for x in b["label"][b["mask"] == 1]]
    assert sorted(seen) == list(range(size))
    assert all(b["image"].shape == (local, 2, 2, 1) for share in shares for b in share)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.sampled_from([1, 2, 4]), st.integers(0, 2**31 - 1))
def test_global_batches_do_not_depend_on_the_processes_nor_on_restarts(local, processes, seed):
    batch, size, stop = local * processes, 45, 2 * (45 // (local * processes)) + 1
    whole = train(size, batch, 0, stop, seed)
    shares = [train(size, batch, stop // 2, stop, seed, part=Slice(p, processes)) for p in range(processes)]
    joined = [sum(parts, []) for parts in zip(*shares, strict=True)]
    assert joined == whole[stop // 2 :]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.sampled_from([1, 2, 3, 4]), st.integers(0, 2**31 - 1))
def test_an_epoch_has_every_example_once_also_where_it_is_no_whole_number_of_batches(size, local, processes, seed):
    batch, epochs = local * processes, 3
    if batch > size:
        return
    steps = -(-epochs * size // batch)
    shares = [train(size, batch, 0, steps, seed, part=Slice(p, processes)) for p in range(processes)]
    assert all(len(b) == local for share in shares for b in share)
    stream = [x for parts in zip(*shares, strict=True) for part in parts for x in part]
    for epoch in range(epochs):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert steps_per_epoch(size, batch) * batch == size


def test_order_is_a_function_of_the_seed_and_neighbouring_seeds_share_none():
    orders = {seed: [tuple(sum(train(40, 8, 5 * e, 5 * e + 5, seed), [])) for e in range(3)] for seed in range(3)}
    assert orders[0] == [tuple(sum(train(40, 8, 5 * e, 5 * e + 5, 0), [])) for e in range(3)]
    assert len({order for epochs in orders.values() for order in epochs}) == 9


def test_worker_processes_read_the_same_batches_as_threads():
    batches: Any = train_batches([reader(Numbers(40))], 8, 2, 9, workers=2)
    assert labels(batches) == train(40, 8, 2, 9)
    batches.close()
    del batches
    gc.collect()  # now, not while another test imports TensorFlow: Grain's finalizers would disturb it


def test_masks_are_one_in_training_and_zero_for_padding():
    assert all((b["mask"] == 1).all() for b in train_batches([reader(Numbers(9))], 4, 0, 4))
    assert [b["mask"].tolist() for b in eval_batches([reader(Numbers(5))], 4)] == [[1, 1, 1, 1], [1, 0, 0, 0]]


def test_dtypes_are_those_of_the_step():
    batch = next(train_batches([reader(Numbers(9))], 4, 0, 1))
    whole = dict.fromkeys(("label", "epoch", "example", "broken"), np.int32)
    assert {k: v.dtype for k, v in batch.items()} == {"image": np.uint8, "mask": np.float32, **whole}


def test_a_damaged_example_is_an_error_that_names_it():
    class Damaged(Numbers):
        def _read(self, index):
            raise UserError(f"example {index} is damaged")

    with pytest.raises(UserError, match=r"example \d+ is damaged"):
        list(islice(train_batches([reader(Damaged(9))], 3, 0, 3), 1))


def test_a_batch_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="global_batch_size=10 is more than the 9"):
        steps_per_epoch(9, 10)
    with pytest.raises(UserError, match="does not divide by 4 processes"):
        train(9, 6, 0, 1, part=Slice(0, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_keeps_what_fits_and_the_mean_of_what_does_not(channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 20, channels), np.uint8)
    assert resize(image, (20, 20)) is image
    small = resize(image, (5, 5))
    assert small.shape == (5, 5, channels)
    assert small.dtype == np.uint8
    assert abs(float(small.mean()) - float(image.mean())) < 3, "antialiased: each pixel is a mean, not a sample"
    assert resize(image[:12], (20, 20)).shape == (20, 20, channels)
