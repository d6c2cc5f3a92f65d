"""Processes that are measured in turn, each stopped by a signal but for while it is asked."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


class Competitor:
    """A process in a group of its own. It says a line once it is ready, and answers each number with a line of JSON.

    Attributes:
      ready: the line that it has said; "" where it ended instead.
    """

    def __init__(self, command: Sequence[str], settings: Mapping[str, str] | None = None):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | dict(settings or {})
        self.process: Any = subprocess.Popen(command, start_new_session=True, env=environment, **pipes)
        self.ready: str = self.process.stdout.readline()
        if self.ready:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def ask(self, number: int) -> dict[str, float]:
        """Return the answer to a number, such as of steps."""
        os.killpg(self.process.pid, signal.SIGCONT)
        print(number, file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        os.killpg(self.process.pid, signal.SIGSTOP)
        return answer

    def end(self) -> str:
        """End the processes, and return the last line of complaint."""
        if self.ready:
            os.killpg(self.process.pid, signal.SIGKILL)
        complaint = self.process.communicate()[1].strip().splitlines()
        return complaint[-1] if complaint else ""
