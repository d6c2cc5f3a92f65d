"""The VAEs: their sizes, their sides, their noise and their types."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import GENERATIVE, count, quick

from jaxcnn import UserError
from jaxcnn.models import convolution, create_model
from jaxcnn.models.layers import ConvTranspose


def shapes(name: str, *image_shape: int, train: bool = False, **overrides: Any) -> tuple[Any, Any]:
    """Shapes of the outputs and the variables for two images."""
    model = create_model(name, 1, **({"dtype": jnp.float32} | overrides))
    rngs = {"params": jax.random.key(0), "latent": jax.random.key(0)}
    return jax.eval_shape(lambda: model.init_with_output(rngs, jnp.zeros((2, *image_shape)), train=train))


@pytest.mark.parametrize("name", ["vae_mlp", "vae_conv"])
def test_a_network_has_the_parameters_of_its_table(name):
    outputs, made = shapes(name, 28, 28, 1)
    assert count(made["params"]) == GENERATIVE[name]
    assert outputs["logits"].shape == (2, 28, 28, 1)
    assert outputs.keys() == {"logits", "mean", "logvar"}


def test_burdas_form_is_784_200_200_50_mirrored():
    _, made = shapes("vae_mlp", 28, 28, 1, form="burda")
    layers = [(784, 200), (200, 200), (200, 50), (200, 50), (50, 200), (200, 200), (200, 784)]
    assert count(made["params"]) == sum((units + 1) * more for units, more in layers)
    changed, _ = shapes("vae_mlp", 28, 20, 1, form="burda", latent=3, hidden=(7,), scale=True)
    assert (changed["mean"].shape, changed["logscale"].shape) == ((2, 3), (2, 28, 20, 1))


@pytest.mark.parametrize("side", [28, 32, 40, 48, 56, 64])
def test_the_convolutional_one_takes_sides_that_halve_evenly(side):
    outputs, _ = shapes("vae_conv", side, side, 3)
    assert outputs["logits"].shape == (2, side, side, 3)


@pytest.mark.parametrize("shape", [(28, 20, 1), (27, 27, 1), (36, 36, 1), (24, 24, 3), (72, 72, 3)])
def test_and_names_them_where_it_is_given_others(shape):
    with pytest.raises(UserError, match=rf"28, 32, 40, 48, 56, 64 pixels, not {shape[0]}×{shape[1]}: .*vae_mlp"):
        shapes("vae_conv", *shape)


@pytest.mark.parametrize(
    ("key", "value"),
    [("latent", 0), ("latent", 2.5), ("hidden", ()), ("hidden", (3, 0)), ("scale", 1), ("form", "deep")],
)
def test_an_illegal_value_is_named(key, value):
    with pytest.raises(UserError, match=rf"model vae_mlp: {key}="):
        create_model("vae_mlp", **{key: value})


def test_the_noise_is_of_the_stream_latent_and_of_training_alone():
    model: Any = create_model("vae_mlp", dtype=jnp.float32, hidden=(4,), latent=2)
    x = jnp.ones((2, 3, 2, 1))
    made = model.init({"params": jax.random.key(0), "latent": jax.random.key(1)}, x, train=True)
    plain = model.apply(made, x)
    np.testing.assert_array_equal(
        plain["logits"], model.apply(made, plain["mean"], (3, 2, 1), method="decode")["logits"]
    )
    first, again, other = (model.apply(made, x, train=True, rngs={"latent": jax.random.key(i)}) for i in (1, 1, 2))
    np.testing.assert_array_equal(first["logits"], again["logits"])
    assert (first["logits"] != other["logits"]).any()
    assert (first["logits"] != plain["logits"]).any()


@pytest.mark.parametrize("platform", ["cpu", ""])
@pytest.mark.parametrize(("kernel", "pad", "extra"), [(4, 1, 0), (5, 2, 1), (4, 0, 0)])
def test_a_transposed_convolution_is_the_gradient_of_the_strided_one(kernel, pad, extra, platform, monkeypatch):
    """As torch's: of the convolution whose kernel is this one, turned by 180° with its channels exchanged.

    Its own gradients are that convolution's value and its kernel's gradient, in the form for a CPU and in XLA's.
    """
    monkeypatch.setattr(convolution, "platform", lambda: platform)
    layer = ConvTranspose(2, kernel, 2, pad, extra, dtype=jnp.float32)
    rng = np.random.default_rng(0)  # integers, so that every sum is exact
    x = jnp.asarray(rng.integers(-4, 5, (1, 3, 4, 5)), jnp.float32)
    weights = jnp.asarray(rng.integers(-4, 5, (kernel, kernel, 5, 2)), jnp.float32)

    def strided(y: jax.Array, weights: jax.Array) -> jax.Array:
        turned = weights[::-1, ::-1].swapaxes(2, 3)  # (k, k, 2, 5)
        return jax.lax.conv_general_dilated(
            y, turned, (2, 2), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    @quick
    def ours(x: jax.Array, weights: jax.Array, grad: jax.Array) -> Any:
        y, transpose = jax.vjp(lambda *args: layer.apply({"params": {"kernel": args[1]}}, args[0]), x, weights)
        return y, transpose(grad)

    shape = (1, *(2 * (n - 1) + kernel - 2 * pad + extra for n in (3, 4)), 2)
    grad = jnp.asarray(rng.integers(-4, 5, shape), jnp.float32)
    y, (of_x, of_weights) = ours(x, weights, grad)
    np.testing.assert_array_equal(y, jax.vjp(lambda y: strided(y, weights), grad)[1](x)[0])
    np.testing.assert_array_equal(of_x, strided(grad, weights))
    np.testing.assert_array_equal(of_weights, jax.vjp(lambda weights: strided(grad, weights), weights)[1](x)[0])


def test_the_last_convolution_is_not_rounded_to_16_bits():
    x = 1 + jax.random.normal(jax.random.key(0), (2, 5, 5, 64)).astype(jnp.bfloat16)
    layer = ConvTranspose(1, 4, 2, 1, dtype=jnp.bfloat16, wide=True)
    made: Any = layer.init(jax.random.key(1), x)
    kernel = made["params"]["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    exact = ConvTranspose(1, 4, 2, 1, dtype=jnp.float32)

    @quick
    def both(x: jax.Array) -> Any:
        return layer.apply(made, x), exact.apply({"params": {"kernel": kernel}}, x.astype(jnp.float32))

    ours, expected = both(x)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    assert (np.asarray(ours) != np.asarray(ours.astype(jnp.bfloat16), np.float32)).any()
