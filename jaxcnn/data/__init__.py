"""Data: sources with random access, their preparation, and the way from a source to batches on the device.

Here is what everything that reads in several threads or processes shares.
"""

import multiprocessing
import os
import signal
import threading


def usable_cores() -> int:
    """Return the cores that this process may run on: in a container or a job, often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def follow_parent(*_: object) -> None:
    """Leave Ctrl-C to the parent process, which ends its workers when it is ready to; end with it if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
