"""Batches that are waited for."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import pytest

from jaxcnn.data import batches as module
from jaxcnn.data.batches import ReadingFault, on_devices, read_ahead, watched


class Clock:
    """Stands in for `time`: 100 s pass between two looks at it once it `hurries`."""

    def __init__(self) -> None:
        self.hurries, self.ahead = False, 0.0

    def monotonic(self) -> float:
        self.ahead += 100 * self.hurries
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def numbers(closed: list[str], hang: threading.Event | None = None, error: Exception | None = None) -> Iterator[int]:
    try:
        yield from range(3)
        if hang:
            hang.wait()
        if error:
            raise error
    finally:
        closed.append(threading.current_thread().name)


def test_all_come_in_order_and_the_source_is_closed_in_its_thread():
    closed: list[str] = []
    assert list(watched(lambda: numbers(closed), 60)) == [0, 1, 2]
    assert closed == ["jaxcnn-data"]


def test_a_consumer_that_ends_early_closes_the_source():
    closed = []

    class Endless:  # No generator: that would close itself once it is forgotten.
        def __next__(self) -> int:
            return 0

        def close(self) -> None:
            closed.append(threading.current_thread().name)

    batches: Any = watched(Endless, 60)
    assert next(batches) == 0
    batches.close()
    assert closed == ["jaxcnn-data"]


@pytest.mark.parametrize("error", [None, KeyError("label")])
def test_the_end_of_what_is_on_the_devices_is_the_end_of_the_reading(error):
    closed: list[str] = []
    source = watched(lambda: ({"label": np.array([i])} for i in numbers(closed, error=error)), 60)
    batches = on_devices(source, jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1]), ahead=0)
    assert next(batches)["label"].tolist() == [0]
    if error:
        with pytest.raises(KeyError):
            list(batches)
    else:
        batches.close()
    assert closed == ["jaxcnn-data"]
    assert next(source, None) is None


def test_no_more_is_read_than_is_wanted_soon():
    read = []
    batches = watched(lambda: (read.append(i) or i for i in range(100)), 60)
    assert next(batches) == 0
    time.sleep(0.2)
    assert len(read) <= 3
    batches.close()  # type: ignore[attr-defined]


def test_an_error_of_the_source_is_the_consumers():
    batches = watched(lambda: numbers([], error=ValueError("broken image")), 60)
    with pytest.raises(ValueError, match="broken image"):
        list(batches)


def test_a_source_that_hangs_is_said_soon_an_error_later_and_left_behind(clock, monkeypatch, capsys):
    monkeypatch.setattr(module, "_CLOSING", 0.1)
    monkeypatch.setattr(module, "LEFT_BEHIND", [])
    hang = threading.Event()
    batches = watched(lambda: numbers([], hang), 600.0)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    clock.hurries = True
    with pytest.raises(ReadingFault, match=r"no batch for 600 s, .*config\.data\.timeout") as caught:
        next(batches)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "waiting    no batch for 60 s\n"
    assert len(module.LEFT_BEHIND) == 1
    hang.set()
    module.LEFT_BEHIND[0].join(30)
    assert not module.LEFT_BEHIND[0].is_alive()


def test_batches_in_shared_memory_are_copied_before_it_is_used_again():
    def source() -> Iterator[dict[str, np.ndarray]]:
        memory = {"image": np.zeros(3, np.uint8), "label": np.zeros(1, np.int32)}
        for i in range(4):
            for array in memory.values():
                array[:] = i
            yield memory

    kept = list(watched(source, 600.0, shared=True))
    for name in ("image", "label"):
        assert [int(batch[name][0]) for batch in kept] == [0, 1, 2, 3]


def rows(index: int) -> dict[str, np.ndarray]:
    return {"image": np.full((4, 4), index % 256, np.uint8)}


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSTOP, r"config\.data\.timeout")])
def test_a_worker_process_that_dies_or_stops_is_named_and_none_is_left(number, words, clock, monkeypatch):
    monkeypatch.setattr(module, "_CLOSING", 1.0)
    before = set(multiprocessing.active_children())
    batches = read_ahead(grain.MapDataset.range(100_000).map(rows), workers=2, prefetch=2, timeout=600.0)
    for _ in range(4):
        next(batches)
    workers = set(multiprocessing.active_children()) - before
    victim = sorted(workers, key=lambda worker: worker.pid or 0)[-1]
    os.kill(victim.pid or 0, number)
    clock.hurries = number == signal.SIGSTOP
    with pytest.raises(ReadingFault, match=words) as caught:
        for _ in batches:
            pass
    assert str(victim.pid) in str(caught.value)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode is not None


def test_a_worker_that_dies_before_its_first_batch_is_noticed():
    before = set(multiprocessing.active_children())

    def kill_the_first() -> None:
        while not (workers := set(multiprocessing.active_children()) - before):
            time.sleep(0.001)
        os.kill(workers.pop().pid or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    with pytest.raises(ReadingFault, match="SIGKILL"):
        list(read_ahead(grain.MapDataset.range(10**6).map(rows), workers=2, prefetch=2, timeout=600.0))
    killer.join()
