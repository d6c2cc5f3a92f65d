"""ResNet and its plain networks on ImageNet, by the paper's recipe; the `_tv` forms by torchvision's.

jaxcnn data prepare imagenet2012 --manual-dir DIR
jaxcnn train --config experiments/imagenet/resnet.py:resnet50 --workdir runs/imagenet-resnet50
jaxcnn evaluate --workdir runs/imagenet-resnet50 --protocol 10crop     # `_tv`: --protocol 1crop

Hardware, time and our score: none, for no recipe here was run: ImageNet could not be had. The published scores are
beside the names below.

Paper (He et al. 2016, section 3.4): SGD, batch 256, momentum 0.9, weight decay 1e-4, no dropout, rate 0.1 divided by 10
when the error plateaus, 600,000 steps; scale jitter, flips and colours; tested by ten crops. When the rate was divided
is not stated; here after 150,000, 300,000 and 450,000 steps.

torchvision (references/classification): SGD, batch 256, momentum 0.9, weight decay 1e-4, rate 0.1 divided by 10 every
30 epochs, 90 epochs; its crops and flips; tested by one crop.

As everywhere here, the arithmetic is bfloat16, weight decay touches kernels only, and images are divided by their
deviation.
"""

from jaxcnn.config import base_config

ARGUMENTS = {  # name of the network: published top-1 (and top-5) error in %, and where
    "plain18": "27.94 (Table 2)",
    "plain34": "28.54 (Table 2)",
    "resnet18": "no figure of option B shortcuts; option A: 27.88 (Table 2)",
    "resnet34": "24.52 (7.46), option B shortcuts (Table 3)",
    "resnet50": "22.85 (6.71) (Table 3)",
    "resnet101": "21.75 (6.05) (Table 3)",
    "resnet152": "21.43 (5.71) (Table 3)",
    "resnet18_a": "27.88, option A shortcuts (Table 2)",
    "resnet34_a": "25.03 (7.76), option A shortcuts (Table 3)",
    "resnet34_c": "24.19 (7.40), option C shortcuts (Table 3)",
    "resnet50_tv": "23.87 (7.14), torchvision",
    "resnet101_tv": "22.63 (6.45), torchvision",
    "resnet152_tv": "21.69 (5.95), torchvision",
}


def get_config(name):
    config = base_config()
    config.global_batch_size = 256
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 224
    config.model.name = name
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "step"
    if name.endswith("_tv"):
        config.epochs = 90
        config.data.augment = "torchvision"
        config.optimizer.decay_epochs = (30, 60)
    else:
        config.steps = 600_000
        config.data.augment = "resnet"
        config.optimizer.decay_steps = (150_000, 300_000, 450_000)
    return config
