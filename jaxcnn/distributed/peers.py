"""The processes of one run: who is there, who is there no more, and where all of them stop. Nothing here is JAX's.

Each process holds one TCP connection to process 0, on which lines of JSON go both ways. The system closes it when a
process dies, so the others know at once; where a whole host or its network is gone, silence says so. What process 0
knows it tells all others.
"""

import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from jaxcnn.distributed.interrupt import Cut, Interrupt, end_process
from jaxcnn.distributed.rendezvous import BEAT, PATIENCE, Link

_FAREWELL = 5.0  # seconds in which the others hear why it ends


class Team:
    """This process among those of its run; without `links` it is the only one.

    Args:
      process: its number.
      hosts: the host of each process.
      links: connections by process: of process 0 to all others, of the others to process 0.
      end: ends this process with a code and a line.
    """

    def __init__(
        self,
        process: int = 0,
        hosts: list[str] | None = None,
        links: dict[int, Link] | None = None,
        end: Callable[[int, str], object] = end_process,
    ):
        self.process, self.hosts, self.links, self.end = process, hosts or [socket.gethostname()], links or {}, end
        self.processes = len(self.hosts)
        self.ending, self.told, self.finished = threading.Lock(), queue.SimpleQueue[Any](), threading.Event()
        self.done, self.left = set[int](), set[int]()
        self.changed, self.deciding = threading.Condition(), False  # the rest is about where all stop
        self.point, self.last, self.number = 0, sys.maxsize, 0
        self.points: dict[int, int] | None = None
        self.listeners = [threading.Thread(target=self._listen, args=(peer,), daemon=True) for peer in self.links]
        for listener in self.listeners:
            listener.start()
        if self.links:
            threading.Thread(target=self._beat, daemon=True).start()

    def name(self, process: int) -> str:
        """How a message names a process."""
        return f"process {process} of {self.processes} on {self.hosts[process]}"

    def tell(self, value: Any = None) -> Any:
        """What process 0 gives here, in every process; the others wait for it. JSON."""
        if self.process:
            return self.told.get()
        self._send(tell=value)
        return value

    def finish(self) -> None:
        """Wait until all processes are here."""
        self._done(self.process)
        if self.process:
            self._send(done=True)
        self.finished.wait()

    def leave(self) -> None:
        """Part in peace: that the connections close from now on means nothing. JAX must be shut down by now."""
        self._send(bye=True)
        self._farewell()

    def fail(self, code: int, words: str) -> None:
        """Tell all others why this process ends, which ends them with the same code; then it is for the caller to end.

        Where another process's end is known already, that is the cause, and this does not return.
        """
        if not self.ending.acquire(blocking=False):
            time.sleep(2 * _FAREWELL)  # a listener ends the process meanwhile
        self._send(end=[code, f"{self.name(self.process)}: {words}"])
        self._farewell()

    def stop(self, code: int, words: str) -> None:
        """End all processes at once."""
        if self.links:
            self.fail(code, words)
        self.end(code, words)

    def agree(self, interrupt: Interrupt) -> Any:
        """An `Interrupt` whose `signal` all processes read at the same points, and there find the same."""
        return Agreed(self, interrupt) if self.links else interrupt

    def pass_point(self, received: signal.Signals | None) -> signal.Signals | None:
        """Pass a point at which the run can stop, the n-th for the n-th time in every process: the signal to stop by.

        One process that has `received` a signal asks process 0, which asks all how many points they have passed; until
        it has chosen the last one, none passes another.
        """
        if received and not self.number:
            self.number = int(received)
            if self.process:
                self._send(stop=self.number)
            else:
                self._decide(self.number)
        with self.changed:
            self.changed.wait_for(lambda: not self.deciding)
            self.point += 1
            return signal.Signals(self.number) if self.point > self.last else None

    def _send(self, **message: Any) -> None:
        for link in self.links.values():
            link.send(**message)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            self._send(beat=True)

    def _listen(self, peer: int) -> None:
        again = "; run the same command again to go on from the newest checkpoint"
        while peer not in self.left:
            try:
                message = self.links[peer].receive(PATIENCE)
            except TimeoutError:
                return self._end_all(1, f"{self.name(peer)} was not heard of for {PATIENCE:.0f} s{again}")
            if message is None:
                return self._end_all(1, f"{self.name(peer)} died{again}")
            self._hear(peer, message)
            if "end" in message:
                return None
        return None

    def _hear(self, peer: int, message: dict[str, Any]) -> None:
        match message:
            case {"tell": value}:
                self.told.put(value)
            case {"done": _}:
                self._done(peer)
            case {"bye": _}:
                self.left.add(peer)
            case {"end": [int(code), str(words)]}:
                self._end_all(code, words)
            case {"stop": int(number)}:
                self._decide(number)
            case {"where": _}:
                self.links[peer].send(at=self._hold())
            case {"at": int(point)}:
                self._note(peer, point)
            case {"until": [int(point), int(number)]}:
                self._release(point, number)

    def _end_all(self, code: int, words: str) -> None:
        if self.ending.acquire(blocking=False):
            if not self.process:
                self._send(end=[code, words])
                self._farewell()
            self.end(code, words)

    def _farewell(self) -> None:
        """Wait until the others have gone, or at least heard: what is not read yet may go down with the connection."""
        until = time.monotonic() + _FAREWELL
        for listener in self.listeners:
            if listener is not threading.current_thread():
                listener.join(max(0.0, until - time.monotonic()))

    def _done(self, process: int) -> None:
        with self.changed:
            self.done.add(process)
        if self.process and 0 in self.done:
            self.finished.set()
        elif len(self.done) == self.processes:
            self._send(done=True)
            self.finished.set()

    def _hold(self) -> int:
        with self.changed:
            self.deciding = True
            return self.point

    def _decide(self, number: int) -> None:
        with self.changed:
            if self.points is not None:
                return  # it is being decided, or has been
            self.points, self.number = {}, number
        self._send(where=True)
        self._note(0, self._hold())

    def _note(self, process: int, point: int) -> None:
        with self.changed:
            if self.points is None:
                return
            self.points[process] = point
            if len(self.points) < self.processes:
                return
            last = max(self.points.values())
        self._send(until=[last, self.number])
        self._release(last, self.number)

    def _release(self, last: int, number: int) -> None:
        with self.changed:
            self.last, self.number, self.deciding = last, number, False
            self.changed.notify_all()


class Agreed:
    """An `Interrupt` of several processes; every reading of `signal` is a point that all of them pass."""

    def __init__(self, team: Team, interrupt: Interrupt):
        self.team, self.interrupt = team, interrupt

    @property
    def signal(self) -> signal.Signals | None:
        """The signal by which all stop here, or None."""
        return self.team.pass_point(self.interrupt.signal)

    def next(self, items: Iterator[Any], *default: Any) -> Any:
        """As the built-in `next`, and a point too; the wait has its end in `config.data.timeout`.

        Raises:
          Cut: all stop here.
        """
        if self.signal:
            raise Cut
        return next(items, *default)

    @property
    def unsaved(self) -> bool:
        """As of `Interrupt`."""
        return self.interrupt.unsaved

    @unsaved.setter
    def unsaved(self, value: bool) -> None:
        self.interrupt.unsaved = value
