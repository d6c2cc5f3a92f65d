"""DCGAN of 64 pixels on images made up on the spot, with the paper's batch: for `jaxcnn scaling`, or to try a machine.

jaxcnn scaling --study experiments/scaling/dcgan.toml --out experiments/results/scaling/dcgan
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config("gan")
    config.steps = 100
    config.global_batch_size = 128
    config.log_every = 10
    config.eval_every = config.checkpoint_every = 100
    config.data.name = "synthetic:2:12800"
    config.data.image_size = 64
    config.model.name = "dcgan64"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "constant"
    config.optimizer.b1 = 0.5
    return config
