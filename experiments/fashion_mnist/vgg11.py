"""VGG-11, half as wide, on Fashion-MNIST: 60,000 training and 10,000 test images of 28×28 pixels.

At this size the last pooling is left out; the rest is the paper's, initialised as He et al. and trained with Adam. The
paper's own recipe, SGD at 224 pixels, is in experiments/imagenet/vgg.py.

90.26 % top-1 on the test images, last checkpoint; 16 minutes on two cores of a busy Xeon. Recorded in
experiments/results/fashion_mnist-vgg11.

jaxcnn data prepare fashion_mnist --from DIR     # the four IDX files; without --from, TFDS downloads them
jaxcnn train --config experiments/fashion_mnist/vgg11.py --workdir runs/fashion_mnist-vgg11
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.epochs = 6
    config.global_batch_size = 128
    config.log_every = 39
    config.data.name = "tfds:fashion_mnist"
    config.data.resident = True
    config.data.augment = "pad_crop_flip"
    config.data.pad = 2
    config.model.name = "vgg11"
    config.model.overrides.small_images = True
    config.model.overrides.width = 0.5
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_epochs = 1
    return config
