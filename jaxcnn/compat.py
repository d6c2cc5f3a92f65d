"""The private parts of other libraries that jaxcnn uses, each with the version it was seen in; no other module has any.

`tests/test_compat.py` fails where one of them is no longer needed.
"""

from typing import Any


def coordination_client() -> Any:
    """Return the client of JAX's coordination service: its key-value store and its barriers, on any process.

    JAX 0.10.2 has the store in its public documentation's examples only through `multihost_utils`, whose functions are
    collectives: they need devices, and a process that has failed cannot reach the others by one.
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
