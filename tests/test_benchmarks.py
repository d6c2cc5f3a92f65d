"""What the benchmarks compare is comparable."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxcnn.models import create_model

PLAIN: Any = Path("experiments/throughput/plain_networks.py")
NETWORKS = {"alexnet_tv": 224, "vgg11": 224, "googlenet_tv": 224, "resnet18": 224, "resnet50_tv": 224, "resnet20": 32}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_stock_layers_has_our_parameters_and_our_logits_shape(name):
    spec: Any = importlib.util.spec_from_file_location("plain_networks", PLAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images = jnp.zeros((2, NETWORKS[name], NETWORKS[name], 3))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    plain, ours = module.Network(name, 10, jnp.float32), create_model(name, 10, jnp.float32)
    theirs: Any = jax.eval_shape(lambda: plain.init(keys, images, True))
    variables: Any = jax.eval_shape(lambda: ours.init(keys, images, train=True))
    sizes = [sorted(x.shape for x in jax.tree.leaves(tree["params"]) if x.ndim == 1) for tree in (theirs, variables)]
    assert sizes[0] == sizes[1]
    assert sum(x.size for x in jax.tree.leaves(theirs["params"])) == sum(
        x.size for x in jax.tree.leaves(variables["params"])
    )
    logits, _ = jax.eval_shape(lambda v: plain.apply(v, images, False), theirs)
    assert logits.shape == (2, 10)
