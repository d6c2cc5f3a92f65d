"""ResNet-50 on images made up on the spot, at ImageNet's size: no data needed, for trying a machine.

    jaxcnn train --config experiments/synthetic/resnet50.py --workdir runs/synthetic

The classes can be learned, but the score means nothing.
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.steps = 100
    config.global_batch_size = 128
    config.log_every = 10
    config.eval_every = config.checkpoint_every = 100
    config.data.name = "synthetic:1000:12800"
    config.data.image_size = 224
    config.model.name = "resnet50"
    config.optimizer.warmup_steps = 10
    return config
