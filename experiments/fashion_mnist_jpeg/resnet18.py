"""ResNet-18 on 70,000 JPEG files, made out of Fashion-MNIST by `make.py`: the way of ImageNet, in small.

80 of the files' 96 pixels, random crops of 35 to 100 % of the area, flips, Adam, 2 epochs. 89.39 % top-1 on the 10,000
test images, in 55 minutes on two shared CPU cores, busy with other work; killed after step 500 and resumed from it
(`experiments/results/fashion_mnist_jpeg-resnet18`).

jaxcnn data prepare fashion_mnist
python experiments/fashion_mnist_jpeg/make.py data/fashion_mnist_jpeg
jaxcnn train --config experiments/fashion_mnist_jpeg/resnet18.py --workdir runs/fashion_mnist_jpeg
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.epochs = 2.0
    config.global_batch_size = 128
    config.data.name = "folder:data/fashion_mnist_jpeg"
    config.data.image_size = 80
    config.data.augment = "random_area(0.35,1),flip"
    config.model.name = "resnet18"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_epochs = 0.2
    config.optimizer.weight_decay = 1e-4
    return config
