from jaxcnn.config import base_config


def get_config():
    config = base_config()
    config.epochs = 3.0
    config.global_batch_size = 128
    config.data.name = "folder:data/fashion_mnist_jpeg"
    config.data.image_size = 64
    config.data.augment = "random_area(0.35,1),flip"
    config.model.name = "resnet18"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_epochs = 0.3
    config.optimizer.weight_decay = 1e-4
    config.task.label_smoothing = 0.1
    return config
