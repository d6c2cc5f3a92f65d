"""VGG-16 with BatchNorm on ImageNet, by torchvision's recipe.

SGD, batch 256, momentum 0.9, weight decay 1e-4, rate 0.1 divided by 10 every 30 epochs, 90 epochs. torchvision:
26.64 % top-1 error, 8.48 % top-5 (one crop).

Crops and flips are torchvision's (`data.augment`), and so is the test, `jaxcnn evaluate --protocol 1crop`.
As everywhere here, the arithmetic is bfloat16 and weight decay touches kernels only, and images are divided by their
deviation. Not run: ImageNet could not be had.

jaxcnn data prepare imagenet2012 --manual-dir DIR
jaxcnn train --config experiments/imagenet/vgg16_bn.py --workdir runs/imagenet-vgg16_bn
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.epochs = 90
    config.global_batch_size = 256
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 224
    config.data.augment = "torchvision"
    config.model.name = "vgg16_bn"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "step"
    config.optimizer.decay_epochs = (30, 60)
    return config
