"""DCGAN of 32 pixels on Fashion-MNIST, enlarged from 28, at a length that a CPU allows.

    jaxcnn data prepare fashion_mnist
    jaxcnn train --config experiments/fashion_mnist/dcgan32.py --workdir runs/fashion_mnist-dcgan32
    jaxcnn sample --workdir runs/fashion_mnist-dcgan32 --save samples.png

Recipe (section 4 of the paper): Adam at 2e-4 with β1 0.5, batches of 64 (128 there), latents uniform in -1 … 1, images
in -1 … 1, no augmentation; a quarter of the channels. Samples are of a moving average of the generator. There is no
figure to compare: the FIDs in print are of other features (Lucic et al. 2018: 26.5 ± 1.6 of a non-saturating GAN, best
of 100 settings).

Hardware and time: experiments/README.md has them of each recorded run.
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config("gan")
    config.epochs = 1
    config.global_batch_size = 64
    config.dtype = "float32"  # which CPUs without units for 16 bits are faster at
    config.log_every = 50
    config.eval_every = 400
    config.data.name = "tfds:fashion_mnist"
    config.data.image_size = 32
    config.data.resident = True
    config.model.name = "dcgan32"
    config.model.overrides.width = 0.25
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "constant"
    config.optimizer.b1 = 0.5
    config.ema.decay = 0.99
    return config
