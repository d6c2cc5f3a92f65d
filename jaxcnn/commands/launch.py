"""`jaxcnn launch --processes N -- train …`: several processes of this machine, as one run over the loopback network."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any

from jaxcnn import UserError
from jaxcnn.commands.children import Children
from jaxcnn.commands.options import Parser, count

_COMMANDS = ("train", "evaluate")
_GRACE = 30.0  # seconds that the others have to end once one has failed, or has saved and stopped


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
    with Children() as children:
        for i in range(number):
            _start(children, [*start, "--process", str(i), *command[1:]], i, number, arguments.devices_per_process)
        lines = [
            threading.Thread(target=_pass_on, args=(process.stdout, f"[{i}] "), daemon=True)
            for i, process in enumerate(children.processes)
            if process.stdout
        ]
        for thread in lines:
            thread.start()
        code, words = _outcome(children.processes)
    for thread in lines:
        thread.join(1)  # What the others had to say comes before the last line.
    if words:
        resumes = ", it goes on from its newest checkpoint if there is one" if command[0] == "train" else ""
        print(f"jaxcnn: {words}; run the same command again{resumes}", file=sys.stderr, flush=True)
    return code


def _start(children: Children, words: list[str], index: int, count: int, devices: int) -> None:
    """Start one process; process 0 has our streams."""
    mine = range(index * devices, (index + 1) * devices)
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, mine))}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if index else {}
    children.start(words, partial(_keep_to_share, index, count), env=env, **piped)


def _keep_to_share(index: int, count: int) -> None:
    """Run on this process's share of the cores: XLA makes as many threads as it may use cores."""
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        share = len(cores) // count
        mine = cores[index * share : (index + 1) * share] or [cores[index % len(cores)]]
        os.sched_setaffinity(0, mine)


def _pass_on(lines: Any, prefix: str) -> None:
    for line in lines:
        with contextlib.suppress(OSError):  # nobody may read it any more; the process is to go on
            sys.stderr.buffer.write(prefix.encode() + line)
            sys.stderr.buffer.flush()


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
            if number == signal.SIGABRT:  # By JAX, where another was silent or did not come.
                how += ": JAX's lines above say which process it missed"
            return 128 + number, f"{name} {how}"
        if not first and any(codes):
            first, until = next(filter(None, codes)), time.monotonic() + _GRACE
        if None not in codes or time.monotonic() > until:
            return first, ""
        time.sleep(0.05)
