"""VAE: bounds of log p(x) as objectives, and log p(x) by importance sampling as the score.

All values are in nats an example: sums over pixels and latents, means over examples alone (Kingma and Welling 2013,
arXiv:1312.6114; Burda, Grosse and Salakhutdinov 2015, arXiv:1509.00519).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.tasks.base import Batch, Headline, Images, Rows, Sums, Task, Terms, Variables

ACTIVE = 0.01  # variance over x of a latent's posterior mean above which it is active (Burda et al., section 5.2)
_LEVELS = 256  # of a pixel
_ELEMENTS = 2**22  # pixels of importance samples that are in memory at once
_BINARISATION = 0x62696E73  # folded into the seed for the draws of training's binary pixels, which nothing else shares
_PIXELS, _LATENTS = 0, 1  # folded into an example's key in evaluation


def bernoulli(x: jax.Array, logits: jax.Array, _: Any = None) -> jax.Array:
    """Return log p(x) of pixels in 0 … 1, elementwise; of grey ones it is the cross-entropy, and no likelihood."""
    return x * logits - jax.nn.softplus(logits)


def gaussian(x: jax.Array, logits: jax.Array, logscale: jax.Array) -> jax.Array:
    """Return log of the density N(x; sigmoid(logits), exp(logscale)) elementwise (VAE paper, appendix C.2)."""
    error = x - jax.nn.sigmoid(logits)
    return -0.5 * (math.log(2 * math.pi) + logscale + jnp.square(error) * jnp.exp(-logscale))


def discretized_logistic(x: jax.Array, logits: jax.Array, logscale: jax.Array) -> jax.Array:
    """Return log of the probability of the level of pixels k / 255, elementwise.

    A logistic distribution of mean sigmoid(logits) and scale exp(logscale), over half a level to each side; the lowest
    and the highest level take the tails, so that the 256 probabilities add up to 1 (Salimans et al. 2017,
    arXiv:1701.05517, section 2.1).
    """
    width = 1 / (_LEVELS - 1)
    centred, inverse = x - jax.nn.sigmoid(logits), jnp.exp(-logscale)
    above, below = (centred + width / 2) * inverse, (centred - width / 2) * inverse
    # σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)), of which no factor cancels.
    log_above, log_below = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-below)
    inside = log_above + log_below + jnp.log(-jnp.expm1(-width * inverse))
    return jnp.where(x < width / 2, log_above, jnp.where(x > 1 - width / 2, log_below, inside))


LIKELIHOODS: dict[str, Callable[..., jax.Array]] = {
    "bernoulli": bernoulli, "gaussian": gaussian, "discretized_logistic": discretized_logistic
}  # fmt: skip


def kl_divergence(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Return KL(N(mean, exp(logvar)) || N(0, I)) of (…, latents): (…,) (VAE paper, appendix B)."""
    return 0.5 * jnp.sum(jnp.exp(logvar) + jnp.square(mean) - 1 - logvar, axis=-1)


def log_mean_exp(log_weights: jax.Array) -> jax.Array:
    """Return the bound of k importance samples, (N, k) -> (N,) (IWAE paper, equation 8)."""
    return jax.nn.logsumexp(log_weights, axis=1) - math.log(log_weights.shape[1])


class VAE(Task):
    """Images that an encoder turns into latents, and a decoder back into distributions of pixels."""

    best = ("iwae", "max")
    headline = (
        Headline("elbo", "ELBO {:.2f}", "ELBO, nats"),
        Headline("iwae", "log p(x) {:.2f}", "log p(x) by importance sampling, nats"),
    )
    pixel_range = (0.0, 1.0)

    def __init__(self, config: Config):
        task = config.task
        self.seed, self.pixels, self.likelihood = config.seed, task.pixels, task.likelihood
        self.objective, self.samples, self.beta = task.objective, task.samples, task.beta
        self.eval_samples, self.output_bias = task.eval_samples, task.output_bias
        if self.likelihood != "bernoulli" and self.pixels != "grey":
            raise UserError(
                f"config.task.likelihood={self.likelihood} is of grey images, config.task.pixels={self.pixels} of "
                "binary ones: set config.task.pixels=grey, or .likelihood=bernoulli"
            )
        if self.objective == "iwae" and self.beta != 1:
            raise UserError(f"config.task.beta={self.beta:g} goes with config.task.objective=elbo: leave it at 1")

    def targets(self, data: Images) -> dict[str, jax.ShapeDtypeStruct]:
        """Return {}: labels are not read, if there are any.

        Raises:
          UserError: the images are not binary, or are, where the config says otherwise.
        """
        binary = data.levels == 2
        if data.levels and (self.pixels == "fixed") != binary:
            found, right = ("binary", "fixed") if binary else (f"of {data.levels} levels", "fresh or grey")
            raise UserError(
                f"config.task.pixels={self.pixels}: the images of this data set are {found}, set it to {right}"
            )
        return {}

    def initial(self, params: Variables, data: Any) -> Variables:
        """Return the parameters with the output's bias at the logit of the training images' mean, if that is asked for.

        The mean is kept in 0.001 … 0.999, as in the code of Burda et al.
        """
        if self.output_bias == "zero":
            return params
        if not hasattr(data, "mean_image"):
            raise UserError("config.task.output_bias=mean needs data with a mean_image(): set it to zero")
        mean = data.mean_image()  # (H, W, C) in 0 … 1
        bias = params["decoder"]["logits"]["bias"]
        if bias.size != mean.size:  # of a convolution: one a channel
            mean = mean.mean((0, 1))
        mean = np.clip(mean, 0.001, 0.999).reshape(bias.shape)
        new = jax.device_put((np.log(mean) - np.log1p(-mean)).astype(bias.dtype), bias.sharding)
        decoder = params["decoder"] | {"logits": params["decoder"]["logits"] | {"bias": new}}
        return params | {"decoder": decoder}

    def forward(
        self, model: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array], train: bool
    ) -> tuple[Any, Variables]:
        """Encode a batch and weigh samples of its latents.

        Returns:
          "mean" and "logvar" (N, latents). In training "log_likelihood" and "log_weight" (N, k) of each sample:
          log p(x|z), and log p(x, z) / q(z|x). In evaluation "elbo", "kl" and "iwae" (N,), by `task.eval_samples` that
          are a function of (seed, example), and "logits" of the reconstruction from the mean, (N, H, W, C).
        """
        x = self._observed(batch, rngs, train)
        mean, logvar = self._apply(model, variables, x, method="encode")
        outputs = {"mean": mean, "logvar": logvar}
        if train:
            noise = jax.random.normal(rngs["latent"], (len(x), self.samples, mean.shape[-1]), mean.dtype)
            log_likelihood, log_weight = self._weigh(model, variables, x, mean, logvar, noise)
            return outputs | {"log_likelihood": log_likelihood, "log_weight": log_weight}, {}
        log_likelihood, log_px = self._estimate(model, variables, x, mean, logvar, rngs["example"])
        kl = kl_divergence(mean, logvar)
        scores = {"elbo": log_likelihood - kl, "kl": kl, "iwae": log_px}
        return outputs | scores | self._apply(model, variables, mean, x.shape[1:], method="decode"), {}

    def _apply(self, model: nn.Module, variables: Variables, *args: Any, method: str) -> Any:
        try:
            outputs: Any = model.apply(variables, *args, method=method)
        except AttributeError as error:
            raise UserError(
                f"{type(model).__name__} has no method {method}: task.name=vae takes vae_mlp, vae_conv, or a network "
                "with encode(images) -> mean, logvar and decode(z, image_shape) -> logits"
            ) from error
        if method == "decode" and ("logscale" in outputs) != (self.likelihood != "bernoulli"):
            do = "leave model.overrides.scale out" if "logscale" in outputs else "set config.model.overrides.scale=True"
            raise UserError(f"config.task.likelihood={self.likelihood} and the decoder do not fit: {do}")
        return outputs

    def _observed(self, batch: Batch, rngs: dict[str, jax.Array], train: bool) -> jax.Array:
        """Return the pixels that are modelled, (N, H, W, C): the batch's, or binary ones of these means.

        A draw is a function of (seed, epoch, example), in evaluation of (seed, example).
        """
        x = batch["image"]
        if self.pixels != "fresh":
            return x
        if train:
            root = jax.random.fold_in(jax.random.key(self.seed), _BINARISATION)
            epochs = jax.vmap(jax.random.fold_in, (None, 0))(root, batch["epoch"])
            keys = jax.vmap(jax.random.fold_in)(epochs, batch["example"])
        else:
            keys = jax.vmap(jax.random.fold_in, (0, None))(rngs["example"], _PIXELS)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)
        return (uniform < x).astype(x.dtype)

    def _weigh(
        self, model: nn.Module, variables: Variables, x: jax.Array, mean: jax.Array, logvar: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return log p(x|z) and log p(x, z) / q(z|x), (N, k) each, of z = mean + σ noise; noise is (N, k, latents)."""
        z = mean[:, None] + jnp.exp(logvar / 2)[:, None] * noise
        # Samples of an example stay together, so that rows on one device do: (N, k, latents) -> (N·k, latents).
        decoded = self._apply(model, variables, z.reshape(-1, z.shape[-1]), x.shape[1:], method="decode")
        # All pixels are one axis here: a last axis of one or three channels would fill no vector register.
        logits, logscale = (
            decoded[name].reshape(*z.shape[:2], -1) if name in decoded else None for name in ("logits", "logscale")
        )
        log_likelihood = LIKELIHOODS[self.likelihood](x.reshape(len(x), 1, -1), logits, logscale).sum(-1)
        # log p(z) - log q(z|x): the two constants of the Gaussians are the same.
        log_ratio = 0.5 * jnp.sum(jnp.square(noise) + logvar[:, None] - jnp.square(z), axis=-1)
        return log_likelihood, log_likelihood + log_ratio

    def _estimate(
        self, model: nn.Module, variables: Variables, x: jax.Array, mean: jax.Array, logvar: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the mean of log p(x|z) and the estimate of log p(x), (N,) each, of `eval_samples` samples.

        They are drawn in parts that fit into memory; sample i of an example is a function of its key and i, whatever
        the parts are.

        Args:
          keys: (N,).
        """
        k, pixels = self.eval_samples, math.prod(x.shape)
        part = min(k, max(1, _ELEMENTS // pixels))
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, _LATENTS)

        def noise(key: jax.Array, sample: jax.Array) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(key, sample), mean.shape[1:], mean.dtype)

        def add(totals: Any, first: jax.Array) -> tuple[Any, None]:
            samples = first + jnp.arange(part)
            drawn = jax.vmap(jax.vmap(noise, (None, 0)), (0, None))(keys, samples)  # (N, part, latents)
            log_likelihood, log_weight = self._weigh(model, variables, x, mean, logvar, drawn)
            counted = samples < k  # the last part may reach beyond
            likelihood = totals[0] + jnp.where(counted, log_likelihood, 0).sum(1)
            weights = jax.nn.logsumexp(jnp.where(counted, log_weight, -jnp.inf), axis=1)
            return (likelihood, jnp.logaddexp(totals[1], weights)), None

        zeros = jnp.zeros_like(mean[:, 0])
        (likelihood, weights), _ = jax.lax.scan(add, (zeros, zeros - jnp.inf), jnp.arange(0, k, part))
        return likelihood / k, weights - math.log(k)

    def loss(self, outputs: dict[str, Any], batch: Batch) -> tuple[Terms, Sums]:
        """Return minus the bound as the objective, its parts weighted by `task.beta`, and the sums of its metrics.

        Args:
          outputs: of `forward` in training.
          batch: "mask" (N,).
        """
        mask = batch["mask"]
        weight = mask.sum()
        kl = kl_divergence(outputs["mean"], outputs["logvar"])
        likelihood, bound = outputs["log_likelihood"].mean(1), log_mean_exp(outputs["log_weight"])
        sums = {"elbo": (jnp.sum((likelihood - kl) * mask), weight), "kl": (jnp.sum(kl * mask), weight)}
        if self.objective == "iwae":
            total = jnp.sum(bound * mask)
            return {"iwae": (-total, weight)}, sums | {"iwae": (total, weight)}
        return {
            "reconstruction": (-jnp.sum(likelihood * mask), weight),
            "kl": (self.beta * jnp.sum(kl * mask), weight),
        }, sums

    def measure(self, outputs: dict[str, Any], batch: Batch) -> Sums:
        """Return the sums of ELBO, KL and log p(x); of 256 levels with a likelihood also bits per dimension."""
        mask = batch["mask"]
        weight = mask.sum()
        sums = {name: (jnp.sum(outputs[name] * mask), weight) for name in ("elbo", "kl", "iwae")}
        if self.likelihood == "discretized_logistic":
            bits = -outputs["iwae"] / (math.log(2) * math.prod(batch["image"].shape[1:]))
            sums["bits_per_dim"] = (jnp.sum(bits * mask), weight)
        return sums

    def collect(self, outputs: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Return the posterior means (N, latents), whose variances over the data set say which latents are active."""
        return {"mean": outputs["mean"]}

    def scores(self, sums: Sums, rows: Rows) -> dict[str, float]:
        """Return "elbo", "kl", "iwae", nats an example, "bits_per_dim" where there is one, and "active_units"."""
        scores = super().scores(sums, rows)
        if len(means := rows.get("mean", ())):
            variances = np.var(np.asarray(means, np.float64), axis=0)
            scores["active_units"] = float(np.sum(variances > ACTIVE))
        return scores

    def latents(self, model: Any, key: jax.Array, count: int, limit: float | None = None) -> jax.Array:
        """Return `count` draws from N(0, I), float32 (count, latents), or from within ±`limit` of it."""
        if not hasattr(model, "latent_size"):
            raise UserError(f"{type(model).__name__} has no latent_size: define the number of its latents")
        shape = (count, model.latent_size)
        if limit is None:
            return jax.random.normal(key, shape)
        return jax.random.truncated_normal(key, -limit, limit, shape)

    def generate(self, model: nn.Module, variables: Variables, z: jax.Array, image_shape: Sequence[int]) -> jax.Array:
        """Return the mean of p(x|z) for latents (N, latents), float32 (N, H, W, C) in 0 … 1."""
        return jax.nn.sigmoid(self._apply(model, variables, z, image_shape, method="decode")["logits"])

    def predict(self, outputs: dict[str, Any]) -> dict[str, jax.Array]:
        """Return "mean", "logvar" (N, latents), "bound", the ELBO (N,), and the "reconstruction" in 0 … 1."""
        kept = {"mean": outputs["mean"], "logvar": outputs["logvar"], "bound": outputs["elbo"]}
        return kept | {"reconstruction": jax.nn.sigmoid(outputs["logits"])}

    def describe(self, prediction: dict[str, np.ndarray], names: Sequence[str]) -> tuple[dict[str, Any], str]:
        """Return {"mean": [...], "logvar": [...], "bound": nats} of an image, and the bound with the first means."""
        summary = {name: np.asarray(prediction[name], float).tolist() for name in ("mean", "logvar", "bound")}
        first = ", ".join(f"{value:.2f}" for value in summary["mean"][:4])
        more = ", …" if len(summary["mean"]) > 4 else ""
        return summary, f"bound {summary['bound']:.2f} nats, mean ({first}{more})"

    def draw(
        self,
        images: np.ndarray,
        predictions: dict[str, np.ndarray],
        names: Sequence[str],
        titles: Sequence[str] = (),
        targets: dict[str, np.ndarray] | None = None,
    ) -> Any:
        """Return a figure of images, each beside its reconstruction and under its bound."""
        from jaxcnn.figures.overlays import pairs

        bounds = [f"{bound:.1f} nats" for bound in predictions["bound"]]
        return pairs(images, predictions["reconstruction"], titles or [""] * len(images), bounds)

    def per_example(self, outputs: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Return ELBO, KL and log p(x) of each example, (N,)."""
        return {name: outputs[name] for name in ("elbo", "kl", "iwae")}

    def example_table(self, rows: Rows, names: Sequence[str]) -> dict[str, list[float]]:
        """Return the columns of `per_example`."""
        return {name: rows[name].tolist() for name in ("elbo", "kl", "iwae")}
