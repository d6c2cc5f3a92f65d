"""FCN on VOC 2011 with SBD's masks: as the authors released the networks, and as the paper of CVPR 2015 has it.

    jaxcnn weights import --model vgg16 vgg16.pth runs/vgg16                          # torchvision's, or a run's
    jaxcnn train --config experiments/voc2011/fcn.py:32s --workdir runs/voc2011-32s
    jaxcnn train --config experiments/voc2011/fcn.py:16s --workdir runs/voc2011-16s     # starts from runs/voc2011-32s
    jaxcnn train --config experiments/voc2011/fcn.py:8s --workdir runs/voc2011-8s       # starts from runs/voc2011-16s
    jaxcnn train --config experiments/voc2011/fcn.py:at_once --workdir runs/voc2011-at_once
    jaxcnn train --config experiments/voc2011/fcn.py:cvpr_32s --workdir runs/voc2011-cvpr_32s    # cvpr_16s, cvpr_8s

Data: VOCdevkit/VOC2011 and SBD's benchmark_RELEASE beside it, in data/. SBD's 8,498 images are trained on; scored are
the 736 images of VOC's val that are not among them (`seg11valid`), each at its own size.

Published: beside the names below, mean IU and pixel accuracy in % (experiments/papers/fcn.toml has the sources).
Hardware, time and our score: none, for no recipe here was run: VOC could not be had.

Released (the authors' solver and net files): one image a step at its own size, momentum 0.99, the loss summed over
pixels and therefore a rate of 1e-10, 100 times less for each finer net; weight decay 5e-4 on kernels, biases at twice
the rate; all enlarging fixed; 100,000 steps, 300,000 at once, where skips are scaled by 0.01 and 0.0001 instead.

CVPR (section 4.3): 20 images a step, momentum 0.9, the mean over pixels, a rate of 1e-4, 100 times less for a finer
net; the same weight decay and biases; all enlarging but the last learns; 175 epochs.

Two details are ours: images have the mean and deviation of the weights that training starts from, where the authors'
VGG-16 takes BGR minus a mean, and convolutions compute in bfloat16.
"""

from jaxcnn.config import base_config

ARGUMENTS = {
    "32s": "63.6, 90.5",
    "16s": "65.0, 91.0",
    "8s": "65.5, 91.2",
    "at_once": "65.4, 91.1",
    "cvpr_32s": "59.4, 89.1",
    "cvpr_16s": "62.4, 90.0",
    "cvpr_8s": "62.7, 90.3",
}
COARSER = {"16s": "32s", "8s": "16s"}  # the net that a finer one starts from


def get_config(name):
    config = base_config("segmentation")
    form, _, net = name.rpartition("_") if name.startswith("cvpr") else ("", "", name)
    config.data.name = "voc_segmentation:data/VOCdevkit/VOC2011"
    config.data.train_split = "sbd_train"
    config.data.eval_split = "seg11valid"
    config.model.name = {"at_once": "fcn8s_atonce"}.get(net, f"fcn{net}")
    config.init_from = f"runs/voc2011-{name.replace(net, COARSER[net])}" if net in COARSER else "runs/vgg16"
    config.task.bias_multiplier = 2.0
    config.optimizer.name = "sgd"
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 5e-4
    finer = {"16s": 1, "8s": 2}.get(net, 0)
    if form:
        config.epochs = 175
        config.global_batch_size = 20
        config.data.image_size = 500
        config.optimizer.learning_rate = 1e-6 if finer else 1e-4
        config.optimizer.momentum = 0.9
        config.model.overrides.enlarging = "learnt"
    else:
        config.steps = 300_000 if net == "at_once" else 100_000
        config.global_batch_size = 1
        config.eval_every = config.checkpoint_every = 4_000
        config.task.reduction = "sum"
        config.optimizer.learning_rate = 1e-10 / 100**finer
        config.optimizer.momentum = 0.99
    return config
