"""Fast R-CNN on a quarter of VGG-11, from scratch, on blood cells: 364 photographs of 480×640, three classes.

    printf 'RBC\\nWBC\\nPlatelets\\n' > data/BCCD/classes.txt      # the names of the classes
    for split in train val test; do
        jaxcnn data propose voc:data/BCCD --split $split --out data/bccd-$split.npz --width 320 --min-side 8
    done
    jaxcnn train --config experiments/bccd/fast_rcnn.py --workdir runs/bccd-fast_rcnn

    jaxcnn evaluate --workdir runs/bccd-fast_rcnn --config.data.eval_split=test     # the score

The proposals are those of rcnn.py. Data and split are those of faster_rcnn.py, whose argument `vgg11_bn` has this
backbone, these images and this length: R-CNN, Fast R-CNN and Faster R-CNN can be compared. 7×7 bins want cells of some
size on a map of stride 16, so the shorter side is 320 pixels: red cells have about 57 there, platelets 22.

Regions of any lower IoU are background here, as in the authors' later code: from 0.1 on, as in the paper, regions far
from any object are never trained, and a network that begins with random weights takes them for objects.

Hardware, time and score: none recorded yet.
"""

from jaxcnn.config import base_config


def get_config():
    config = base_config("detection")
    config.epochs = 16
    config.global_batch_size = 4
    config.log_every = 25
    config.eval_every = 410  # eight epochs
    config.data.name = "voc:data/BCCD"
    config.data.eval_split = "val"
    config.data.min_size = 320
    config.data.augment = "rescale(0.75,1.5),flip,photometric"
    config.model.name = "fast_rcnn_vgg16"
    config.model.overrides.backbone = "vgg11_bn"
    config.model.overrides.width = 0.25
    config.model.overrides.head_features = 256
    config.model.overrides.box_samples = 64
    config.model.overrides.background = (0.0, 0.5)
    config.task.proposals = ",".join(f"data/bccd-{split}.npz" for split in ("train", "val", "test"))
    config.task.max_proposals = 1200
    config.task.max_boxes = 32
    config.task.loss_form = "fast_rcnn"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.warmup_steps = 200
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 10.0
    return config
