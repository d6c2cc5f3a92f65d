"""The notebooks carry no outputs, and run; what they draw is whole and legible."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from jaxcnn import UserError
from jaxcnn.figures.networks import boxes_of, draw, feature_maps, filters_grid, strongest
from jaxcnn.models import create_model
from jaxcnn.papers.cost import paper_layers, total

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kept = [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
    assert not kept, f"{path.name} holds outputs: strip them as notebooks/README.md says"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_uses_the_public_api_the_config_figures_and_papers_alone(path):
    code = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    words = [line.split() for line in code.splitlines() if line.startswith(("import jaxcnn", "from jaxcnn"))]
    assert words
    public = ("jaxcnn", "jaxcnn.config", "jaxcnn.figures.", "jaxcnn.papers.")
    assert not [line for line in words if line[1] not in public and not line[1].startswith(public[2:])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs_on_the_quick_setting(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # or it warns that this will be the default
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # the user's own settings rest
    from ipykernel.kernelspec import make_ipkernel_cmd
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class ThisPython(KernelSpecManager):
        """Whatever kernels the user has installed: the one that runs the tests."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(argv=make_ipkernel_cmd(executable=sys.executable), language="python")

    # One device, as a user's: the eight that other tests see would share two cores.
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "").strip()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython()),
        timeout=600,
        startup_timeout=300,
        resources={"metadata": {"path": str(path.parent)}},
    )
    environment = os.environ | {"JAXCNN_NOTEBOOK_QUICK": "1", "XLA_FLAGS": flags}
    client.execute(cleanup_kc=True, env=environment)  # raises what a cell raises
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    drawing = [cell for cell in notebook.cells if cell.cell_type == "code" and _draws(cell.source)]
    assert len(pictures) >= len(drawing) > 0


DRAWING = ("draw(", "Image(", "filters_grid(", "feature_maps(", "heat_cards(", "mask_cards(", "box_cards(")


def _draws(source: str) -> bool:
    """Whether a cell ends in a picture: a call of ours that draws, a figure, or an image."""
    last = source.splitlines()[-1]
    return last == "figure" or last.startswith(DRAWING)


NETWORKS = ("alexnet", "vgg16", "vgg19_bn", "googlenet", "resnet50", "resnet152", "resnet34_c", "resnet20", "plain56")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_diagram_leaves_nothing_out(name):
    rows = paper_layers(name)
    boxes = boxes_of(rows)
    assert sum(box.parameters for box in boxes) == total(rows, "parameters")
    assert sum(box.macs for box in boxes) == total(rows, "macs")
    assert len(boxes) <= 24


def test_boxes_are_blocks_with_the_size_that_they_put_out():
    boxes = {box.label: box for box in boxes_of(paper_layers("resnet50"), residual=True)}
    assert boxes["stage3 block2–6"][1:5] == ("residual block", "1×1 3×3 1×1", (14, 14, 1024), 5)
    assert boxes["stage2 block1"][1:5] == ("residual block", "1×1/2 3×3 1×1 + 1×1/2", (28, 28, 512), 1)
    boxes = {box.label: box for box in boxes_of(paper_layers("googlenet"))}
    assert boxes["inception3b"][1:5] == ("inception module", "1×1 3×3 5×5", (28, 28, 480), 1)
    boxes = {box.label: box for box in boxes_of(paper_layers("vgg16"))}
    assert boxes["stage5 conv1–3"][1:5] == ("convolution", "conv 3×3", (14, 14, 512), 3)
    assert {"fc6", "fc7"} < boxes.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_no_two_texts_of_a_diagram_overlap(name):
    figure = draw(name)
    figure.draw_without_rendering()
    children = [child for axes in figure.axes for child in axes.get_children()] + figure.legends[0].get_texts()
    texts = [child for child in children if isinstance(child, Text) and child.get_text()]
    boxes = [text.get_window_extent().padded(-3) for text in texts]  # without the space around letters
    for i, one in enumerate(boxes):
        assert Bbox.union([one, figure.bbox]).bounds == figure.bbox.bounds, texts[i]  # it is inside
        for j in range(i):
            assert not one.overlaps(boxes[j]), (texts[i], texts[j])


def test_a_network_without_a_name_is_drawn_for_its_images():
    figure = draw(create_model("alexnet", 10, small_images=True, width=0.25), (28, 28, 1))
    assert figure.axes[0].get_title("left") == "AlexNet, images of 28×28×1"


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_are_images_each_to_its_own_scale(channels):
    kernel = np.random.default_rng(0).standard_normal((5, 5, channels, 20)) * np.arange(20)
    figure = filters_grid(kernel)
    pictures = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert len(pictures) == 20
    assert all(picture.min() >= 0 and picture.max() <= 1 for picture in pictures)
    assert (pictures[0] == 0.5).all()  # a filter of zeros is grey
    assert all(abs(picture - 0.5).max() == pytest.approx(0.5) for picture in pictures[1:])


def test_filters_of_a_deep_layer_are_no_images():
    with pytest.raises(UserError, match="first layer"):
        filters_grid(np.zeros((3, 3, 16, 16)))


def test_the_strongest_maps_come_first():
    assert strongest(np.ones((2, 2, 4)) * [1, 3, 0, 2], 3).tolist() == [1, 3, 0]


def test_feature_maps_are_of_every_endpoint():
    model = create_model("alexnet", 10, jnp.float32, small_images=True, width=0.1)
    image = np.random.default_rng(0).standard_normal((28, 28, 1)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), image[None])
    figure = feature_maps(model, variables, image, count=4)
    assert sum(len(axes.images) for axes in figure.axes) == 1 + 4 * len(model.endpoints)
