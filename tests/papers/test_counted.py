"""The costs that ship with the package are those of the networks' programs."""

import pytest

from jaxcnn.models import list_models
from jaxcnn.papers.counted import count, counted

REMEDY = "a network was added or changed: run python -m jaxcnn.papers.counted"
QUICK = ("alexnet", "googlenet", "resnet20", "vgg11_bn", "vae_mlp", "gan_mlp")  # a network of each family


def test_every_network_is_counted():
    assert sorted(counted()) == list_models(), REMEDY


@pytest.mark.parametrize("name", QUICK)
def test_the_costs_are_those_of_its_program(name):
    assert counted()[name] == count(name), REMEDY


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*list_models()} - {*QUICK}))
def test_the_costs_of_the_others_are_those_of_their_programs(name):
    assert counted()[name] == count(name), REMEDY
