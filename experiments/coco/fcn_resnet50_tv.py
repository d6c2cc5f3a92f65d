"""torchvision's FCN on a ResNet-50, on the images of COCO 2017 with the 21 classes of PASCAL VOC.

    jaxcnn weights import --model resnet50_tv resnet50.pth runs/resnet50_tv     # torchvision's IMAGENET1K_V1
    jaxcnn train --config experiments/coco/fcn_resnet50_tv.py --workdir runs/coco-fcn_resnet50_tv

Data: annotations/instances_{train,val}2017.json, train2017 and val2017 in data/coco. `coco_segmentation` makes label
maps of the polygons as torchvision does: objects that overlap are void, and a crowd has the class of its objects.

Published: mean IU 60.5, pixel accuracy 91.4 (torchvision 0.29.1, FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1).
fcn_resnet101_tv: 63.7, 91.9, with --config.model.name=fcn_resnet101_tv and weights of resnet101_tv. Hardware, time and
our score: none, for this was not run: COCO's training images could not be had.

Recipe (references/segmentation of torchvision, whose command has 8 GPUs of 4 images each, a rate of 0.02 and the
auxiliary head): 30 epochs, SGD, momentum 0.9, weight decay 1e-4, polynomial decay of power 0.9, the auxiliary head at
ten times the rate and half the loss; images resized so that their shorter side has 260 to 1,040 pixels, flipped, and
cut to 480; evaluated at 520. Weight decay touches kernels only, as everywhere here.
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config("segmentation")
    config.epochs = 30
    config.global_batch_size = 32
    config.data.name = "coco_segmentation:data/coco"
    config.data.image_size = 480
    config.data.min_size = 520
    config.data.augment = "rescale(0.5,2),flip"
    config.init_from = "runs/resnet50_tv"
    config.model.name = "fcn_resnet50_tv"
    config.task.aux_weight = 0.5
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.02
    config.optimizer.schedule = "polynomial"
    config.optimizer.power = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.multipliers = "aux=10"
    return config
