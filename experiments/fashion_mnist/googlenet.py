"""GoogLeNet, a quarter as wide, on Fashion-MNIST: 60,000 training and 10,000 test images of 28×28 pixels.

At this size conv1 is 3×3 with stride 1 and the first pooling is left out; the rest is the paper's, with its auxiliary
classifiers. Its recipe, SGD at 224 pixels, is in experiments/imagenet/googlenet.py.

89.45 % top-1 on the test images, last checkpoint; 36 minutes on two cores of a busy Xeon. Recorded in
experiments/results/fashion_mnist-googlenet.

jaxcnn data prepare fashion_mnist --from DIR     # the four IDX files; without --from, TFDS downloads them
jaxcnn train --config experiments/fashion_mnist/googlenet.py --workdir runs/fashion_mnist-googlenet
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.epochs = 4
    config.global_batch_size = 128
    config.log_every = 39
    config.data.name = "tfds:fashion_mnist"
    config.data.resident = True
    config.data.augment = "pad_crop_flip"
    config.data.pad = 2
    config.model.name = "googlenet"
    config.model.overrides.small_images = True
    config.model.overrides.width = 0.25
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_epochs = 1
    return config
