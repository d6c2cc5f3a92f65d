"""R-CNN on AlexNet and on VGG-16, on VOC 2007, in the stages of its paper.

    jaxcnn weights import --model vgg16 vgg16.pth runs/vgg16      # torchvision's, or a run's; AlexNet: a run's
    for split in trainval test; do
        jaxcnn data propose voc:data/VOCdevkit/VOC2007 --split $split --out data/voc2007-$split.npz
    done
    jaxcnn train --config experiments/voc2007/rcnn.py:finetune_alexnet --workdir runs/voc2007-alexnet-windows
    jaxcnn rcnn --config experiments/voc2007/rcnn.py:alexnet --workdir runs/voc2007-rcnn_alexnet
    jaxcnn evaluate --workdir runs/voc2007-rcnn_alexnet --checkpoint 1,2       # without and with regression of boxes

    # the same with vgg16; of other features: --config.model.overrides.features=pool5 of `jaxcnn rcnn`, or fc6

Data: VOCdevkit/VOC2007 in data/, trainval and test; proposals by selective search, about 2,000 an image. Published, mAP
in % of the test (eval/map50_11pt), tables 2 and 3 of the paper: beside the names below; with the features of pool5 and
fc6 of the fine-tuned AlexNet 47.3 and 53.1, of one that is not fine-tuned 44.2, 46.2 and, of fc7, 44.7. Hardware, time
and our score: none, as VOC 2007 was not available. The authors' time was 13 s an image on a GPU, most of it for the
features.

Recipe (the paper's section 2.3 and the authors' code, github.com/rbgirshick/rcnn): fine-tuning with 32 windows of
objects and 96 of background a step, 16 pixels of context, mirrored, SGD at 0.001, a tenth of it every 20,000 steps,
70,000 in all, the new head at ten times the rate; momentum 0.9, weight decay 5e-4. VGG-16 had 24 windows a step. SVMs
with C = 0.001 and hard negatives, NMS at 0.3, λ = 1000. Difficult objects are objects throughout.

Ours: AlexNet has the response normalisation of its own paper, before the pooling, where the authors' CaffeNet has it
after; windows show the mean colour outside of the image, theirs a mean image; fine-tuning rounds windows to whole pixel
values; biases have the rate of the other weights; and convolutions of fine-tuning are computed in bfloat16.
"""

from jaxcnn.config import base_config

ARGUMENTS = {
    "alexnet": "54.2 without, 58.5 with regression of boxes",
    "vgg16": "62.2 and 66.0",
    "finetune_alexnet": "the classifier of windows",
    "finetune_vgg16": "the classifier of windows",
}
PROPOSALS = "data/voc2007-trainval.npz,data/voc2007-test.npz"


def get_config(name="alexnet"):
    network, tunes = name.removeprefix("finetune_"), name.startswith("finetune_")
    config = base_config("classification" if tunes else "detection")
    config.data.name = "voc:data/VOCdevkit/VOC2007"
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    config.steps = 1  # The stages have no length, but a config needs one.
    if tunes:
        config.steps = 70_000
        config.global_batch_size = 128 if network == "alexnet" else 24
        config.eval_every = config.checkpoint_every = 5_000
        config.data.windows = PROPOSALS
        config.data.image_size = 224
        config.data.augment = "flip"
        config.init_from = f"runs/{network}"
        config.reset_head = True
        config.model.name = network
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.schedule = "step"
        config.optimizer.decay_steps = (20_000, 40_000, 60_000)
        config.optimizer.multipliers = "head=10"
        config.optimizer.weight_decay = 5e-4
        return config
    config.dtype = "float32"
    config.init_from = f"runs/voc2007-{network}-windows"
    config.global_batch_size = 1
    config.task.proposals = PROPOSALS
    config.task.difficult = True
    config.model.name = f"rcnn_{network}"
    return config
