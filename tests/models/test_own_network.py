"""A network of one's own, "module:Class": found, built, and refused with one line where it cannot be used."""

import re
import sys

import jax.numpy as jnp
import pytest

from jaxcnn import UserError
from jaxcnn.models import check_model, create_model, list_models

SOURCE = """
from typing import Any
import flax.linen as nn
import jax.numpy as jnp
from jaxcnn.models.layers import Classifier, FullyConnected, conv

class TinyNet(nn.Module):
    num_classes: int
    dtype: Any = jnp.bfloat16
    width: int = 4

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(conv(self.width, 3, dtype=self.dtype, name="conv")(images))
        return {"logits": Classifier(self.num_classes, self.dtype, name="head")(x.mean((1, 2)))}

class Array(TinyNet):
    @nn.compact
    def __call__(self, images, train=False):
        return Classifier(self.num_classes, self.dtype, name="head")(images.mean((1, 2)))

class Grey(TinyNet):
    @nn.compact
    def __call__(self, images, train=False):
        assert images.shape[1:] == (28, 28, 1), images.shape
        hidden = FullyConnected(8, self.dtype, name="fc1")(images)
        return {"logits": Classifier(self.num_classes, self.dtype, name=self.last)(hidden)}
    last = "head"

class GreyMisnamed(Grey):
    last = "fc2"

class NoClasses(nn.Module):
    dtype: Any = jnp.bfloat16

class NoType(nn.Module):
    num_classes: int = 10

class Demanding(TinyNet):
    depth: int = nn.module.dataclasses.field(kw_only=True)

class Plain:
    num_classes: int = 10

VALUE = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a module `own_nets` that no other test has imported."""
    (tmp_path / "own_nets.py").write_text(SOURCE)
    (tmp_path / "own_broken.py").write_text("import no_such_dependency\n")
    (tmp_path / "own_unparsed.py").write_text("def f(:\n")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.mark.parametrize("module", ["own_nets", "own_package.nets"])
def test_a_network_of_the_current_folder_is_built_with_classes_type_and_overrides(folder, module):
    before = list(sys.path)
    model = create_model(f"{module}:TinyNet", 7, jnp.float32, width=12)
    assert type(model).__module__ == module
    assert (model.num_classes, model.dtype, model.width) == (7, jnp.float32, 12)  # type: ignore[attr-defined]
    assert sys.path == before
    assert not any(":" in name for name in list_models())


def test_a_module_on_the_path_comes_before_one_of_the_current_folder(folder, monkeypatch):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own_nets.py").write_text(SOURCE.replace("width: int = 4", "width: int = 5"))
    monkeypatch.syspath_prepend(elsewhere)
    assert create_model("own_nets:TinyNet").width == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "overrides", "named"),
    [
        ("own_nothing:TinyNet", {}, "'own_nothing'.*no such module"),
        ("own_package.nothing:TinyNet", {}, r"'own_package\.nothing'.*no such module"),
        ("own_nets:TinyNt", {}, "no 'TinyNt'.*own_nets.*TinyNet"),
        ("own_nets:Plain", {}, r"flax\.linen\.Module.*'Plain'"),
        ("own_nets:VALUE", {}, r"flax\.linen\.Module.*'VALUE'"),
        ("own_nets:", {}, "module:Class"),
        (":TinyNet", {}, "module:Class"),
        ("own_nets.py:TinyNet:x", {}, "module:Class"),
        ("../own_nets:TinyNet", {}, "module:Class"),
        ("own_broken:TinyNet", {}, "'own_broken'.*no_such_dependency"),
        ("own_unparsed:TinyNet", {}, "'own_unparsed'.*SyntaxError"),
        ("own_nets:NoClasses", {}, "NoClasses.*num_classes"),
        ("own_nets:NoType", {}, "NoType.*dtype"),
        ("own_nets:Demanding", {}, "depth.*overrides"),
        ("own_nets:TinyNet", {"widht": 3}, "no override 'widht'.*width"),
        ("own_nets:Array", {}, "return a dict"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_it(folder, name, overrides, named):
    with pytest.raises(UserError, match=named) as caught:
        create_model(name, **overrides)
    assert re.search(re.escape(name.split(":")[1] or name), str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_network_that_takes_one_shape_only_is_checked_where_the_shape_is_known(folder):
    check_model(create_model("own_nets:Grey", 5), image_shape=(28, 28, 1))
    misnamed = create_model("own_nets:GreyMisnamed", 5)
    with pytest.raises(UserError, match=r"'fc2'.*'head'"):
        check_model(misnamed, image_shape=(28, 28, 1))
    with pytest.raises(UserError, match=r"\(2, 64, 64, 3\)"):
        check_model(misnamed)
