"""VAE with a Gaussian decoder on the Frey faces, for several numbers of latents: the VAE paper's Figure 2, right half.

    jaxcnn train --config experiments/frey/vae.py:10 --workdir runs/frey-10      # 2, 5, 10 or 20 latents
    jaxcnn plot runs/frey-* --out frey.png                                       # the bounds over epochs
    jaxcnn sample --workdir runs/frey-10 --save faces.png --grid 10x10
    jaxcnn sample --workdir runs/frey-2 --save manifold.png --grid 10x10 --manifold

The paper has curves alone, of the bound of training and test frames in nats a frame, so there is no figure to compare;
more latents do not overfit. data/frey/freyfaces.npy is a uint8 array (1965, 28, 20); 200 frames each are held out at
random, and neighbours in a film are alike.

Recipe (section 5, appendix C): 200 tanh units each way, the means by a sigmoid, weights from N(0, 0.01), Adagrad with a
rate out of 0.01, 0.02 and 0.1, batches of 100, one sample, a prior N(0, I) of the weights. The density of grey values
has no upper bound, so it says nothing of bits: `config.task.likelihood=discretized_logistic` gives bits per dimension.

Hardware and time: experiments/README.md has them of each recorded run.
"""

from jaxcnn.config import base_config

ARGUMENTS = ("2", "5", "10", "20")  # latents
FRAMES = 1_565  # to train on


def get_config(latents):
    config = base_config("vae")
    config.steps = 6_000  # They see 600,000 frames; the paper's axis goes to 10 million.
    config.global_batch_size = 100
    config.dtype = "float32"
    config.log_every = 500
    config.eval_every = 500
    config.checkpoint_every = 3_000
    config.data.name = "frey:data/frey/freyfaces.npy"
    config.data.resident = True
    config.data.steps_per_call = 500
    config.task.pixels = "grey"
    config.task.likelihood = "gaussian"
    config.model.name = "vae_mlp"
    config.model.overrides.hidden = (200,)
    config.model.overrides.latent = int(latents)
    config.model.overrides.scale = True
    config.optimizer.name = "adagrad"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 1 / FRAMES
    return config
