"""GoogLeNet on ImageNet, by what the paper states of its recipe; `googlenet_tv` by torchvision's default recipe.

jaxcnn data prepare imagenet2012 --manual-dir DIR
jaxcnn train --config experiments/imagenet/googlenet.py:googlenet --workdir runs/imagenet-googlenet
jaxcnn evaluate --workdir runs/imagenet-googlenet --protocol 1crop     # the paper's other test: 144crop

Hardware, time and our score: none, for no recipe here was run: ImageNet could not be had. The published scores are
beside the names below.

Paper (Szegedy et al. 2015, section 6): SGD with momentum 0.9, the rate 4 % less every 8 epochs, weights averaged for
the test, auxiliary losses at 0.3 (section 5); its crops and colours. The rate, the batch, the length and the weight
decay are not stated; here 0.01, 256, 240 epochs and none. Their SGD was asynchronous, ours is not.

torchvision (references/classification): SGD, batch 256, momentum 0.9, weight decay 1e-4, rate 0.1 divided by 10 every
30 epochs, 90 epochs; its crops and flips. torchvision's own weights were ported, not trained, and it states no recipe
for them.

As everywhere here, the arithmetic is bfloat16, weight decay touches kernels only, and images are divided by their
deviation.
"""

from jaxcnn.config import base_config

ARGUMENTS = {  # name of the network: published error in %, and where
    "googlenet": "top-5 10.07 (Table 3, one crop)",
    "googlenet_tv": "top-1 30.22, top-5 10.47, torchvision (one crop)",
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
    if name == "googlenet_tv":
        config.epochs = 90
        config.data.augment = "torchvision"
        config.optimizer.learning_rate = 0.1
        config.optimizer.weight_decay = 1e-4
        config.optimizer.decay_epochs = (30, 60)
    else:
        config.epochs = 240
        config.data.augment = "inception"
        config.optimizer.learning_rate = 0.01
        config.optimizer.weight_decay = 0.0
        config.optimizer.decay_epochs = tuple(range(8, 240, 8))
        config.optimizer.decay_factor = 0.96
        config.ema.decay = 0.9999
    return config
