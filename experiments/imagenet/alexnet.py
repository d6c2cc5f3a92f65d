"""AlexNet on ImageNet, by the paper's recipe; `alexnet_tv`, torchvision's form, by torchvision's.

jaxcnn data prepare imagenet2012 --manual-dir DIR
jaxcnn train --config experiments/imagenet/alexnet.py:alexnet --workdir runs/imagenet-alexnet
jaxcnn evaluate --workdir runs/imagenet-alexnet --protocol 10crop     # alexnet_tv: --protocol 1crop

Hardware, time and our score: none, for no recipe here was run: ImageNet could not be had. The published scores are
beside the names below.

Paper (Krizhevsky et al. 2012, section 5): SGD, batch 128, momentum 0.9, weight decay 0.0005, rate 0.01 divided by 10
three times, 90 epochs, centred raw pixels; crops, flips and colours; tested by ten crops. When the rate was divided is
not stated; here after 30, 60 and 80 epochs.

torchvision (references/classification): SGD, batch 256, momentum 0.9, weight decay 1e-4, rate 0.01 divided by 10 every
30 epochs, 90 epochs; its crops and flips, images divided by their deviation; tested by one crop.

As everywhere here, the arithmetic is bfloat16 and weight decay touches kernels only.
"""

from jaxcnn.config import base_config

ARGUMENTS = {  # name of the network: published top-1 (and top-5) error in %, and where
    "alexnet": "40.7 (18.2), validation set of 2012 (Table 2)",
    "alexnet_tv": "43.48 (20.93), torchvision",
}


def get_config(name):
    config = base_config()
    config.epochs = 90
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 224
    config.model.name = name
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.schedule = "step"
    if name == "alexnet_tv":
        config.global_batch_size = 256
        config.data.augment = "torchvision"
        config.optimizer.weight_decay = 1e-4
        config.optimizer.decay_epochs = (30, 60)
    else:
        config.global_batch_size = 128
        config.data.augment = "alexnet"
        config.data.mean = (0.485, 0.456, 0.406)
        config.data.std = (1 / 255, 1 / 255, 1 / 255)  # pixels stay in 0 … 255: kernels of deviation 0.01 count on it
        config.optimizer.weight_decay = 5e-4
        config.optimizer.decay_epochs = (30, 60, 80)
    return config
