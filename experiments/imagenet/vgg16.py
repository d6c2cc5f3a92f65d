"""VGG, configuration D, on ImageNet, by the paper's recipe.

Simonyan and Zisserman 2015, section 3.1: SGD, batch 256, momentum 0.9, weight decay 5e-4, dropout 0.5, rate 0.01
divided by 10 three times, 370,000 steps. When it was divided is not stated; here after 150,000, 250,000 and 320,000
steps. Kernels begin as He et al. have it rather than from a shallower network (`init_scheme`). Paper: 25.6 % top-1
error, 8.1 % top-5 (Table 3, scale jitter, dense).

Scale jitter, flips and colours are the paper's (`data.augment`); its test is `jaxcnn evaluate --protocol dense
--scales 384`, of Table 4 `--scales 256,384,512`.
As everywhere here, the arithmetic is bfloat16 and weight decay touches kernels only, and images are divided by their
deviation. Not run: ImageNet could not be had.

jaxcnn data prepare imagenet2012 --manual-dir DIR
jaxcnn train --config experiments/imagenet/vgg16.py --workdir runs/imagenet-vgg16
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.steps = 370_000
    config.global_batch_size = 256
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 224
    config.data.augment = "vgg"
    config.model.name = "vgg16"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "step"
    config.optimizer.decay_steps = (150_000, 250_000, 320_000)
    return config
