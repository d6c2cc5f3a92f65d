"""Fine-tune torchvision's ResNet-18 on a folder of one's own images, photos/{train,val}/CLASS/….

jaxcnn weights import --model resnet18 resnet18.pth runs/resnet18
jaxcnn train --config experiments/finetune/resnet18.py:frozen --workdir runs/frozen
jaxcnn train --config experiments/finetune/resnet18.py:slower --workdir runs/slower

Another folder: --config.data.name=folder:DIR. Another network: --config.model.name and --config.init_from. The head is
made for the classes of the folder. Score: that of the images; a test runs both on drawn ones.
"""

from jaxcnn.config import base_config

ARGUMENTS = {
    "frozen": "the head alone trains: quick, and the safer the fewer images there are",
    "slower": "all trains, the head at ten times the rate of the rest",
}


def get_config(name):
    config = base_config()
    config.epochs = 10
    config.global_batch_size = 16
    config.init_from = "runs/resnet18"
    config.reset_head = True
    config.data.name = "folder:photos"
    config.data.image_size = 224
    config.data.resize = 256
    config.data.augment = "torchvision"
    config.model.name = "resnet18"
    if name == "frozen":
        config.optimizer.freeze = "stem,stage1,stage2,stage3,stage4"
        config.optimizer.learning_rate = 1e-3
        config.model.overrides.frozen_norm = True
    else:
        config.optimizer.multipliers = "head=10"
        config.optimizer.learning_rate = 1e-4
    return config
