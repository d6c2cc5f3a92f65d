"""Label maps and boxes over images: colours that differ, void that is left alone, a legend of what is seen."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxcnn.figures.overlays import (
    box_cards,
    class_colours,
    draw_boxes,
    mask_cards,
    precision_recall,
    show,
    tinted,
    top5_cards,
)


def test_colours_of_neighbouring_classes_are_far_apart_and_void_is_white():
    colours = class_colours().astype(int)
    assert colours.shape == (256, 3)
    assert colours[255].tolist() == [255] * 3
    assert len(np.unique(colours[:100], axis=0)) == 100
    for step in (1, 2):
        assert (np.abs(colours[:40] - colours[step : 40 + step]).max(1) > 60).all()


def test_void_and_background_leave_the_image_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 1), np.uint8)
    labels = np.array([[0, 1, 2, 255]] * 2)
    found = tinted(image, labels, ["background", "cat", "dog"])
    np.testing.assert_array_equal(found[:, [0, 3]], np.broadcast_to(image, (2, 4, 3))[:, [0, 3]])
    expected = 0.4 * image[:, 1:3] + 0.6 * class_colours()[[1, 2]]
    assert np.abs(found[:, 1:3] - expected).max() <= 0.5
    assert (tinted(image, labels)[:, 0] != found[:, 0]).any(), "without names, 0 is a class as others"


def test_cards_have_a_picture_for_each_map_and_a_legend_of_the_classes_seen(tmp_path):
    images = [np.zeros((6, 8, 3), np.uint8), np.zeros((9, 5, 3), np.uint8)]
    maps = [np.zeros((6, 8), np.uint8), np.full((9, 5), 2, np.uint8)]
    maps[0][0] = 255
    figure = mask_cards(
        images, ["a", "b"], {"truth": maps, "prediction": maps}, ["s_$1$", "cat", "dog"], tmp_path / "x"
    )
    assert [axes.get_title() for axes in figure.axes] == ["a", "truth", "prediction", "b", "truth", "prediction"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["s_$1$", "dog"]
    assert (tmp_path / "x").read_bytes().startswith(b"\x89PNG")


def test_a_photograph_is_pale_outside_of_the_part_that_is_seen():
    photo, probabilities = np.zeros((20, 40, 3), np.uint8), np.array([[0.1, 0.9], [0.5, 0.5]])
    figure = top5_cards(
        [photo, photo], ["a", "b"], probabilities, ["cat", "dog"], [(2.4, 9.8, 15, 20), (-3, -3, 30, 50)]
    )
    cropped, _, all_of_it, _ = figure.axes
    veil = np.asarray(cropped.images[1].get_array())[..., 3] > 0
    rows, columns = np.nonzero(~veil)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 16, 10, 29)
    assert len(all_of_it.images) == 1


def test_the_edges_of_a_box_are_drawn_where_they_lie_in_the_image():
    figure = Figure(figsize=(2, 1), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    show(axes, np.zeros((10, 20, 3), np.uint8), "")  # a pixel of the image is ten of the picture
    draw_boxes(axes, np.array([[4, 2, 16, 7.0]]), np.array([1]), ["background", "$a_b$"], np.array([0.5]))
    assert [text.get_text() for text in axes.texts] == ["$a_b$ 50%"]
    axes.texts[0].remove()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    lit = np.asarray(canvas.buffer_rgba())[..., :3].max(-1) > 60
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    assert np.abs(np.array([columns[0], rows[0], columns[-1], rows[-1]]) - [40, 20, 160, 70]).max() <= 2
    assert not lit[30:60, 50:150].any()


def test_an_image_without_boxes_is_drawn_as_it_is():
    axes = Figure().add_subplot()
    draw_boxes(axes, np.zeros((0, 4)), np.zeros(0, int), ["background"])
    assert not axes.patches


def test_cards_have_a_picture_for_each_kind_of_boxes(tmp_path):
    images = [np.zeros((20, 30, 3), np.uint8), np.zeros((12, 9, 1), np.uint8)]
    box, none = np.array([[1, 2, 8, 9.0]]), np.zeros((0, 4))
    truth = [(box, np.array([1]), None), (none, np.zeros(0, int), None)]
    found = [(none, np.zeros(0, int), np.zeros(0)), (box, np.array([1]), np.array([0.25]))]
    names = ["background", "cat"]
    figure = box_cards(images, ["a", "b"], {"truth": truth, "found": found}, names, tmp_path / "x.png")
    assert [axes.get_title() for axes in figure.axes] == ["a truth", "a found", "b truth", "b found"]
    words = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert words == [["cat"], [], [], ["cat 25%"]]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_many_classes_differ_and_their_names_are_no_formulas(tmp_path):
    line = np.array([0.5, 1]), np.array([1, 0.5])
    figure = precision_recall({f"$c_{i}": line for i in range(80)}, tmp_path / "x.png")
    (axes,) = figure.axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines[:40]}) == 40
    assert len(figure.legends[0].get_texts()) == 80
    assert precision_recall({}).axes[0].get_xlabel() == "recall"
