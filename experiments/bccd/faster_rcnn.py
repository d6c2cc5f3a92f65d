"""Faster R-CNN with a pyramid on a ResNet-18, from scratch, on blood cells: 364 photographs of 480×640, three classes.

    printf 'RBC\\nWBC\\nPlatelets\\n' > data/BCCD/classes.txt      # the names of the classes
    jaxcnn train --config experiments/bccd/faster_rcnn.py --workdir runs/bccd-faster_rcnn

    jaxcnn evaluate --workdir runs/bccd-faster_rcnn --config.data.eval_split=test --detections found.json    # the score

`faster_rcnn.py:vgg11_bn` is the paper's form on a quarter of VGG-11, one map of stride 16 and RoI pooling, with images
and length of fast_rcnn.py beside this file, for a comparison.

The data are github.com/Shenggan/BCCD_Dataset, folder BCCD, in VOC's layout, at data/BCCD. A run trains on 205 images
and evaluates on the 87 of val; the score is that of the last checkpoint on the 72 of test. Some cells at the borders
and in clumps are not annotated, which bounds the score of any detector.

Published, mAP at 0.5 in %: 85.4 (Joshi et al. 2022), 92.4 (YOLOv8n) and 94.7 (NBCDC-YOLOv8, both IET Computer Vision
2025, 10.1049/cvi2.12341), on other splits and from weights of larger data sets. Here a small network starts from random
weights, on images of half the size, with BatchNorm over the batch. Scores, hardware and time:
experiments/results/bccd/README.md.
"""

from jaxcnn.config import base_config

ARGUMENTS = ("resnet18", "vgg11_bn")


def get_config(backbone="resnet18"):
    config = base_config("detection")
    config.epochs = 60
    config.global_batch_size = 8
    config.log_every = 25
    config.eval_every = 256  # ten epochs
    config.data.name = "voc:data/BCCD"
    config.data.eval_split = "val"
    config.data.min_size = 240
    config.data.augment = "rescale(0.75,1.5),flip,photometric"
    config.model.name = "faster_rcnn_resnet50_fpn_tv"
    config.model.overrides.backbone = "resnet18"
    config.model.overrides.frozen_norm = False
    config.model.overrides.anchor_scales = (4, 6)  # cells have 20 to 120 pixels
    config.model.overrides.fpn_channels = 96
    config.model.overrides.head_features = 256
    config.model.overrides.rpn_pre_nms = (500, 300)
    config.model.overrides.rpn_post_nms = (300, 150)
    config.model.overrides.box_samples = 64
    config.task.max_boxes = 32
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 10.0
    if backbone == "vgg11_bn":
        vgg11_bn(config)
    return config


def vgg11_bn(config):
    """Change what is another in the paper's form."""
    config.epochs = 16
    config.global_batch_size = 4
    config.eval_every = 410  # eight epochs
    config.data.min_size = 320
    config.model.name = "faster_rcnn_vgg16"
    config.model.overrides.backbone = "vgg11_bn"
    config.model.overrides.width = 0.25
    config.model.overrides.anchor_scales = (2, 4, 6)  # 32, 64 and 96 pixels
    del config.model.overrides.fpn_channels
    config.task.loss_form = "port"
    config.optimizer.learning_rate = 0.01
    config.optimizer.warmup_steps = 200
