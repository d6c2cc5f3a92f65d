"""GAN: two players, each with an optimizer of its own, and one update of either in a step.

Goodfellow et al. 2014 (arXiv:1406.2661), algorithm 1 with k = 1; Radford et al. 2015 (arXiv:1511.06434), section 4.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn import UserError
from jaxcnn.config import Config
from jaxcnn.tasks.base import Batch, Features, Headline, Images, Parts, Rows, Sums, Task, Terms, Variables
from jaxcnn.tasks.frechet import distance, moments

PLAYERS = ("discriminator", "generator")
_NOISE = 0x6E6F6973  # folded into the seed for the latents, which nothing else shares
_LOST = 1e-3  # nats: a discriminator's loss at which the generator has nothing to learn from it


class GAN(Task):
    """A generator that makes images of noise, and a discriminator that tells them from those of the data."""

    best = ("discriminator_real", "max")  # of the FID, where there are features
    headline = (
        Headline("fid", "FID {:.2f}", "FID"),
        Headline("discriminator_loss", "D {:.3f}", "loss of the discriminator, nats"),
        Headline("generator_loss", "G {:.3f}", "loss of the generator, nats"),
    )
    players = PLAYERS
    pixel_range = (-1.0, 1.0)

    def __init__(self, config: Config):
        self.seed, self.saturating, self.prior = config.seed, config.task.loss == "minimax", config.task.prior
        self.features, self.endpoint = config.task.features, config.task.endpoint
        self.network: Features | None = None
        if self.features:
            self.best = ("fid", "min")

    def use_features(self, network: Features) -> None:
        """Take the classifier whose features the FID is of.

        Raises:
          UserError: it has no such endpoint, or none.
        """
        endpoints = list(getattr(network.model, "endpoints", {}))
        self.endpoint = self.endpoint or (endpoints[-1] if endpoints else "")
        if self.endpoint not in endpoints:
            known = f"take one of {', '.join(endpoints)}" if endpoints else "take another network, this has none"
            raise UserError(f"config.task.endpoint={self.endpoint!r} is no endpoint of {network.name}: {known}")
        self.network, self.constants = network, {"features": network.variables}

    def about(self) -> dict[str, Any]:
        """Return of which features and against which images the FID is; FIDs of others do not compare."""
        if not self.network:
            return {}
        return {"fid_features": f"{self.endpoint} of {self.network.name}", "fid_reference": "the evaluation images"}

    def forward(
        self, model: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array], train: bool
    ) -> tuple[Any, Variables]:
        """Judge a batch; in evaluation with features, those of its images and of as many that are generated.

        Latents of evaluation are a function of (seed, example).
        """
        outputs, updates = super().forward(model, variables, batch, rngs, train)
        if train or not self.network or "constants" not in variables:
            return outputs, updates
        z = jax.vmap(lambda key: self.latents(model, key, 1)[0])(rngs["example"])
        made: Any = model.apply(variables, z, method="generate")
        weights = variables["constants"]["features"]
        named = {"real": batch["image"], "made": made}
        return outputs | {name: self._features(weights, images) for name, images in named.items()}, updates

    def _features(self, weights: Variables, images: jax.Array) -> jax.Array:
        """Return an endpoint's mean over space, float32 (N, D), of images in -1 … 1, resized to the network's size.

        They are rounded to 256 levels, as in a file; a network of colours is given grey ones as three equal channels.
        """
        network: Any = self.network
        *size, channels = network.input["image_shape"]
        images = jnp.rint((images + 1) * 127.5) / 127.5 - 1
        if images.shape[-1] == 1:
            images = jnp.repeat(images, channels, axis=-1)
        if channels != images.shape[-1]:
            raise UserError(
                f"config.task.features={self.features} takes images of {channels} channels, these have "
                f"{images.shape[-1]}: take a network that was trained on such images"
            )
        images = jax.image.resize(images, (len(images), *size, channels), "bilinear")
        mean, std = (jnp.asarray(network.input[key], jnp.float32) for key in ("mean", "std"))
        x = network.model.apply(weights, ((images + 1) / 2 - mean) / std)[self.endpoint].astype(jnp.float32)
        return x.mean((1, 2)) if x.ndim == 4 else x

    def collect(self, outputs: dict[str, Any], batch: Batch) -> dict[str, jax.Array] | None:
        """Return the features of real and of generated images, (N, D) each, where there are any."""
        return {name: outputs[name] for name in ("real", "made")} if "made" in outputs else None

    def scores(self, sums: Sums, rows: Rows) -> dict[str, float]:
        """Return {"discriminator_real": nats}, and the "fid" of as many images made as the evaluation set has."""
        scores = super().scores(sums, rows)
        if len(rows.get("made", ())) > 1:
            scores["fid"] = distance(moments(rows["real"]), moments(rows["made"]))
            scores["fid_samples"] = len(rows["made"])
        return scores

    def against(self, rows: Rows, reference: Rows) -> dict[str, float]:
        """Return the "fid" of the generated images against other ones, and its "fid_floor", that of the real images."""
        of = moments(reference["real"])
        return {"fid": distance(of, moments(rows["made"])), "fid_floor": distance(of, moments(rows["real"]))}

    def targets(self, data: Images) -> dict[str, jax.ShapeDtypeStruct]:
        """Return {}: labels are not read, if there are any."""
        return {}

    def averaged(self, path: str) -> bool:
        """Return whether a variable is the generator's: it alone has a moving average."""
        return path.split("/")[1:2] == ["generator"]

    def make_step(self, parts: Parts) -> Callable[[Any, Batch], tuple[Any, jax.Array]]:
        """Return the step: the discriminator's update, then the generator's against the new discriminator.

        Both see the images of one batch of latents. Real and generated images go through BatchNorm as batches of their
        own; the generator's statistics move once a step.
        """
        model: nn.Module = parts.model  # type: ignore[attr-defined]

        def discriminate(variables: Variables, images: jax.Array, rng: jax.Array) -> tuple[jax.Array, Any]:
            """Return logits (N,), and the variables with new statistics of the discriminator."""
            outputs, new = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": rng})
            return outputs["logits"], _with_statistics(variables, new, "discriminator")

        def generate(variables: Variables, batch: Batch) -> tuple[jax.Array, Any]:
            """Return images in -1 … 1, and the variables with new statistics of the generator."""
            z = self.noise(batch, model.latent_size)  # type: ignore[attr-defined]
            images, new = model.apply(variables, z, train=True, mutable=["batch_stats"], method="generate")
            return images, _with_statistics(variables, new, "generator")

        def of_discriminator(variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Any:
            mask, (first, second) = batch["mask"], jax.random.split(rngs["dropout"])
            real, variables = discriminate(variables, batch["image"], first)
            made, _ = generate(variables, batch)
            fake, variables = discriminate(variables, jax.lax.stop_gradient(made), second)
            weight = mask.sum()
            terms: Terms = {
                "real": (jnp.sum(jax.nn.softplus(-real) * mask), weight),  # -log D(x)
                "fake": (jnp.sum(jax.nn.softplus(fake) * mask), weight),  # -log(1 - D(G(z)))
            }
            sums = {f"discriminator_{name}": pair for name, pair in terms.items()}
            return terms, sums, variables.get("batch_stats", {})

        def of_generator(variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Any:
            mask = batch["mask"]
            made, variables = generate(variables, batch)
            fake, variables = discriminate(variables, made, rngs["dropout"])
            # Minimax: log(1 - D(G(z))), which saturates; else -log D(G(z)) (section 3 of the first paper).
            losses = -jax.nn.softplus(fake) if self.saturating else jax.nn.softplus(-fake)
            return {"generator": (jnp.sum(losses * mask), mask.sum())}, {}, variables.get("batch_stats", {})

        judge, maker = (
            parts.gradients(objective, player)
            for objective, player in zip((of_discriminator, of_generator), PLAYERS, strict=True)
        )

        def step(state: Any, batch: Batch) -> tuple[Any, jax.Array]:
            first = judge(state, batch)
            state = parts.update("discriminator", state, first)
            second = maker(state, batch)
            return parts.update("generator", state, second), first.loss + second.loss

        return step

    def noise(self, batch: Batch, size: int) -> jax.Array:
        """Return latents (N, size), a function of (seed, epoch, example): both players are given the same."""
        root = jax.random.fold_in(jax.random.key(self.seed), _NOISE)
        epochs = jax.vmap(jax.random.fold_in, (None, 0))(root, batch["epoch"])
        keys = jax.vmap(jax.random.fold_in)(epochs, batch["example"])
        dtype = batch["image"].dtype
        if self.prior == "uniform":
            return jax.vmap(lambda key: jax.random.uniform(key, (size,), dtype, -1, 1))(keys)
        return jax.vmap(lambda key: jax.random.normal(key, (size,), dtype))(keys)

    def measure(self, outputs: dict[str, Any], batch: Batch) -> Sums:
        """Return the sums of -log D(x) over real images, which falls where the discriminator has learnt them."""
        mask = batch["mask"]
        return {"discriminator_real": (jnp.sum(jax.nn.softplus(-outputs["logits"]) * mask), mask.sum())}

    def alarms(self, values: dict[str, float]) -> list[str]:
        """Return a sentence where the discriminator has won: its loss stays at 0 for all steps of a line of the log."""
        loss = values.get("train/discriminator_loss")
        if loss is None or loss >= _LOST:
            return []
        return [
            f"warning: the discriminator's loss is {loss:.1e}: it tells all images apart and the generator no longer "
            "learns; lower its rate by optimizer.multipliers=discriminator=0.5, or begin again with another seed"
        ]

    def latents(self, model: Any, key: jax.Array, count: int, limit: float | None = None) -> jax.Array:
        """Return `count` draws from the prior, float32 (count, latents), of magnitude `limit` at most."""
        shape = (count, model.latent_size)
        if self.prior == "uniform":
            bound = min(1.0, limit or 1.0)
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        if limit is None:
            return jax.random.normal(key, shape)
        return jax.random.truncated_normal(key, -limit, limit, shape)

    def generate(self, model: nn.Module, variables: Variables, z: jax.Array, image_shape: Sequence[int]) -> jax.Array:
        """Return the images of latents, float32 (N, H, W, C) in 0 … 1."""
        images: Any = model.apply(variables, z, method="generate")
        return (images + 1) / 2


def _with_statistics(variables: Variables, new: Variables, player: str) -> Variables:
    """Return variables with the statistics of one player from `new`, what a call in training gave."""
    found = new.get("batch_stats", {})
    if player not in found:
        return variables
    return {**variables, "batch_stats": {**variables["batch_stats"], player: found[player]}}
