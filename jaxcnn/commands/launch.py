"""`jaxcnn launch --processes N -- train …`: several processes of this machine, as one run over the loopback network."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxcnn import UserError
from jaxcnn.commands.options import Parser, count

_COMMANDS = ("train", "evaluate")
_GRACE = 30.0  # seconds that the others have to end once one has failed, or has saved and stopped
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main(argv: list[str]) -> int:
    """Run the command in several processes; the exit code is that of the first to fail, or 0."""
    words = f"{__doc__} Process 0 has this terminal; lines of the others begin with their number, [2]."
    parser = Parser("jaxcnn launch", description=words, usage="jaxcnn launch --processes N [options] -- COMMAND …")
    parser.add_argument("--processes", metavar="N", type=partial(count, most=1024), required=True, help="how many")
    words = "devices of each: so many of the GPUs, or a CPU as so many (default: 1)"
    parser.add_argument("--devices-per-process", metavar="K", type=partial(count, most=1024), default=1, help=words)
    ours = argv.index("--") if "--" in argv else len(argv)
    arguments, command = parser.parse_args(argv[:ours]), argv[ours + 1 :]
    if not command or command[0] not in _COMMANDS:
        raise UserError(f"launch: give the command after --, {' or '.join(_COMMANDS)}: launch --processes 4 -- train …")
    for word in ("--coordinator", "--processes", "--process"):
        if any(given == word or given.startswith(f"{word}=") for given in command):
            raise UserError(f"launch: it sets {word} itself, leave that out")
    with socket.create_server(("127.0.0.1", 0)) as free:
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    number = arguments.processes
    hosts = ["--coordinator", coordinator, "--processes", str(number)]
    start = [sys.executable, "-m", "jaxcnn.cli", command[0], *hosts]
    with _forwarding() as processes:
        for i in range(number):
            words = [*start, "--process", str(i), *command[1:]]
            processes.append(_start(words, i, number, arguments.devices_per_process))
        lines = [
            threading.Thread(target=_pass_on, args=(process.stdout, f"[{i}] "), daemon=True)
            for i, process in enumerate(processes)
            if process.stdout
        ]
        for thread in lines:
            thread.start()
        code, words = _outcome(processes)
    for thread in lines:
        thread.join(1)  # What the others had to say comes before the last line.
    if words:
        print(f"jaxcnn: {words}", file=sys.stderr, flush=True)
    return code


def _start(words: list[str], index: int, count: int, devices: int) -> subprocess.Popen[bytes]:
    """A process of its own group, so that Ctrl-C reaches it once, by way of us."""
    mine = range(index * devices, (index + 1) * devices)
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, mine))}
    return subprocess.Popen(
        words, env=env, process_group=0, preexec_fn=_before(index, count), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if index else None, stderr=subprocess.STDOUT if index else None,
    )  # fmt: skip


def _before(index: int, count: int) -> Callable[[], None]:
    """What the child does before it is what it will be: it dies with us, and keeps to its share of the cores.

    XLA makes as many threads as it may use cores.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def before() -> None:
        if libc:
            libc.prctl(_KILL_WITH_PARENT, signal.SIGKILL)
            cores = sorted(os.sched_getaffinity(0))
            share = len(cores) // count
            mine = cores[index * share : (index + 1) * share] or [cores[index % len(cores)]]
            os.sched_setaffinity(0, mine)
        if os.getppid() != parent:
            os._exit(1)

    return before


def _pass_on(lines: Any, prefix: str) -> None:
    for line in lines:
        with contextlib.suppress(OSError):  # nobody may read it any more; the process is to go on
            sys.stderr.buffer.write(prefix.encode() + line)
            sys.stderr.buffer.flush()


@contextlib.contextmanager
def _forwarding() -> Any:
    """Processes to which SIGTERM and Ctrl-C go on as they come, the third time as SIGKILL; none outlives the block."""
    processes: list[subprocess.Popen[bytes]] = []
    received = 0

    def forward(number: int, _: object) -> None:
        nonlocal received
        received += 1
        for process in processes:
            process.send_signal(number if received < 3 else signal.SIGKILL)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(processes: list[subprocess.Popen[bytes]]) -> tuple[int, str]:
    """Wait for all; return the exit code of the first to fail, or 0, and words that name one that was killed.

    The others have a while to end once one has failed or stopped, but none once one was killed.
    """
    first, until = 0, float("inf")
    while True:
        codes = [process.poll() for process in processes]
        killed = [i for i, code in enumerate(codes) if code and code < 0]
        if killed and not first:
            number = -(codes[killed[0]] or 0)
            name = f"process {killed[0]} of {len(processes)} on {socket.gethostname()}"
            how = f"was ended by {signal.Signals(number).name}, and the others with it"
            return 128 + number, f"{name} {how}; run the same command again to go on from the newest checkpoint"
        if not first and any(codes):
            first, until = next(filter(None, codes)), time.monotonic() + _GRACE
        if None not in codes or time.monotonic() > until:
            return first, ""
        time.sleep(0.05)
