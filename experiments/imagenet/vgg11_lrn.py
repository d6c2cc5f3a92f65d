"""VGG, configuration A-LRN, on ImageNet, by the paper's recipe.

Simonyan and Zisserman 2015, section 3.1: SGD, batch 256, momentum 0.9, weight decay 5e-4, dropout 0.5, rate 0.01
divided by 10 three times, 370,000 steps. When it was divided is not stated; here after 150,000, 250,000 and 320,000
steps. Kernels begin as He et al. have it rather than from the paper's Gaussian (`init_scheme`). Paper: 29.7 % top-1
error, 10.5 % top-5 (Table 3, one scale, dense).

Crops of one scale, flips and colours are the paper's (`data.augment`); its test is `jaxcnn evaluate --protocol dense
--scales 256`.
As everywhere here, the arithmetic is bfloat16 and weight decay touches kernels only, and images are divided by their
deviation. Not run: ImageNet could not be had.

jaxcnn data prepare imagenet2012 --manual-dir DIR
jaxcnn train --config experiments/imagenet/vgg11_lrn.py --workdir runs/imagenet-vgg11_lrn
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.steps = 370_000
    config.global_batch_size = 256
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 224
    config.data.augment = "scale_jitter(256,256),flip,pca"
    config.model.name = "vgg11_lrn"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "step"
    config.optimizer.decay_steps = (150_000, 250_000, 320_000)
    return config
