"""Faster R-CNN on VGG-16, on VOC 2007, trained jointly as in its authors' Python code.

    jaxcnn weights import --model vgg16 vgg16.pth runs/vgg16                          # torchvision's, or a run's
    jaxcnn train --config experiments/voc2007/faster_rcnn.py:07 --workdir runs/voc2007-faster_rcnn
    jaxcnn train --config experiments/voc2007/faster_rcnn.py:07+12 --workdir runs/voc0712-faster_rcnn

    jaxcnn evaluate --workdir runs/voc2007-faster_rcnn --detections found.json        # eval/map50_11pt is VOC 2007's AP

Data: VOCdevkit/VOC2007 in data/, trainval and test. 07+12 adds the trainval of 2012, as one folder of the same layout:

    mkdir -p data/VOC0712/{Annotations,JPEGImages,ImageSets/Main} && cd data/VOC0712
    for of in Annotations JPEGImages; do ln -s ../../VOCdevkit/VOC20{07,12}/$of/* $of; done
    cat ../VOCdevkit/VOC20{07,12}/ImageSets/Main/trainval.txt > ImageSets/Main/trainval.txt
    cp ../VOCdevkit/VOC2007/ImageSets/Main/test.txt ImageSets/Main

Published, mAP in % with 300 proposals (tables 3 and 11 of the paper's journal text): beside the names below. The
authors' Python code also reaches 69.9 on 07. Hardware, time and our score: none, as VOC 2007 was not available.

Recipe (the authors' configuration): two images a step, SGD at 0.001 for 50,000 steps and 0.0001 for 20,000, twice that
for 07+12; momentum 0.9, weight decay 5e-4, on biases too, which have twice the rate; conv1 and conv2 fixed; images of
600 pixels a shorter side, 1,000 a longer one at most, mirrored; difficult objects left out. `paper` divides the losses
as equation 1 of the paper, with λ = 10.

Ours: images are normalised as for the initial weights, where the authors' VGG-16 takes BGR minus a mean; proposals of
less than 16 pixels of the resized image are left out, theirs of less than 16 of the stored one; and convolutions are
computed in bfloat16.
"""

from jaxcnn.config import base_config

ARGUMENTS = {"07": "69.9", "07+12": "73.2", "paper": "69.9, on 07 by the paper's losses, which it minimises in turn"}


def get_config(name="07"):
    config = base_config("detection")
    more = 2 if name == "07+12" else 1
    config.steps = 70_000 * more
    config.global_batch_size = 2
    config.data.name = "voc:data/VOC0712" if name == "07+12" else "voc:data/VOCdevkit/VOC2007"
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    config.data.min_size = 600
    config.data.max_size = 1000
    config.data.augment = "flip"
    config.eval_every = 10_000
    config.checkpoint_every = 5_000
    config.init_from = "runs/vgg16"
    config.model.name = "faster_rcnn_vgg16"
    config.task.loss_form = "paper" if name == "paper" else "port"
    config.task.trainable_stages = 3
    config.task.bias_multiplier = 2.0
    config.task.bias_decay = True
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "step"
    config.optimizer.decay_steps = (50_000 * more,)
    config.optimizer.weight_decay = 5e-4
    return config
