"""What processes tell each other: teams here are threads of one process, over real connections."""

import contextlib
import queue
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from jaxcnn.distributed import interrupt, peers, rendezvous
from jaxcnn.distributed.interrupt import Interrupt
from jaxcnn.distributed.peers import Team
from jaxcnn.distributed.rendezvous import Link

AGAIN = "; run the same command again to go on from the newest checkpoint"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "BEAT", 0.2)
    monkeypatch.setattr(peers, "BEAT", 0.2)
    monkeypatch.setattr(peers, "_FAREWELL", 0.4)


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        return near, server.accept()[0]


class Party:
    """Teams of one run on hosts a, b, c, …, and how each was ended."""

    def __init__(self, count: int):
        pairs = [connected() for _ in range(count - 1)]
        self.sockets = [end for pair in pairs for end in pair]
        self.ends: list[queue.SimpleQueue[tuple[int, str]]] = [queue.SimpleQueue() for _ in range(count)]
        hosts = [chr(ord("a") + i) for i in range(count)]
        links = [{i + 1: Link(pair[0]) for i, pair in enumerate(pairs)}, *({0: Link(pair[1])} for pair in pairs)]
        self.teams = [
            Team(i, hosts, links[i], end=lambda code, words, i=i: self.ends[i].put((code, words))) for i in range(count)
        ]

    def ended(self, process: int) -> tuple[int, str]:
        return self.ends[process].get(timeout=20)

    def kill(self, process: int) -> None:
        """Its connections close, as the system does it for a process that has died."""
        self.teams[process].ending.acquire(blocking=False)
        for link in self.teams[process].links.values():
            with contextlib.suppress(OSError):
                link.socket.shutdown(socket.SHUT_RDWR)

    def all(self, call: Any) -> list[Any]:
        """`call` of each team, each in a thread of its own."""
        results: list[Any] = [None] * len(self.teams)

        def run(i: int) -> None:
            results[i] = call(self.teams[i])

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(self.teams))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        return results


@pytest.fixture
def party(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made = []

    def make(count: int) -> Party:
        made.append(Party(count))
        return made[-1]

    yield make
    for one in made:
        for end in one.sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for team in one.teams:
            for listener in team.listeners:
                listener.join(10)
        for end in one.sockets:
            end.close()


def test_one_alone_asks_nobody():
    team, interrupt = Team(), Interrupt()
    assert team.processes == 1
    assert team.agree(interrupt) is interrupt
    assert team.tell({"a": 1}) == {"a": 1}
    team.finish()
    team.leave()


def test_what_process_0_tells_all_know_in_its_order(party):
    def talk(team: Team) -> Any:
        return [team.tell(f"{team.process}:{i}") for i in range(3)]

    assert party(3).all(talk) == [["0:0", "0:1", "0:2"]] * 3


def test_nobody_is_through_before_all_are_and_then_none_is_missed(party):
    run, came, left = party(4), [], []

    def end(team: Team) -> None:
        time.sleep(0.1 * team.process)
        came.append(team.process)
        team.finish()
        left.append(len(came))
        team.leave()
        run.kill(team.process)

    run.all(end)
    assert left == [4] * 4
    time.sleep(0.5)
    assert all(ends.empty() for ends in run.ends)


@pytest.mark.parametrize("dead", [0, 1, 3])
def test_one_that_dies_ends_all_others_who_name_it(dead, party):
    run, start = party(4), time.monotonic()
    run.kill(dead)
    name = f"process {dead} of 4 on {'abcd'[dead]}"
    assert [run.ended(i) for i in range(4) if i != dead] == [(1, f"{name} died{AGAIN}")] * 3
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("silent", [0, 2])
def test_one_that_is_silent_for_long_counts_as_dead(silent, party, monkeypatch):
    monkeypatch.setattr(peers, "PATIENCE", 1.0)
    run = party(3)
    time.sleep(2)
    assert all(ends.empty() for ends in run.ends)  # signs of life are enough
    run.teams[silent].ending.acquire()
    for link in run.teams[silent].links.values():  # its cable is cut
        monkeypatch.setattr(link, "send", lambda **_: None)
    name = f"process {silent} of 3 on {'abc'[silent]}"
    words = f"{name} was not heard of for 1 s{AGAIN}"
    assert [run.ended(i) for i in range(3) if i != silent] == [(1, words)] * 2


@pytest.mark.parametrize("process", [0, 2])
def test_an_error_of_one_ends_all_others_with_its_code_and_words(process, party):
    run = party(3)
    run.teams[process].fail(2, "image 7 is cut short")
    name = f"process {process} of 3 on {'abc'[process]}"
    assert [run.ended(i) for i in range(3) if i != process] == [(2, f"{name}: image 7 is cut short")] * 2
    assert run.ends[process].empty()  # its own words are for it to say


def test_the_first_cause_is_the_one_that_is_told(party):
    run = party(4)
    run.teams[2].fail(2, "first")
    run.ended(0)
    run.kill(3)
    assert [run.ended(i)[1] for i in (1,)] == ["process 2 of 4 on c: first"]
    time.sleep(0.3)
    assert all(run.ends[i].empty() for i in (0, 1, 2))


@pytest.mark.parametrize("seed", range(8))
def test_all_stop_at_one_point_whoever_is_asked_and_whenever(seed, party):
    rng = random.Random(seed)
    run, interrupts = party(4), [Interrupt() for _ in range(4)]
    asked = rng.sample(range(4), rng.choice([1, 1, 2, 4]))
    after = {i: rng.randrange(30) for i in asked}
    turn = threading.Barrier(4)

    def loop(team: Team) -> Any:
        mine, interrupt = random.Random(f"{seed} {team.process}"), interrupts[team.process]
        agreed = team.agree(interrupt)
        for step in range(200):
            if step == after.get(team.process):
                interrupt.signal = signal.SIGTERM
            if found := agreed.signal:
                return step, found, agreed.signal
            time.sleep(mine.random() * 0.004)
            if step % 3 == 2 and not turn.broken:  # in step with the others, a few points apart
                with contextlib.suppress(threading.BrokenBarrierError):
                    turn.wait(0.3)
        return 200, None, None

    results = run.all(loop)
    assert len(set(results)) == 1
    step, found, again = results[0]
    assert min(after.values()) <= step < 200
    assert found is again is signal.SIGTERM


def test_a_signal_after_the_last_point_stops_nobody(party):
    run = party(2)

    def loop(team: Team) -> Any:
        interrupt = Interrupt()
        agreed = team.agree(interrupt)
        seen = [agreed.signal for _ in range(5)]
        interrupt.signal = signal.SIGINT
        team.finish()
        return seen

    assert run.all(loop) == [[None] * 5] * 2


def test_the_last_line_has_no_escapes_and_is_one(capfd, monkeypatch):
    codes = []
    monkeypatch.setattr(interrupt.os, "_exit", codes.append)
    interrupt.end_process(2, "file a\x1b[31m\nb is damaged")
    assert capfd.readouterr().err == "jaxcnn: file a?[31m b is damaged\n"
    assert codes == [2]
