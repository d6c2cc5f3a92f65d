"""Scores of the protocols against a loop over images and views, whatever the batch and the devices."""

import io
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import Tiny, ripple

from jaxcnn.config import base_config
from jaxcnn.data.batches import on_devices
from jaxcnn.data.images.augment_device import normalize
from jaxcnn.data.images.test_crops import PROTOCOLS, Views, make_views, plan, view_batches
from jaxcnn.data.sources import Source
from jaxcnn.models.layers import Classifier, FullyConnected
from jaxcnn.tasks import create_task
from jaxcnn.training.evaluation import densely, evaluate, make_crops_step
from jaxcnn.training.sharding import make_mesh, replicated

SIDE, CLASSES = 8, 7
TASK = create_task(base_config())
SIDES = ((9, 12), (12, 9), (8, 8), (5, 30))
NORMALIZE = partial(normalize, mean=(0.5,) * 3, std=(0.2,) * 3)


class Photographs(Source):
    """Noise in PNG files of four sizes."""

    def __init__(self, size: int):
        super().__init__("photographs", "all", size, tuple("abcdefg"), (None, None, 3), (0.5,) * 3, (0.2,) * 3)

    def _read(self, index: int) -> dict[str, Any]:
        noise = np.random.default_rng(index).integers(0, 256, (*SIDES[index % 4], 3), np.uint8)
        Image.fromarray(noise).save(file := io.BytesIO(), "PNG")
        return {"image": file.getvalue(), "label": index * index % CLASSES}


class Connected(nn.Module):
    """A fully connected layer on the pixels, and the head: what dense application is about."""

    dense: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x = nn.relu(FullyConnected(5, jnp.float32, kernel_init=ripple, dense=self.dense, name="fc")(images))
        logits = Classifier(CLASSES, jnp.float32, kernel_init=ripple, name="head")(x)
        return {"logits": logits.mean((1, 2)) if self.dense else logits}


MODELS: dict[str, Any] = {"averaging": Tiny(CLASSES), "connected": Connected()}


@cache
def variables(name: str) -> Any:
    return MODELS[name].init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))


@cache
def logits_of(name: str, dense: bool) -> Any:
    model: Any = densely(MODELS[name]) if dense else MODELS[name]
    return jax.jit(lambda x: model.apply(variables(name), NORMALIZE(x))["logits"])


@cache
def one_by_one(name: str, views: Views, size: int) -> dict[str, float]:
    """Each view of each image for itself, and its mirror image; probabilities averaged in float64."""
    source, losses, ranks = Photographs(size), [], []
    for i in range(size):
        example, softmaxes = source[i], []
        for stack in views.crop(example["image"]):
            for view in stack:
                for image in [view, view[:, ::-1]] if views.protocol != "1crop" else [view]:
                    logits = np.asarray(logits_of(name, views.protocol == "dense")(image[None])[0], np.float64)
                    softmaxes.append(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
        assert len(softmaxes) == views.count
        mean = np.mean(softmaxes, axis=0)
        losses.append(-np.log(mean[example["label"]]))
        ranks.append((mean > mean[example["label"]]).sum())
    ranks = np.array(ranks)
    return {
        "eval/loss": float(np.mean(losses)), "eval/top1": (ranks < 1).mean(), "eval/top5": (ranks < 5).mean(),
        "eval/examples": size,
    }  # fmt: skip


def scores(name: str, views: Views, size: int, batch: int, devices: int) -> dict[str, float]:
    source, mesh = Photographs(size), make_mesh(devices)
    model = densely(MODELS[name]) if views.protocol == "dense" else MODELS[name]
    step = make_crops_step(model, TASK, NORMALIZE, batch * SIDE * SIDE, views.mirrored)
    batches = view_batches(source, views, plan(source, views, batch, devices))
    jitted = jax.jit(step, out_shardings=replicated(mesh))
    return evaluate(jitted, variables(name), batches, task=TASK, mesh=mesh, examples=size)


@pytest.mark.parametrize(("batch", "devices"), [(13, 1), (8, 8), (100, 8)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_are_those_of_a_loop_over_images_and_views_on_one_device_and_on_eight(protocol, batch, devices):
    views = make_views(protocol, (SIDE, SIDE, 3), scales=(8, 11) if protocol == "dense" else ())
    name = "connected" if protocol == "dense" else "averaging"
    found, expected = scores(name, views, 11, batch, devices), one_by_one(name, views, 11)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["eval/top1"] == pytest.approx(expected["eval/top1"], abs=1e-12)  # a count, exactly


def test_a_network_without_fully_connected_layers_is_dense_as_it_is():
    views = make_views("dense", (SIDE, SIDE, 3), scales=(8, 11))
    assert scores("averaging", views, 5, 30, 1) == pytest.approx(one_by_one("averaging", views, 5), rel=1e-5)


def test_the_same_variables_serve_both_forms():
    made, x = variables("connected"), jnp.ones((2, SIDE, SIDE, 3))
    models: Any = MODELS["connected"], densely(MODELS["connected"])
    ordinary, dense = (model.apply(made, x)["logits"] for model in models)
    np.testing.assert_allclose(ordinary, dense, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 150), st.sampled_from([1, 2, 8]), st.sampled_from(PROTOCOLS))
def test_every_example_is_counted_once_whatever_the_batch(size, batch, devices, protocol):
    """The sums of the labels are those of all examples, each once; nothing is computed of the images."""

    def count(_: Any, batch: Any) -> Any:
        mask = np.asarray(batch["mask"])
        total = (np.asarray(batch["label"]) * mask).sum()
        return {"examples": mask.sum()[None], "sums": {"loss": (total[None], mask.sum()[None])}, "rows": {}}

    source, views = Photographs(size), make_views(protocol, (SIDE, SIDE, 3))
    batches = view_batches(source, views, plan(source, views, batch, devices))
    found = evaluate(count, None, batches, task=TASK, mesh=make_mesh(devices), examples=size)
    mean = np.mean([source[i]["label"] for i in range(size)])
    assert found == {"eval/loss": pytest.approx(mean), "eval/examples": size}


class Constant(nn.Module):
    """Logits that a softmax in float32 takes for 0 and 1."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        return {"logits": jnp.zeros((len(images), CLASSES)).at[:, 1].set(1000 * images[:, 0, 0, 0])}


def test_a_probability_too_small_for_float32_keeps_its_loss_and_its_rank():
    """Class 1 in one view of two, all others in its mirror image: -log of (1 / 7 + e^-1000) / 2, then of e^-1000."""
    step = jax.jit(make_crops_step(Constant(), TASK, lambda x: x.astype(jnp.float32), 4, mirrored=True))
    views = jnp.zeros((2, 1, 1, 2, 3), jnp.uint8).at[0, 0, 0, 1].set(1).at[1].set(1)
    for label, losses in ((0, (np.log(14), 1000.0)), (1, (-np.log(4 / 7), 0.0))):
        for row, loss in enumerate(losses):
            batch = {"views0": views, "label": jnp.full(2, label), "mask": jnp.arange(2) == row}
            sums = step({}, batch)["sums"]
            assert (sums["loss"][0].item(), sums["loss"][1].item()) == (pytest.approx(loss, rel=1e-6, abs=1e-6), 1)
            assert sums["top1"][0].item() == label


def compiled(devices: int, batch: int) -> Any:
    """The program of 144 crops of one image a device."""
    mesh, views = make_mesh(devices), make_views("144crop", (SIDE, SIDE, 3))
    step = make_crops_step(MODELS["averaging"], TASK, NORMALIZE, batch * SIDE * SIDE, views.mirrored)
    source = Photographs(devices)
    example = next(on_devices(view_batches(source, views, plan(source, views, batch, devices)), mesh))
    return jax.jit(step, out_shardings=replicated(mesh)).lower(variables("averaging"), example).compile()


def test_devices_add_their_sums_and_exchange_no_views():
    text = compiled(8, 64).as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


def test_views_go_through_the_network_in_parts_no_larger_than_an_ordinary_batch():
    small, large = (compiled(1, batch).memory_analysis().temp_size_in_bytes for batch in (6, 144))
    assert small < large / 3


@pytest.mark.parametrize(("pixels", "together"), [(288, 3), (287, 2), (1, 1)])
def test_a_part_has_as_many_crops_of_each_image_as_an_ordinary_batch_has_pixels_for(pixels, together):
    seen = set()

    def watched(images: jax.Array) -> jax.Array:
        seen.add(images.shape)
        return NORMALIZE(images)

    rows = {"label": np.zeros(2, np.int32), "mask": np.ones(2, np.float32), "example": np.arange(2)}
    step = make_crops_step(MODELS["averaging"], TASK, watched, pixels, mirrored=False)
    jax.eval_shape(step, variables("averaging"), rows | {"views0": np.zeros((2, 6, 4, 12, 3), np.uint8)})
    assert seen == {(2 * together, 4, 12, 3)}
