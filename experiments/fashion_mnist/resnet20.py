"""ResNet-20 on Fashion-MNIST, 60,000 training and 10,000 test images of 28×28 pixels.

93.45 % top-1 on the test images, last checkpoint; 58 minutes on two cores of a busy Xeon. Recorded in
experiments/results/fashion_mnist-resnet20.

jaxcnn data prepare fashion_mnist --from DIR     # the four IDX files; without --from, TFDS downloads them
jaxcnn train --config experiments/fashion_mnist/resnet20.py --workdir runs/fashion_mnist
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.epochs = 12
    config.global_batch_size = 128
    config.log_every = 39
    config.data.name = "tfds:fashion_mnist"
    config.data.resident = True
    config.data.augment = "pad_crop_flip"
    config.data.pad = 2
    config.model.name = "resnet20"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_epochs = 1
    return config
