"""torchvision's Faster R-CNN with a pyramid on a ResNet-50, on COCO 2017.

    jaxcnn weights import --model resnet50_tv resnet50.pth runs/resnet50_tv     # torchvision's IMAGENET1K_V1
    jaxcnn train --config experiments/coco/faster_rcnn.py --workdir runs/coco-faster_rcnn

    jaxcnn evaluate --workdir runs/coco-faster_rcnn --detections found.json     # in COCO's format, for its server, too

Data: annotations/instances_{train,val}2017.json, train2017 and val2017 in data/coco.

Published: box AP 37.0 on val2017 (torchvision 0.29.1, FasterRCNN_ResNet50_FPN_Weights.COCO_V1). Hardware, time and our
score: none, as COCO's training images were not available.

Recipe (references/detection of torchvision, 8 GPUs of two images): 26 epochs, SGD at 0.02 after 1,000 steps of warm-up,
a tenth of it from epochs 16 and 22 on; momentum 0.9, weight decay 1e-4, on biases too; the last three of the backbone's
five stages train, with frozen BatchNorm; images of 800 pixels a shorter side, 1,333 a longer one at most, mirrored.

Ours: labels have no gaps, so there are 81 classes, not torchvision's 91. Padding is masked in every layer, so that a
score does not depend on the other images of a batch (--config.model.overrides.mask_padding=False: torchvision's form).
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config("detection")
    config.epochs = 26
    config.global_batch_size = 16
    config.data.name = "coco:data/coco"
    config.data.min_size = 800
    config.data.max_size = 1333
    config.data.augment = "flip"
    config.init_from = "runs/resnet50_tv"
    config.model.name = "faster_rcnn_resnet50_fpn_tv"
    config.model.overrides.mask_padding = True
    config.task.metric = "coco"
    config.task.trainable_stages = 3
    config.task.bias_decay = True
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_steps = 1_000
    config.optimizer.schedule = "step"
    config.optimizer.decay_epochs = (16, 22)
    config.optimizer.weight_decay = 1e-4
    return config
