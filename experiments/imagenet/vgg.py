"""VGG on ImageNet, by the paper's recipe; with BatchNorm (`_bn`) by torchvision's.

jaxcnn data prepare imagenet2012 --manual-dir DIR
jaxcnn train --config experiments/imagenet/vgg.py:vgg16 --workdir runs/imagenet-vgg16
jaxcnn evaluate --workdir runs/imagenet-vgg16 --protocol dense --scales 384     # `_bn`: --protocol 1crop

Hardware, time and our score: none, for no recipe here was run: ImageNet could not be had. The published scores are
beside the names below.

Paper (Simonyan and Zisserman 2015, section 3.1): SGD, batch 256, momentum 0.9, weight decay 5e-4, dropout 0.5, rate
0.01 divided by 10 three times, 370,000 steps. When it was divided is not stated; here after 150,000, 250,000 and
320,000 steps. Kernels begin as He et al. have it; the paper drew A's from a Gaussian and began the deeper networks from
A's weights (`init_scheme`). Crops, flips and colours are the paper's: A, A-LRN and B are trained at one scale and
tested by `--protocol dense --scales 256`; C, D and E are trained with scale jitter and tested by `--scales 384`, of
Table 4 by `--scales 256,384,512`.

torchvision (references/classification): SGD, batch 256, momentum 0.9, weight decay 1e-4, rate 0.1 divided by 10 every
30 epochs, 90 epochs; its crops and flips; tested by one crop.

As everywhere here, the arithmetic is bfloat16, weight decay touches kernels only, and images are divided by their
deviation.
"""

from jaxcnn.config import base_config

ARGUMENTS = {  # name of the network: published top-1 (and top-5) error in %, and where
    "vgg11": "29.6 (10.4), configuration A (Table 3, one scale, dense)",
    "vgg11_lrn": "29.7 (10.5), configuration A-LRN (Table 3, one scale, dense)",
    "vgg13": "28.7 (9.9), configuration B (Table 3, one scale, dense)",
    "vgg16_c": "27.3 (8.8), configuration C (Table 3, scale jitter, dense)",
    "vgg16": "25.6 (8.1), configuration D (Table 3, scale jitter, dense)",
    "vgg19": "25.5 (8.0), configuration E (Table 3, scale jitter, dense)",
    "vgg11_bn": "29.63 (10.19), torchvision",
    "vgg13_bn": "28.41 (9.63), torchvision",
    "vgg16_bn": "26.64 (8.48), torchvision",
    "vgg19_bn": "25.78 (8.16), torchvision",
}


def get_config(name):
    config = base_config()
    config.global_batch_size = 256
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 224
    config.model.name = name
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.schedule = "step"
    if name.endswith("_bn"):
        config.epochs = 90
        config.data.augment = "torchvision"
        config.optimizer.learning_rate = 0.1
        config.optimizer.weight_decay = 1e-4
        config.optimizer.decay_epochs = (30, 60)
    else:
        one_scale = name in ("vgg11", "vgg11_lrn", "vgg13")
        config.steps = 370_000
        config.data.augment = "scale_jitter(256,256),flip,pca" if one_scale else "vgg"
        config.optimizer.learning_rate = 0.01
        config.optimizer.weight_decay = 5e-4
        config.optimizer.decay_steps = (150_000, 250_000, 320_000)
    return config
