"""How the processes of a run find each other: process 0 listens until all others have come, and names who has not.

On each connection lines of JSON go both ways. It stays open for as long as the run lasts: `jaxcnn.distributed.peers`.
"""

import contextlib
import ipaddress
import json
import math
import queue
import select
import socket
import threading
import time
from typing import Any, NamedTuple

from jaxcnn import UserError

PATIENCE = 60.0  # seconds of silence after which a process counts as dead
BEAT = 5.0  # seconds between two signs of life
_LONGEST = 2**22  # bytes of a line
_MEND = ": see why it does not start, or give more time with --start-timeout"


class Link:
    """One end of a connection."""

    def __init__(self, connection: socket.socket):
        self.socket, self.buffer, self.sending = connection, b"", threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(BEAT)

    @property
    def here(self) -> str:
        """The address by which the other end knows this host."""
        return str(self.socket.getsockname()[0]).removeprefix("::ffff:")

    @property
    def closed(self) -> bool:
        """Whether the other end is gone and has left nothing to be read."""
        try:
            return bool(select.select([self.socket], [], [], 0)[0]) and not self.socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def send(self, **message: Any) -> None:
        """Send a message; if the other end is gone, whoever listens to it will know."""
        with contextlib.suppress(OSError), self.sending:
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, patience: float, most: float = math.inf) -> dict[str, Any] | None:
        """The next message; None if the other end is gone.

        Raises:
          TimeoutError: nothing came for `patience` seconds, or no whole message for `most`.
        """
        beats, until = 0, time.monotonic() + most
        while b"\n" not in self.buffer:
            if time.monotonic() > until:
                raise TimeoutError
            try:
                data = self.socket.recv(2**16)
            except TimeoutError:
                beats += 1  # counted, not measured: one that was itself asleep has not listened
                if beats * BEAT >= patience:
                    raise
                continue
            except OSError:
                return None
            if not data or len(self.buffer) > _LONGEST:
                return None
            self.buffer, beats = self.buffer + data, 0
        line, _, self.buffer = self.buffer.partition(b"\n")
        with contextlib.suppress(ValueError):
            if isinstance(message := json.loads(line), dict):
                return message
        return None  # not one of us


class Missing(UserError):
    """A process has not come. The command was right, as far as is known here: to start it again may help."""

    code = 1


class Place(NamedTuple):
    """Where a process stands: the address of process 0, HOST:PORT, the number of processes and its own."""

    coordinator: str
    processes: int
    process: int

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def local(self) -> bool:
        """Whether the coordinator's address is this host's loopback, which no other host can reach."""
        host = self.address[0]
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(host).is_loopback
        return host == "localhost"


Met = tuple[list[str], dict[int, Link], int]  # hosts, links, and the port of JAX's service


def _listen(address: tuple[str, int], local: bool) -> socket.socket:
    if local:
        return socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", address[1]), family=family, dualstack_ipv6=both, backlog=4096)


def gather(place: Place, timeout: float) -> Met:
    """Process 0: wait for all others, and tell them who is there and where JAX's service will be.

    Raises:
      Missing: not all came within `timeout` seconds; those there are told which.
      UserError: the coordinator's address cannot be listened on.
    """
    until, links, hosts = time.monotonic() + timeout, dict[int, Link](), {0: socket.gethostname()}
    try:
        server = _listen(place.address, place.local)
    except OSError as error:
        raise UserError(f"--coordinator {place.coordinator} cannot be listened on: {error.strerror}") from error
    arrived = queue.SimpleQueue[tuple[Link, Any]]()
    with server:
        server.settimeout(0.2)
        while len(links) < place.processes - 1:
            if time.monotonic() > until:
                words = _missing(place, {0, *links}, timeout)
                for link in links.values():
                    link.send(end=[1, words])
                    link.socket.close()
                raise Missing(words)
            with contextlib.suppress(TimeoutError):
                link = Link(server.accept()[0])
                # In a thread: whoever connects and says nothing keeps nobody waiting.
                threading.Thread(target=_greet, args=(link, arrived), daemon=True).start()
            with contextlib.suppress(queue.Empty):
                while True:
                    _admit(*arrived.get_nowait(), place, links, hosts)
    with _listen((place.address[0], 0), place.local) as free:
        port = free.getsockname()[1]
    names = [hosts[i] for i in range(place.processes)]
    for link in links.values():
        link.send(hosts=names, port=port)
    return names, links, port


def _greet(link: Link, arrived: queue.SimpleQueue[tuple[Link, Any]]) -> None:
    with contextlib.suppress(TimeoutError):
        if hello := link.receive(BEAT, most=BEAT):
            return arrived.put((link, hello))
    return link.socket.close()


def _admit(link: Link, hello: Any, place: Place, links: dict[int, Link], hosts: dict[int, str]) -> None:
    """Take up whoever presents itself as a process of this run; what else connects is shown the door."""
    match hello:
        case {"process": int(process), "processes": int(count), "host": str(host)}:
            if count != place.processes or not 0 < process < count:
                words = f"process {process} on {host} was started with --processes {count}, process 0 on {hosts[0]} "
                link.send(end=[2, f"{words}with {place.processes}: start all with the same"])
            elif process in links and not links[process].closed:
                words = f"there are two with --process {process}, on {hosts[process]} and on {host}"
                link.send(end=[2, f"{words}: give each its own number"])
            else:
                before, links[process], hosts[process] = links.get(process), link, host
                if before:
                    before.socket.close()
                return
    link.socket.close()


def _missing(place: Place, there: set[int], timeout: float) -> str:
    lost = [i for i in range(place.processes) if i not in there]
    words = f"process {lost[0]} of {place.processes} has" if len(lost) == 1 else f"processes {_few(lost)} have"
    here = f"{_few(sorted(there))} {'is' if len(there) == 1 else 'are'} there"
    return f"{words} not joined {place.coordinator} within {timeout:g} s ({here}){_MEND}"


def _few(numbers: list[int]) -> str:
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return ", ".join(map(str, numbers[:8])) + more


def report(place: Place, timeout: float) -> Met:
    """The others: report to process 0, and wait until all have.

    Raises:
      Missing: process 0 does not answer, or says who has not come.
      UserError: process 0 expects another number of processes, or has this one already.
    """
    host, port = place.address
    try:
        link = Link(connect(host, port, time.monotonic() + timeout))
    except OSError as error:
        words = f"process 0 of {place.processes} has not answered at {place.coordinator} within {timeout:g} s "
        raise Missing(f"{words}({error.strerror or 'no answer'}){_MEND}") from error
    link.send(process=place.process, processes=place.processes, host=socket.gethostname())
    with contextlib.suppress(TimeoutError):
        match link.receive(timeout + PATIENCE):
            case {"hosts": list(hosts), "port": int(jax_port)}:
                return hosts, {0: link}, jax_port
            case {"end": [int(code), str(words)]}:
                link.socket.close()
                raise (Missing if code == 1 else UserError)(words)
    link.socket.close()
    raise Missing(f"process 0 of {place.processes}, at {place.coordinator}, ended while others were still to come")


def connect(host: str, port: int, until: float) -> socket.socket:
    """A connection, tried until it succeeds or, with an OSError, until the time is over."""
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(0.1, min(5.0, until - time.monotonic())))
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
