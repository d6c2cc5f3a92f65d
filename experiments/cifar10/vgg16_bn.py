"""VGG-16 with BatchNorm, a quarter as wide, on CIFAR-10: the classifier that experiments/camvid/fcn8s.py starts from.

    jaxcnn data prepare cifar10            # or, without the internet: --from DIR, of its makers' files
    jaxcnn train --config experiments/cifar10/vgg16_bn.py --workdir runs/cifar10-vgg16_bn

At 32 pixels the last pooling is left out, so that fc6 takes a map of 2×2. The length is a short one: features to start
from are wanted, not a record. Score, hardware and time: experiments/README.md.
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.epochs = 3
    config.global_batch_size = 128
    config.log_every = 50
    config.data.name = "tfds:cifar10"
    config.data.resident = True
    config.data.augment = "pad_crop_flip"
    config.model.name = "vgg16_bn"
    config.model.overrides.small_images = True
    config.model.overrides.width = 0.25
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_epochs = 0.5
    config.optimizer.weight_decay = 1e-4
    return config
