"""DCGAN of 32 pixels on CIFAR-10, at a length that a CPU allows.

    jaxcnn data prepare cifar10 --from DIR
    jaxcnn train --config experiments/cifar10/dcgan32.py --workdir runs/cifar10-dcgan32
    jaxcnn sample --workdir runs/cifar10-dcgan32 --save samples.png

Recipe (section 4 of the paper): Adam at 2e-4 with β1 0.5, batches of 64 (128 there), latents uniform in -1 … 1, images
in -1 … 1, no augmentation; a quarter of the channels. Samples are of a moving average of the generator. There is no
figure to compare: the FIDs in print are of other features (42.72 after 100,000 steps, w86763777/pytorch-gan-
collections).

Hardware and time: experiments/README.md has them of each recorded run.
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config("gan")
    config.epochs = 2
    config.global_batch_size = 64
    config.dtype = "float32"  # which CPUs without units for 16 bits are faster at
    config.log_every = 50
    config.eval_every = 400
    config.data.name = "tfds:cifar10"
    config.data.resident = True
    config.model.name = "dcgan32"
    config.model.overrides.width = 0.25
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "constant"
    config.optimizer.b1 = 0.5
    config.ema.decay = 0.99
    return config
