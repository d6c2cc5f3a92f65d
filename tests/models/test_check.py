"""The conventions of jaxcnn/models/README.md: the registry keeps them, and a network that breaks one is named."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from tiny_boxes import TinyBoxes

from jaxcnn import UserError
from jaxcnn.models import check_model, list_models
from jaxcnn.models.layers import Classifier, Endpoint, FullyConnected, batch_norm, conv

# A trace of 1,202 layers takes half a minute. That network is a row of the table of resnet110, with more blocks.
NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "resnet1202" else []) for name in list_models()]


@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_the_registry_keeps_the_conventions(name):
    check_model(name)


class Toy(nn.Module):
    """Keeps every convention, by methods that the networks below override one at a time."""

    num_classes: int = 5
    dtype: Any = jnp.bfloat16

    promise: ClassVar[Any] = {"stage1": (2, 4)}

    @property
    def endpoints(self) -> Any:
        return self.promise

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Any:
        x = self.features(images.astype(self.dtype), train)
        x = self.endpoint(nn.relu(batch_norm(train, dtype=self.dtype, name="norm")(x)))
        return self.outputs(x, self.head(self.hidden(x, train), train), train)

    def features(self, x: jax.Array, train: bool) -> jax.Array:
        return conv(4, 3, 2, dtype=self.dtype, name="conv")(x)

    def endpoint(self, x: jax.Array) -> jax.Array:
        return Endpoint(name="stage1")(x)

    def hidden(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(FullyConnected(8, self.dtype, name="fc1")(x))
        return nn.Dropout(0.5, deterministic=not train)(x)

    def head(self, x: jax.Array, train: bool) -> jax.Array:
        return Classifier(self.num_classes, self.dtype, name="head")(x)

    def outputs(self, x: jax.Array, logits: jax.Array, train: bool) -> Any:
        return {"logits": logits, "stage1": x}


def test_a_network_that_is_built_passes_for_any_shape_of_image():
    check_model(Toy())
    check_model(Toy(), image_shape=(28, 20, 1))
    check_model(Toy(num_classes=7), num_classes=7)


class Array(Toy):
    def outputs(self, x, logits, train):
        return logits


class Unnamed(Toy):
    def outputs(self, x, logits, train):
        return {"scores": logits}


class Wide(Toy):
    def head(self, x, train):
        return Classifier(self.num_classes + 1, self.dtype, name="head")(x)


class Map(Toy):
    def head(self, x, train):
        return Classifier(self.num_classes, self.dtype, name="head")(x)[:, None]


class Half(Toy):
    def head(self, x, train):
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


class AuxiliaryList(Toy):
    def outputs(self, x, logits, train):
        return {"logits": logits, "stage1": x, "aux_logits": [logits]}


class AuxiliaryInTrainingOnly(Toy):
    def outputs(self, x, logits, train):
        outputs: dict[str, Any] = {"logits": logits, "stage1": x}
        if train:
            outputs["aux_logits"] = (Classifier(self.num_classes, self.dtype, name="head2")(x.mean((1, 2))),)
        return outputs


class AuxiliaryMisnamed(Toy):
    def outputs(self, x, logits, train):
        auxiliary = Classifier(self.num_classes, self.dtype, name="fc2")(x.mean((1, 2)))
        return {"logits": logits, "stage1": x, "aux_logits": (auxiliary,)}


class OtherShapeInTraining(Toy):
    def hidden(self, x, train):
        return nn.relu(FullyConnected(8 if train else 9, self.dtype, name="fc1")(x))


class OtherCollection(Toy):
    def features(self, x, train):
        self.variable("cache", "seen", jnp.zeros, ())
        return super().features(x, train)


class HalfParameters(Toy):
    def features(self, x, train):
        return nn.Conv(4, (3, 3), (2, 2), dtype=self.dtype, param_dtype=self.dtype, name="conv")(x)


class NotCalledKernel(Toy):
    def features(self, x, train):
        return x[:, ::2, ::2] @ self.param("weight", nn.initializers.ones, (x.shape[-1], 4), jnp.float32)


class DenseNotCalledFc(Toy):
    def hidden(self, x, train):
        return nn.relu(nn.Dense(8, dtype=self.dtype, name="projection")(x.mean((1, 2))))


class MapNotCalledFc(Toy):
    def hidden(self, x, train):
        return nn.relu(FullyConnected(8, self.dtype, name="hidden")(x))


class HeadCalledFc(Toy):
    def head(self, x, train):
        return Classifier(self.num_classes, self.dtype, name="fc2")(x)


class HeadCastAfterwards(Toy):
    def head(self, x, train):
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc2")(x).astype(jnp.float32)


class EndpointMissing(Toy):
    def outputs(self, x, logits, train):
        return {"logits": logits}


class EndpointOfAnotherStride(Toy):
    promise = {"stage1": (4, 4)}  # noqa: RUF012


class EndpointOfOtherChannels(Toy):
    promise = {"stage1": (2, 8)}  # noqa: RUF012


class EndpointsAsAList(Toy):
    promise = ("stage1",)


class EndpointOfAnotherType(Toy):
    def outputs(self, x, logits, train):
        return {"logits": logits, "stage1": x.astype(jnp.float32)}


class ImageSizeInWords(Toy):
    image_size: ClassVar[Any] = "224"


class EndpointWithoutModule(Toy):
    def endpoint(self, x):
        return x


class EndpointNotReturned(Toy):
    def endpoint(self, x):
        return super().endpoint(x) + 1


class RandomInEvaluation(Toy):
    def hidden(self, x, train):
        return nn.Dropout(0.5, deterministic=False)(super().hidden(x, train))


class AnotherStream(Toy):
    def hidden(self, x, train):
        drop = nn.Dropout(0.5, deterministic=not train, rng_collection="noise")
        return drop(super().hidden(x, train))


class NormAlwaysInTraining(Toy):
    def features(self, x, train):
        return batch_norm(True, dtype=self.dtype, name="norm0")(super().features(x, train))


class NoTrain(nn.Module):
    num_classes: int = 5

    @nn.compact
    def __call__(self, images):
        return {"logits": Classifier(self.num_classes, jnp.float32, name="head")(images.mean((1, 2)))}


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (Array, 'no dict but float32.*return a dict with "logits"'),
        (Unnamed, "scores"),
        (Wide, r"\[2, 6\].*\(2, 5\)"),
        (Map, r"\[2, 1, 5\].*\(2, 5\)"),
        (Half, "bfloat16.*float32"),
        (AuxiliaryList, "aux_logits.*tuple"),
        (AuxiliaryInTrainingOnly, "params/head2/bias.*evaluation|evaluation.*params/head2/bias"),
        (AuxiliaryMisnamed, "'fc2'.*aux_logits.*'head'"),
        (OtherShapeInTraining, "params/fc1/bias"),
        (OtherCollection, "cache/seen"),
        (HalfParameters, "params/conv/.*bfloat16.*float32"),
        (NotCalledKernel, "weight.*'kernel'"),
        (DenseNotCalledFc, "'projection'.*'fc'"),
        (MapNotCalledFc, "'hidden'.*'fc'"),
        (HeadCalledFc, "'fc2'.*'head'"),
        (HeadCastAfterwards, "'head'"),
        (EndpointMissing, "'stage1'"),
        (EndpointOfAnotherStride, r"'stage1'.*\[2, 16, 16, 4\]"),
        (EndpointOfOtherChannels, r"'stage1'.*\[2, 32, 32, 8\]"),
        (EndpointsAsAList, "stride, channels"),
        (EndpointOfAnotherType, "'stage1'.*bfloat16"),
        (ImageSizeInWords, "image_size='224'"),
        (EndpointWithoutModule, "'stage1'.*Endpoint"),
        (EndpointNotReturned, "'stage1'.*Endpoint"),
        (RandomInEvaluation, "evaluation.*deterministic"),
        (AnotherStream, "noise"),
        (NormAlwaysInTraining, "evaluation.*batch_stats"),
        (NoTrain, "train=False"),
    ],
)
def test_a_broken_convention_is_one_line_that_names_it(broken, named):
    with pytest.raises(UserError, match=named) as caught:
        check_model(broken())
    assert broken.__name__ in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_width_of_the_logits_is_that_of_the_data():
    with pytest.raises(UserError, match=r"\[2, 5\].*\(2, 3\)"):
        check_model(Toy(), num_classes=3)


def test_images_that_a_network_does_not_take_are_named_with_its_error():
    with pytest.raises(UserError, match=r"\(2, 4, 4, 3\).*Error"):
        check_model("alexnet", image_shape=(4, 4, 3))


@pytest.mark.parametrize("value", [Toy, 3, None])
def test_what_is_no_network_is_refused(value):
    with pytest.raises(UserError):
        check_model(value)


class Incomplete(TinyBoxes):
    """A detector whose regions are not trained."""

    task: ClassVar[str] = "detection"
    lacking: str = ""

    @nn.compact
    def __call__(self, images, sizes=None, targets=None, proposals=None, train=False):
        outputs = super().__call__(images, sizes, targets, proposals, train)
        return {name: x for name, x in outputs.items() if name != self.lacking}


@pytest.mark.parametrize("lacking", ["rpn_targets", "roi_labels", "box_logits", "scores"])
def test_a_detector_without_one_of_its_outputs_is_refused_with_the_names_of_all(lacking):
    with pytest.raises(UserError, match=f'"{lacking}" \\(N, R'):
        check_model(Incomplete(lacking=lacking), image_shape=(16, 20, 3))
