"""How processes find each other: threads here stand for processes."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from jaxcnn import UserError
from jaxcnn.distributed import rendezvous
from jaxcnn.distributed.rendezvous import Link, Missing, Place, gather, report


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "BEAT", 0.2)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def close(links: dict[int, Link]) -> None:
    for link in links.values():
        link.socket.close()


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What each call gave or raised, each in a thread of its own."""
    results: list[Any] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            results[i] = calls[i]()
        except UserError as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


def meet(address: str, processes: int, *present: int, timeout: float = 20.0) -> list[Any]:
    """What `gather` or `report` gave or raised in each process that is `present`."""

    def one(i: int) -> Any:
        place = Place(address, processes, i)
        return report(place, timeout) if i else gather(place, timeout)

    return together(*(lambda i=i: one(i) for i in present))


def test_all_know_the_hosts_and_the_port_of_jax():
    results = meet(f"127.0.0.1:{free_port()}", 4, 0, 1, 2, 3)
    assert len({port for _, _, port in results}) == 1
    assert all(hosts == [socket.gethostname()] * 4 for hosts, _, _ in results)
    assert [sorted(links) for _, links, _ in results] == [[1, 2, 3], [0], [0], [0]]
    for _, links, _ in results:
        assert {link.here for link in links.values()} == {"127.0.0.1"}
        close(links)


@pytest.mark.parametrize(
    ("present", "words"),
    [
        ((0, 1, 3), "process 2 of 4 has not joined {address} within 0.5 s (0, 1, 3 are there)"),
        ((0,), "processes 1, 2, 3 have not joined {address} within 0.5 s (0 is there)"),
        ((1, 2), "process 0 of 4 has not answered at {address} within 0.5 s (Connection refused)"),
    ],
)
def test_who_is_missing_is_named_by_all_who_are_there(present, words):
    address = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    errors = meet(address, 4, *present, timeout=0.5)
    assert time.monotonic() - start < 15
    for error in errors:
        assert isinstance(error, Missing)
        assert str(error).startswith(words.format(address=address))
        assert error.code == 1


def test_processes_that_differ_in_their_number_are_refused_and_named():
    port = free_port()
    four, three = Place(f"127.0.0.1:{port}", 4, 0), Place(f"127.0.0.1:{port}", 3, 2)
    missing, refused = together(lambda: gather(four, 1.0), lambda: report(three, 1.0))
    assert isinstance(missing, Missing)
    assert "process 2 on " in str(refused)
    assert "was started with --processes 3, process 0 on " in str(refused)
    assert refused.code == 2


def test_two_processes_of_one_number_are_refused():
    place = f"127.0.0.1:{free_port()}"
    _, *workers = together(
        lambda: gather(Place(place, 3, 0), 1.0), *[lambda: report(Place(place, 3, 1), 1.0) for _ in range(2)]
    )
    assert any("there are two with --process 1" in str(error) for error in workers)


def test_one_that_died_before_all_were_there_may_come_again():
    place = f"127.0.0.1:{free_port()}"

    def died_and_came_again() -> Any:
        early = Link(rendezvous.connect(*Place(place, 3, 1).address, time.monotonic() + 10))
        early.send(process=1, processes=3, host="early")
        early.socket.close()
        return report(Place(place, 3, 1), 10)

    def late() -> Any:
        time.sleep(1)
        return report(Place(place, 3, 2), 10)

    results = together(lambda: gather(Place(place, 3, 0), 10), died_and_came_again, late)
    assert [hosts for hosts, _, _ in results] == [[socket.gethostname()] * 3] * 3
    for _, links, _ in results:
        close(links)


def test_what_is_no_process_of_ours_is_left_alone():
    port = free_port()
    strangers = []

    def stranger_and_worker() -> Any:
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": 1}\n', b"\xff\n"):
            strangers.append(rendezvous.connect("127.0.0.1", port, time.monotonic() + 10))
            strangers[-1].sendall(words)
        return report(Place(f"127.0.0.1:{port}", 2, 1), 20)

    results = together(lambda: gather(Place(f"127.0.0.1:{port}", 2, 0), 20), stranger_and_worker)
    assert [sorted(links) for _, links, _ in results] == [[1], [0]]
    for _, links, _ in results:
        close(links)
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize(
    ("host", "reached"), [("127.0.0.1", False), ("localhost", False), (socket.gethostname(), True)]
)
def test_a_loopback_coordinator_listens_on_loopback_only(host, reached):
    place = Place(f"{host}:0", 2, 0)
    assert place.local != reached
    with rendezvous._listen((host, 0), place.local) as server:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", server.getsockname()[1]), timeout=5).close()
        other = ("127.0.0.2", server.getsockname()[1])  # of this host too: whoever listens on all addresses answers
        if reached:
            socket.create_connection(other, timeout=5).close()
        else:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(other, timeout=5)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--coordinator {address} cannot be listened on: Address already in use"):
            gather(Place(address, 2, 0), 1)


@pytest.mark.parametrize(("text", "address"), [("node1:80", ("node1", 80)), ("[::1]:29500", ("::1", 29500))])
def test_addresses_are_of_either_family(text, address):
    assert Place(text, 2, 0).address == address


def test_strangers_that_say_nothing_or_never_end_keep_nobody_waiting():
    address, over = f"127.0.0.1:{free_port()}", threading.Event()

    def drip() -> None:
        port = int(address.split(":")[1])
        with contextlib.suppress(OSError), rendezvous.connect("127.0.0.1", port, time.monotonic() + 10) as stranger:
            while not over.wait(0.05):
                stranger.sendall(b"x")

    strangers = [threading.Thread(target=drip) for _ in range(3)]
    for stranger in strangers:
        stranger.start()
    try:
        (missing,) = meet(address, 2, 0, timeout=1.0)
        assert isinstance(missing, Missing)
        began = time.monotonic()
        (hosts, first, _), (_, second, _) = meet(address, 2, 0, 1)
        assert len(hosts) == 2
        assert time.monotonic() - began < 10
        close(first)
        close(second)
    finally:
        over.set()
        for stranger in strangers:
            stranger.join(10)
