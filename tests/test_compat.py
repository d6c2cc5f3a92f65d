"""Each private door fails here once its library has a public one, and is then to be closed."""

import jax
from jax.experimental import multihost_utils

from jaxcnn import compat


def test_jax_has_no_public_way_to_its_key_value_store():
    public = {name for module in (jax.distributed, multihost_utils) for name in vars(module) if "key_value" in name}
    assert not public, f"use {public} in place of compat.coordination_client"
    assert compat.coordination_client() is None  # there is none without `jax.distributed.initialize`


def test_jax_has_no_public_way_to_a_processs_number_that_leaves_the_devices_alone():
    assert not {"process_id", "process_index"} & vars(jax.distributed).keys(), "use it in place of compat.process_of"
    assert compat.process_of() == (0, 1)
