"""AlexNet on ImageNet, by the paper's recipe.

Krizhevsky et al. 2012, section 5: SGD, batch 128, momentum 0.9, weight decay 0.0005, rate 0.01 divided by 10 three
times, 90 epochs, centred raw pixels. When it was divided is not stated; here after 30, 60 and 80 epochs. Paper: 40.7 %
top-1 error, 18.2 % top-5 on the validation set of 2012 (Table 2), ten crops.

Crops, flips and colours are the paper's (`data.augment`); its test is `jaxcnn evaluate --protocol 10crop`.
As everywhere here, the arithmetic is bfloat16 and weight decay touches kernels only. Not run: ImageNet could not be
had.

jaxcnn data prepare imagenet2012 --manual-dir DIR
jaxcnn train --config experiments/imagenet/alexnet.py --workdir runs/imagenet-alexnet
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.epochs = 90
    config.global_batch_size = 128
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 224
    config.data.augment = "alexnet"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (1 / 255, 1 / 255, 1 / 255)  # pixels stay in 0 … 255: kernels of deviation 0.01 count on it
    config.model.name = "alexnet"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "step"
    config.optimizer.decay_epochs = (30, 60, 80)
    return config
