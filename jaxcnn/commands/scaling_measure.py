"""`jaxcnn scaling --measure`: the training step timed on some numbers of this machine's devices."""

import argparse
import os
from typing import Any

from jaxcnn import UserError
from jaxcnn.commands.options import config_of, set_up_jax
from jaxcnn.scaling.study import STAND_INS

_MOST = 64  # devices that a CPU plays: each has threads and buffers of its own


def measured(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The measured rows. A machine without accelerators plays as many devices as are asked for."""
    import jax

    config = config_of(arguments, overrides)
    config.data.name = STAND_INS.get(config.data.name, config.data.name)
    config.data.resident = False
    if len(arguments.batch_per_chip) > 1:
        raise UserError("--measure takes one --batch-per-chip")
    if arguments.devices and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", min(max(arguments.devices), _MOST))
    set_up_jax(config)
    import jax.numpy as jnp

    from jaxcnn.data.dataset import Dataset
    from jaxcnn.models import create_model
    from jaxcnn.scaling.measure import measure

    here = jax.device_count()
    devices = arguments.devices or [2**i for i in range(here.bit_length())]
    classes = Dataset(config, training=False).num_classes
    model = create_model(config.model.name, classes, jnp.dtype(config.dtype), **config.model.overrides)
    lengths = {name: getattr(arguments, name) for name in ("steps", "warmup", "repeats") if getattr(arguments, name)}
    batch = arguments.batch_per_chip[0] if arguments.batch_per_chip else None
    rows = measure(config, model, Dataset, list(dict.fromkeys(devices)), batch_per_device=batch, **lengths)
    name = arguments.config or str(arguments.config_json)
    # What only a compiled row has is unknown of these.
    unknown = ("bytes_per_image", "temp_bytes", "hbm_bytes", "fits", "predicted_images_per_sec_per_chip", "bound")
    return [dict.fromkeys(unknown) | row | {"config": name, "variant": {}} for row in rows]
