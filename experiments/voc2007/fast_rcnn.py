"""Fast R-CNN on VOC 2007 with proposals of selective search: Girshick, ICCV 2015, and the ablations of its table 6.

    jaxcnn weights import --model vgg16 vgg16.pth runs/vgg16                        # torchvision's, or a run's
    for split in trainval test; do
        jaxcnn data propose voc:data/VOCdevkit/VOC2007 --split $split --out data/proposals/voc2007-$split.npz
    done
    jaxcnn train --config experiments/voc2007/fast_rcnn.py:multi_task --workdir runs/voc2007-fast_rcnn

    jaxcnn evaluate --workdir runs/voc2007-fast_rcnn --detections found.json        # eval/map50_11pt is VOC 2007's AP
    jaxcnn evaluate --workdir runs/voc2007-fast_rcnn --config.model.overrides.regress=False    # boxes off
    jaxcnn weights svd --workdir runs/voc2007-fast_rcnn --ranks fc6=1024,fc7=256 --out runs/voc2007-fast_rcnn-svd

`stage_wise` trains the box layer alone, on top of the run of `classification_only`, at
runs/voc2007-fast_rcnn-classification_only. `alexnet` and `alexnet_*` begin with runs/alexnet. `07+12` is on
data/VOC0712, which faster_rcnn.py beside this file makes, and data/proposals/voc0712-trainval.npz.

Published, mAP in %: beside the names below (tables 1, 6; S, CaffeNet, for `alexnet`). With the SVD 66.6 (VGG-16) and
56.5 (S). The author later gave 67.2 ± 0.2 over seeds (rbgirshick/fast-rcnn#62). Hardware, time and our score: none, as
VOC 2007 was not available.

Recipe: two images a step and 64 regions of each, a quarter with an IoU of 0.5 or more, the others with 0.1 … 0.5; SGD
at 0.001 for 30,000 steps and 0.0001 for 10,000, half as many again for 07+12; momentum 0.9, weight decay 5e-4, on
biases too, which have twice the rate; conv1 and conv2 of VGG-16, conv1 of AlexNet stay as they are; images of 600
pixels a shorter side, 1,000 a longer one at most, mirrored; difficult objects are learnt. Box targets are divided by
(0.1, 0.1, 0.2, 0.2), where the paper takes the deviations of the training set.

Ours: OpenCV's selective search is not the authors' to the box, images are normalised as for the initial weights, and
convolutions are computed in bfloat16.
"""

from jaxcnn.config import base_config

ARGUMENTS = {
    "multi_task": "66.9",
    "classification_only": "62.6",
    "boxes_off": "63.4, multi-task training, tested with the proposals as boxes",
    "stage_wise": "64.0",
    "no_difficult": "68.1, trained without the difficult objects (table 1)",
    "07+12": "70.0 (table 1)",
    "alexnet": "57.1",
    "alexnet_classification_only": "52.2",
    "alexnet_boxes_off": "53.3",
    "alexnet_stage_wise": "54.6",
}


def get_config(name="multi_task"):
    alexnet, form = name.startswith("alexnet"), name.removeprefix("alexnet").lstrip("_") or "multi_task"
    config = base_config("detection")
    more = 3 if name == "07+12" else 2
    config.steps = 20_000 * more
    config.global_batch_size = 2
    train, data = ("voc0712", "VOC0712") if name == "07+12" else ("voc2007", "VOCdevkit/VOC2007")
    config.data.name = f"voc:data/{data}"
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    config.data.min_size = 600
    config.data.max_size = 1000
    config.data.augment = "flip"
    config.eval_every = 10_000
    config.checkpoint_every = 5_000
    config.init_from = "runs/alexnet" if alexnet else "runs/vgg16"
    config.model.name = "fast_rcnn_alexnet" if alexnet else "fast_rcnn_vgg16"
    config.task.proposals = f"data/proposals/{train}-trainval.npz,data/proposals/voc2007-test.npz"
    config.task.loss_form = "fast_rcnn"
    config.task.difficult = name != "no_difficult"
    config.task.bias_multiplier = 2.0
    config.task.bias_decay = True
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "step"
    config.optimizer.decay_steps = (15_000 * more,)
    config.optimizer.weight_decay = 5e-4
    if alexnet:
        config.optimizer.freeze = "conv1"
    else:
        config.task.trainable_stages = 3
    if form == "classification_only":
        config.task.box_weight = 0.0
    if form in ("classification_only", "boxes_off"):
        config.model.overrides.regress = False
    if form == "stage_wise":
        alone = "alexnet_classification_only" if alexnet else "classification_only"
        config.init_from = f"runs/voc2007-fast_rcnn-{alone}"
        config.optimizer.freeze = "trunk,fc6,fc7,/head"
        config.task.trainable_stages = -1
    return config
