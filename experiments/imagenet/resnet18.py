"""ResNet-18, option B shortcuts, on ImageNet, by the paper's recipe.

He et al. 2016, section 3.4: SGD, batch 256, momentum 0.9, weight decay 1e-4, no dropout, rate 0.1 divided by 10 when
the error plateaus, 600,000 steps. When it was divided is not stated; here after 150,000, 300,000 and 450,000 steps.
Paper: no figure of option B (option A: 27.88 % top-1 error, Table 2).

Scale jitter, flips and colours are the paper's (`data.augment`); its test is `jaxcnn evaluate --protocol 10crop`.
As everywhere here, the arithmetic is bfloat16 and weight decay touches kernels only, and images are divided by their
deviation. Not run: ImageNet could not be had.

jaxcnn data prepare imagenet2012 --manual-dir DIR
jaxcnn train --config experiments/imagenet/resnet18.py --workdir runs/imagenet-resnet18
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.steps = 600_000
    config.global_batch_size = 256
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 224
    config.data.augment = "resnet"
    config.model.name = "resnet18"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "step"
    config.optimizer.decay_steps = (150_000, 300_000, 450_000)
    return config
