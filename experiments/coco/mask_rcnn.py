"""torchvision's Mask R-CNN with a pyramid on a ResNet-50, on COCO 2017.

    jaxcnn weights import --model resnet50_tv resnet50.pth runs/resnet50_tv     # torchvision's IMAGENET1K_V1
    jaxcnn train --config experiments/coco/mask_rcnn.py --workdir runs/coco-mask_rcnn

    jaxcnn evaluate --workdir runs/coco-mask_rcnn --detections found.json       # boxes and masks, in COCO's format
    jaxcnn predict --workdir runs/coco-mask_rcnn photo.jpg --save photo.png     # masks over the image

Data: annotations/instances_{train,val}2017.json, train2017 and val2017 in data/coco.

Published: box AP 37.9, mask AP 34.6 on val2017 (torchvision 0.29.1, MaskRCNN_ResNet50_FPN_Weights.COCO_V1): eval/map
and eval/mask_map. Hardware, time and our score: none, as COCO's training images were not available.

Recipe (references/detection of torchvision, 8 GPUs of two images): that of faster_rcnn.py beside this file, whose
differences from torchvision it has, too. Besides those, a mask is trained from 112×112 cells over its box, not from its
pixels (`jaxcnn.models.mask_targets` has the difference). The masks of a batch take 20 MB on the host.
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
    config.model.name = "mask_rcnn_resnet50_fpn_tv"
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
