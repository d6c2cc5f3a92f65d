"""The private parts of other libraries that jaxcnn uses, each with the version it was seen in; no other module has any.

`tests/test_compat.py` fails where one of them is no longer needed.
"""

from collections.abc import Iterable, Mapping
from typing import Any


def coordination_client() -> Any:
    """Return the client of JAX's coordination service: its key-value store and its barriers, on any process.

    Seen in JAX 0.10.2. Its public `multihost_utils` are collectives: they need devices, and a process that has failed
    cannot reach the others by one.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.distributed.global_state.client  # pyright: ignore[reportPrivateImportUsage]


def process_of() -> tuple[int, int]:
    """Return this process's number and the number of processes, without taking the devices as `jax.process_index` does.

    Seen in JAX 0.10.2.
    """
    from jax.experimental import multihost_utils

    state = multihost_utils.distributed.global_state  # pyright: ignore[reportPrivateImportUsage]
    return state.process_id, state.num_processes


def wait_for_freed_memory() -> None:
    """Wait until Grain has freed the shared memory of the arrays that are collected already.

    Grain 0.2.18 frees it in a pool of one thread, and has no public way to wait for it: at exit, what is not freed yet
    would be reported as leaked.
    """
    from grain.multiprocessing import SharedMemoryArray

    if pool := SharedMemoryArray._del_thread_pool:
        pool.apply(int)


def take_splits(builder: Any, splits: Mapping[str, Iterable[tuple[int, Any]]]) -> None:
    """Let a TFDS builder write `splits`, {split: (key, example) pairs}, in place of what it would download.

    The hook of TFDS 4.9.10 is public for subclasses only, and those are recorded in the data set as its code.
    """
    builder._split_generators = lambda _: splits
