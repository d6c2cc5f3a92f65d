"""ResNet-20 on CIFAR-10 by the recipe of the ResNet paper, section 4.2; its Table 6 gives 8.75 % test error.

    jaxcnn data prepare cifar10            # or, without the internet: --from DIR, of its makers' files
    jaxcnn train --config experiments/cifar10/resnet20.py --workdir runs/cifar10

Not yet run here. Two details differ from the paper: mean and standard deviation are
per channel, where it subtracts a mean per pixel, and weight decay leaves norms and biases alone. Table 6's other
networks: --config.model.name=resnet56 and so on (the paper warms up resnet110 at a rate of 0.01).
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.steps = 64_000
    config.global_batch_size = 128
    config.data.name = "tfds:cifar10"
    config.data.resident = True
    config.data.augment = "pad_crop_flip"
    config.data.pad = 4
    config.model.name = "resnet20"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "step"
    config.optimizer.decay_steps = (32_000, 48_000)
    config.optimizer.weight_decay = 1e-4
    return config
