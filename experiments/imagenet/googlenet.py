"""GoogLeNet on ImageNet, by what the paper states of its recipe.

Szegedy et al. 2015, section 6: SGD with momentum 0.9, the rate 4 % less every 8 epochs, weights averaged for the test,
auxiliary losses at 0.3 (section 5). The rate, the batch, the length and the weight decay are not stated; here 0.01,
256, 240 epochs and none. Their SGD was asynchronous, ours is not. Paper: 10.07 % top-5 error (Table 3, one crop).

Crops and colours are the paper's (`data.augment`); its tests are `jaxcnn evaluate --protocol 1crop` and `144crop`.
As everywhere here, the arithmetic is bfloat16 and weight decay touches kernels only, and images are divided by their
deviation. Not run: ImageNet could not be had.

jaxcnn data prepare imagenet2012 --manual-dir DIR
jaxcnn train --config experiments/imagenet/googlenet.py --workdir runs/imagenet-googlenet
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.epochs = 240
    config.global_batch_size = 256
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 224
    config.data.augment = "inception"
    config.model.name = "googlenet"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "step"
    config.optimizer.decay_epochs = tuple(range(8, 240, 8))
    config.optimizer.decay_factor = 0.96
    config.ema.decay = 0.9999
    return config
